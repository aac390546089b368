"""Whatever awaits is cancelled at each of its checkpoints, and at each step that anybody takes meanwhile."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cancelled_calls
import cancelled_recipes
import pytest
import trio
from cancelling import SETTLED_S, Case, Scene, cancel_cut_off, cancel_everywhere, scene, steps_of
from clusters import Peers, peer_of, running
from steps import CancelAtStep

import replikv
import replikv.recipes
from replikv import Cluster, Lease, OutcomeUnknownError, ReplikvError, Store, Watch
from replikv.peer.proposals import Proposal, Proposals
from replikv.recipes import Queue
from replikv.recipes.acquiring import Holders
from replikv.storage.backups import BackupWriter

CASES = [*cancelled_calls.CASES, *cancelled_recipes.CASES]

OTHERWHERE = {
    # A peer's life: test_a_peer_cancelled_at_any_step_of_its_life
    *("Cluster.run", "Cluster.shutdown"),
    # What carries frames between peers; applications do not call it: transport/test_cancelled_channels.py
    *("MemoryTransport.call", "MemoryTransport.open_channel", "TcpTransport.call", "TcpTransport.open_channel"),
    *("Channel.aclose", "Channel.receive", "Channel.send"),
    # replikv.testing.transport_suite: test_a_cancelled_run_leaves_nothing
    *("MemoryTransport.run", "TcpTransport.run"),
    # Protocols, without code of their own.
    *("Transport.call", "Transport.open_channel", "Transport.run", "Receiver.serve_channel", "Receiver.serve_stranger"),
}


def public_names() -> Iterator[str]:
    """``Class.method`` of whatever awaits and may be called by an application: coroutine functions, and what makes a
    block or an iterator whose steps await.
    """
    for module in (replikv, replikv.recipes):
        for cls in classes_of(module):
            for name, function in inspect.getmembers(cls, inspect.isfunction):
                if (not name.startswith("_") or name in SPECIAL) and awaits(function):
                    yield f"{cls.__name__}.{name}"


SPECIAL = ("__aenter__", "__aexit__", "__anext__")


def classes_of(module: ModuleType) -> Iterator[type]:
    for name in module.__all__:
        found = getattr(module, name)
        if inspect.isclass(found):
            yield found


def awaits(function: Callable[..., Any]) -> bool:
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(inspect.unwrap(function)):
        return True
    told = str(inspect.signature(function).return_annotation)
    return any(word in told for word in ("AsyncContextManager", "Awaitable", "Coroutine", "AsyncGenerator"))


def test_no_call_is_forgotten() -> None:
    """What is tested is what there is."""
    tested = {name for case in CASES for name in case.covers}
    assert set() == tested & OTHERWHERE
    assert sorted(public_names()) == sorted(tested | OTHERWHERE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_cancelled_at_any_checkpoint(autojump_clock: trio.abc.Clock, tmp_path: Path, case: Case) -> None:
    """At each of its own, and at some step in between: the state is sound, and nothing is left."""
    async with scene(tmp_path) as made:
        attempts = await cancel_everywhere(made, case, own=True, stride=1)
        assert attempts > 1
        await cancel_everywhere(made, case, own=False, stride=32)


@pytest.mark.long
@pytest.mark.parametrize("role", ["leader", "follower"])
@pytest.mark.parametrize("delay_s", [0.0, 0.01])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_cancelled_at_any_step_of_the_cluster(
    autojump_clock: trio.abc.Clock, tmp_path: Path, case: Case, role: str, delay_s: float
) -> None:
    """At each step that any task of any peer takes."""
    async with scene(tmp_path, role=role, delay_s=delay_s) as made:
        await cancel_everywhere(made, case, own=True, stride=1)
        assert await cancel_everywhere(made, case, own=False, stride=1) > 1


@pytest.mark.long
@pytest.mark.parametrize("role", ["leader", "follower"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_cancelled_while_nobody_can_be_reached(
    autojump_clock: trio.abc.Clock, tmp_path: Path, case: Case, role: str
) -> None:
    """At once, before anybody is missed, and after an election without this peer."""
    async with scene(tmp_path, role=role) as made:
        await cancel_cut_off(made, case, (0.0, 0.3, 2.5))


# -- what is told of it afterwards -------------------------------------------------------------------------------------


async def told_afterwards(made: Scene, step: int, own: bool) -> tuple[bool, bool]:
    """Cancel an increment there, and ask for its outcome at once: whether it was cancelled, and whether handed over."""
    await made.clear()
    proposals = peer_of(made.cluster)._proposals
    token = (proposals.session, proposals._next_sequence)
    cancelling = CancelAtStep(step, own=own)
    with cancelling.counting():
        await made.store.increment("key")
    handed = proposals._next_sequence > token[1]
    if not cancelling.ended:
        told: bool | None = False
        if handed:
            try:
                told = bool(await made.cluster.outcome(token))
            except OutcomeUnknownError:
                told = None  # it was seen applied, and nobody had the token: so nobody is told any more
        await made.check()
        assert told in (None, "key" in made.store)
        assert told is not None or made.store["key"] == 1
    return cancelling.too_late, handed and not cancelling.ended


@pytest.mark.parametrize("role", ["leader", "follower"])
@pytest.mark.parametrize("stride", [2, pytest.param(1, marks=pytest.mark.long)])
async def test_the_outcome_agrees_with_what_became_of_it(
    autojump_clock: trio.abc.Clock, tmp_path: Path, role: str, stride: int
) -> None:
    """Applied or never, whichever is told: also if it is told while the command is on its way."""
    async with scene(tmp_path, role=role, delay_s=0.01) as made:
        asked = 0
        for step in steps_of(own=False, stride=stride, seed=role):
            too_late, handed = await told_afterwards(made, step, own=False)
            asked += handed
            if too_late:
                break
        assert asked > 3


# -- a peer's life -----------------------------------------------------------------------------------------------------


async def live_in_a_block(cluster: Cluster) -> None:
    async with cluster:
        await cluster.store.barrier()


async def live_in_a_nursery(cluster: Cluster) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(cluster.run)
        await cluster.store.barrier()
        await cluster.shutdown()


async def check_life(peers: Peers, lives: int, tasks: int) -> None:
    """Nothing of the life before is left; with its directory a peer begins another, and all is as ever."""
    with trio.fail_after(SETTLED_S):
        while trio.lowlevel.current_statistics().tasks_living > tasks:  # noqa: ASYNC110  # nothing to wait on
            await trio.sleep(0.05)
    again = await peers.start("c")
    with trio.fail_after(SETTLED_S):
        assert lives == await again.store.increment("lives")
    await peers.converge()
    await peers.shutdown("c")
    assert lives == await peers["a"].store.get("lives")


@pytest.mark.parametrize("live", [live_in_a_block, live_in_a_nursery])
@pytest.mark.parametrize("stride", [60, pytest.param(1, marks=pytest.mark.long)])
async def test_a_peer_cancelled_at_any_step_of_its_life(
    autojump_clock: trio.abc.Clock, tmp_path: Path, live: Callable[[Cluster], Awaitable[None]], stride: int
) -> None:
    """While it starts, while it is there, while it ends, called back to all by its directory each time."""
    async with running(absent="c", disks=tmp_path) as peers:
        await peers.leader()
        await check_life(peers, 1, trio.lowlevel.current_statistics().tasks_living + 10)
        await trio.sleep(1.0)
        tasks = trio.lowlevel.current_statistics().tasks_living
        lives = 1
        for own in (True, False):
            for step in steps_of(own, stride, live.__name__):
                cancelling = CancelAtStep(step, own=own)
                with cancelling.counting():
                    await live(peers.make("c"))
                lives += 1
                await check_life(peers, lives, tasks)
                if cancelling.too_late:
                    break
        assert lives > 5


# -- the harness itself ------------------------------------------------------------------------------------------------


def leave_watches_open(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Watch, "close", lambda self: None)


def revoke_without_a_shield(patch: pytest.MonkeyPatch) -> None:
    async def let_go(self: Lease) -> None:
        self._keeper.cancel()
        self._ended = True
        await self._calls.revoke_lease(self.id)

    patch.setattr(Lease, "_let_go", let_go)


def keep_reservations(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Queue, "_release", lambda self, number: None)


def keep_the_name_of_the_task(patch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def once(self: Holders) -> Iterator[None]:
        task = trio.lowlevel.current_task()
        if task in self._tasks:
            raise RuntimeError
        self._tasks.add(task)
        yield
        self._tasks.remove(task)

    patch.setattr(Holders, "once", once)


def leave_half_a_backup(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BackupWriter, "abort", lambda self: None)


def increment_again_when_cancelled(patch: pytest.MonkeyPatch) -> None:
    increment = Store.increment

    async def twice(self: Store, key: str, by: int = 1) -> int:
        try:
            return await increment(self, key, by)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await increment(self, key, by)
            raise

    patch.setattr(Store, "increment", twice)


def forget_who_is_under_way(patch: pytest.MonkeyPatch) -> None:
    """The mark overtakes what was cancelled, and the one after it is given its sequence."""
    leave = Proposals._leave_unsettled

    def forget(self: Proposals, proposal: Proposal, *, token: bool) -> None:
        if proposal.sequence == self._next_sequence - 1:
            self._next_sequence -= 1
        leave(self, proposal, token=token)
        self._unsettled.pop(proposal.sequence, None)

    patch.setattr(Proposals, "_leave_unsettled", forget)


PLANTED = {
    leave_watches_open: "watch",
    revoke_without_a_shield: "lock",
    keep_reservations: "queue_take",
    keep_the_name_of_the_task: "lock",
    leave_half_a_backup: "backup",
    increment_again_when_cancelled: "increment",
    forget_who_is_under_way: "put",
}


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.__name__)
async def test_a_planted_bug_is_noticed(
    autojump_clock: trio.abc.Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: Callable[..., None]
) -> None:
    """By the case that is there for it."""
    case = next(case for case in CASES if case.name == PLANTED[bug])

    async def look() -> None:
        async with scene(tmp_path) as made:
            bug(monkeypatch)
            await cancel_everywhere(made, case, own=True, stride=1)
            await cancel_everywhere(made, case, own=False, stride=1)

    with pytest.raises(BaseExceptionGroup) as caught:
        await look()
    told: BaseException = caught.value
    while isinstance(told, BaseExceptionGroup):
        told = told.exceptions[0]
    assert isinstance(told, AssertionError | trio.TooSlowError | RuntimeError | ReplikvError)
