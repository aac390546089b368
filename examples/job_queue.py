"""Three processes share the work of a queue. One is killed in the middle of a job, and one job is beyond all of them.

python examples/job_queue.py      starts three such processes, and starts again what was killed
python examples/job_queue.py a    is one of them: start a, b and c in three terminals

Jobs are done at least once: whoever dies gives back what he had in hand. What is done with a job in the map, together
with its acknowledgement, is done exactly once.
"""

import logging
import os
import signal
import subprocess
import sys
import tempfile

import structlog
import trio

from replikv import Cluster, Put
from replikv.recipes import Queue

MEMBERS = {"a": "127.0.0.1:7001", "b": "127.0.0.1:7002", "c": "127.0.0.1:7003"}
PICTURES = ["ant.png", "bear.png", "broken.png", "cat.png", "dog.png", "eel.png"]


# -- the application ---------------------------------------------------------------------------------------------------


async def run_process(name: str, directory: str) -> None:
    async with Cluster(name, members=MEMBERS, data_dir=directory) as cluster:
        # Three seconds after it was last heard of, a process has lost its job. Yours may have more patience: 30 s.
        queue = Queue(cluster.store, "thumbnails", visibility_s=3, max_deliveries=3)
        if name == "a" and await cluster.store.setdefault("enqueued-by", os.getpid()) == os.getpid():
            await queue.put_many(PICTURES)
        while True:
            try:
                async with queue.receive() as delivery:
                    if delivery.count > 1:
                        print(f"{name}: {delivery.item} was begun before, by somebody who has not finished", flush=True)
                    size = await shrink(delivery.item, delivery.count)
                    # Counted once, however often it was begun: one revision, with the acknowledgement.
                    await delivery.acknowledge(Put(f"thumbnails/{delivery.item}", size))
                    print(f"{name}: done {delivery.item}", flush=True)
            except ValueError as exc:
                print(f"{name}: {exc}", flush=True)
                await trio.sleep(0.1)
            for number, item in queue.dead_letters().items():
                print(f"{name}: put aside {item}, number {number}, until somebody has a look", flush=True)


async def shrink(picture: str, count: int) -> int:
    """What takes time, and fails as such things do."""
    await trio.sleep(0.2)
    if picture == "broken.png":
        raise ValueError(f"{picture} is no picture")
    if picture == "bear.png" and count == 1:
        os.kill(os.getpid(), signal.SIGKILL)  # as if the machine had run out of memory
    return len(picture)


# -- three of them, and somebody who looks after them ------------------------------------------------------------------


async def look_after_three(directory: str) -> None:
    done: set[str] = set()
    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:

            async def keep_running(name: str) -> None:
                while True:
                    code = await run_once(name)
                    print(f"{name} has ended, with {signal.Signals(-code).name}: it is started again")

            async def run_once(name: str) -> int:
                command = [sys.executable, __file__, name, f"{directory}/{name}"]
                async with trio.open_nursery() as watching:
                    process: trio.Process = await watching.start(start, command)
                    assert process.stdout is not None
                    unread = b""
                    async for data in process.stdout:
                        *lines, unread = (unread + data).split(b"\n")
                        for line in lines:
                            take(line.decode())
                return await process.wait()

            def take(line: str) -> None:
                print(line)
                for picture in PICTURES:
                    if f"done {picture}" in line or f"put aside {picture}" in line:
                        done.add(picture)
                if len(done) == len(PICTURES):
                    nursery.cancel_scope.cancel()  # which ends the processes, too

            for name in MEMBERS:
                nursery.start_soon(keep_running, name)
    print("every job was done, or put aside:", sorted(done))


async def start(command: list[str], task_status: trio.TaskStatus[trio.Process]) -> None:
    await trio.run_process(command, stdout=subprocess.PIPE, check=False, task_status=task_status)


if __name__ == "__main__":
    # replikv logs through structlog, which your application configures: here, errors only, since trouble is wanted.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    match sys.argv[1:]:
        case []:
            with tempfile.TemporaryDirectory() as directory:
                trio.run(look_after_three, directory)
        case [name]:
            trio.run(run_process, name, f"state/{name}")
        case [name, directory]:
            trio.run(run_process, name, directory)
        case _:
            sys.exit(__doc__)
