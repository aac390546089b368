"""The simulator: nothing breaks in it, it is a function of its seed, and it reaches what it is for.

``python -m replikv.testing simulate --seeds A..B`` runs others; docs/simulator.md says what is simulated.
"""

from __future__ import annotations

import collections
import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from replikv.testing.__main__ import command_of, main
from replikv.testing.linearizability import Operation, check, read_history
from replikv.testing.simulator import Options, Report, Simulation, run
from replikv.testing.simulator.options import FAULT_GROUPS
from replikv.testing.simulator.planted import planted
from replikv.testing.simulator.shrinking import shrink
from replikv.testing.simulator.simulation import EVERYTHING
from replikv.testing.watch_validation import read_streams
from replikv.testing.watch_validation.__main__ import main as validate_files

SEEDS = range(1, 101)
LONG_SEEDS = range(1, 2001)
SHORT = {"chaos_s": "3", "clients": "3", "think_s": "0.2"}
BLOCK = 4
"""Seeds to a test of the short run."""

ENOUGH = {
    "operations ok": 200_000,
    "reads confirmed": 50_000,
    "replicas compared": 20_000,
    "changes watched": 100_000,
    "snapshots received": 300,
    "power cuts": 2000,
    "power cuts in the middle of a call": 800,
    "power cuts while starting": 20,
    "damaged disks found": 200,
    "lost disks replaced": 200,
    "writes without room": 100,
    "peers ended by their disk": 200,
    "peers joined": 400,
    "peers removed": 300,
    "frames lost": 10_000,
    "frames repeated": 20_000,
    "frames late": 10_000,
    "stalls": 1000,
    "transfers": 500,
    "leases kept alive": 10_000,
    "leases expired": 4000,
    "leases revoked": 500,
    "locks taken": 800,
    "marks of progress": 3000,
    "watches compacted": 300,
    "watches lagged": 100,
    "watchers up to date": 1500,
    "outcomes settled as applied": 150,
    "outcomes settled as not applied": 200,
    "programs upgraded": 100,
    "clock_jumps": 300,
    "commands of evicted sessions": 500,
}
"""What the long run has to reach: without it, it would prove little."""


def described(report: Report) -> str:
    return f"{report.failure}\n{command_of(report.options)}"


@pytest.mark.parametrize("first", SEEDS[::BLOCK])
def test_nothing_breaks(first: int) -> None:
    """Whatever the seed, all invariants hold, and all works again when the faults have ended."""
    for seed in range(first, first + BLOCK):
        report = run(Options.draw(seed).with_values(SHORT))
        assert report.failure is None, described(report)


@pytest.mark.long
def test_nothing_breaks_in_many_seeds() -> None:
    """The same for as many as take minutes; together they reach enough of what may go wrong."""
    counts: collections.Counter[str] = collections.Counter()
    broken = []
    with concurrent.futures.ProcessPoolExecutor() as pool:
        for report in pool.map(run, map(Options.draw, LONG_SEEDS)):
            counts += report.counts
            if report.failure is not None:
                broken.append(described(report))

    assert [] == broken
    assert {} == {name: counts[name] for name, enough in ENOUGH.items() if counts[name] < enough}


def test_a_seed_is_a_run() -> None:
    """The same seed twice gives the same transcript, event by event; another one another."""
    one, again, other = (run(Options.draw(seed).with_values(SHORT), transcript=True) for seed in (3, 3, 4))

    assert one.transcript == again.transcript
    assert one.transcript != other.transcript


RECORD = f"""
import hashlib, io
from replikv.testing.linearizability import write_history
from replikv.testing.simulator import Options, run
from replikv.testing.tracing import tracing
from replikv.testing.watch_validation import write_streams

lines = io.StringIO()
for seed in (5, 12):
    with tracing(lines):
        report = run(Options.draw(seed).with_values({SHORT}), transcript=True)
    lines.writelines(line + "\\n" for line in report.transcript)
    write_history(report.history, lines)
    write_streams(report.streams, lines)
digest = hashlib.sha256(lines.getvalue().encode()).hexdigest()
"""
"""A program that gathers all that there is to be known of two runs."""


