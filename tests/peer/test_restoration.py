"""A new cluster out of a backup, or of lines: with all that is in it, and nothing of the old name."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import trio

from replikv import (
    Cluster,
    CompactedError,
    ConfigurationError,
    CorruptionError,
    DataDirInUseError,
    EncodingError,
    MemoryNetwork,
    MemoryTransport,
    Settings,
    StateMachine,
    StorageError,
)
from replikv.machine import commands
from replikv.machine.envelope import CommandKind, Envelope, Status
from replikv.machine.jsonlines import export_lines
from replikv.machine.replica import Replica
from replikv.machine.values import encode_value
from replikv.peer.backup import back_up
from replikv.peer.exchange import export_map, import_map
from replikv.peer.recovery import NUMBERS_LEFT_OUT
from replikv.peer.restoration import check_backup, read_backup, restore
from replikv.storage.base import Identity
from replikv.storage.disk import DiskStorage
from replikv.storage.filesystem import File, OsFile, OsFileSystem

SETTINGS = Settings(heartbeat_interval_s=0.02, election_timeout_s=0.2, wal_segment_bytes=64 * 1024)
MEMBERS = {node_id: f"memory-{node_id}" for node_id in "abc"}
IDENTITY = Identity("old-cluster", "a", "old-incarnation", "memory-a", "memory-a")


@pytest.fixture(autouse=True)
def _without_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power, and these write a great many small directories."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)


class Total(StateMachine):
    """The application's: a sum."""

    def __init__(self) -> None:
        self.total = 0

    def apply(self, position: int, command: bytes) -> bytes:
        self.total += int(command)
        return b"%d" % self.total

    def snapshot(self) -> Iterator[bytes]:
        return iter([b"%d" % self.total])

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.total = int(b"".join(chunks))


def replica_with(items: dict[str, object], machine: StateMachine | None = None) -> Replica:
    """What a session has put, and something that was deleted."""
    replica = Replica(machine)
    replica.apply(Envelope(CommandKind.REGISTER, 0, 7, 0, b"a").encode())
    for sequence, (key, value) in enumerate(items.items()):
        payload = commands.encode_put(key.encode(), encode_value(value, 1000))
        replica.apply(Envelope(CommandKind.MAP, 1, sequence, 0, payload).encode())
    return replica


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    path = tmp_path / "the.backup"
    trio.run(back_up, replica_with({"a": 1, "b": {"x": b"y"}}), IDENTITY, path)
    return path


def open_cluster(directory: Path, network: MemoryNetwork | None = None, machine: StateMachine | None = None) -> Cluster:
    transport = MemoryTransport(network or MemoryNetwork())
    return Cluster(data_dir=directory, transport=transport, machine=machine, settings=SETTINGS)


# -- what is restored --------------------------------------------------------------------------------------------------


async def test_a_cluster_of_one(backup: Path, tmp_path: Path) -> None:
    """Everything is there, with its revisions; what follows is far above them, and whoever watches is told."""
    told = check_backup(backup)
    assert ("old-cluster", "a", 2, 2, False) == (told.cluster_id, told.node_id, told.revision, told.keys, told.machine)
    restored = restore(backup, tmp_path / "new", "n", settings=SETTINGS)
    assert (2, NUMBERS_LEFT_OUT + 2) == (restored.keys, restored.revision)
    async with open_cluster(tmp_path / "new") as cluster:
        store = cluster.store
        assert {"a": 1, "b": {"x": b"y"}} == dict(store.items())
        assert (1, 2) == (store.entry("a").mod_revision, store.entry("b").mod_revision)
        assert NUMBERS_LEFT_OUT + 3 == await store.put("c", 3)
        assert await store.replace("a", 2, revision=1)
        with pytest.raises(CompactedError):
            async with store.watch(since=2):
                pass
        assert restored.cluster_id == cluster.status().cluster_id != "old-cluster"
        assert ("n", {"n"}) == (cluster.status().node_id, set(cluster.status().members))
    async with open_cluster(tmp_path / "new") as cluster:
        assert 3 == await cluster.store.get("c")


