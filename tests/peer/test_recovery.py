"""Quorum recovery: one survivor's data becomes a new cluster, with all that it had and nothing of the old name."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest
import trio

from replikv import (
    Cluster,
    CompactedError,
    ConfigurationError,
    DataDirInUseError,
    MemoryNetwork,
    MemoryTransport,
    OutcomeUnknownError,
    Settings,
    StateMachine,
    StorageError,
    UnavailableError,
    WrongClusterError,
)
from replikv.machine import commands
from replikv.machine.envelope import CommandKind, Envelope, Status, pack_commands
from replikv.machine.replica import Replica
from replikv.machine.values import encode_value
from replikv.peer.recovery import NUMBERS_LEFT_OUT, Recovery, recover
from replikv.raft.entries import Entry, EntryKind, HardState, SnapshotMetadata
from replikv.raft.membership import ChangeKind, MemberChange, MemberRecord, Membership, MembershipChange
from replikv.raft.stable import Write
from replikv.storage.base import Identity
from replikv.storage.disk import DiskStorage
from replikv.storage.filesystem import File, OsFileSystem

SETTINGS = Settings(
    heartbeat_interval_s=0.02, election_timeout_s=0.1, request_timeout_s=1.0, wal_segment_bytes=64 * 1024
)
MEMBERS = {node_id: f"memory-{node_id}" for node_id in "abc"}
IDENTITY = Identity("old-cluster", "a", "old-incarnation", "memory-a", "memory-a")
FIRST = Membership.of_voters(MEMBERS)


@pytest.fixture(autouse=True)
def _without_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power, and these write a great many small directories."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)


# -- directories made by hand ------------------------------------------------------------------------------------------


def put(key: str, value: object, session: int = 0, sequence: int = 0) -> bytes:
    payload = commands.encode_put(key.encode(), encode_value(value, 1024))
    return Envelope(CommandKind.MAP, session, sequence, 0, payload).encode()


REGISTER = Envelope(CommandKind.REGISTER, 0, 7, 0, b"a").encode()
CUSTOM = Envelope(CommandKind.CUSTOM, 0, 0, 0, b"counted").encode()


def make(
    directory: Path,
    entries: Iterable[bytes | MembershipChange] = (),
    *,
    identity: Identity = IDENTITY,
    hard_state: HardState = HardState(1, "a", 0),  # noqa: B008  # immutable
) -> Path:
    """A data directory with these entries of term 1 in its log: a command, or a change of the members."""
    log = [Entry(1, 1)]
    for index, entry in enumerate(entries, start=2):
        if isinstance(entry, bytes):
            log.append(Entry(index, 1, pack_commands([entry])))
        else:
            log.append(Entry(index, 1, entry.encode(), EntryKind.MEMBERSHIP))
    with contextlib.closing(DiskStorage(directory, segment_bytes=8192)) as storage:
        storage.initialize(identity, SnapshotMetadata(0, 0, FIRST))
        storage.write([Write(entries=tuple(log), hard_state=hard_state)])
    return directory


def contents(directory: Path) -> tuple[Identity | None, SnapshotMetadata, HardState, list[Entry]]:
    """All that a data directory says."""
    with contextlib.closing(DiskStorage(directory)) as storage:
        image = storage.image
        entries = image.entries(image.first_index(), image.last_index() + 1)
        return storage.identity, image.snapshot(), image.hard_state, entries


def replica_of(directory: Path) -> Replica:
    """The replica as the newest snapshot has it."""
    replica = Replica()
    with contextlib.closing(DiskStorage(directory)) as storage, storage.open_snapshot(1) as (_, chunks):
        replica.restore(chunks)
    return replica


# -- a disaster --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def disaster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directories of three peers. a led, was cut off, and wrote on; b and c went on without it."""
    root = tmp_path_factory.mktemp("disaster")

    async def befall() -> None:
        network = MemoryNetwork()
        clusters = {
            node_id: Cluster(
                node_id,
                members=MEMBERS,
                data_dir=root / node_id,
                transport=MemoryTransport(network),
                settings=SETTINGS,
            )
            for node_id in "abc"
        }
        async with trio.open_nursery() as nursery:
            for cluster in clusters.values():
                await nursery.start(cluster.run)
            a, b = clusters["a"], clusters["b"]
            for number in range(10):
                await b.store.put(f"key/{number % 5}", number)
            await a.transfer_leadership("a")
            await a.snapshot()
            await a.store.delete("key/0")
            await a.store.put("both", "before")
            network.isolate("a")
            with pytest.raises(OutcomeUnknownError):
                await a.store.put("tail", "of a")
            with trio.fail_after(10.0):
                while True:
                    with contextlib.suppress(UnavailableError, OutcomeUnknownError):
                        await b.store.put("lost", "with b and c")
                        break
            for cluster in clusters.values():
                await cluster.shutdown()

    trio.run(befall)
    return root


