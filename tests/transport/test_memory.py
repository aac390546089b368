"""The network in memory and its faults, under a clock that jumps."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from replikv.errors import ConfigurationError
from replikv.settings import Settings
from replikv.testing.transport_fixture import RecordingReceiver, RunningTransport
from replikv.transport.base import Channel, Hello
from replikv.transport.links import STRANGERS_MAX
from replikv.transport.memory import MemoryNetwork, MemoryTransport

SETTINGS = Settings()
NODES = ("a", "b", "c")
CALLER = Hello(cluster_id="", node_id="newcomer", incarnation="i")


async def start(nursery: trio.Nursery, network: MemoryNetwork, node_id: str) -> RunningTransport:
    """A transport that listens on its own node id."""
    running = RunningTransport(MemoryTransport(network), RecordingReceiver(node_id), trio.CancelScope(), node_id)

    async def run(task_status: trio.TaskStatus[str]) -> None:
        with running.scope:
            await running.transport.run(running.receiver, listen=node_id, settings=SETTINGS, task_status=task_status)
        running.ended.set()

    await nursery.start(run)
    return running


@contextlib.asynccontextmanager
async def connected(network: MemoryNetwork, *node_ids: str) -> AsyncIterator[dict[str, RunningTransport]]:
    """Transports that are all connected to each other."""
    async with trio.open_nursery() as nursery:
        peers = {node_id: await start(nursery, network, node_id) for node_id in node_ids}
        for peer in peers.values():
            await peer.connect(*(other for other in peers.values() if other is not peer))
        yield peers
        nursery.cancel_scope.cancel()


async def heard(peers: dict[str, RunningTransport]) -> set[str]:
    """Which of all directions get a frame through now, as "a>b"."""
    for peer in peers.values():
        peer.receiver.frames.clear()
        for other in peers:
            peer.transport.send(other, b"?")
    await trio.testing.wait_all_tasks_blocked()
    return {f"{sender}>{node_id}" for node_id, peer in peers.items() for sender, _ in peer.receiver.frames}


ALL = {"a>b", "a>c", "b>a", "b>c", "c>a", "c>b"}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (lambda network: None, ALL),
        (lambda network: network.partition({"a", "b"}, {"c"}), {"a>b", "b>a"}),
        (lambda network: network.partition({"a"}, {"b"}, {"c"}), set()),
        (lambda network: network.partition({"a"}, {"c"}), ALL - {"a>c", "c>a"}),
        (lambda network: network.partition({"a", "b"}, {"b", "c"}), ALL - {"a>c", "c>a"}),
        (lambda network: network.isolate("a"), {"b>c", "c>b"}),
        (lambda network: network.cut("a", "b"), ALL - {"a>b"}),
        (lambda network: [network.cut("a", "b"), network.isolate("c")], {"b>a"}),
    ],
    ids=["none", "majority", "all apart", "one in no group", "bridge", "isolate", "one way", "both"],
)
async def test_who_hears_whom(fault: object, expected: set[str], autojump_clock: trio.testing.MockClock) -> None:
    """Each cut loses the frames of exactly its directions, silently, and heal brings all of them back."""
    network = MemoryNetwork()
    async with connected(network, *NODES) as peers:
        assert callable(fault)
        fault(network)
        assert expected == await heard(peers)
        network.heal()
        assert ALL == await heard(peers)
        for peer in peers.values():
            assert {"connected"} == {event[0] for event in peer.receiver.events}


async def test_a_frame_on_its_way_into_a_partition_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    """A cut also takes what was sent before it and has not arrived."""
    network = MemoryNetwork()
    network.set_faults(delay_s=(1.0, 1.0))
    async with connected(network, "a", "b") as peers:
        peers["a"].transport.send("b", b"caught")
        await trio.sleep(0.5)
        network.isolate("b")
        await trio.sleep(1)
        network.heal()
        peers["a"].transport.send("b", b"arrives")
        assert [b"arrives"] == await peers["b"].receiver.wait_frames(1)


async def test_dialing_into_a_partition_fails_until_it_heals(autojump_clock: trio.testing.MockClock) -> None:
    """New connections need both directions; they come up by themselves once there are both."""
    network = MemoryNetwork()
    network.cut("b", "a")
    async with trio.open_nursery() as nursery:
        a, b = await start(nursery, network, "a"), await start(nursery, network, "b")
        a.transport.set_peer("b", "b")
        await trio.sleep(10)
        assert [] == a.receiver.events
        assert [] == b.receiver.hellos
        network.heal()
        await a.receiver.wait_event("connected", "b")
        nursery.cancel_scope.cancel()


async def test_delay(autojump_clock: trio.testing.MockClock) -> None:
    """Frames take as long as they are told to, and keep their order."""
    network = MemoryNetwork(seed=1)
    async with connected(network, "a", "b") as peers:
        network.set_faults(delay_s=(0.1, 0.5))
        times: list[float] = []
        peers["b"].receiver.on_frame = lambda node_id, frame: times.append(trio.current_time())
        sent = [bytes([number]) for number in range(50)]
        began = trio.current_time()
        for frame in sent:
            peers["a"].transport.send("b", frame)
        assert sent == await peers["b"].receiver.wait_frames(50)
        assert times == sorted(times)
        assert 0.1 <= times[0] - began
        assert 0.3 <= times[-1] - began <= 0.5 + 1e-6


async def test_without_faults_nothing_takes_time(autojump_clock: trio.testing.MockClock) -> None:
    """Frames arrive at the instant they were sent."""
    async with connected(MemoryNetwork(), "a", "b") as peers:
        began = trio.current_time()
        peers["a"].transport.send("b", b"frame")
        await peers["b"].receiver.wait_frames(1)
        assert began == trio.current_time()


@pytest.mark.parametrize(
    ("faults", "least", "most"),
    [
        ({"loss": 0.5}, 350, 650),
        ({"loss": 1.0}, 0, 0),
        ({"duplication": 0.5}, 1350, 1650),
        ({"duplication": 1.0}, 2000, 2000),
    ],
)
async def test_loss_and_duplication(
    faults: dict[str, float], least: int, most: int, autojump_clock: trio.testing.MockClock
) -> None:
    """About so many of a thousand frames arrive, the sender sees nothing of it, and it can be turned off again."""
    network = MemoryNetwork(seed=2)
    async with connected(network, "a", "b") as peers:
        network.set_faults(loss=faults.get("loss", 0.0), duplication=faults.get("duplication", 0.0))
        assert all(peers["a"].transport.send("b", b"%d" % number) for number in range(1000))
        await trio.sleep(1)
        assert least <= len(peers["b"].receiver.frames) <= most
        network.set_faults()
        peers["b"].receiver.frames.clear()
        peers["a"].transport.send("b", b"frame")
        assert [b"frame"] == await peers["b"].receiver.wait_frames(1)
        assert 0 == peers["a"].transport.statistics()["b"]["queued_bytes"]


@pytest.mark.parametrize("delay_s", [(0.0, 0.0), (0.1, 0.2)])
async def test_reordering(delay_s: tuple[float, float], autojump_clock: trio.testing.MockClock) -> None:
    """Some frames are overtaken, none is lost."""
    network = MemoryNetwork(seed=3)
    async with connected(network, "a", "b") as peers:
        network.set_faults(reordering=0.3, delay_s=delay_s)
        sent = [bytes([number]) for number in range(100)]
        for frame in sent:
            peers["a"].transport.send("b", frame)
        arrived = await peers["b"].receiver.wait_frames(100)
        assert sent != arrived
        assert sent == sorted(arrived)


async def test_the_same_seed_gives_the_same_faults(autojump_clock: trio.testing.MockClock) -> None:
    """Chance is the network's own and seeded: a failing run can be had again."""

    async def run(seed: int) -> list[bytes]:
        network = MemoryNetwork(seed=seed)
        async with connected(network, "a", "b") as peers:
            network.set_faults(loss=0.2, duplication=0.2, reordering=0.2, delay_s=(0.0, 1.0))
            for number in range(100):
                peers["a"].transport.send("b", bytes([number]))
            await trio.sleep(5)
            return [frame for _, frame in peers["b"].receiver.frames]

    assert await run(7) == await run(7)
    assert await run(7) != await run(8)


