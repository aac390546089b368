"""Which changes a watch is told of: of which keys, and of which kinds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Set
from typing import Final

from replikv.errors import ConfigurationError
from replikv.machine.ranges import KeyRange
from replikv.machine.record import Record, is_live, lease_of
from replikv.store.arguments import check_text
from replikv.store.change import Kind

__all__ = ["Selection", "check_kinds", "kind_of", "select"]

_KINDS: Final = frozenset({"put", "delete", "expire"})


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """A set of keys and of kinds. Keys are whole ones, the scope included."""

    key: str | None
    """The only key; or else ..."""
    prefix: str | None
    """... what the keys begin with, and nothing else is asked of them; or else ..."""
    keys: KeyRange
    """... the range they are in. Always the same set as the other two, where those are given."""
    kinds: Set[str] | None = None
    """None: all."""

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def takes(self, record: Record) -> bool:
        """Whether a change to this record is of a kind that is asked for."""
        return self.kinds is None or kind_of(record) in self.kinds

    def __str__(self) -> str:
        if self.key is not None:
            return f"the key {self.key!r}"
        if self.prefix is not None:
            return f"the prefix {self.prefix!r}"
        return f"the keys from {self.keys.start!r} on" + (
            "" if self.keys.stop is None else f" below {self.keys.stop!r}"
        )


def select(
    scope: str, prefix: str, key: str | None, start: str | None, stop: str | None, kinds: Iterable[Kind] | None
) -> Selection:
    """The selection that the arguments of a watch in a scope describe. Raises EncodingError and ConfigurationError."""
    wanted = check_kinds(kinds)
    if key is not None:
        if prefix or start is not None or stop is not None:
            raise ConfigurationError(f"key={key!r} names the only key: leave prefix, start and stop out")
        key = scope + check_text("key", key)
        return Selection(key, None, KeyRange(key, key + "\0"), wanted)  # no str is between the two
    prefix = scope + check_text("prefix", prefix)
    if start is None and stop is None:
        return Selection(None, prefix, KeyRange(prefix=prefix), wanted)
    first = "" if start is None else scope + check_text("start", start)
    end = None if stop is None else scope + check_text("stop", stop)
    return Selection(None, None, KeyRange(first, end, prefix), wanted)


def check_kinds(kinds: Iterable[str] | None) -> frozenset[str] | None:
    """Raises ConfigurationError unless it is None, or some of the kinds of changes there are."""
    if kinds is None:
        return None
    try:
        found = frozenset(() if isinstance(kinds, str) else kinds)
    except TypeError:  # whatever it is
        found = frozenset()
    if not found or not found <= _KINDS:
        raise ConfigurationError(
            f'kinds must be some of "put", "delete" and "expire", like {{"put"}}, not {kinds!r};'
            " marks of progress come with progress=True"
        )
    return found


def kind_of(record: Record) -> Kind:
    """What a change to this record is. Looks at its head alone: costs the same for any value."""
    return "put" if is_live(record) else "expire" if lease_of(record) else "delete"
