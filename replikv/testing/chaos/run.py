"""A run from its first process to its last verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import time
from typing import Any, Final

import trio

from replikv.testing.chaos.holders import HELD
from replikv.testing.chaos.judge import Verdicts, judge
from replikv.testing.chaos.nodes import CommandError, Node, Nodes
from replikv.testing.chaos.options import Options
from replikv.testing.chaos.records import Lines
from replikv.testing.chaos.storm import Storm

__all__ = ["Report", "run"]

WARM_S: Final = 30.0
"""Within this time the first peers work, on a machine that has other things to do."""
ANSWER_S: Final = 10.0
"""For an answer of a process that nothing is wrong with; the cluster has ``request_timeout_s`` for what it asks."""


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What came of a run."""

    options: Options
    faults: dict[str, int]
    """How often each was done."""
    counts: dict[str, int]
    """Operations by outcome, and what else there was."""
    verdicts: Verdicts
    """What each judge says: empty if all is well."""
    judged_s: float
    """How long the judges took."""

    @property
    def failures(self) -> list[str]:
        """All that is wrong."""
        return [f"{judge}: {what}" for judge, found in self.verdicts.items() for what in found]

    def save(self) -> None:
        """Write it into the directory."""
        told = dataclasses.asdict(self)
        told["options"]["directory"] = str(self.options.directory)
        (self.options.directory / "report.json").write_text(json.dumps(told, indent=2) + "\n", "utf-8")


class _UnwellError(Exception):
    """The cluster did not come to be well; the message is the reason."""


async def run(options: Options) -> Report:
    """Run, and judge. Everything is in ``options.directory`` afterwards.

    Cancelled, it ends its processes, and leaves what there is. Raises FileExistsError for a directory that is not
    empty.
    """
    directory = options.directory
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty: give a new directory to each run")
    options.save()
    lease_reads = random.Random(f"{options.seed}/lease reads").random() < 0.5  # noqa: S311
    nodes = Nodes(options, lease_reads)
    lines = Lines(directory / "faults.jsonl")
    storm = Storm(nodes, options, lines)
    lines.write({"at": time.monotonic(), "lease_reads": lease_reads, "mounted": nodes.nodes["n1"].disk.mounted})
    unwell: list[str] = []
    final: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        await nursery.start(nodes.run)
        try:
            for name in nodes.first:
                await nodes.start(nodes.nodes[name])
            await _working(nodes, WARM_S)
            with trio.move_on_after(options.seconds):
                await storm.run()
            lines.write({"at": time.monotonic(), "calm": True})
            final = await _settle(nodes, options)
            unwell += [wrong for node in nodes.of("running") if (wrong := await nodes.leave(node)) is not None]
        except (_UnwellError, CommandError) as exc:
            unwell.append(" ".join(map(str, exc.args)))
        final |= {"unwell": [*unwell, *nodes.failures], "ends": nodes.ends, "network": nodes.network.statistics()}
        (directory / "final.json").write_text(json.dumps(final, indent=2) + "\n", "utf-8")
        nursery.cancel_scope.cancel()
    lines.close()
    began = time.monotonic()
    verdicts, counts = await trio.to_thread.run_sync(judge, directory, options.check_s)
    report = Report(options, dict(storm.counts), counts, verdicts, time.monotonic() - began)
    report.save()
    return report


async def _settle(nodes: Nodes, options: Options) -> dict[str, Any]:
    """Heal everything, and wait until all is well; what the peers hold then. Raises _UnwellError, CommandError."""
    began = trio.current_time()
    after_s: dict[str, float] = {}

    def note(what: str) -> None:
        after_s[what] = round(trio.current_time() - began, 3)

    nodes.network.heal()
    for node in nodes.nodes.values():
        node.disk.drain()
        nodes.go_on(node)
    for node in nodes.of("down"):
        await node.ended.wait()  # the storm may have been over between a kill and its end
        await nodes.start(node)
    await _working(nodes, options.calm_s)
    await _finish_removals(nodes, options.calm_s)
    await _working(nodes, options.calm_s)
    note("working")
    running = nodes.of("running")
    for node in running:
        await _told(node, "stop")
    values = {node.node_id: await _told(node, "read_all") for node in running}
    note("read")
    items = await _vacated(running, options.calm_s)
    note("leases ended")
    digests = await _digests(running, options.calm_s)
    newest = max(told["revision"] for told in items.values())
    for node in running:
        await _told(node, "watched", revision=newest)
    note("watched")
    status = {node.node_id: await _told(node, "status") for node in running}
    return {
        "after_s": after_s,
        "status": status,
        "values": values,
        "items": items,
        "digests": digests,
    }


