"""Traces of cores: those of runs are accepted by the steps of etcd's specification, and falsified ones are rejected.

``python -m replikv.testing simulate --trace FILE`` writes them; docs/simulator.md says what is in them.
"""

from __future__ import annotations

import collections
import concurrent.futures
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from clusters import running

from replikv.raft import elections, replication
from replikv.raft.core import Raft
from replikv.raft.node import RawNode
from replikv.raft.progress import Tracker
from replikv.testing.__main__ import main
from replikv.testing.simulator import Options, run
from replikv.testing.simulator.planted import planted
from replikv.testing.trace_format import NodeNumbers
from replikv.testing.traces import Verdict, check_trace
from replikv.testing.tracing import tracing

SEEDS = (2, 3, 4, 9)
LONG_SEEDS = range(1, 101)
SHORT = {
    "chaos_s": "2.5",
    "calm_s": "4",
    "heartbeat_s": "0.1",
    "changes": "1.2",
    "partitions": "0.4",
    "transfers": "0.5",
    "spares": "2",
}

Event = dict[str, Any]
Falsified = tuple[list[Event], int]
"""A trace, and the number of the line at which it cannot go on, from 1."""


def trace_of(options: Options) -> tuple[list[str], str | None]:
    """The lines, and why they end before the run."""
    file = io.StringIO()
    with tracing(file) as tracer:
        run(options)
    return file.getvalue().splitlines(), tracer.ended


def check_seed(seed: int, values: dict[str, str]) -> tuple[Verdict, collections.Counter[str], str | None]:
    lines, ended = trace_of(Options.draw(seed).traceable().with_values(values))
    return check_trace(lines), collections.Counter(json.loads(line)["name"] for line in lines), ended


def check_events(events: list[Event]) -> Verdict:
    return check_trace(map(json.dumps, events))


@pytest.fixture(scope="module")
def trace() -> list[Event]:
    """A short one in which everything happens that is falsified below."""
    lines, ended = trace_of(Options.draw(4).traceable().with_values(SHORT))
    assert ended is None
    return [json.loads(line) for line in lines]


# -- accepted ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_traces_of_runs_are_accepted(seed: int) -> None:
    """Elections, partitions, loss, transfers and membership changes: all of it is a behaviour of the specification."""
    verdict, names, ended = check_seed(seed, SHORT)
    assert verdict.accepted, f"seed {seed}, line {verdict.line}: {verdict.reason}"
    assert ended is None
    assert {"BecomeLeader", "Commit", "ChangeConf", "ApplyConfChange", "BecomeFollower"} <= names.keys()


@pytest.mark.parametrize("seed", [1, 3])
def test_what_is_written_of_any_run_is_accepted(seed: int) -> None:
    """Where there are restarts, snapshots, pre-votes and joint changes, the trace ends before the first of them."""
    lines, ended = trace_of(Options.draw(seed).with_values({"chaos_s": "4", "calm_s": "4", "crashes": "0.5"}))
    verdict = check_trace(lines)
    assert verdict.accepted, f"line {verdict.line}: {verdict.reason}"
    assert ended
    assert len(lines) > 20


@pytest.mark.long
@pytest.mark.parametrize("traceable", [True, False])
def test_many_traces_are_accepted(traceable: bool) -> None:
    """The same for as many as take minutes; most of them do not end before the run."""
    rejected, ends, names = [], 0, collections.Counter[str]()
    with concurrent.futures.ProcessPoolExecutor() as pool:
        for seed, (verdict, found, ended) in zip(
            LONG_SEEDS, pool.map(_check_long, LONG_SEEDS, [traceable] * len(LONG_SEEDS)), strict=True
        ):
            names += found
            ends += ended is not None
            if not verdict.accepted:
                rejected.append(f"seed {seed}, line {verdict.line}: {verdict.reason}")
    assert [] == rejected
    if traceable:
        assert ends < len(LONG_SEEDS) / 10
        assert names["ApplyConfChange"] > 300
        assert names["BecomeLeader"] > 100


def _check_long(seed: int, traceable: bool) -> tuple[Verdict, collections.Counter[str], str | None]:
    if traceable:
        return check_seed(seed, {"changes": "0.5", "heartbeat_s": "0.1", "spares": "2"})
    lines, ended = trace_of(Options.draw(seed).with_values({"chaos_s": "5", "calm_s": "20"}))
    return check_trace(lines), collections.Counter(), ended


async def test_real_clusters_are_traced(autojump_clock: trio.abc.Clock) -> None:
    """The hook is for any core in the process, whatever runs it and however the nodes are called."""
    file = io.StringIO()
    with tracing(file) as tracer:
        async with running("abc") as peers:
            leader = await peers.leader()
            for number in range(20):
                await leader.store.put(f"key/{number}", number)
            await peers.converge()
    lines = file.getvalue().splitlines()

    verdict = check_trace(lines)
    assert verdict.accepted, f"line {verdict.line}: {verdict.reason}"
    assert tracer.ended is None
    assert sum(json.loads(line)["name"] == "Replicate" for line in lines) > 20


