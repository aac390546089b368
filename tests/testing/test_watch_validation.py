"""The validator of watch streams: right ones pass, and each of the nine properties is missed when it does not hold."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import trio

from replikv import Cluster, CompactedError, LaggedError
from replikv.testing.watch_validation import (
    PROPERTIES,
    ChangeHistory,
    HistoryChange,
    StreamEvent,
    StreamRecorder,
    WatchStream,
    read_streams,
    validate,
    write_streams,
)
from replikv.testing.watch_validation.__main__ import main

HISTORY = ChangeHistory(
    [
        HistoryChange(1, "a", "put", 1),
        HistoryChange(2, "b", "put", 2),
        HistoryChange(3, "a", "put", 3),
        HistoryChange(3, "b", "put", 4),
        HistoryChange(4, "b", "delete"),
        HistoryChange(5, "c", "put", 5),
        HistoryChange(6, "b", "put", None),
        HistoryChange(7, "c", "expire"),
        HistoryChange(8, "a", "put", 6),
    ]
)


def told(*revisions: int, keys: str = "abc", previous: bool = True) -> list[StreamEvent]:
    """What a stream tells of these revisions, when it is right."""
    return [
        StreamEvent(
            event="change",
            rev=one.rev,
            kind=one.kind,
            key=one.key,
            value=one.value,
            previous=one.previous if previous else None,
            created=one.created,
        )
        for rev in revisions
        for one in (HISTORY.at(rev) or {}).values()
        if one.key in keys
    ]


def mark(rev: int) -> StreamEvent:
    return StreamEvent(event="progress", rev=rev)


def stream(events: list[StreamEvent], since: int = 0, **options: object) -> WatchStream:
    return WatchStream(watcher="w", since=since, events=events, **options)  # type: ignore[arg-type]


ALL = told(1, 2, 3, 4, 5, 6, 7, 8)
RIGHT = {
    "everything": stream(ALL),
    "nothing": stream([]),
    "from a revision on": stream(told(4, 5, 6), since=3),
    "with marks": stream([mark(0), *told(1, 2), mark(2), mark(4), *told(5)][:4]),
    "marks of what is not asked for": stream([*told(1, keys="a"), mark(2), *told(3, 8, keys="a"), mark(8)], key="a"),
    "broken off within a revision": stream(ALL[:3]),
    "a prefix": stream(told(2, 3, 4, 6, keys="b"), prefix="b"),
    "a range": stream(told(1, 2, 3, 4, 6, 8, keys="ab"), start="a", stop="c"),
    "of a kind": stream([*told(4), *told(7), mark(8)], kinds=("delete", "expire")),
    "without previous values": stream(told(1, 2, 3, 4, previous=False), previous=False),
    "compacted": stream([StreamEvent(event="compacted", rev=4)], since=3),
    "compacted while it was read": stream([*told(1, 2), StreamEvent(event="compacted", rev=3)]),
    "lagged": stream([*told(1, 2, 3), StreamEvent(event="lagged", rev=3)]),
    "left": stream([*told(1), StreamEvent(event="end")]),
}
RIGHT["the state first"] = stream(
    [
        *(dataclasses.replace(one, rev=6, previous=None, created=False) for one in (*told(3)[:1], *told(6), *told(5))),
        mark(6),
        *told(7, 8),
    ],
    since=6,
    snapshot=True,
)


@pytest.mark.parametrize("name", RIGHT)
def test_right_streams_are_valid(name: str) -> None:
    """Whatever they ask for, and wherever they break off."""
    assert [] == validate([RIGHT[name]], HISTORY)


def altered(place: int, **fields: object) -> list[StreamEvent]:
    """All of it, with one event otherwise."""
    return [*ALL[:place], dataclasses.replace(ALL[place], **fields), *ALL[place + 1 :]]  # type: ignore[arg-type]


FALSIFIED: dict[str, tuple[str, WatchStream]] = {
    "a change behind its mark": ("bookmarkable", stream([*told(1), mark(2), *told(2)])),
    "a mark before what it covers": ("bookmarkable", stream([*told(1), mark(2)])),
    "a mark that goes back": ("bookmarkable", stream([*told(1, 2), mark(1)])),
    "revisions the wrong way round": ("ordered", stream(told(1, 2, 4, 3))),
    "a state the wrong way round": (
        "ordered",
        stream(
            [dataclasses.replace(one, rev=2, previous=None, created=False) for one in (*told(2), *told(1))],
            since=2,
            snapshot=True,
        ),
    ),
    "a change twice": ("unique", stream([*told(1, 2), *told(2), *told(3)])),
    "half of an update": ("atomic", stream([*told(1, 2), *told(3)[:1], *told(4)])),
    "half of an update, and a mark": ("atomic", stream([*told(1, 2), *told(3)[:1], mark(3)])),
    "half of an update, and a lag": ("atomic", stream([*told(1, 2, 3)[:3], StreamEvent(event="lagged", rev=3)])),
    "a revision left out": ("reliable", stream(told(1, 2, 4))),
    "a change of another value": ("reliable", stream(altered(1, value=7))),
    "a change of another type": ("reliable", stream(altered(0, value=True))),
    "a change of another kind": ("reliable", stream(altered(4, kind="expire"))),
    "a change that never was": ("reliable", stream([*ALL, dataclasses.replace(ALL[0], rev=9)])),
    "a change of another revision": ("reliable", stream([dataclasses.replace(told(1)[0], rev=2)], since=1)),
    "a state with too little": ("reliable", stream([mark(2)], since=2, snapshot=True)),
    "a beginning left out": ("resumable", stream(told(4, 5), since=2)),
    "what came before": ("resumable", stream(told(2, 3, 4), since=2)),
    "refused without need": ("resumable", stream([*told(1, 2, 3), StreamEvent(event="compacted", rev=2)])),
    "another value before": ("previous", stream(altered(2, previous=2))),
    "no value before": ("previous", stream(altered(2, previous=None))),
    "a value before that was not asked for": ("previous", stream(told(3), since=2, previous=False)),
    "made a second time": ("created", stream(altered(2, created=True))),
    "made, and not told so": ("created", stream(altered(5, created=False))),
    "made with the value None, and not told so": ("created", stream(altered(6, created=False))),
    "another key": ("filtered", stream(told(1, 2), key="a")),
    "another prefix": ("filtered", stream(told(2), since=1, prefix="c")),
    "out of the range": ("filtered", stream([*told(1, 2), *told(3)], stop="b")),
    "another kind": ("filtered", stream([*told(4), *told(5)], since=3, kinds=("delete", "expire"))),
}


@pytest.mark.parametrize("name", FALSIFIED)
def test_falsified_streams_are_rejected(name: str) -> None:
    """By the property that does not hold."""
    broken, falsified = FALSIFIED[name]
    assert broken in {violation.property for violation in validate([RIGHT["everything"], falsified], HISTORY)}


def test_each_property_can_fail() -> None:
    """None of the nine is without a stream that it rejects."""
    assert set(PROPERTIES) == {broken for broken, _ in FALSIFIED.values()}


def test_what_is_not_known_is_not_held_against_a_stream() -> None:
    """Revisions that are missing in the history; the previous value of a change behind them is believed."""
    history = ChangeHistory([one for rev in (1, 2, 7, 8) for one in (HISTORY.at(rev) or {}).values()])

    assert [3, 4, 5, 6] == history.unknown
    assert [] == validate([RIGHT["everything"], stream(told(1, 2, 7, 8))], history)
    assert "atomic" not in {one.property for one in validate([stream([*told(1), *told(3)[:1], *told(8)])], history)}


def test_a_history_is_made_of_streams_of_everything() -> None:
    """Each may have a part of it. What is before a change comes from those before it, not from what a stream says."""
    lying = stream(altered(2, previous=2))
    history = ChangeHistory.of_streams([lying, stream([*told(7, 8), mark(8)], since=6)])

    assert [] == history.unknown
    assert [] == validate(RIGHT.values(), history)
    assert ["previous"] == [one.property for one in validate([lying], history)]


def test_the_last_revision_of_a_stream_may_be_a_part_only() -> None:
    """No history rests on it, unless a mark came behind it."""
    assert 2 == ChangeHistory.of_streams([stream(ALL[:3])]).newest
    assert 3 == ChangeHistory.of_streams([stream([*told(1, 2, 3), mark(3)])]).newest


def test_two_histories_are_refused() -> None:
    """And streams that leave some out make none."""
    with pytest.raises(ValueError, match="two histories"):
        ChangeHistory.of_streams([stream(ALL), stream(altered(0, value=7))])
    with pytest.raises(ValueError, match="not of all changes"):
        ChangeHistory.of_streams([stream([], prefix="a")])


# -- lines of JSON -----------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Streams with all their options."""
    streams = [dataclasses.replace(one, stream=number) for number, one in enumerate(RIGHT.values(), 1)]
    write_streams(streams, tmp_path / "streams.jsonl")
    assert streams == read_streams(tmp_path / "streams.jsonl")