@pytest.fixture
def root(disaster: Path, tmp_path: Path) -> Path:
    """A copy of the disaster for one test."""
    shutil.copytree(disaster, tmp_path / "root")
    return tmp_path / "root"


def reopen(directory: Path, network: MemoryNetwork | None = None) -> Cluster:
    return Cluster(data_dir=directory, transport=MemoryTransport(network or MemoryNetwork()), settings=SETTINGS)


async def test_everything_that_the_survivor_had_is_there(root: Path) -> None:
    """What was acknowledged, and what it does not know to be committed; what only the others had is not."""
    recovered = recover(root / "a", dict.fromkeys("abc"), settings=SETTINGS)
    assert recovered.survivor.uncertain >= 1
    expected = {"both": "before", "tail": "of a", **{f"key/{number - 5}": number for number in range(6, 10)}}
    async with reopen(root / "a") as cluster:
        assert expected == dict(cluster.store.local)
        assert "before" == await cluster.store.get("both")
        status = cluster.status()
    assert recovered.cluster_id == status.cluster_id != recovered.survivor.cluster_id
    assert {"a": "voter", "b": "learner", "c": "learner"} == {name: one.role for name, one in status.members.items()}
    assert MEMBERS == {node_id: member.address for node_id, member in status.members.items()}
    assert status.term > recovered.survivor.last_term


async def test_revisions_go_on_far_ahead_and_watchers_notice(root: Path) -> None:
    """No revision is given twice; who goes on from an old one is told that there is a gap; keys keep theirs."""
    recovered = recover(root / "a", dict.fromkeys("abc"), settings=SETTINGS)
    old = recovered.survivor.revision
    async with reopen(root / "a") as cluster:
        store = cluster.store
        assert old + NUMBERS_LEFT_OUT == recovered.revision == store.revision
        assert old == store.entry("tail").mod_revision
        assert await store.replace("tail", "replaced", revision=old)
        assert recovered.revision + 1 == store.revision
        with pytest.raises(CompactedError) as caught:
            async with store.watch(since=old) as changes:
                await anext(changes)
        assert recovered.revision == caught.value.revision
        with pytest.raises(CompactedError):
            await store.get("both", revision=old)
        async with store.watch(since=recovered.revision) as changes:
            change = await anext(changes)
        assert ("tail", "replaced", "of a") == (change.key, change.value, change.previous)


async def test_a_recovered_peer_is_a_peer_like_any(root: Path) -> None:
    """It takes snapshots, restarts, and can be recovered once more."""
    first = recover(root / "a", dict.fromkeys("abc"), settings=SETTINGS)
    async with reopen(root / "a") as cluster:
        await cluster.store.put("new", 1)
        await cluster.snapshot()
        await cluster.store.put("new", 2)
    async with reopen(root / "a") as cluster:
        assert 2 == await cluster.store.get("new")
    second = recover(root / "a", {"a": None}, settings=SETTINGS)
    assert first.cluster_id == second.survivor.cluster_id != second.cluster_id
    async with reopen(root / "a") as cluster:
        assert 2 == await cluster.store.get("new")
        assert ["a"] == list(cluster.status().members)


async def test_a_peer_of_the_lost_majority_has_no_part_in_it(root: Path) -> None:
    """It comes back with the data it had, under an id that is known: neither side takes anything from the other."""
    recover(root / "a", dict.fromkeys("abc"), settings=SETTINGS)
    network = MemoryNetwork()
    async with reopen(root / "a", network) as survivor:
        with pytest.raises((UnavailableError, WrongClusterError)):  # when it starts, or in time
            async with reopen(root / "b", network) as old:
                await old.store.put("key", "from the dead")
        assert "lost" not in survivor.store
        await survivor.store.put("key", "alive")
        assert survivor.is_leader


async def test_the_others_join_it_with_empty_directories(root: Path) -> None:
    """Under their old ids, at their old addresses; they get everything, and become voters by themselves."""
    recover(root / "a", dict.fromkeys("abc"), settings=SETTINGS)
    network = MemoryNetwork()

    def joining(node_id: str) -> Cluster:
        return Cluster(
            node_id,
            join=[MEMBERS["a"]],
            address=MEMBERS[node_id],
            data_dir=root / f"{node_id}-anew",
            transport=MemoryTransport(network),
            settings=SETTINGS,
        )

    async with reopen(root / "a", network) as a, joining("b") as b, joining("c") as c:
        await a.store.put("key", 1)
        assert ["of a", "of a"] == [await joined.store.get("tail") for joined in (b, c)]
        with trio.fail_after(10.0):
            while {"voter"} != {member.role for member in a.status().members.values()}:  # noqa: ASYNC110  # nothing to wait on
                await trio.sleep(0.05)
        assert set("abc") == set(a.status().members)