def test_traces_of_etcd_are_read(trace: list[Event]) -> None:
    """Its envelope, and its way to begin: a first state without a log, and a change for each of the first members."""
    events: list[Event] = []
    for event in trace:
        if event["name"] == "InitState":
            bare = {**event, "state": {**event["state"], "commit": 0}, "log": 0, "conf": [[], []]}
            events += [bare, {**bare, "name": "BecomeFollower"}]
            events.append({**event, "name": "ApplyConfChange", "prop": {"cc": {"newconf": event["conf"][0]}}})
        else:
            events.append(event)
    verdict = check_events([{"tag": "trace", "event": event} for event in events])
    assert verdict.accepted, f"line {verdict.line}: {verdict.reason}"


# -- rejected ----------------------------------------------------------------------------------------------------------


def at(trace: list[Event], name: str, number: int = 2) -> tuple[list[Event], int, Event]:
    """A copy of the trace, and the ``number``-th event of a name in it: where it is, and the event."""
    trace = json.loads(json.dumps(trace))
    index = [place for place, event in enumerate(trace) if event["name"] == name][number - 1]
    return trace, index, trace[index]


def raised_commit(trace: list[Event]) -> Falsified:
    trace, index, event = at(trace, "Commit")
    event["state"]["commit"] += 1
    return trace, index + 1


def raised_commit_of_a_follower(trace: list[Event]) -> Falsified:
    trace, index, event = at(trace, "ReceiveAppendEntriesRequest", 20)
    event["state"]["commit"] += 1
    return trace, index + 1


def changed_vote(trace: list[Event]) -> Falsified:
    trace, index, event = at(trace, "SendRequestVoteRequest")
    event["state"]["vote"] = event["msg"]["to"]
    return trace, index + 1


def lowered_term(trace: list[Event]) -> Falsified:
    trace, index, event = at(trace, "SendAppendEntriesRequest", 30)
    event["state"]["term"] -= 1
    return trace, index + 1


def another_number_of_entries(trace: list[Event]) -> Falsified:
    trace, index, event = at(trace, "SendAppendEntriesRequest", 1)
    event["msg"]["entries"] += 1
    return trace, index + 1


def message_that_was_not_sent(trace: list[Event]) -> Falsified:
    trace, index, event = at(trace, "ReceiveAppendEntriesRequest", 10)
    event["msg"]["term"] += 1
    return trace, index + 1


def message_received_twice(trace: list[Event]) -> Falsified:
    trace, index, event = at(trace, "ReceiveRequestVoteResponse")
    trace.insert(index + 1, json.loads(json.dumps(event)))
    return trace, index + 2


def another_configuration(trace: list[Event]) -> Falsified:
    trace, index, event = at(trace, "ApplyConfChange")
    event["prop"]["cc"]["newconf"].append("77")
    return trace, index + 1


def another_change(trace: list[Event]) -> Falsified:
    trace, index, event = at(trace, "ChangeConf", 1)
    added = event["prop"]["cc"]["changes"][0]
    added["action"] = {"RemoveServer": "AddLearner"}.get(added["action"], "RemoveServer")
    return trace, index + 1


def lost_election(trace: list[Event]) -> Falsified:
    trace, index, _ = at(trace, "BecomeLeader")
    del trace[index]
    return trace, index + 1


def election_without_votes(trace: list[Event]) -> Falsified:
    trace, index, event = at(trace, "BecomeLeader")
    votes = [
        place
        for place, other in enumerate(trace[:index])
        if other["name"] == "ReceiveRequestVoteResponse" and other["msg"]["term"] == event["state"]["term"]
    ]
    for place in reversed(votes):
        del trace[place]
    return trace, index + 1 - len(votes)


def longer_log(trace: list[Event]) -> Falsified:
    trace, index, event = at(trace, "ReceiveAppendEntriesRequest", 15)
    event["log"] += 1
    return trace, index + 1


def another_role(trace: list[Event]) -> Falsified:
    trace, index, event = at(trace, "Ready", 40)
    event["role"] = "StatePreCandidate"
    return trace, index + 1


def configuration_ahead_of_its_entry(trace: list[Event]) -> Falsified:
    trace, index, event = at(trace, "ApplyConfChange", 1)
    event["conf"] = [event["prop"]["cc"]["newconf"], []]
    event["conf"][0] = [*event["conf"][0], "77"]
    return trace, index + 1


def no_such_event(trace: list[Event]) -> Falsified:
    trace, index, event = at(trace, "Commit", 3)
    event["name"] = "Uncommit"
    return trace, index + 1


