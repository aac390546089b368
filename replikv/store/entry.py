"""What the map holds under a key, and the word for nothing at all."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Final, Literal, TypeAlias

__all__ = ["ABSENT", "Absent", "Entry"]


class _Absent(enum.Enum):
    """An enum of one member: the same object after a copy or a pickle, and a type that narrows."""

    ABSENT = "ABSENT"

    def __repr__(self) -> str:
        return "replikv.ABSENT"

    __str__ = __repr__


ABSENT: Final = _Absent.ABSENT
"""What ``compare_and_set`` expects of a key that is not there. (None is a value like any other.)"""

Absent: TypeAlias = Literal[_Absent.ABSENT]
"""The type of :data:`ABSENT`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A key with its value and its history in numbers, as etcd counts them.

    The value is the reader's own copy: changing it changes no replica.
    """

    key: str
    value: Any
    create_revision: int
    """The revision that made the key, since it was last absent."""
    mod_revision: int
    """The revision of the last change: what ``replace(..., revision=)`` compares."""
    version: int
    """Changes since the key was made, that one included: 1 for a key that was put once."""
    lease: int | None
    """The lease that the key vanishes with, or None."""
