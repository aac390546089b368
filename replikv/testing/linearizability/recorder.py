"""Writes histories down while clients make them."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from replikv.errors import EncodingError, UnavailableError
from replikv.testing.linearizability.history import Operation

__all__ = ["Call", "Recorder"]

_SURELY_NOT_APPLIED: Final = (UnavailableError, EncodingError)


class Recorder:
    """Records what clients ask for and hear. ``clock`` gives seconds: ``trio.current_time``, ``time.monotonic``.

    No two moments of a recorder are the same: where the clock stands still (trio's MockClock does, between sleeps), the
    next float is taken. So nothing is lost of the order in which things happened. Clients may be tasks or threads; each
    recorder has one clock, so clients in several processes have one each, on a clock that they share.

    Values are kept, not copied: do not change them afterwards.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._calls: list[Call] = []
        self._last = -math.inf
        self._lock = threading.Lock()

    def call(
        self, client: str | int, op: str, key: str | None = None, *, value: Any = None, expect: Any = None
    ) -> Call:
        """One operation, as a context manager.

        ::

        with recorder.call(client, "get", "x") as op:
            op.ok(await store.get("x", ABSENT))
        """
        return Call(self, client, op, key, value, expect)

    def history(self) -> list[Operation]:
        """What was called so far, in that order. What has not returned yet is unknown."""
        with self._lock:
            return [call.operation for call in self._calls]

    def _begin(self, call: Call) -> None:
        with self._lock:
            call.operation = dataclasses.replace(call.operation, called=self._now())
            self._calls.append(call)

    def _end(self, call: Call, **answer: Any) -> None:
        with self._lock:
            call.operation = dataclasses.replace(call.operation, returned=self._now(), **answer)

    def _now(self) -> float:
        self._last = max(self._clock(), math.nextafter(self._last, math.inf))
        return self._last


class Call:
    """An operation under way. ``ok`` says what was answered, and that moment counts as the return.

    An exception goes on its way, and is recorded: UnavailableError and EncodingError mean that the operation surely was
    not applied, any other (OutcomeUnknownError, a cancellation) that nobody knows. After ``ok`` or ``fail`` it changes
    nothing. A block that ends without either: RuntimeError, and an unknown outcome.
    """

    def __init__(
        self, recorder: Recorder, client: str | int, op: str, key: str | None, value: Any, expect: Any
    ) -> None:
        self._recorder = recorder
        self.operation = Operation(client=client, op=op, key=key, value=value, expect=expect, called=0.0)
        """As far as it is known; its time is right once the block is entered."""

    def __enter__(self) -> Self:
        self._recorder._begin(self)
        return self

    def ok(self, result: Any = None, rev: int | None = None, *, value: Any = None) -> None:
        """It took effect, with this answer.

        ``value``, unless None, replaces what was asked for, where that is known in the end only: what a ``transact``
        has written.
        """
        asked = self.operation.value if value is None else value
        self._answer(status="ok", result=result, rev=rev, value=asked)

    def fail(self) -> None:
        """It surely did not take effect, and never will."""
        self._answer(status="fail")

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.operation.returned is not None:
            return
        if isinstance(exc, _SURELY_NOT_APPLIED):
            self.fail()
        elif exc is None:
            raise RuntimeError(f"the block of {self.operation} ended without an answer: call ok() or fail() in it")

    def _answer(self, **answer: Any) -> None:
        if self.operation.returned is not None:
            raise RuntimeError(f"{self.operation} has its answer already")
        self._recorder._end(self, **answer)