async def test_what_is_kept_is_the_old_directory(root: Path) -> None:
    """Renamed back, it is a peer of the old cluster, as if nothing had happened: the way to undo it."""
    before = contents(root / "a")
    recovered = recover(root / "a", dict.fromkeys("abc"), settings=SETTINGS)
    assert before == contents(recovered.kept)
    shutil.rmtree(root / "a")
    recovered.kept.rename(root / "a")
    network = MemoryNetwork()
    async with reopen(root / "a", network) as a, reopen(root / "b", network):
        assert "with b and c" == await a.store.get("lost")


def test_of_two_survivors_the_log_tells_which_has_more(root: Path) -> None:
    """The one that was cut off has entries, too; but those of the later term were acknowledged."""
    with Recovery(root / "a", {"a": None}) as a, Recovery(root / "b", {"b": None}) as b:
        one, other = a.survivor, b.survivor
        assert (one.last_term, one.last_index) < (other.last_term, other.last_index)
        assert FIRST.voters == one.members.voters == other.members.voters


# -- what is in the new directory --------------------------------------------------------------------------------------


def test_the_new_directory_begins_after_the_last_entry(tmp_path: Path) -> None:
    """At the next index, in a term above any that the node has seen, which may be one it has only voted in."""
    directory = make(tmp_path / "a", [put("key", 1)], hard_state=HardState(6, "b", 1))
    recovered = recover(directory, {"a": None, "b": None}, settings=SETTINGS)
    assert (2, 1, 1) == (recovered.survivor.last_index, recovered.survivor.last_term, recovered.survivor.commit_index)
    identity, snapshot, hard_state, entries = contents(directory)
    assert identity is not None
    assert (3, 7, []) == (snapshot.index, snapshot.term, entries)
    assert HardState(7, "", 3) == hard_state
    assert (recovered.index, recovered.term, recovered.members) == snapshot
    assert MemberRecord("memory-a", identity.incarnation, 3) == snapshot.membership.members["a"]
    assert MemberRecord("memory-b") == snapshot.membership.members["b"]
    assert not {identity.cluster_id, identity.incarnation} & {IDENTITY.cluster_id, IDENTITY.incarnation}


def test_commands_stay_exactly_once(tmp_path: Path) -> None:
    """Sessions and their results are kept; no new session gets an id that the lost ones may have given out."""
    directory = make(tmp_path / "a", [REGISTER, put("key", 1, session=1, sequence=5)])
    recover(directory, {"a": None}, settings=SETTINGS)
    replica = replica_of(directory)
    again = replica.apply(put("key", "other", session=1, sequence=5))
    assert Status.OK == again[0]
    assert (1).to_bytes(8) == again[1:]
    assert encode_value(1, 1024) == replica.keyspace.get_value("key")
    unknown = replica.apply(put("key", "other", session=4, sequence=1))
    assert bytes([Status.UNKNOWN_SESSION]) == unknown
    session = int.from_bytes(replica.apply(REGISTER)[1:])
    assert session > NUMBERS_LEFT_OUT


MOVED = MembershipChange((MemberChange(ChangeKind.UPDATE, "b", address="memory-b2"),))
ADDED = MembershipChange(
    (MemberChange(ChangeKind.ADD_LEARNER, "d", address="memory-d", attributes={"learner": "yes"}),)
)
REMOVED = MembershipChange((MemberChange(ChangeKind.REMOVE, "c"),))


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"a": None}, {"a": "memory-a"}),
        ({"a": None, "b": None}, {"a": "memory-a", "b": "memory-b2"}),
        ({"b": "memory-b3", "a": None, "d": None}, {"a": "memory-a", "b": "memory-b3", "d": "memory-d"}),
        ({"a": "memory-a2", "new": "memory-new"}, {"a": "memory-a2", "new": "memory-new"}),
    ],
)
def test_who_is_a_member(tmp_path: Path, members: Mapping[str, str | None], expected: dict[str, str]) -> None:
    """Those named, at the address given, or else at the last one that stands in the log, committed or not."""
    directory = make(tmp_path / "a", [put("key", 1), MOVED, ADDED, REMOVED])
    after = recover(directory, members, settings=SETTINGS).members
    assert expected == {node_id: record.address for node_id, record in after.members.items()}
    assert {"a"} == after.voters
    assert set(expected) - {"a"} == after.learners
    assert not any(record.attributes for record in after.members.values())
    assert all(not record.incarnation for node_id, record in after.members.items() if node_id != "a")


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({}, "'a', which is not among the members"),
        ({"b": None}, "'a', which is not among the members"),
        ({"a": None, "c": None}, "address of 'c' is not known"),
        ({"a": None, "new": None}, "address of 'new' is not known.*new="),
        ({"a": None, "b": "memory-a"}, "'a' and 'b' have the same address"),
        ({"a": None, "": "memory-x"}, "without a name"),
    ],
)
def test_members_that_make_no_sense(tmp_path: Path, members: Mapping[str, str | None], reason: str) -> None:
    """Refused before anything is done."""
    directory = make(tmp_path / "a", [put("key", 1), REMOVED])
    with pytest.raises(ConfigurationError, match=reason):
        recover(directory, members)
    assert [directory] == list(tmp_path.iterdir())
    assert contents(directory)[0] == IDENTITY