async def test_a_cluster_of_three(backup: Path, tmp_path: Path) -> None:
    """Restored apart, they find each other; their replicas are equal, and a fourth may join."""
    network = MemoryNetwork()
    ids = {
        restore(backup, tmp_path / node_id, node_id, members=MEMBERS, settings=SETTINGS).cluster_id for node_id in "abc"
    }
    assert 1 == len(ids)
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(open_cluster(tmp_path / node_id, network)) for node_id in "abc"]
        assert NUMBERS_LEFT_OUT + 3 == await peers[1].store.put("c", 3)
        joined = Cluster(
            "d", address="memory-d", join=["memory-a"], transport=MemoryTransport(network), settings=SETTINGS
        )
        peers.append(await stack.enter_async_context(joined))
        for peer in peers:
            await peer.store.barrier()
            assert {"a": 1, "b": {"x": b"y"}, "c": 3} == dict(peer.store.items())
        assert set("abcd") == set(peers[0].status().members)
        with trio.fail_after(20):
            while len({peer.digest() for peer in peers}) > 1:  # noqa: ASYNC110  # nothing to wait on
                await trio.sleep(0.02)


def test_who_does_not_restore_the_same_is_of_another_cluster(backup: Path, tmp_path: Path) -> None:
    """Another state, other members, another name: another id. And one of a single peer is drawn."""
    other = tmp_path / "other.backup"
    trio.run(back_up, replica_with({"a": 2}), IDENTITY, other)
    ids = [
        restore(backup, tmp_path / "1", "a", members=MEMBERS).cluster_id,
        restore(other, tmp_path / "2", "a", members=MEMBERS).cluster_id,
        restore(backup, tmp_path / "3", "a", members=MEMBERS | {"c": "memory-x"}).cluster_id,
        restore(backup, tmp_path / "4", "a", members=MEMBERS, cluster_name="again").cluster_id,
        restore(backup, tmp_path / "5", "a").cluster_id,
        restore(backup, tmp_path / "6", "a").cluster_id,
    ]
    assert len(ids) == len(set(ids))


def test_sessions_are_not_taken_along(backup: Path, tmp_path: Path) -> None:
    """A command of the old cluster is neither answered nor executed: it was another cluster's."""
    old = read_backup(backup)[1]
    command = Envelope(CommandKind.MAP, 1, 0, 0, commands.encode_put(b"a", encode_value(5, 10))).encode()
    assert Status.OK == old.apply(command)[0]
    restore(backup, tmp_path / "new", "a")
    with contextlib.closing(DiskStorage(tmp_path / "new")) as storage, storage.open_snapshot(1) as (_, chunks):
        replica = Replica()
        replica.restore(chunks)
    assert {} == replica.sessions.table
    assert Status.UNKNOWN_SESSION == replica.apply(command)[0]
    assert old.position + NUMBERS_LEFT_OUT == replica.position


async def test_the_applications_machine_is_carried(tmp_path: Path) -> None:
    """By a command that has not its code. It goes on from where it was."""
    machine = Total()
    replica = replica_with({"a": 1}, machine)
    replica.apply(Envelope(CommandKind.CUSTOM, 0, 0, 0, b"41").encode())
    told = await back_up(replica, IDENTITY, tmp_path / "backup")
    assert told.machine
    restore(tmp_path / "backup", tmp_path / "new", "a")
    async with open_cluster(tmp_path / "new", machine=Total()) as cluster:
        assert b"42" == await cluster.propose(b"1")
        assert 1 == cluster.store["a"]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_damaged_backup_restores_nothing(backup: Path, tmp_path: Path) -> None:
    """Whichever byte it is, and wherever it ends: the directory is not even made."""
    data = backup.read_bytes()
    damaged = tmp_path / "damaged.backup"
    flipped = (data[:place] + bytes([byte ^ 0x10]) + data[place + 1 :] for place, byte in enumerate(data))
    cut = (data[:length] for length in range(len(data)))
    for changed in (*flipped, *cut):
        damaged.write_bytes(changed)
        with pytest.raises(CorruptionError) as caught:
            restore(damaged, tmp_path / "new", "a")
        assert str(damaged) == caught.value.file
        assert 0 <= caught.value.offset <= len(data)
        assert not (tmp_path / "new").exists()


