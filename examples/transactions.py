"""A shop on three peers: orders that take from the stock, transfers between accounts, and a name that is taken once."""

import logging

import structlog
import trio

from replikv import Cluster, Compare, Get, MemoryNetwork, MemoryTransport, Put, Store, Transaction, Txn

MEMBERS = {"a": "memory-a", "b": "memory-b", "c": "memory-c"}


# -- functions that are run as if alone: what is decided depends on what is read ---------------------------------------


def order(tx: Transaction, customer: str, item: str, price: int) -> str:
    """Plain code on one revision of the map. It may be run several times, so it does nothing but compute."""
    if tx.get(f"stock/{item}", 0) == 0:
        return f"{item} is sold out"
    if tx[f"balance/{customer}"] < price:
        raise ValueError(f"{customer} has only {tx[f'balance/{customer}']}")  # then nothing is written at all
    number = len(list(tx.keys("order/"))) + 1  # no two orders get the same: the range that was read is checked, too
    tx.put(f"stock/{item}", tx[f"stock/{item}"] - 1)
    tx.put(f"balance/{customer}", tx[f"balance/{customer}"] - price)
    tx.put(f"order/{number:03}", {"customer": customer, "item": item})
    return f"order {number}"


def audit(tx: Transaction) -> tuple[int, int]:
    """Reads only, all of it at one revision, which was the newest at some moment of the call."""
    return sum(tx.values("stock/")), len(list(tx.keys("order/")))


async def rush(stores: list[Store]) -> None:
    """Thirty customers on three peers want one of twenty tickets, all at once."""
    sold: list[str] = []

    async def buy(number: int) -> None:
        sold.append(await stores[number % 3].transact(order, f"customer {number}", "ticket", 10))

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(buy, number)
    print(f"{len(set(sold) - {'ticket is sold out'})} orders, {sold.count('ticket is sold out')} times sold out")
    print("tickets left, orders:", await stores[0].transact(audit))


# -- comparisons and operations, as etcd has them: one round trip, for what is known beforehand ------------------------


async def take_name(store: Store, name: str, owner: str) -> str:
    """Whoever comes first has it; who comes later is told by whom it was taken."""
    result = await store.txn(
        [Compare.version(f"name/{name}", "==", 0)],
        then=[Put(f"name/{name}", owner)],
        otherwise=[Get(f"name/{name}")],
    )
    return f"{name} is yours" if result else f"{name} belongs to {result.results[0].value}"


async def close_shop(store: Store) -> str:
    """Closed if nothing is in stock; each customer may be asked about within the same transaction."""
    result = await store.txn(
        [Compare.value(None, "==", 0, prefix="stock/")],  # each key of the range
        then=[
            Put("open", False),
            Txn([Compare.version(None, ">", 0, prefix="order/")], then=[Put("ship", True)]),
        ],
    )
    return "closed" if result else "still open"


async def main() -> None:
    network = MemoryNetwork()
    async with (
        Cluster("a", members=MEMBERS, transport=MemoryTransport(network)) as a,
        Cluster("b", members=MEMBERS, transport=MemoryTransport(network)) as b,
        Cluster("c", members=MEMBERS, transport=MemoryTransport(network)) as c,
    ):
        stores = [a.store, b.store, c.store]
        await a.store.update({"stock/ticket": 20} | {f"balance/customer {number}": 10 for number in range(30)})

        print(await close_shop(b.store))
        await rush(stores)
        await c.store.put("stock/poster", 1)
        try:
            await c.store.transact(order, "customer 0", "poster", 1000)
        except ValueError as error:
            print("refused:", error)
        await c.store.delete("stock/poster")
        print(await close_shop(b.store))

        print(await take_name(a.store, "shop", "alice"))
        print(await take_name(b.store, "shop", "bob"))


if __name__ == "__main__":
    # replikv logs through structlog, which your application configures: here, warnings only.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    trio.run(main)
