"""``replikv recover``: it says what it will do and what may be lost, asks, does it, and says what to do next."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from replikv import Cluster, ConfigurationError, MemoryNetwork, MemoryTransport, StateMachine
from replikv.cli import main
from replikv.cli.recover import parse_members
from replikv.settings import Settings

SETTINGS = Settings(wal_segment_bytes=64 * 1024)


class Counter(StateMachine):
    """The least of a machine."""

    def apply(self, position: int, command: bytes) -> bytes:
        return command

    def snapshot(self):  # type: ignore[no-untyped-def]  # nothing
        return iter(())

    def restore(self, chunks: object) -> None:
        pass


def open_cluster(directory: Path, machine: StateMachine | None = None) -> Cluster:
    return Cluster(data_dir=directory, transport=MemoryTransport(MemoryNetwork()), machine=machine, settings=SETTINGS)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A peer's, which knows of an address for TCP."""

    async def write() -> None:
        async with Cluster(
            "a",
            members={"a": "127.0.0.1:7001"},
            data_dir=tmp_path / "a",
            transport=MemoryTransport(MemoryNetwork()),
            settings=SETTINGS,
        ) as cluster:
            for number in range(3):
                await cluster.store.put(f"key/{number}", number)

    trio.run(write)
    return tmp_path / "a"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def words(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


def test_the_whole_command(directory: Path) -> None:
    """As a process, with an exit code; what it says is true: the peer starts as it says, and the copy is there."""
    done = subprocess.run(
        [sys.executable, "-m", "replikv", "recover", directory, "--members", "a,b=127.0.0.1:7002", "--yes"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert (0, "") == (done.returncode, done.stderr)
    said = words(done.stdout)
    for part in (
        f"{directory} is the directory of 'a'.",
        "voters a log ends at term 1, index",
        "map 3 keys at revision 3",
        "becomes a new cluster, in which 'a', at 127.0.0.1:7001, is the only voter. - b may join it",
        "is gone. Nobody can tell what.",
        "learners b",
        "map 3 keys at revision 1000000003",
        f"Start 'a' with Cluster(data_dir='{directory}'); without members=",
        "Start b with node_id, address, an empty data_dir, and join=['127.0.0.1:7001']",
        "Revisions go on at 1000000004",
    ):
        assert part in said
    (kept,) = directory.parent.glob("a.before-recover-*")
    assert f"kept {kept}, which is {directory} as it was" in said

    async def look() -> None:
        async with open_cluster(directory) as cluster:
            assert 2 == await cluster.store.get("key/2")
            assert {"a": "voter", "b": "learner"} == {name: one.role for name, one in cluster.status().members.items()}

    trio.run(look)


def test_without_anybody_to_ask_it_only_says(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2, with what there is on standard output: to compare survivors. Nothing is changed."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))
    assert 2 == main(["recover", str(directory), "--members", "a"])
    said = capsys.readouterr()
    assert "log         ends at term 1, index" in said.out
    assert "RECOVERED" not in said.out
    assert "replikv recover: nothing was changed: there is no terminal to ask at, and --yes was not given\n" == said.err
    assert [directory] == list(directory.parent.iterdir())


@pytest.mark.parametrize(("answer", "code"), [("yes\n", 0), ("YES \n", 0), ("y\n", 1), ("\n", 1), ("", 1)])
def test_at_a_terminal_it_asks(
    directory: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    code: int,
) -> None:
    """Only yes is yes; an end of the input is no."""
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert code == main(["recover", str(directory), "--members", "a"])
    assert ("RECOVERED" if code == 0 else "Nothing was changed.") in capsys.readouterr().out
    assert (2 if code == 0 else 1) == len(list(directory.parent.iterdir()))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (["b=127.0.0.1:7002"], "is the directory of 'a', which is not among the members ['b']"),
        (["a", "b"], "the address of 'b' is not known to the old cluster: give it, as in b="),
        (["a", "b=127.0.0.1"], "address '127.0.0.1' lacks a host or a port"),
        (["a,a"], "'a' stands twice in --members"),
        (["a", "b=127.0.0.1:7001"], "'a' and 'b' have the same address"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    directory: Path, capsys: pytest.CaptureFixture[str], members: list[str], reason: str
) -> None:
    """On standard error, with exit code 1 and no traceback."""
    assert 1 == main(["recover", str(directory), "--yes", "--members", *members])
    said = capsys.readouterr()
    assert said.err.startswith("replikv recover: ")
    assert reason in said.err
    assert (1, "") == (said.err.count("\n"), said.out)


def test_a_path_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not made."""
    assert 1 == main(["recover", str(tmp_path / "typo"), "--members", "a", "--yes"])
    assert "nothing to recover" in capsys.readouterr().err
    assert [] == list(tmp_path.iterdir())


def test_a_directory_with_an_applications_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command has not the application's code, and says how to do it from Python."""

    async def write() -> None:
        async with Cluster("a", data_dir=tmp_path / "a", machine=Counter(), settings=SETTINGS) as cluster:
            await cluster.propose(b"command")

    trio.run(write)
    assert 1 == main(["recover", str(tmp_path / "a"), "--members", "a", "--yes"])
    assert "replikv.peer.recovery.recover(directory, members, machine=...)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a"], {"a": None}),
        (["a,b=h:1"], {"a": None, "b": "h:1"}),
        (["a", "b=h:1", "c=[::1]:7001"], {"a": None, "b": "h:1", "c": "[::1]:7001"}),
    ],
)
def test_members_with_and_without_addresses(given: list[str], expected: dict[str, str | None]) -> None:
    """Apart by commas, or as several words."""
    assert expected == parse_members(given)


def test_an_address_that_is_none() -> None:
    """An equals sign promises one."""
    with pytest.raises(ConfigurationError, match="address ''"):
        parse_members(["a="])
