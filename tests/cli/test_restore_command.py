"""``replikv restore``, ``export`` and ``import``: what they say is true, and what is wrong is one sentence."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from replikv import Cluster
from replikv.cli import main


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    path = tmp_path / "the.backup"

    async def write() -> None:
        async with Cluster("a") as cluster:
            await cluster.store.update({"a": 1, "b": b"\xff", "ü": "ß"})
            await cluster.backup(path)

    trio.run(write)
    return path


def words(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


def read(directory: Path) -> dict[str, object]:
    """What a peer that is started there has."""
    items: dict[str, object] = {}

    async def look() -> None:
        async with Cluster(data_dir=directory) as cluster:
            await cluster.store.barrier()
            items.update(cluster.store.items())

    trio.run(look)
    return items


def test_check(backup: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Says what it is, and that it is whole; or that it is not."""
    assert 0 == main(["restore", str(backup), "--check"])
    said = words(capsys.readouterr().out)
    assert f"{backup} is whole." in said
    assert "written by a, at 20" in said
    assert "map 3 keys at revision 1 machine without state" in said
    backup.write_bytes(backup.read_bytes()[:-1])
    assert 1 == main(["restore", str(backup), "--check"])
    assert f"replikv restore: the backup {backup} is damaged at byte" in capsys.readouterr().err


def test_restore(backup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The peer starts as it says."""
    directory = tmp_path / "new"
    assert 0 == main(["restore", str(backup), "--data-dir", str(directory), "--node-id", "n"])
    said = words(capsys.readouterr().out)
    for part in (
        "RESTORED cluster",
        "voters n at no address map 3 keys at revision 1000000001",
        f"Start 'n' with Cluster(data_dir='{directory}'); without members=.",
        "Nobody can join a peer without an address",
        "Revisions go on at 1000000002",
    ):
        assert part in said
    assert {"a": 1, "b": b"\xff", "ü": "ß"} == read(directory)


def test_restore_of_several(backup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what to do for the others. An address of its own may stand in either place."""
    members = ["--members", "a=127.0.0.1:7001,b=127.0.0.1:7002", "c=127.0.0.1:7003"]
    assert 0 == main(["restore", str(backup), "--data-dir", str(tmp_path / "a"), "--node-id", "a", *members])
    first = words(capsys.readouterr().out)
    assert "voters a at 127.0.0.1:7001, b at 127.0.0.1:7002, c at 127.0.0.1:7003" in first
    assert "Restore the same backup for b, c, with the same --members, and start them likewise." in first
    own = ["--node-id", "c", "--address", "127.0.0.1:7003", "--listen", "127.0.0.1:7004"]
    members = ["--members", "a=127.0.0.1:7001", "b=127.0.0.1:7002", "c"]
    assert 0 == main(["restore", str(backup), "--data-dir", str(tmp_path / "c"), *own, *members])
    assert first.split()[2] == words(capsys.readouterr().out).split()[2]
    assert 0 == main(["restore", str(backup), "--data-dir", str(tmp_path / "d"), *own])
    assert "join=['127.0.0.1:7003']" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--data-dir and --node-id are needed, or --check"),
        (["--data-dir", "new", "--node-id", "b", "--members", "a=h:1"], "'b' is not among the members ['a']"),
        (
            ["--data-dir", "new", "--node-id", "a", "--members", "a=h:1", "--address", "h:2"],
            "--address h:2 contradicts",
        ),
        (["--data-dir", "new", "--node-id", "a", "--members", "a=h:1", "b"], "'b' has no address"),
        (["--data-dir", "new", "--node-id", "a", "--address", "h"], "address 'h' lacks a host or a port"),
        (["--data-dir", "new", "--node-id", "\n"], "a node id must be a str of 1 to"),
        (["--data-dir", ".", "--node-id", "a"], "is not empty, there is 'the.backup' in it"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    backup: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    reason: str,
) -> None:
    """On standard error, with exit code 1 and no traceback; nothing is made."""
    monkeypatch.chdir(backup.parent)
    assert 1 == main(["restore", backup.name, *arguments])
    said = capsys.readouterr()
    assert said.err.startswith("replikv restore: ")
    assert reason in said.err
    assert (1, "") == (said.err.count("\n"), said.out)
    assert [backup] == list(backup.parent.iterdir())


def test_export_and_import(
    backup: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines out, lines in, from a file or from standard input; the directory that is made may be exported in turn."""
    assert 0 == main(["export", str(backup)])
    lines = capsysbinary.readouterr().out
    assert "ß".encode() in lines
    assert [3, "a", "b", "ü"] == [line.get("key", line.get("keys")) for line in map(json.loads, lines.splitlines())]
    (tmp_path / "lines").write_bytes(lines)
    own = ["--node-id", "n", "--address", "127.0.0.1:7001"]
    assert 0 == main(["import", str(tmp_path / "lines"), "--data-dir", str(tmp_path / "1"), *own])
    assert b"IMPORTED" in capsysbinary.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert 0 == main(["import", "-", "--data-dir", str(tmp_path / "2"), "--node-id", "n"])
    assert {"a": 1, "b": b"\xff", "ü": "ß"} == read(tmp_path / "2")
    capsysbinary.readouterr()
    assert 0 == main(["export", str(tmp_path / "2")])
    assert [1, b"\xff", "ß"] == list(values_of(capsysbinary.readouterr().out))


def values_of(lines: bytes) -> list[object]:
    return [
        bytes([255]) if line["value"] == {"$bytes": "/w=="} else line["value"]
        for line in map(json.loads, lines.splitlines()[1:])
    ]


def test_import_of_lines_that_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """File and line are named, and nothing is made."""
    lines = tmp_path / "lines"
    lines.write_text('{"format": "replikv-export", "format-version": 1}\n{"key": "a", "value": {"$x": 1}}\n')
    assert 1 == main(["import", str(lines), "--data-dir", str(tmp_path / "new"), "--node-id", "a"])
    said = capsys.readouterr().err
    assert f"replikv import: {lines}, line 2: there is no '$x'" in said
    assert said.endswith("nothing was imported\n")
    lines.write_text('{"format": "replikv-export", "format-version": 1}\n{"key": "a", "value": "long"}\n')
    limited = ["--value-bytes-max", "4"]
    assert 1 == main(["import", str(lines), "--data-dir", str(tmp_path / "new"), "--node-id", "a", *limited])
    assert "line 2: the value takes more than 4 bytes" in capsys.readouterr().err
    assert 1 == main(["import", str(tmp_path / "typo"), "--data-dir", str(tmp_path / "new"), "--node-id", "a"])
    assert f"cannot open {tmp_path / 'typo'}" in capsys.readouterr().err
    assert [lines] == list(tmp_path.iterdir())


def test_whoever_reads_an_export_may_stop(tmp_path: Path) -> None:
    """As ``head`` does: no traceback."""
    path = tmp_path / "large.backup"

    async def write() -> None:
        async with Cluster("a") as cluster:
            for number in range(8):
                await cluster.store.put(f"{number}", "." * 500_000)
            await cluster.backup(path)

    trio.run(write)
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "replikv", "export", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"replikv-export" in process.stdout.readline()
        process.stdout.close()
        assert b"" == process.stderr.read()
    assert 1 == process.returncode
