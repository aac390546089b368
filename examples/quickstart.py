"""Three peers that share a map. Here they run in one process, to try it out; yours run in one process each."""

import logging
import tempfile

import structlog
import trio

from replikv import Change, Cluster

MEMBERS = {"a": "127.0.0.1:7001", "b": "127.0.0.1:7002", "c": "127.0.0.1:7003"}


def show(change: Change) -> None:
    print(f"b was called back: {change.kind} {change.key} = {change.value!r} at revision {change.revision}")


async def main(directory: str) -> None:
    async with (
        Cluster("a", members=MEMBERS, data_dir=f"{directory}/a") as a,
        Cluster("b", members=MEMBERS, data_dir=f"{directory}/b") as b,
        Cluster("c", members=MEMBERS, data_dir=f"{directory}/c") as c,
    ):
        print("leader:", await c.wait_leader())
        b.store.subscribe(show, prefix="flags/")

        await a.store.put("flags/dark-mode", True)  # on a majority's disks when this returns
        print("a reads", a.store["flags/dark-mode"], "from its own replica: no I/O, no await")
        print("c reads", await c.store.get("flags/dark-mode"), "and knows that nobody has a newer value")

        async with c.store.watch("jobs/") as changes:
            await b.store.update({"jobs/1": "ready", "jobs/2": "ready"})  # both or none
            async for change in changes:
                print("c watched", change.key, "become", change.value)
                if change.key == "jobs/2":
                    break

        if await a.store.compare_and_set("jobs/1", "ready", "taken by a"):  # true for one process only
            await c.store.barrier()  # what c reads from here on is at least as fresh as this
            print("c reads", dict(c.store.items("jobs/")))


if __name__ == "__main__":
    # replikv logs through structlog, which your application configures: here, warnings only.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as directory:
        trio.run(main, directory)
