"""Three machines are replaced by three others, one by one, while the cluster works: nobody else has to be told.

A "machine" is a task of this process here, with a port and a directory of its own; yours are machines. Each new one
joins by any member, and votes by itself once it is close behind; then an old one is removed, and its block ends with
RemovedError.
"""

import logging
import tempfile

import structlog
import trio

from replikv import Cluster, RemovedError

OLD = {"a": "127.0.0.1:7011", "b": "127.0.0.1:7012", "c": "127.0.0.1:7013"}
NEW = {"d": "127.0.0.1:7014", "e": "127.0.0.1:7015", "f": "127.0.0.1:7016"}


class Machines:
    """All machines that run, by name."""

    def __init__(self, directory: str, nursery: trio.Nursery) -> None:
        self.directory = directory
        self.nursery = nursery
        self.clusters: dict[str, Cluster] = {}
        self.ended = {name: trio.Event() for name in OLD}

    async def start(self, name: str) -> None:
        """Switch a machine on; returns when its peer is a member."""
        await self.nursery.start(self.run, name)

    async def run(self, name: str, task_status: trio.TaskStatus[None]) -> None:
        """What a machine runs: one program, with other arguments on those that come later."""
        data_dir = f"{self.directory}/{name}"
        if name in OLD:
            cluster = Cluster(name, members=OLD, data_dir=data_dir)
        else:
            cluster = Cluster(name, address=NEW[name], join=[*OLD.values(), *NEW.values()], data_dir=data_dir)
        try:
            async with cluster:
                self.clusters[name] = cluster
                task_status.started()
                await count(cluster)
        except RemovedError:
            del self.clusters[name]
            self.ended[name].set()
            print(f"{name} was removed, and has ended")


async def count(cluster: Cluster) -> None:
    """What your application does: it works on every machine, old or new, and never stops for the others."""
    while True:
        await cluster.store.increment("work")
        await trio.sleep(0.02)


async def voting(cluster: Cluster, name: str, others: int) -> None:
    """Wait until a peer votes, beside so many others."""
    while True:
        members = cluster.status().members
        if name in members and members[name].role == "voter" and len(members) == others + 1:
            return
        await trio.sleep(0.05)


async def main(directory: str) -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            machines = Machines(directory, nursery)
            for name in OLD:
                await machines.start(name)
            first = machines.clusters["a"]
            print("leader:", await first.wait_leader())

            for old, new in zip(OLD, NEW, strict=True):
                await machines.start(new)
                cluster = machines.clusters[new]
                await voting(cluster, new, others=3)
                print(f"{new} joined, has everything, and votes")
                await cluster.remove_member(old)  # the leader, too: it hands leadership over first
                await machines.ended[old].wait()

            cluster = machines.clusters["f"]
            before = await cluster.store.get("work")
            await trio.sleep(0.5)
            after = await cluster.store.get("work")
            assert after > before
            members = {name: member.role for name, member in cluster.status().members.items()}
            print("members:", members)
            assert members == dict.fromkeys(NEW, "voter")
            print("the work has gone on all the time")
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as directory:
        trio.run(main, directory)