@pytest.mark.parametrize(
    "line",
    [
        "no JSON\n",
        "[]\n",
        '{"watcher": "w", "stream": 1, "event": "progress", "rev": 1}\n',
        '{"watcher": "w", "stream": 1, "event": "begin"}\n',
        '{"watcher": "w", "stream": 1, "event": "begin", "since": 0, "coalesce": true}\n',
        '{"watcher": "v", "stream": 1, "event": "begin", "since": 0}\n',
        '{"watcher": "v", "stream": 1, "event": "end of the world"}\n',
        '{"watcher": "v", "stream": 1, "event": "change", "kind": "put", "rev": 1}\n',
        '{"watcher": "v", "stream": 1, "event": "progress", "rev": "1"}\n',
    ],
)
def test_lines_that_do_not_fit_are_told(line: str) -> None:
    """With their number."""
    begin = '{"watcher": "v", "stream": 1, "event": "begin", "since": 0}\n'
    with pytest.raises(ValueError, match="line 2 does not fit"):
        read_streams([begin, line, "\n"])


def test_a_line_that_its_writer_was_killed_over_is_left_out() -> None:
    """It is the last one, and has no end."""
    lines = io.StringIO()
    write_streams([RIGHT["everything"]], lines)
    for cut in (1, 30):
        found = read_streams((lines.getvalue()[:-cut]).splitlines(keepends=True))
        assert [ALL if cut == 1 else ALL[:-1]] == [one.events for one in found]