async def _told(node: Node, do: str, **arguments: Any) -> Any:
    with trio.move_on_after(ANSWER_S * 3):
        return await node.call(do, **arguments)
    raise _UnwellError(f"{node.node_id} did not answer to {do!r} within {ANSWER_S * 3:g} s")


async def _working(nodes: Nodes, within_s: float) -> None:
    """Until everybody who runs agrees on the leader and the members, and has done something since."""
    why = "nobody runs"
    done: dict[str, int] = {}
    with trio.move_on_after(within_s):
        while True:
            starting = [node for node in nodes.of("joining", "down") if not node.leaving]
            told: dict[str, Any] = {}
            for node in nodes.of("running"):
                try:
                    with trio.fail_after(ANSWER_S):
                        told[node.node_id] = await node.call("status")
                except (CommandError, trio.TooSlowError):
                    why = f"{node.node_id} does not answer"
                    told.clear()
                    break
            if starting:
                why = f"{', '.join(node.node_id for node in starting)} could not start"
            elif told:
                members = [one["members"] for one in told.values()]
                leaders = {one["leader"] for one in told.values()}
                idle = [
                    name for name, one in told.items() if one["succeeded"] <= done.setdefault(name, one["succeeded"])
                ]
                if len(leaders) > 1 or None in leaders:
                    why = f"they do not agree on a leader: {leaders}"
                elif any(one != members[0] for one in members) or members[0].keys() != told.keys():
                    why = f"they do not agree on the members: {members}, and {sorted(told)} run"
                elif idle:
                    why = f"the clients of {', '.join(idle)} get no answers"
                else:
                    return
            await trio.sleep(0.1)
    raise _UnwellError(f"not well within {within_s:g} s: {why}; {'; '.join(nodes.failures)}")


async def _finish_removals(nodes: Nodes, within_s: float) -> None:
    """Until nobody is left whom somebody has asked to remove: it may be under way, and would end in our hands."""
    leaving: list[Node] = []
    with trio.move_on_after(within_s):
        while leaving := [node for node in nodes.nodes.values() if node.leaving and node.state != "absent"]:
            asked = next(node for node in nodes.of("running") if not node.leaving)
            for node in leaving:
                with contextlib.suppress(CommandError, trio.TooSlowError), trio.fail_after(ANSWER_S):
                    await asked.call("remove", node_id=node.node_id)
            await trio.sleep(0.2)
        return
    raise _UnwellError(f"they could not be removed: {', '.join(node.node_id for node in leaving)}")


async def _vacated(running: list[Node], within_s: float) -> dict[str, Any]:
    """Everything that each holds, once nothing of what was held by somebody is left: leases of the dead expire."""
    left: list[str] = []
    with trio.move_on_after(within_s):
        while True:
            items = {node.node_id: await _told(node, "items") for node in running}
            left = sorted({key for one in items.values() for key in one["items"] if key.startswith(HELD)})
            if not left:
                return items
            await trio.sleep(0.2)
    raise _UnwellError(f"leases do not end: {within_s:g} s after their holders there are still {left}")


async def _digests(running: list[Node], within_s: float) -> dict[str, Any]:
    """The digest of each, at one position."""
    digests: dict[str, Any] = {}
    with trio.move_on_after(within_s):
        while True:
            digests = {node.node_id: await _told(node, "digest") for node in running}
            if len({position for position, _ in digests.values()}) == 1:
                return digests
            await trio.sleep(0.05)
    raise _UnwellError(f"they do not come to one position: {digests}")
