"""Cancelling a block at each step that its task takes, or that all tasks of a whole cluster take while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import trio

__all__ = ["CancelAtStep"]


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the so-manieth step of any task; or, for step 0, before the block begins.

    With ``own``, only steps of the task that runs the block count. A task takes a step from one checkpoint to the next:
    so each of the block's checkpoints in turn is the one that finds itself cancelled.
    """

    def __init__(self, step: int, *, own: bool = False) -> None:
        self.scope = trio.CancelScope()
        self._left = step
        self._own = own
        self._task: trio.lowlevel.Task | None = None
        self.ended = False
        """Whether the block came to its end, cancelled or not in time."""

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._own and task is not self._task:
            return
        self._left -= 1
        if self._left == 0:
            self.scope.cancel()

    @property
    def too_late(self) -> bool:
        """Whether the block ended in fewer steps."""
        return self._left > 0

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """The block that is cancelled."""
        self._task = trio.lowlevel.current_task()
        if self._left == 0:
            self.scope.cancel()
        trio.lowlevel.add_instrument(self)
        try:
            with self.scope:
                yield
                self.ended = True
        finally:
            trio.lowlevel.remove_instrument(self)
