"""The command ``replikv demo``: three processes share a map, the one that leads is killed, and nothing is lost.

``story`` is what happens, ``processes`` the parent's side of the processes, ``member`` what each of them runs,
``pipes`` what the two say to each other. Nothing rests on this package, and it uses nothing but the public names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import trio

from replikv.demo.narrator import Narrator
from replikv.demo.processes import DemoError
from replikv.demo.story import Story

__all__ = ["run_demo"]

TIME_MAX_S: Final = 16.0
"""The whole story takes about 6 s; an election that nobody wins costs 2 more. Ending the processes may add 2."""


def run_demo() -> int:
    """Tell the story on standard output; the exit code: 0, or 1 with the reason, or 128 and the signal that ended it.

    Whatever ends it, no process and no file is left.
    """
    try:
        return trio.run(_run)
    except KeyboardInterrupt:  # before the first step, or after the last
        return 128 + signal.SIGINT


async def _run() -> int:
    signals: list[int] = []
    failures: list[BaseException] = []
    with _temporary_directory() as root, trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as arriving:
        story = Story(root, Narrator())

        async def end_by_signal(scope: trio.CancelScope) -> None:
            async for number in arriving:
                signals.append(number)
                scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(end_by_signal, nursery.cancel_scope)
                with trio.move_on_after(TIME_MAX_S) as time:
                    await story.tell()
                nursery.cancel_scope.cancel()
        except* (DemoError, OSError) as group:
            failures += _leaves(group)
    if failures:
        return _fail(f"{failures[0]} (while {story.step})", failures)
    if signals:
        return 128 + signals[0]
    if time.cancelled_caught:
        return _fail(f"it took longer than {TIME_MAX_S:.0f} s, while {story.step}")
    return 0


def _fail(reason: str, failures: Sequence[BaseException] = ()) -> int:
    sys.stderr.write(f"replikv demo: failed: {reason}\n")
    if any(isinstance(failure, BrokenPipeError) for failure in failures):
        # Whoever read is gone (``replikv demo | head -3``); the interpreter's last flush must not stumble over it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


@contextlib.contextmanager
def _temporary_directory() -> Iterator[Path]:
    """Removed in the end, unless the processes were quicker: they do it, too, lest this one be killed."""
    root = tempfile.mkdtemp(prefix="replikv-demo-")
    try:
        yield Path(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
