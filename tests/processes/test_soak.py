"""Much is done for a long time at constant size: what a process holds, and what its directory holds, stays as it is.

``REPLIKV_SOAK_S=600 pytest -m long tests/processes/test_soak.py`` soaks for ten minutes, and writes what it saw, a line
of JSON for each look, beside the peers' directories: ``--basetemp`` says where.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from processes import Group, running_processes

SOAK_S = float(os.environ.get("REPLIKV_SOAK_S", "180"))

SETTINGS = {
    "snapshot_log_entries": 300,
    "trailing_entries": 100,
    "wal_segment_bytes": 256 * 1024,
    "history_revisions": 500,
    "sessions_max": 6,
    "request_timeout_s": 5.0,
}
"""Everything with a limit reaches it soon, so that a run of minutes is one at constant size."""

GROWTH: Mapping[str, tuple[float, float]] = {
    # Between two rounds nothing runs that was begun in one. What differs from look to look is what the peers do by
    # themselves: a dial, a channel for a snapshot, a thread of trio's that waits for ten seconds for another call.
    "tasks": (0.0, 1.0),
    "threads": (0.0, 1.0),
    "python_threads": (0.0, 1.0),
    "descriptors": (0.0, 1.0),
    "watches": (0.0, 0.0),
    "in_flight": (0.0, 0.0),
    # At the limit, as one peer was started again often enough in the warm-up; of one that was killed, what was under
    # way is kept until its session is forgotten.
    "sessions": (0.0, 1.0),
    "results": (0.5, 100.0),
    # What the garbage collector knows, and all small allocations, those of bytes and ints as well. Digests are noted
    # for the last 65,536 commands, an object and five blocks for 64 of them, and a run of minutes has fewer: that is
    # most of what is seen. The history takes some more or some less, and leases end when they end. In three minutes a
    # peer does some 9,000 operations, two thirds of them between the medians: what every other one leaves is too much.
    "objects": (0.01, 500.0),
    "blocks": (0.01, 1_000.0),
    # The allocators', which give back what they like: pages are shared by what lives long and what does not.
    "rss_bytes": (0.03, 2e6),
    # Two snapshots, what is kept of the log, and a segment that is prepared: which of these are there just now differs.
    "files": (0.0, 2.0),
    "file_bytes": (0.25, 600e3),
}
"""How much more there may be in the last third of a run than in the first: a part of it, and an amount beside."""


def grown(samples: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """What there is more of in the last third than in the first, beyond what may be: the medians of both."""
    third = len(samples) // 3
    assert third > 0, "too few looks to judge by"
    found = {}
    for name, (part, amount) in GROWTH.items():
        values = [sample[name] for sample in samples if name in sample]
        if values:
            before, after = statistics.median(values[:third]), statistics.median(values[-third:])
            if after > before * (1 + part) + amount:
                found[name] = (before, after)
    return found


def directory_of(group: Group, node_id: str) -> dict[str, int]:
    """How many files it has, and of how many bytes; one may go while this looks."""
    files = size = 0
    for path in (group.directory / node_id).rglob("*"):
        try:
            size += path.stat().st_size
        except FileNotFoundError:
            continue
        files += 1
    return {"files": files, "file_bytes": size}


class Soak:
    """Rounds of work, and a look at every process after each."""

    def __init__(self, group: Group, round_s: float) -> None:
        self._group = group
        self._round_s = round_s
        self._notes = group.directory / "samples.jsonl"
        self.samples: dict[str, list[dict[str, Any]]] = {}

    async def run(self, rounds: int, *, restart: str = "", every: int = 4, leak: str = "") -> None:
        """So many rounds. In every so-manieth one peer ends, or is killed, by turns, and is started again."""
        for number in range(rounds):
            async with trio.open_nursery() as nursery:
                for node_id in self._group.running:
                    if node_id != restart or number % every:
                        nursery.start_soon(self._work, node_id)
                    else:
                        nursery.start_soon(self._restart, node_id, bool(number // every % 2))
            if leak:
                await self._group["a"].call("leak", what=leak)
            await trio.sleep(0.1)  # what was on its way arrives
            for node_id, process in self._group.running.items():
                self._note(node_id, number, await process.call("sample"))

    async def _work(self, node_id: str) -> None:
        await self._group[node_id].call("round", seconds=self._round_s)

    async def _restart(self, node_id: str, kill: bool) -> None:
        if kill:
            await self._group.kill([node_id])
        else:
            await self._group.shut_down(node_id)
        await self._group.start([node_id])
        await self._work(node_id)

    def _note(self, node_id: str, number: int, held: dict[str, int]) -> None:
        sample = {**held, **directory_of(self._group, node_id)}
        assert GROWTH.keys() <= sample.keys()
        self.samples.setdefault(node_id, []).append(sample)
        with self._notes.open("a", encoding="utf-8") as notes:
            notes.write(json.dumps({"node": node_id, "round": number, **sample}) + "\n")


async def soak(
    directory: Path, rounds: int, round_s: float, *, warm_up: int, restart: str = "", leak: str = ""
) -> Soak:
    """Rounds of three processes, and their samples without those of the warm-up."""
    async with running_processes(directory, settings=SETTINGS, program="soaker.py") as group:
        await group.leader()
        soaked = Soak(group, round_s)
        await soaked.run(warm_up, restart=restart)
        soaked.samples.clear()
        await soaked.run(rounds, restart=restart, leak=leak)
        assert 1 == len(await group.digests())
    return soaked


def progress(samples: Sequence[Mapping[str, Any]], name: str) -> int:
    return int(samples[-1][name] - samples[0][name])


async def test_a_short_soak_leaves_nothing(tmp_path: Path) -> None:
    """Rounds of a quarter of a second: tasks, threads, descriptors and waiters, which need no long time to show."""
    soaked = await soak(tmp_path, 6, 0.25, warm_up=2)
    for node_id, samples in soaked.samples.items():
        found = grown(samples)
        for name in ("rss_bytes", "objects", "blocks", "file_bytes", "files"):  # still on their way to where they stay
            found.pop(name, None)
        assert {} == found, node_id
        assert progress(samples, "done") > 30


@pytest.mark.long
async def test_a_soak_stays_as_it_is(tmp_path: Path) -> None:
    """Two peers run throughout, the third is started again and again: nothing of any of them grows."""
    round_s = 2.0
    rounds = max(12, int(SOAK_S / (round_s + 0.5)))
    soaked = await soak(tmp_path, rounds, round_s, warm_up=max(4, rounds // 5), restart="c")
    for node_id, samples in soaked.samples.items():
        aged = samples[3::4] if node_id == "c" else samples  # of who was started again, each as old as the others
        assert {} == grown(aged), node_id
        assert progress(samples, "first_index") > 300 * rounds / 10, "the log was not truncated often"
    assert min(len(samples) for samples in soaked.samples.values()) == rounds


@pytest.mark.long
@pytest.mark.parametrize("leak", ["objects", "blocks", "rss_bytes", "descriptors", "tasks", "threads", "watches"])
async def test_a_leak_is_noticed(tmp_path: Path, leak: str) -> None:
    """The judge is judged: a process that holds on to something is found, and what it holds on to."""
    soaked = await soak(tmp_path, 9, 0.3, warm_up=3, leak=leak)
    assert leak in grown(soaked.samples["a"])


@pytest.mark.parametrize("name", sorted(GROWTH))
def test_what_grows_is_told(name: str) -> None:
    """A little, from look to look, is not; the same a third of a run later, and more than may be, is."""
    part, amount = GROWTH[name]
    level = 1e8
    step = (level * part + amount) / 20 + 1
    flat = [{name: level + (step if number % 2 else 0)} for number in range(60)]
    rising = [{name: level + step * number} for number in range(60)]
    assert {} == grown(flat)
    assert [name] == list(grown(rising))
