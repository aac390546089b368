"""Three processes elect one that serves; the others know its address. The leader leaves, and another one serves.

Here they are three peers of one process; yours run in one process each.
"""

import logging
import tempfile

import structlog
import trio

from replikv import Cluster, Store
from replikv.recipes import Elected, Election

MEMBERS = {"a": "127.0.0.1:7031", "b": "127.0.0.1:7032", "c": "127.0.0.1:7033"}


async def serve(store: Store, name: str, in_office: dict[str, Elected]) -> None:
    async with Election(store, "server").campaign(f"http://{name}/starting") as elected:
        print(f"{name} was elected, with token {elected.token}")
        in_office[name] = elected
        await elected.proclaim(f"http://{name}/ready")
        await trio.sleep_forever()
    print(f"{name} serves no more")


async def use(store: Store, in_office: dict[str, Elected]) -> None:
    """What a client does: it goes wherever the leader is. And here, it has the leader resign."""
    served: list[str] = []
    async for leader in Election(store, "server").observe():
        if leader is None:
            print("nobody serves")
            if len(served) == 2:
                return
        elif leader.value.endswith("/ready"):
            print("requests go to", leader.value)
            name = leader.value.removeprefix("http://").removesuffix("/ready")
            served.append(name)
            await in_office[name].resign()


async def main(directory: str) -> None:
    async with (
        Cluster("a", members=MEMBERS, data_dir=f"{directory}/a") as a,
        Cluster("b", members=MEMBERS, data_dir=f"{directory}/b") as b,
        Cluster("c", members=MEMBERS, data_dir=f"{directory}/c") as c,
    ):
        await c.wait_leader()
        in_office: dict[str, Elected] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, a.store, "a", in_office)
            nursery.start_soon(serve, b.store, "b", in_office)
            await use(c.store, in_office)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as directory:
        trio.run(main, directory)