@pytest.mark.parametrize(
    ("listen", "given", "expected"),
    [
        ("memory-a", None, ("memory-a", "memory-a")),
        ("memory-a", "moved", ("moved", "moved")),
        ("everywhere", "moved", ("moved", "everywhere")),
    ],
)
def test_where_it_listens(tmp_path: Path, listen: str, given: str | None, expected: tuple[str, str]) -> None:
    """At its address, unless the two were set apart."""
    identity = Identity("old-cluster", "a", "old-incarnation", "memory-a", listen)
    directory = make(tmp_path / "a", [put("key", 1)], identity=identity)
    recovered = recover(directory, {"a": given}, settings=SETTINGS)
    identity_after = contents(directory)[0]
    assert identity_after is not None
    assert expected == (recovered.address, recovered.listen) == (identity_after.address, identity_after.listen)


def test_a_peer_that_nobody_could_dial_needs_an_address_to_have_company(tmp_path: Path) -> None:
    """Alone it goes on without one."""
    identity = Identity("old-cluster", "alone", "old-incarnation", "", "")
    directory = make(tmp_path / "alone", [put("key", 1)], identity=identity)
    with pytest.raises(ConfigurationError, match="address of 'alone' is not known"):
        recover(directory, {"alone": None, "b": "memory-b"})
    assert "" == recover(directory, {"alone": None}).address


# -- the application's own machine -------------------------------------------------------------------------------------


class Tally(StateMachine):
    """Counts its commands, and keeps the position of the last one."""

    def __init__(self) -> None:
        self.state = b"0 0"

    def apply(self, position: int, command: bytes) -> bytes:
        self.state = b"%d %d" % (int(self.state.split()[0]) + 1, position)
        return self.state

    def snapshot(self) -> Iterator[bytes]:
        return iter([self.state])

    def restore(self, chunks: Iterable[bytes]) -> None:
        (self.state,) = chunks


@pytest.mark.parametrize("in_snapshot", [False, True])
async def test_the_applications_machine_is_replayed(tmp_path: Path, in_snapshot: bool) -> None:
    """By the application's own code, from the log or from a snapshot; its positions go on upwards."""
    async with Cluster("a", data_dir=tmp_path / "a", machine=Tally(), settings=SETTINGS) as cluster:
        before = [await cluster.propose(b"count") for _ in range(3)][-1]
        if in_snapshot:
            await cluster.snapshot()
    with pytest.raises(ConfigurationError, match=r"StateMachine.*replikv\.peer\.recovery\.recover\(.*machine="):
        recover(tmp_path / "a", {"a": None})
    recover(tmp_path / "a", {"a": None}, machine=Tally(), settings=SETTINGS)
    machine = Tally()
    async with Cluster(data_dir=tmp_path / "a", machine=machine, settings=SETTINGS) as cluster:
        assert before == machine.state
        count, position = (await cluster.propose(b"count")).split()
        assert b"4" == count
        assert int(position) > int(before.split()[1]) + NUMBERS_LEFT_OUT


# -- what is refused ---------------------------------------------------------------------------------------------------


def empty(directory: Path) -> None:
    directory.mkdir()


def opened(directory: Path) -> None:
    DiskStorage(directory).close()


def initialized(directory: Path) -> None:
    with contextlib.closing(DiskStorage(directory)) as storage:
        storage.initialize(IDENTITY, SnapshotMetadata(0, 0, FIRST))


def missing(directory: Path) -> None:
    assert not directory.exists()