def test_a_run_depends_on_no_hash_seed() -> None:
    """Nor on the order of a set: a process that hashes otherwise gives the same transcripts, traces and histories."""
    hash_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    found = subprocess.run(
        [sys.executable, "-c", RECORD + "print(digest)"],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    here: dict[str, str] = {}
    exec(RECORD, here)

    assert here["digest"] == found.strip()


def test_a_failing_run_is_told_with_the_command_that_repeats_it(capsys: pytest.CaptureFixture[str]) -> None:
    """It says what broke, and how to see it again, also in a smaller run, with the end of its transcript."""
    quiet = {name for group in FAULT_GROUPS for name in group} - {"crashes"}
    few = {"chaos_s": 4, "crashes": 1, "clients": 2, "watchers": 0, "holders": 0, "spares": 0, "keys": 1, "peers": 3}
    sets = [f"--set={name}={value}" for name, value in (dict.fromkeys(sorted(quiet), 0) | few).items()]

    assert 1 == main(["simulate", "--seeds", "1..2", "--jobs", "1", "--planted", "acknowledge-before-sync", *sets])

    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("seed 1: durable before told: ")
    command = "  python -m replikv.testing simulate --seeds 1 "
    assert told[1].startswith(command)
    assert told[2].startswith("  smaller: durable before told: ")
    assert told[3].startswith(command)
    assert " broken: durable before told: " in told[told.index(next(line for line in told if "seed 2" in line)) - 1]
    assert {"2 seeds, 2 failed"} == {line.partition(";")[0] for line in told if " failed; " in line}


def test_a_failing_run_is_shrunk() -> None:
    """What the failure does not need is left out, and the same invariant breaks."""
    with planted("acknowledge-before-sync"):
        report = run(Options.draw(2))
        assert report.kind is not None
        small = shrink(report, runs_max=25)

    assert report.kind == small.kind
    assert small.options.chaos_s < report.options.chaos_s


def test_options_are_read_from_text() -> None:
    """What the command line sets is what is run, and what differs from the seed is told in the same words."""
    options = Options.draw(7).with_values({"loss": "0.25", "peers": "4", "reorder": "true"})

    assert (0.25, 4, True) == (options.loss, options.peers, options.reorder)
    assert options == Options.draw(7).with_values(options.differences())


def test_a_mistake_on_the_command_line_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """With exit code 2 and a sentence that has it, before anything runs."""
    wrong = {
        "wether=bad": "'wether=bad'",
        "loss": "'loss'",
        "peers=many": "peers is a whole number, not 'many'",
        "peers=0": "peers is between 1 and 7, not 0",
        "peers=8": "peers is between 1 and 7, not 8",
        "loss=1.5": "loss is between 0 and 1, not 1.5",
        "crashes=nan": "crashes is 0 or more, not nan",
        "reorder=perhaps": "reorder is true or false, not 'perhaps'",
        "heartbeat_s=0": "heartbeat_interval_s",
    }
    for value, told in wrong.items():
        assert main(["simulate", "--set", value]) == 2
        assert told in capsys.readouterr().err
    for option, value in (("--seeds", "some"), ("--seeds", "5..2"), ("--jobs", "0"), ("--seconds", "-1")):
        with pytest.raises(SystemExit, match="2"):
            main(["simulate", option, value])
        told = capsys.readouterr().err
        assert f"argument {option}: " in told
        assert f"not {value!r}" in told


@pytest.mark.parametrize("option", ["--history", "--watches", "--trace"])
def test_a_file_that_cannot_be_written_is_told(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the run, with exit code 2."""
    assert main(["simulate", "--seeds", "3", option, str(tmp_path / "none" / "file")]) == 2
    told = capsys.readouterr()
    assert "none/file" in told.err
    assert "" == told.out


def test_a_transcript_and_files_are_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever asks for several things is given them all, of the first seed."""
    path = tmp_path / "history.jsonl"

    command = ["simulate", "--seeds", "3..4", "--set", "chaos_s=2", "--transcript", "--history", str(path)]
    assert main(command) == 0

    told = capsys.readouterr().out
    assert read_history(path) == run(Options.draw(3).with_values({"chaos_s": "2"})).history
    assert 2 == told.count("Options(seed=")


def test_a_run_of_many_seeds_can_be_interrupted() -> None:
    """By Ctrl-C, as a terminal sends it to all its processes: what was found is told, and nothing is left."""
    command = [sys.executable, "-m", "replikv.testing", "simulate", "--seeds", "1..10000", "--jobs", "2"]
    with subprocess.Popen(
        [*command, "--planted", "acknowledge-before-sync", "--set", "chaos_s=3", "--set", "peers=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        process.stderr.readline()  # of the first that failed
        os.killpg(process.pid, signal.SIGINT)
        told, errors = process.communicate(timeout=60)

    assert 130 == process.returncode
    assert "Traceback" not in errors
    assert "stopped: " in errors
    assert "--planted acknowledge-before-sync --transcript" in told
    assert " failed; " in told
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_quiet_cluster_is_cheap() -> None:
    """Without faults, nobody is elected twice, and every operation is answered."""
    simulation = Simulation(Options(seed=1, chaos_s=10.0))
    simulation.run()

    assert {1} == {process.node.raft.term for process in simulation.processes.values()}
    assert simulation.counts["operations fail"] == simulation.counts["operations unknown"] == 0
    assert simulation.counts["operations ok"] > 50


def test_what_clients_saw_is_written(tmp_path: Path) -> None:
    """As lines of JSON that the checker reads, and finds linearizable."""
    path = tmp_path / "history.jsonl"

    assert main(["simulate", "--seeds", "3", "--set", "chaos_s=3", "--history", str(path)]) == 0

    assert check(read_history(path)).outcome == "ok"


def test_what_watchers_were_told_is_written(tmp_path: Path) -> None:
    """As lines of JSON that the validator finds valid: several streams, and the one that it holds them against."""
    path = tmp_path / "streams.jsonl"

    for seed in ("2", "3"):
        assert main(["simulate", "--seeds", seed, "--set", "chaos_s=3", "--watches", str(path)]) == 0
        assert validate_files([str(path)]) == 0

    streams = read_streams(path)
    assert {"w1", "w2"} >= {stream.watcher for stream in streams} - {EVERYTHING} > set()
    assert all(stream.events for stream in streams[:1])


def test_the_history_has_what_any_checker_needs() -> None:
    """Times that differ, values that are unique per key, increments; and of each name one operation at a time, which is
    its last when nobody knows what became of it. What is waited for in the end is among those.
    """
    told = {**SHORT, "clients": "5", "think_s": "0.05", "give_up": "0.1"}
    found: collections.Counter[str] = collections.Counter()
    for seed in (3, 5):
        history = run(Options.draw(seed).with_values(told)).history
        found.update(one.op for one in history)
        found.update(one.status for one in history)
        times = [time for one in history for time in (one.called, one.returned) if time is not None]
        assert len(times) == len(set(times))
        assert all(float(time).is_integer() for time in times)
        written = [
            (key, value)
            for one in history
            for key, value in {
                "put": {one.key: one.value},
                "cas": {one.key: one.value},
                "setdefault": {one.key: one.value},
                "update": one.value,
                "txn": one.value["then"] if one.op == "txn" else {},
            }.get(one.op, {}).items()
        ]
        assert len(written) == len(set(written))
        last: dict[str | int, Operation] = {}
        for one in sorted(history, key=lambda one: one.called):
            before = last.get(one.client)
            assert before is None or (before.status != "unknown" and (before.returned or 0) < one.called)
            last[one.client] = one
        latest = max(times)
        found["pending"] += any(one.status == "unknown" and one.called > latest - 50 for one in history)

    assert {"increment", "put", "cas", "txn", "get", "ok", "unknown", "pending"} <= {
        name for name in found if found[name]
    }


def test_what_became_of_an_operation_is_settled() -> None:
    """An outcome that was asked for is an answer in the history, and the checker agrees with it."""
    told = {"settle": "1.0", "depositions": "1.0", "request_timeout_s": "0.5", "clients": "5", "think_s": "0.1"}
    counts: collections.Counter[str] = collections.Counter()
    for seed in range(1, 5):
        report = run(Options.draw(seed).with_values({**SHORT, **told, "peers": "3"}))
        assert report.failure is None, described(report)
        counts += report.counts

    assert counts["outcomes settled as applied"]
    assert counts["outcomes settled as not applied"]


def test_leases_are_held_and_lost() -> None:
    """Holders take locks one after the other, while leaders are deposed; in the end all leases are over."""
    told = {"depositions": "0.5", "stalls": "0.3", "holders": "4", "lease_ttl_s": "1.0", "drift": "0.04"}
    counts: collections.Counter[str] = collections.Counter()
    for seed in range(1, 4):
        report = run(Options.draw(seed).with_values({"chaos_s": "6", "peers": "3", "own_limits": "0", **told}))
        assert report.failure is None, described(report)
        counts += report.counts

    assert {"leases kept alive", "leases expired", "leases revoked", "locks taken"} <= counts.keys()


def test_the_summary_has_operations_and_faults_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds, simulated hours, and what was done and befell, of each kind."""
    assert main(["simulate", "--seeds", "1..2", "--jobs", "1", "--set", "chaos_s=3", "--set", "partitions=1"]) == 0
    told = capsys.readouterr().out

    assert told.startswith("2 seeds, 0 failed; 0.0")
    operations, faults = told.index("operations of clients\n"), told.index("faults\n")
    assert operations < told.index(" increment\n") < faults < told.index(" partitions\n")


def test_what_the_cores_do_is_traced(tmp_path: Path) -> None:
    """In the form of etcd's traces: every node begins, what is received was sent, and terms never go back."""
    path = tmp_path / "trace.ndjson"
    quiet = [f"--set={name}=0" for name in ("crashes", "cuts_in_writes", "changes", "bit_flips", "failing_syncs")]
    quiet += [f"--set={name}=0" for name in ("failing_writes", "duplication", "spares")]

    assert main(["simulate", "--seeds", "3", "--set", "chaos_s=3", *quiet, "--trace", str(path)]) == 0

    events = [json.loads(line) for line in path.read_text().splitlines()]
    first: dict[str, str] = {}
    sent: collections.Counter[str] = collections.Counter()
    terms: dict[str, int] = {}
    for event in events:
        first.setdefault(event["nid"], event["name"])
        assert terms.get(event["nid"], 0) <= event["state"]["term"]
        terms[event["nid"]] = event["state"]["term"]
        if "msg" in event:
            message = json.dumps(event["msg"])
            way = event["msg"]["from"] if event["name"].startswith("Send") else event["msg"]["to"]
            assert way == event["nid"]
            sent[message] += 1 if event["name"].startswith("Send") else -1
            assert sent[message] >= 0, message
    assert {"InitState"} == set(first.values())
    assert {"BecomeLeader", "Commit", "Replicate", "Ready"} <= {event["name"] for event in events}


def test_the_page_has_every_invariant() -> None:
    """By the names that failures begin with, and reliability.md says how many there are."""
    root = Path(__file__).parents[2]
    sources = [root / "replikv" / "raft" / "invariants.py", *(root / "replikv" / "testing" / "simulator").glob("*.py")]
    begins = re.compile(r'(?:_?broken|_expect_majority)\(\s*"([a-z -]+)"')
    names = {found[1] for path in sources for found in begins.finditer(path.read_text("utf-8"))}
    table = (root / "docs" / "simulator.md").read_text("utf-8").partition("| invariant | |\n|---|---|")[2]
    told = re.findall(r"^\| ([a-z -]+) \|", table.partition("\n\n")[0], re.MULTILINE)

    assert sorted(told) == sorted(names)
    assert f"under {len(told)} invariants" in (root / "docs" / "reliability.md").read_text("utf-8")
