"""Who is to be told of a change: live watches, filed by the keys that they are about.

To find them costs a look-up for the key, one for each length of prefix that is watched, and O(log n) for ranges: never
more because there are more watches that do not match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from replikv.store.intervals import Intervals
from replikv.store.selection import Selection

if TYPE_CHECKING:
    from replikv.store.watch import Watch

__all__ = ["Audience", "WatchIndex"]


class Audience:
    """The live watches of the same keys: what is to be told to one of them is gathered for all, once."""

    __slots__ = ("watches",)

    def __init__(self) -> None:
        self.watches: list[Watch] = []


class WatchIndex:
    """Live watches. No audience in it is empty."""

    def __init__(self) -> None:
        self._keys: dict[str, Audience] = {}
        self._prefixes: dict[str, Audience] = {}
        self._prefixes_of_length: Counter[int] = Counter()
        """How many prefixes of that length there are. No zeros."""
        self._lengths: list[int] = []
        """Its keys, ascending."""
        self._ranges: dict[tuple[str, str | None], Audience] = {}
        """(start, stop) -> the watches of that range."""
        self._intervals: Intervals[Audience] = Intervals()
        """The same."""

    def __bool__(self) -> bool:
        return bool(self._keys or self._prefixes or self._ranges)

    def __iter__(self) -> Iterator[Watch]:
        for audience in (*self._keys.values(), *self._prefixes.values(), *self._ranges.values()):
            yield from audience.watches

    def audiences_of(self, key: str) -> list[Audience]:
        """Everybody who watches this key."""
        found: list[Audience] = []
        audience = self._keys.get(key)
        if audience is not None:
            found.append(audience)
        prefixes = self._prefixes
        for length in self._lengths:
            if length > len(key):
                break
            audience = prefixes.get(key[:length])
            if audience is not None:
                found.append(audience)
        if self._ranges:
            found += self._intervals.at(key)
        return found

    def add(self, watch: Watch) -> None:
        """File a watch that is not there yet. O(log n)."""
        audience = self._find(watch.selection)
        if audience is None:
            audience = Audience()
            self._file(watch.selection, audience)
        audience.watches.append(watch)

    def remove(self, watch: Watch) -> None:
        """Take a watch out that is there. O(log n + watches of the same keys)."""
        audience = self._find(watch.selection)
        assert audience is not None
        audience.watches.remove(watch)
        if not audience.watches:
            self._discard(watch.selection)

    def _find(self, selection: Selection) -> Audience | None:
        if selection.key is not None:
            return self._keys.get(selection.key)
        if selection.prefix is not None:
            return self._prefixes.get(selection.prefix)
        return self._ranges.get((selection.keys.start, selection.keys.stop))

    def _file(self, selection: Selection, audience: Audience) -> None:
        if selection.key is not None:
            self._keys[selection.key] = audience
        elif selection.prefix is not None:
            self._prefixes[selection.prefix] = audience
            self._count_prefix(len(selection.prefix), 1)
        else:
            start, stop = selection.keys.start, selection.keys.stop
            self._ranges[start, stop] = audience
            self._intervals.add(start, stop, audience)

    def _discard(self, selection: Selection) -> None:
        if selection.key is not None:
            del self._keys[selection.key]
        elif selection.prefix is not None:
            del self._prefixes[selection.prefix]
            self._count_prefix(len(selection.prefix), -1)
        else:
            start, stop = selection.keys.start, selection.keys.stop
            del self._ranges[start, stop]
            self._intervals.remove(start, stop)

    def _count_prefix(self, length: int, by: int) -> None:
        counts = self._prefixes_of_length
        counts[length] += by
        if not counts[length]:
            del counts[length]
        if len(counts) != len(self._lengths):
            self._lengths = sorted(counts)
