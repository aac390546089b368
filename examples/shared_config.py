"""The processes of one application share their configuration: changed in any of them, it takes effect in all, live.

python examples/shared_config.py      starts three such processes, and types into them
python examples/shared_config.py a    is one of them: start a, b and c in three terminals, and type into any of them
                                      "set workers 8", "set log-level DEBUG", "unset workers"; end of input ends it

The defaults are in the code, and what the cluster holds is laid over them: a key that is deleted is at its default
again. A process may be stopped and started: it comes back with the configuration as it is by then.
"""

import functools
import json
import logging
import subprocess
import sys
import tempfile
from typing import Any

import structlog
import trio

from replikv import Change, Cluster, ReplikvError, Store

MEMBERS = {"a": "127.0.0.1:7001", "b": "127.0.0.1:7002", "c": "127.0.0.1:7003"}
DEFAULTS: dict[str, Any] = {"log-level": "INFO", "workers": 4, "dark-mode": False}

log = logging.getLogger("application")


# -- the application ---------------------------------------------------------------------------------------------------


class Application:
    """Whatever is configured: here, a log level and a number of workers."""

    def __init__(self, name: str, config: Store) -> None:
        self.name = name
        self.config = config
        self.workers = 0
        self.reconfigure()

    def effective(self) -> dict[str, Any]:
        """The configuration as it is now. A read of this process's replica: ask as often as you like."""
        return DEFAULTS | dict(self.config.items())

    def reconfigure(self) -> None:
        """Make it so."""
        effective = self.effective()
        log.setLevel(effective["log-level"])
        self.workers = effective["workers"]  # in real life, start or stop some

    def changed(self, change: Change) -> None:
        """The callback: once for each change, whoever made it."""
        self.reconfigure()
        print(f"{self.name}: {change.key} is now {self.effective()[change.key]!r}", flush=True)


async def run_process(name: str, directory: str) -> None:
    async with Cluster(name, members=MEMBERS, data_dir=directory) as cluster:
        config = cluster.store.scoped("config/")
        await config.barrier()  # what was set while this process was away is here now
        application = Application(name, config)
        config.subscribe(application.changed)  # and no change is missed from here on
        print(f"{name}: runs with {application.effective()}", flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            try:
                await obey(line.split(), config)
            except (ReplikvError, ValueError) as exc:
                print(f"{name}: {exc}", flush=True)


async def obey(words: list[str], config: Store) -> None:
    """What an operator types here could as well come from a web page, or from the application itself."""
    match words:
        case ["set", key, text] if key in DEFAULTS:
            value = parse(text)
            # Refuse it here: once it is put, every process is called back with it.
            if type(value) is not type(DEFAULTS[key]):
                raise ValueError(f"{key} takes a value like {DEFAULTS[key]!r}, not {value!r}")
            await config.put(key, value)
        case ["unset", key] if key in DEFAULTS:
            await config.delete(key)
        case _:
            raise ValueError(f"type 'set KEY VALUE' or 'unset KEY', where KEY is one of {', '.join(DEFAULTS)}")


def parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# -- three of them, and somebody who types -----------------------------------------------------------------------------


class Terminal:
    """A process with its input and output."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.unread = b""

    async def type(self, line: str) -> None:
        """Enter a line."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(line.encode() + b"\n")

    async def wait_for(self, text: str) -> None:
        """Show what it prints, until this is among it."""
        line = ""
        while text not in line:
            line = await self.read_line()
            print(line)

    async def read_line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        while b"\n" not in self.unread:
            output = await self.process.stdout.receive_some()
            assert output, "the process has ended too early"
            self.unread += output
        line, _, self.unread = self.unread.partition(b"\n")
        return line.decode()

    async def close(self) -> None:
        """End its input, and wait for its end."""
        assert self.process.stdin is not None
        await self.process.stdin.aclose()
        await self.process.wait()


async def type_into_three(directory: str) -> None:
    async def start(name: str) -> Terminal:
        command = [sys.executable, __file__, name, f"{directory}/{name}"]
        run = functools.partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return Terminal(await nursery.start(run))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            a, b, c = [await start(name) for name in MEMBERS]
            for terminal in (a, b, c):
                await terminal.wait_for("runs with")

            await b.type("set workers 8")
            for terminal in (a, b, c):
                await terminal.wait_for("workers is now 8")

            await c.type("set workers many")
            await c.wait_for("workers takes a value like 4")

            await a.type("unset workers")
            for terminal in (a, b, c):
                await terminal.wait_for("workers is now 4")

            await b.close()
            await c.type("set dark-mode true")
            for terminal in (a, c):
                await terminal.wait_for("dark-mode is now True")
            b = await start("b")
            await b.wait_for("'dark-mode': True")

            for terminal in (a, b, c):
                await terminal.close()


if __name__ == "__main__":
    # replikv logs through structlog, which your application configures: here, warnings only.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    match sys.argv[1:]:
        case []:
            with tempfile.TemporaryDirectory() as directory:
                trio.run(type_into_three, directory)
        case [name]:
            trio.run(run_process, name, f"state/{name}")
        case [name, directory]:
            trio.run(run_process, name, directory)
        case _:
            sys.exit(__doc__)
