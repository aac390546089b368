"""Three workers go through two phases together; one of them reports, once for each phase."""

import logging

import structlog
import trio

from replikv import Cluster, Store
from replikv.recipes import Barrier


async def work(store: Store, name: str, pace_s: float) -> None:
    barrier = Barrier(store, "phase", parties=3)
    for phase in ("load", "compute"):
        await trio.sleep(pace_s)
        print(f"{name} is through with {phase}")
        passage = await barrier.wait()
        if passage.index == 0:
            print(f"all are through with {phase}")

    async with Barrier(store, "shutdown", parties=3):
        await trio.sleep(pace_s)
        print(f"{name} has cleaned up")
    print(f"{name} goes, knowing that all have cleaned up")


async def main() -> None:
    # One peer here, in memory; of several, in processes of their own, the workers wait for each other likewise.
    async with Cluster("a") as cluster, trio.open_nursery() as nursery:
        for name, pace_s in (("ann", 0.05), ("bob", 0.1), ("cleo", 0.15)):
            nursery.start_soon(work, cluster.store, name, pace_s)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    trio.run(main)