@pytest.mark.parametrize(
    "falsify",
    [
        raised_commit,
        raised_commit_of_a_follower,
        changed_vote,
        lowered_term,
        another_number_of_entries,
        message_that_was_not_sent,
        message_received_twice,
        another_configuration,
        another_change,
        lost_election,
        election_without_votes,
        longer_log,
        another_role,
        configuration_ahead_of_its_entry,
        no_such_event,
    ],
)
def test_falsified_traces_are_rejected(trace: list[Event], falsify: Callable[[list[Event]], Falsified]) -> None:
    """One thing is other than it was, and the line is named."""
    falsified, line = falsify(trace)
    verdict = check_events(falsified)
    assert not verdict.accepted
    assert verdict.line == line, f"line {verdict.line}: {verdict.reason}"


@pytest.mark.parametrize(
    "bug",
    [
        "elect-by-one-vote",
        "count-half-as-a-majority",
        "let-the-commit-index-go-back",
        "take-a-rejection-for-an-acknowledgement",
        "vote-twice",
    ],
)
def test_traces_of_wrong_cores_are_rejected(bug: str) -> None:
    """The trace tells what the core does, not what it should do: bugs in elections and in counting show in it."""

    def shows(seed: int) -> bool:
        with planted(bug):
            lines, _ = trace_of(Options.draw(seed).traceable().with_values({**SHORT, "chaos_s": "1", "calm_s": "3"}))
        return not check_trace(lines).accepted

    assert any(shows(seed) for seed in range(1, 41))


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"name": 1}', '{"name": "Commit", "nid": "1"}', "\x00"])
def test_what_is_no_event_is_rejected(trace: list[Event], line: str) -> None:
    """A trace that was cut or damaged is not taken for one that was checked."""
    verdict = check_trace([*map(json.dumps, trace[:20]), line])
    assert verdict.line == 21


# -- the hook ----------------------------------------------------------------------------------------------------------


def test_nothing_is_left_in_the_core() -> None:
    """What is not traced costs nothing: the core runs the code that it has without a tracer, before and after."""
    places = [
        (
            Raft,
            ("__init__", "become_follower", "become_candidate", "become_leader", "send", "step", "apply_membership"),
        ),
        (RawNode, ("ready",)),
        (Tracker, ("switch",)),
        (replication, ("append", "maybe_commit")),
        (elections, ("_learn_commit",)),
    ]
    before = [vars(owner)[name] for owner, names in places for name in names]
    with tracing(io.StringIO()):
        traced = [vars(owner)[name] for owner, names in places for name in names]
    assert [vars(owner)[name] for owner, names in places for name in names] == before
    assert not any(one is other for one, other in zip(traced, before, strict=True))
    assert {one.__module__.partition(".")[2] for one in before if one is not None} <= {
        "raft.core",
        "raft.node",
        "raft.progress",
        "raft.replication",
        "raft.elections",
    }


def test_members_that_never_begin_are_in_the_trace() -> None:
    """A trace that ends early is still one of the whole first configuration, which the specification asks for."""
    lines, ended = trace_of(Options.draw(4).traceable().with_values({"chaos_s": "0.05", "calm_s": "0"}))
    begun = [json.loads(line)["nid"] for line in lines if '"InitState"' in line]
    assert ended is None
    assert sorted(begun) == json.loads(lines[0])["conf"][0]
    assert json.loads(lines[-1])["name"] == "InitState"
    assert check_trace(lines).accepted


def test_node_ids_become_decimals() -> None:
    """Their own digits where they have any, the same number for the same name everywhere else, and "0" for nobody."""
    numbers = NodeNumbers()
    assert [numbers.one(node_id) for node_id in ("", "n7", "12", "n12")] == ["0", "7", "12", numbers.one("n12")]
    names = ["alpha", "n0", "n07", "n12", "7", "½", "n٣"]
    assert len({numbers.one(name) for name in names} | {"7", "12", "0"}) == len(names) + 3
    assert all(numbers.one(name).isascii() and int(numbers.one(name)) > 12 for name in names)
    assert numbers.one("alpha") == NodeNumbers().one("alpha")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is written is checked; the line at which it fails is told as compilers tell theirs."""
    file = tmp_path / "trace.ndjson"
    simulate = ["simulate", "--seeds", "2", "--trace", str(file), "--set", "chaos_s=1", "--set", "calm_s=3"]
    assert main(simulate) == 0
    assert main(["check-trace", str(file)]) == 0
    assert "lines, all of them steps" in capsys.readouterr().out

    lines = file.read_text("utf-8").splitlines()
    place = next(place for place, line in enumerate(lines) if '"Commit"' in line)
    event = json.loads(lines[place])
    event["state"]["commit"] += 1
    lines[place] = json.dumps(event)
    file.write_text("\n".join(lines), "utf-8")
    assert main(["check-trace", str(file)]) == 1
    assert f"{file}:{place + 1}: " in capsys.readouterr().out
    assert main(["check-trace", str(tmp_path / "none")]) == 2
    (tmp_path / "empty").touch()
    assert main(["check-trace", str(tmp_path / "empty")]) == 2
