"""Three processes number their orders; no number is given out twice, and none is lost."""

import logging
import tempfile

import structlog
import trio

from replikv import Cluster, Store
from replikv.recipes import Counter

MEMBERS = {"a": "127.0.0.1:7041", "b": "127.0.0.1:7042", "c": "127.0.0.1:7043"}


async def take_orders(store: Store, numbers: list[int]) -> None:
    orders = Counter(store, "orders")
    numbers += [await orders.increment() for _ in range(100)]


async def main(directory: str) -> None:
    async with (
        Cluster("a", members=MEMBERS, data_dir=f"{directory}/a") as a,
        Cluster("b", members=MEMBERS, data_dir=f"{directory}/b") as b,
        Cluster("c", members=MEMBERS, data_dir=f"{directory}/c") as c,
    ):
        numbers: list[int] = []
        async with trio.open_nursery() as nursery:
            for cluster in (a, b, c):
                nursery.start_soon(take_orders, cluster.store, numbers)
        assert sorted(numbers) == list(range(1, 301))
        print("300 orders, numbered 1 to", await Counter(a.store, "orders").get())


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as directory:
        trio.run(main, directory)
