"""Why a command of the map was not applied, on every replica alike."""

from __future__ import annotations

from typing import Final

from replikv.machine.envelope import Status

__all__ = ["RefusedError"]


class RefusedError(Exception):
    """The command cannot be applied; the state is as before.

    The text is part of the result, so it must be the same on every replica: no repr (what is printable depends on the
    version of Python), no words of other libraries.
    """

    status: Final[Status]

    def __init__(self, reason: str, status: Status = Status.FAILED) -> None:
        super().__init__(reason)
        self.status = status
