"""Cancelling a block at each step that the tasks of a whole cluster take while it runs, one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import trio

__all__ = ["CancelAtStep"]


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the so-manieth step of any task."""

    def __init__(self, steps: int) -> None:
        self.scope = trio.CancelScope()
        self._left = steps

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
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
        trio.lowlevel.add_instrument(self)
        try:
            with self.scope:
                yield
        finally:
            trio.lowlevel.remove_instrument(self)