async def test_the_bound_counts_frames_on_their_way(autojump_clock: trio.testing.MockClock) -> None:
    """A slow way holds as much as the outbox allows, and no more."""
    network = MemoryNetwork()
    async with connected(network, "a", "b") as peers:
        network.set_faults(delay_s=(1.0, 1.0))
        frame = bytes(SETTINGS.outbox_bytes_max // 10)
        a = peers["a"].transport
        assert 9 == sum(a.send("b", frame) for _ in range(20))
        await trio.sleep(2)
        assert a.send("b", frame)


@pytest.mark.parametrize("fault", ["partition", "isolate", "cut"])
async def test_a_partition_breaks_channels(fault: str, autojump_clock: trio.testing.MockClock) -> None:
    """Both ends of a channel that a cut runs through break, also under a task that waits; others live on."""
    network = MemoryNetwork()
    async with connected(network, *NODES) as peers:
        broken = trio.Event()

        async def receive(node_id: str, channel: Channel) -> None:
            with pytest.raises(trio.BrokenResourceError):
                await channel.receive()
            broken.set()

        peers["b"].receiver.serve = receive
        doomed = await peers["a"].transport.open_channel("b")
        spared = await peers["a"].transport.open_channel("c")
        await trio.testing.wait_all_tasks_blocked()
        match fault:
            case "partition":
                network.partition({"a", "c"}, {"b"})
            case "isolate":
                network.isolate("b")
            case _:
                network.cut("b", "a")
        await broken.wait()
        with pytest.raises(trio.BrokenResourceError):
            await doomed.send(b"frame")
        with pytest.raises(OSError, match="did not answer"):
            await peers["a"].transport.open_channel("b")
        await spared.send(b"frame")
        assert b"frame" == await spared.receive()


@pytest.mark.parametrize(
    "faults",
    [{"loss": -0.1}, {"loss": 1.1}, {"duplication": 2}, {"reordering": float("nan")}],
)
def test_chances_out_of_range(faults: dict[str, float]) -> None:
    """A chance is from 0 to 1."""
    with pytest.raises(ConfigurationError, match="chance from 0 to 1"):
        MemoryNetwork().set_faults(**faults)  # type: ignore[arg-type]


@pytest.mark.parametrize("delay_s", [(-1.0, 1.0), (2.0, 1.0), (0.0, float("inf"))])
def test_delays_out_of_range(delay_s: tuple[float, float]) -> None:
    """A delay is from its least to its most seconds."""
    with pytest.raises(ConfigurationError, match="least and the most"):
        MemoryNetwork().set_faults(delay_s=delay_s)


async def test_alone_without_a_network(autojump_clock: trio.testing.MockClock) -> None:
    """Transports that were given no network are each on their own."""
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            transport, receiver = MemoryTransport(), RecordingReceiver("a")

            async def run(
                task_status: trio.TaskStatus[str],
                transport: MemoryTransport = transport,
                receiver: RecordingReceiver = receiver,
            ) -> None:
                await transport.run(receiver, listen="a", settings=SETTINGS, task_status=task_status)

            assert "a" == await nursery.start(run)
        nursery.cancel_scope.cancel()


async def test_a_forgotten_peer_is_not_heard(autojump_clock: trio.testing.MockClock) -> None:
    """What is on its way from a peer when it is dropped does not arrive any more, and its connection ends."""
    network = MemoryNetwork()
    async with connected(network, *NODES) as peers:
        network.set_faults(delay_s=(1.0, 1.0))
        for sender in ("a", "c"):
            peers[sender].transport.send("b", b"frame")
        await trio.sleep(0.5)
        peers["b"].transport.set_peer("a", None)
        await peers["a"].receiver.wait_event("disconnected", "b")
        await trio.sleep(2)
        assert [("c", b"frame")] == peers["b"].receiver.frames
        network.set_faults()
        for times in range(2, 22):  # the order of tasks that run at the same instant is trio's to draw
            await peers["a"].receiver.wait_event("connected", "b", times=times)
            peers["a"].transport.send("b", b"frame")
            peers["b"].transport.set_peer("a", None)
        await peers["a"].receiver.wait_event("connected", "b", times=22)
        assert [("c", b"frame")] == peers["b"].receiver.frames


# -- calls -------------------------------------------------------------------------------------------------------------


async def test_faults_count_a_caller_by_its_node_id(autojump_clock: trio.testing.MockClock) -> None:
    """A call fails where its node id is cut off, and one that is open breaks on both sides."""
    network = MemoryNetwork()
    async with connected(network, "a", "b") as peers:
        caller, broken = MemoryTransport(network), trio.Event()

        async def receive(hello: Hello, channel: Channel) -> None:
            with pytest.raises(trio.BrokenResourceError):
                await channel.receive()
            broken.set()

        spared = await caller.call("a", Hello(cluster_id="", node_id="b", incarnation="i"), SETTINGS)
        await trio.testing.wait_all_tasks_blocked()
        peers["a"].receiver.serve_call = receive
        doomed = await caller.call("a", CALLER, SETTINGS)
        await trio.testing.wait_all_tasks_blocked()
        network.isolate("newcomer")
        await broken.wait()
        with pytest.raises(trio.BrokenResourceError):
            await doomed.send(b"frame")
        with pytest.raises(OSError, match="did not answer"):
            await caller.call("a", CALLER, SETTINGS)
        await spared.send(b"frame")
        assert b"frame" == await spared.receive()
        network.heal()
        await caller.call("a", CALLER, SETTINGS)
        await peers["a"].receiver.wait_until(lambda: len(peers["a"].receiver.strangers) == 3)
        assert ["b", "newcomer", "newcomer"] == [hello.node_id for hello in peers["a"].receiver.strangers]


async def test_a_call_over_a_slow_way(autojump_clock: trio.testing.MockClock) -> None:
    """A call takes a round trip, and is given up after connect_timeout_s."""
    network = MemoryNetwork()
    async with connected(network, "a") as peers:
        began = trio.current_time()
        network.set_faults(delay_s=(2.0, 2.0))
        await (await MemoryTransport(network).call("a", CALLER, SETTINGS)).aclose()
        assert 4.0 == pytest.approx(trio.current_time() - began)
        network.set_faults(delay_s=(3.0, 3.0))
        with pytest.raises(OSError, match=r"did not answer within 5\.0 s"):
            await MemoryTransport(network).call("a", CALLER, SETTINGS)
        assert 9.0 == pytest.approx(trio.current_time() - began)
        assert [CALLER] == peers["a"].receiver.strangers


async def test_callers_at_once_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """Of many that call at the same instant exactly STRANGERS_MAX are served; the others hear why not."""
    network = MemoryNetwork()
    async with connected(network, "a") as peers:
        channels, refusals = list[Channel](), list[str]()

        async def call() -> None:
            try:
                channels.append(await MemoryTransport(network).call("a", CALLER, SETTINGS))
            except OSError as exc:
                refusals.append(str(exc))

        async with trio.open_nursery() as nursery:
            for _ in range(2 * STRANGERS_MAX):
                nursery.start_soon(call)
        assert (STRANGERS_MAX, STRANGERS_MAX) == (len(channels), len(refusals))
        assert all(f"{STRANGERS_MAX} strangers are being answered already" in refusal for refusal in refusals)
        await trio.testing.wait_all_tasks_blocked()
        assert STRANGERS_MAX == len(peers["a"].receiver.strangers)


async def test_a_bug_in_serving_a_stranger_ends_run(autojump_clock: trio.testing.MockClock) -> None:
    """A stranger is served in the nursery of who answers: what the receiver raises there is not swallowed."""
    network = MemoryNetwork()

    async def fail(hello: Hello, channel: Channel) -> None:
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError, allow_unwrapped=True, flatten_subgroups=True):
        async with connected(network, "a") as peers:
            peers["a"].receiver.serve_call = fail
            await MemoryTransport(network).call("a", CALLER, SETTINGS)
            await trio.sleep_forever()
