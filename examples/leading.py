"""One worker at a time: the first in line leads, the next takes over when it is lost, and late writes are refused.

Three peers run in this process over a MemoryNetwork, and compete for a leadership. What they write to knows nothing of
the cluster but their tokens: it refuses whoever was deposed. Every claim below is checked.
"""

import logging

import structlog
import trio

from replikv import Cluster, LeaseExpiredError, MemoryNetwork, MemoryTransport, Settings

NAMES = ["a", "b", "c"]

# Impatient, so that you need not wait. The defaults are 0.1 s and 1 s.
SETTINGS = Settings(heartbeat_interval_s=0.05, election_timeout_s=0.3)
TTL_S = 1.5


class Ledger:
    """Something outside of the cluster, a database say, that is written to by whoever leads."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.newest_token = 0

    def write(self, line: str, token: int) -> bool:
        """Fenced: whether the line was taken."""
        if token < self.newest_token:
            return False
        self.newest_token = token
        self.lines.append(line)
        return True


async def work(cluster: Cluster, ledger: Ledger) -> None:
    """Keep the books while leading, wait while not, for ever."""
    name = cluster.status().node_id
    while True:
        try:
            async with cluster.leading("bookkeeper", ttl_s=TTL_S) as leadership:
                print(f"{name} leads, with token {leadership.token}")
                while True:
                    assert ledger.write(f"written by {name}", leadership.token)
                    await trio.sleep(0.05)
        except LeaseExpiredError as error:
            print(f"{name} does not lead any more: {error}")


async def main() -> None:
    network = MemoryNetwork()
    clusters = {
        name: Cluster(
            name,
            members={name: name for name in NAMES},
            transport=MemoryTransport(network),
            settings=SETTINGS,
        )
        for name in NAMES
    }
    async with trio.open_nursery() as nursery:
        for cluster in clusters.values():
            await nursery.start(cluster.run)
        with trio.fail_after(20):
            await story(network, clusters)
        for cluster in clusters.values():
            await cluster.shutdown()


async def story(network: MemoryNetwork, clusters: dict[str, Cluster]) -> None:
    ledger = Ledger()
    async with trio.open_nursery() as nursery:
        for name in NAMES:
            nursery.start_soon(work, clusters[name], ledger)
            while not ledger.lines:  # noqa: ASYNC110  # a ledger has no events
                await trio.sleep(0.05)
        await trio.sleep(0.5)
        assert set(ledger.lines) == {"written by a"}
        old_token = ledger.newest_token

        print("the network cuts a off")
        network.isolate("a")
        while ledger.lines[-1] == "written by a":  # noqa: ASYNC110
            await trio.sleep(0.05)
        next_in_line = ledger.lines[-1]
        assert ledger.newest_token > old_token

        # What a program does that was stopped in the middle of its body, and goes on now.
        assert not ledger.write("written by a, too late", old_token)
        print("a late write with a's token is refused")

        network.heal()
        await trio.sleep(1.0)
        assert ledger.lines[-1] == next_in_line
        print("a is back, at the end of the line, and who leads goes on")
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    # replikv logs through structlog, which your application configures: here, not a word, since the trouble is wanted.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    trio.run(main)
