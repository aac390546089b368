"""The processes of a benchmark: each answers the commands of its parent over a pipe, and ends when the pipe does."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import structlog
import trio

__all__ = ["Child", "ChildFailedError", "Commands", "Pipe", "answer", "run_child"]

END_TIMEOUT_S: Final = 5.0
"""How long a child may take to close its cluster before it is killed."""

Commands: TypeAlias = Mapping[str, Callable[..., Awaitable[Any]]]
"""What a child can be asked: name -> async function. Arguments and answer are pickled."""
Pipe: TypeAlias = "Connection[Any, Any]"


class ChildFailedError(Exception):
    """A process of the benchmark has ended before its time."""


class Child:
    """A process, as its parent sees it. Spawned, not forked: no other child holds its end of the pipe open."""

    def __init__(self, name: str, target: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, *arguments), name=name, daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def ask(self, command: str, *arguments: object) -> Any:
        """Have a command run and wait for its answer. Raises ChildFailedError."""
        try:
            self._pipe.send((command, arguments))
            return self._pipe.recv()
        except (EOFError, OSError) as exc:
            raise ChildFailedError(f"{self.name} ended while it was asked for {command!r}: see its traceback") from exc


def run_child(main: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """What a child's process does: run ``main(*arguments)``, silently as long as all is well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the parent, which then closes the pipe
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    trio.run(main, *arguments)


async def answer(pipe: Pipe, commands: Commands) -> None:
    """Answer one command after the other; returns when the parent closes the pipe, or has died.

    Every child can also be asked for ``cpu``: the seconds of processor time that it has used.
    """
    while True:
        try:
            command, arguments = await trio.to_thread.run_sync(pipe.recv, abandon_on_cancel=True)
        except (EOFError, OSError):
            return
        result = time.process_time() if command == "cpu" else await commands[command](*arguments)
        try:
            pipe.send(result)
        except OSError:
            return
