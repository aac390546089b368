"""Ranges of keys, in the order of code points: the order of UTF-8 bytes, and of Python's str."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from sortedcontainers import SortedList

__all__ = ["KeyRange"]

_LAST_CODE_POINT = 0x10FFFF


@dataclasses.dataclass(frozen=True, slots=True)
class KeyRange:
    """The keys from ``start`` on and below ``stop`` that begin with ``prefix``; all keys by default."""

    start: str = ""
    stop: str | None = None
    """None: no upper end."""
    prefix: str = ""

    def __post_init__(self) -> None:
        if self.prefix:
            end = _after_prefix(self.prefix)
            object.__setattr__(self, "start", max(self.start, self.prefix))
            object.__setattr__(self, "stop", end if self.stop is None else min(self.stop, end or self.stop))

    def __contains__(self, key: str) -> bool:
        return self.start <= key and (self.stop is None or key < self.stop)

    def select(
        self, keys: SortedList[str], limit: int, *, after: str | None = None, reverse: bool = False
    ) -> list[str]:
        """The first ``limit`` keys of the range, or its last if ``reverse``, behind the key ``after``. O(log n)."""
        found: Iterator[str]
        if after is None:
            found = keys.irange(self.start, self.stop, (True, False), reverse=reverse)
        elif reverse:
            found = keys.irange(self.start, after, (True, False), reverse=True)
        else:
            found = keys.irange(after, self.stop, (False, False))
        return list(itertools.islice(found, limit))

    def iterate(self, keys: SortedList[str]) -> Iterator[str]:
        """The keys of the range in order, while nothing is changed. O(log n) to begin, O(1) per key."""
        return keys.irange(self.start, self.stop, (True, False))

    def count(self, keys: SortedList[str]) -> int:
        """How many keys are in the range. O(log n)."""
        end = len(keys) if self.stop is None else keys.bisect_left(self.stop)
        return max(0, end - keys.bisect_left(self.start))


def _after_prefix(prefix: str) -> str | None:
    """The smallest str above all that begin with ``prefix``, None if there is none."""
    for index in reversed(range(len(prefix))):
        code = ord(prefix[index])
        if code < _LAST_CODE_POINT:
            return prefix[:index] + chr(code + 1)  # may be a lone surrogate: as a bound it compares as it should
    return None