def test_a_directory_that_is_not_empty(backup: Path, tmp_path: Path) -> None:
    """Of a peer, of something else, in use, or none at all: it is left alone."""
    restore(backup, tmp_path / "peer", "a")
    with pytest.raises(ConfigurationError, match="belongs to 'a' of cluster"):
        restore(backup, tmp_path / "peer", "b")
    with contextlib.closing(DiskStorage(tmp_path / "peer")), pytest.raises(DataDirInUseError):
        restore(backup, tmp_path / "peer", "b")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(ConfigurationError, match="is not empty, there is 'letter' in it"):
        restore(backup, tmp_path / "home", "a")
    assert ["letter"] == os.listdir(tmp_path / "home")
    with pytest.raises(ConfigurationError, match="is no directory"):
        restore(backup, backup, "a")


def test_an_empty_directory_and_an_unfinished_one(backup: Path, tmp_path: Path) -> None:
    """Are as good as none: a volume that is mounted there, what an interrupted attempt has left."""
    (tmp_path / "new" / "lost+found").mkdir(parents=True)
    storage = DiskStorage(tmp_path / "new")
    assert storage.identity is None
    storage.close()
    assert 2 == restore(backup, tmp_path / "new", "a").keys
    with contextlib.closing(DiskStorage(tmp_path / "new")) as storage:
        assert storage.identity is not None


@pytest.mark.parametrize(
    ("node_id", "members", "reason"),
    [
        ("d", MEMBERS, r"'d' is not among the members \['a', 'b', 'c'\]"),
        ("a", {"a": "x", "b": "x"}, "two members have the same address"),
        ("a", {"a": "x", "b": ""}, "'b' has no address, and the others have to dial it"),
        ("", None, "a member without a name"),
    ],
)
def test_members_that_make_no_sense(
    backup: Path, tmp_path: Path, node_id: str, members: dict[str, str] | None, reason: str
) -> None:
    """Nothing is made."""
    with pytest.raises(ConfigurationError, match=reason):
        restore(backup, tmp_path / "new", node_id, members=members)
    assert not (tmp_path / "new").exists()


# -- taking one --------------------------------------------------------------------------------------------------------


class FailingFile(OsFile):
    def pwrite(self, data: bytes | bytearray, offset: int) -> None:
        if offset > 100_000:
            raise StorageError("input/output error")
        super().pwrite(data, offset)


class FailingFileSystem(OsFileSystem):
    def open(self, path: Path, *, create: bool = False) -> File:
        file = super().open(path, create=create)
        assert isinstance(file, OsFile)
        return FailingFile(path, os.dup(file._descriptor))


@pytest.mark.parametrize("fails", [False, True])
async def test_a_backup_that_comes_to_nothing(tmp_path: Path, fails: bool) -> None:
    """Cancelled in the middle, or failed: nothing is left, what was there before is, and no revision stays pinned."""
    replica = replica_with({f"key/{number}": "." * 900 for number in range(2000)})
    (tmp_path / "backup").write_bytes(b"old")
    if fails:
        with pytest.raises(StorageError, match="input/output error"):
            await back_up(replica, IDENTITY, tmp_path / "backup", filesystem=FailingFileSystem())
    else:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(back_up, replica, IDENTITY, tmp_path / "backup")
            with trio.fail_after(20):
                while largest(tmp_path) < 1000:
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert b"old" == (tmp_path / "backup").read_bytes()
    assert ["backup"] == os.listdir(tmp_path)
    assert NUMBERS_LEFT_OUT < replica.keyspace.advance(NUMBERS_LEFT_OUT)  # an InternalError, were anything pinned