async def test_real_watches_are_recorded_and_valid(autojump_clock: object) -> None:
    """All kinds of changes and options, out of a cluster; and the lines of one that goes on elsewhere."""
    lines = io.StringIO()
    async with Cluster("a") as cluster:
        store = cluster.store
        await store.put("x/1", 1)
        await store.update({"x/1": 2, "y": None})
        async with store.lease(ttl_s=5) as lease:
            await store.put("x/2", 3, lease=lease)
        await store.delete("y")
        since = store.revision - 1
        watches: list[dict[str, Any]] = [
            {"since": 0, "progress": True},
            {"since": 0, "prefix": "x/", "progress": True},
            {"since": 1, "kinds": {"expire"}, "previous": False},
            {"since": since, "start": "x/2"},
            {"snapshot": True, "progress": True},
        ]
        for number, asked in enumerate(watches):
            recorder = StreamRecorder(f"w{number}", lines)
            async with store.watch(**asked) as changes:
                options = {name: value for name, value in asked.items() if name != "progress"}
                recorder.begin(**{"since": store.revision, **options})
                with trio.move_on_after(1):
                    async for change in changes:
                        recorder.change(change)
            recorder.end()
        recorder.begin(since=0)
        recorder.end(LaggedError("too slow", 0))
        recorder.begin(since=0)
        recorder.end(CompactedError("too late", 1))

    streams = read_streams(lines.getvalue().splitlines(keepends=True))
    history = ChangeHistory.of_streams(one for one in streams if one.whole and not one.snapshot)

    assert [] == validate(streams, history)
    assert {"put", "delete", "expire"} == {one.kind for each in streams for one in each.events} - {None}
    assert ["lagged", "compacted"] == [one.events[-1].event for one in streams[-2:]]


def test_the_command_tells_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 for valid streams, 1 for others, 2 for what is none."""
    path = tmp_path / "streams.jsonl"
    whole = stream([*ALL, mark(8)])
    for expected, streams in ((0, [whole]), (1, [whole, dataclasses.replace(RIGHT["left"], stream=2, since=1)])):
        write_streams(streams, path)
        assert expected == main([str(path)])
    assert "resumable: stream 2 of w " in capsys.readouterr().out

    path.write_text("nothing\n")
    assert 2 == main([str(path)])


def test_streams_of_some_keys_alone_are_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to hold them against: that is neither right nor wrong."""
    path = tmp_path / "streams.jsonl"
    for streams in ([], [RIGHT["a prefix"]]):
        write_streams(streams, path)
        assert 2 == main([str(path)])
        assert "nothing to hold" in capsys.readouterr().err


def test_a_history_is_told_as_a_stream() -> None:
    """Of everything: the same history is made of it."""
    for history in (HISTORY, ChangeHistory([one for rev in (1, 2, 7) for one in (HISTORY.at(rev) or {}).values()])):
        told = history.as_stream("all")
        again = ChangeHistory.of_streams([told])
        assert [] == validate([told], history)
        assert [history.at(rev) for rev in range(9)] == [again.at(rev) for rev in range(9)]
