"""Cancelling at each step that a task takes, one after the other."""

from __future__ import annotations

import trio

__all__ = ["CancelAtStep"]


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the so-manieth step of the task that made this."""

    def __init__(self, steps: int, scope: trio.CancelScope) -> None:
        self.left = steps
        self._scope = scope
        self._task = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self.left -= 1
            if self.left == 0:
                self._scope.cancel()
