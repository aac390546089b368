"""Who offers which service, and where. Two servers come, one of them fails, is passed over, and goes.

All of them run in this process, to try it out; yours run in one process each.
"""

import logging

import structlog
import trio

from replikv import Cluster
from replikv.recipes import ServiceRegistry

MEMBERS = {"a": "127.0.0.1:7001", "b": "127.0.0.1:7002", "c": "127.0.0.1:7003"}
SERVERS = {"b": "127.0.0.1:8002", "c": "127.0.0.1:8003"}


# -- those who serve ---------------------------------------------------------------------------------------------------


class Server:
    """Tells its name to whoever calls."""

    def __init__(self, cluster: Cluster, address: str) -> None:
        self.cluster = cluster
        self.name = cluster.status().node_id
        self.address = address
        self.listening = trio.CancelScope()
        self.registered = trio.CancelScope()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Serve, and be registered, until one or the other is cancelled."""
        registry = ServiceRegistry(self.cluster.store)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.listen)  # first it serves, then it says so
            with self.registered:
                async with registry.register("greetings", self.address, metadata={"by": self.name}):
                    task_status.started()
                    await trio.sleep_forever()
            self.listening.cancel()

    async def listen(self, task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
        """Take calls."""
        host, _, port = self.address.rpartition(":")
        with self.listening:
            await trio.serve_tcp(self.greet, int(port), host=host, task_status=task_status)

    async def greet(self, stream: trio.SocketStream) -> None:
        """Answer one."""
        async with stream:
            await stream.send_all(f"hello from {self.name}".encode())


# -- those who call ----------------------------------------------------------------------------------------------------


async def call(address: str) -> str:
    host, _, port = address.rpartition(":")
    with trio.fail_after(2):
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            return b"".join([data async for data in stream]).decode()


async def show(registry: ServiceRegistry, told: trio.Event) -> None:
    async for endpoints in registry.watch("greetings"):
        names = sorted(endpoint.metadata["by"] for endpoint in endpoints)
        print("greetings are offered by", names)
        if names == ["c"]:
            told.set()


async def main() -> None:
    async with (
        Cluster("a", members=MEMBERS) as a,
        Cluster("b", members=MEMBERS) as b,
        Cluster("c", members=MEMBERS) as c,
        trio.open_nursery() as nursery,
    ):
        registry = ServiceRegistry(a.store)
        told = trio.Event()
        nursery.start_soon(show, registry, told)
        servers = [Server(b, SERVERS["b"]), Server(c, SERVERS["c"])]
        for server in servers:
            await nursery.start(server.run)

        greetings = registry.balancer("greetings", retry_after_s=5)

        async def greet() -> None:
            try:
                async with greetings.endpoint() as endpoint:  # the next one; an exception counts against it
                    print("a was told:", await call(endpoint.address))
            except OSError as exc:
                print(f"a could not reach {endpoint.metadata['by']}: {type(exc).__name__}")

        for _ in range(4):
            await greet()

        servers[0].listening.cancel()  # it is broken, and registered all the same
        for _ in range(5):
            await greet()

        servers[0].registered.cancel()
        await told.wait()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    # replikv logs through structlog, which your application configures: here, warnings only.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    trio.run(main)