@pytest.mark.parametrize("prepare", [missing, empty, opened, initialized])
def test_there_has_to_be_something_to_recover(tmp_path: Path, prepare: Callable[[Path], None]) -> None:
    """A misspelt path is told, and nothing is made of it."""
    directory = tmp_path / "parent" / "a"
    directory.parent.mkdir()
    prepare(directory)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigurationError, match="nothing to recover"):
        recover(directory, {"a": None})
    assert before == sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigurationError, match="nothing to recover"):
        recover(tmp_path / "no" / "parent", {"a": None})


async def test_a_running_peer_is_left_alone(tmp_path: Path) -> None:
    """It has its directory locked; and the other way round no peer starts on one while somebody makes up his mind."""
    async with Cluster("a", data_dir=tmp_path / "a", settings=SETTINGS) as cluster:
        await cluster.store.put("key", 1)
        with pytest.raises(DataDirInUseError, match="in use"):
            recover(tmp_path / "a", {"a": None})
    with Recovery(tmp_path / "a", {"a": None}), pytest.raises(DataDirInUseError):
        async with reopen(tmp_path / "a"):
            pytest.fail("a peer has started on a directory that is being recovered")


def test_it_runs_as_the_user_of_the_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What root makes, the application could not open."""
    directory = make(tmp_path / "a", [put("key", 1)])
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ConfigurationError, match=f"the user with the id {owner}, and this process runs as {owner + 1}"):
        recover(directory, {"a": None})


def test_a_path_may_be_a_link(tmp_path: Path) -> None:
    """What it leads to is replaced, and the link leads to the new one."""
    directory = make(tmp_path / "disk", [put("key", 1)])
    (tmp_path / "a").symlink_to(directory)
    recovered = recover(tmp_path / "a", {"a": None})
    assert tmp_path / "disk" == recovered.survivor.directory
    assert recovered.kept.parent == tmp_path
    identity = contents(tmp_path / "a")[0]
    assert identity is not None
    assert recovered.cluster_id == identity.cluster_id


# -- crashes -----------------------------------------------------------------------------------------------------------


class CrashError(Exception):
    """The process ends here."""


class Doomed(OsFileSystem):
    """The file system of a process that ends before its call number ``left``; calls of :class:`File` do not count."""

    def __init__(self, left: int, error: type[Exception] = CrashError) -> None:
        self.left = left
        self.error = error

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error

    def open(self, path: Path, *, create: bool = False) -> File:
        self._count()
        return super().open(path, create=create)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._count()
        super().unlink(path)

    def make_directory(self, path: Path) -> None:
        self._count()
        super().make_directory(path)

    def sync_directory(self, path: Path) -> None:
        self._count()
        super().sync_directory(path)


def files(directory: Path) -> dict[Path, bytes]:
    """What is in the files of the directory, but for unfinished ones: to open it and close it changes nothing."""
    return {
        path.relative_to(directory): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.suffix != ".tmp"
    }


def attempt(directory: Path, filesystem: OsFileSystem) -> bool:
    """Whether a recovery came to its end."""
    try:
        with Recovery(directory, {"a": None}, settings=SETTINGS, filesystem=filesystem) as recovery:
            recovery.carry_out()
    except (CrashError, StorageError):
        return False
    return True


@pytest.mark.parametrize("error", [CrashError, StorageError])
def test_whatever_interrupts_it_nothing_is_lost_and_it_may_be_done_again(
    tmp_path: Path, error: type[Exception]
) -> None:
    """Before each call of the file system the process may end, or the disk fail from there on. The data is under its
    name or under the one for keeping, as it was, or the new directory is whole; and to recover again settles it."""
    template = make(tmp_path / "template", [put("key", 1)])
    before = files(template)
    done = False
    number = 0
    places = set()
    while not done:
        root = tmp_path / str(number)
        directory = root / "a"
        shutil.copytree(template, directory)
        done = attempt(directory, Doomed(number, error))
        kept = list(root.glob("a.before-recover-*"))
        if not kept:
            places.add("under its name")
            assert before == files(directory)
        elif not directory.exists():
            places.add("kept, and nothing in its place")
            assert before == files(kept[0])
        else:
            places.add("kept, and replaced")
            assert before == files(kept[0])
            assert NUMBERS_LEFT_OUT + 1 == replica_of(directory).keyspace.revision
        assert attempt(directory, OsFileSystem())
        assert encode_value(1, 1024) == replica_of(directory).keyspace.get_value("key")
        assert [] == list(root.glob("a.recovering-*"))
        assert before in [files(path) for path in root.glob("a.before-recover-*")]
        number += 1
    assert {"under its name", "kept, and nothing in its place", "kept, and replaced"} == places
    assert number > 20