async def test_a_backup_is_of_one_moment(tmp_path: Path) -> None:
    """Whatever is applied while it is written."""
    replica = replica_with({f"key/{number}": number for number in range(2000)})
    expected = export_of(replica)
    put = Envelope(CommandKind.MAP, 0, 0, 0, commands.encode_put(b"key/0", encode_value("later", 10))).encode()
    ended = False

    async def change() -> None:
        while not ended:
            replica.apply(put)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        told = await back_up(replica, IDENTITY, tmp_path / "backup")
        ended = True
    assert "later" in "".join(export_of(replica))
    assert expected == list(export_map(tmp_path / "backup"))[1:]
    assert 2000 == told.revision


def largest(directory: Path) -> int:
    """The size of the largest file."""
    return max(path.stat().st_size for path in directory.iterdir())


def export_of(replica: Replica) -> list[str]:
    return list(export_lines(replica.keyspace, {}))[1:]


# -- lines -------------------------------------------------------------------------------------------------------------


async def test_export_and_import(backup: Path, tmp_path: Path) -> None:
    """The values are the same; revisions go on above the old ones."""
    lines = list(export_map(backup))
    header = json.loads(lines[0])
    assert ("old-cluster", "a", 2, 2) == tuple(header[name] for name in ("cluster", "node", "revision", "keys"))
    restored = import_map([line.encode() for line in lines], tmp_path / "new", "n", settings=SETTINGS)
    assert (2, NUMBERS_LEFT_OUT + 2) == (restored.keys, restored.revision)
    async with open_cluster(tmp_path / "new") as cluster:
        assert {"a": 1, "b": {"x": b"y"}} == dict(cluster.store.items())
        entry = cluster.store.entry("a")
        assert (NUMBERS_LEFT_OUT + 2, NUMBERS_LEFT_OUT + 2, 1) == (
            entry.create_revision,
            entry.mod_revision,
            entry.version,
        )
        assert NUMBERS_LEFT_OUT + 3 == await cluster.store.put("a", 2)
        await cluster.store.delete("b")
        with pytest.raises(DataDirInUseError):
            export_map(tmp_path / "new")
    exported = [json.loads(line) for line in export_map(tmp_path / "new")]
    assert [("a", 2)] == [(line["key"], line["value"]) for line in exported[1:]]


def test_lines_that_are_wrong_make_nothing(tmp_path: Path) -> None:
    """Not even the directory."""
    header = b'{"format": "replikv-export", "format-version": 1, "revision": 9223372036854775807}'
    for lines in ([b"{}"], [header], [header.replace(b"9223372036854775807", b"1"), b"{}"]):
        with pytest.raises(EncodingError):
            import_map(lines, tmp_path / "new", "a")
    assert [] == os.listdir(tmp_path)


async def test_export_of_a_directory_with_a_machine(tmp_path: Path) -> None:
    """The machine's state is left out, and the map is told as of the end of the log."""
    async with Cluster("a", data_dir=tmp_path / "a", machine=Total(), settings=SETTINGS) as cluster:
        await cluster.propose(b"41")
        await cluster.store.put("a", 1)
        await cluster.snapshot()
        await cluster.propose(b"1")
        await cluster.store.put("a", 2)
    (_, line) = export_map(tmp_path / "a")
    assert ("a", 2, 1, 2) == tuple(
        json.loads(line)[name] for name in ("key", "value", "create_revision", "mod_revision")
    )


def test_export_of_what_is_nothing(tmp_path: Path) -> None:
    """A directory that is no peer's, an empty one, a file that is not there: nothing is made of them."""
    with pytest.raises(ConfigurationError, match="is no data directory of a peer"):
        export_map(tmp_path)
    DiskStorage(tmp_path / "empty").close()
    with pytest.raises(ConfigurationError, match="is empty: there is nothing to export in it"):
        export_map(tmp_path / "empty")
    with pytest.raises(StorageError, match="cannot open the backup"):
        export_map(tmp_path / "typo")
