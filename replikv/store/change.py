"""What a watcher is told."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

__all__ = ["Change"]


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One key that a committed revision changed.

    The values are this watcher's own copies: changing them changes nobody else's.
    """

    key: str
    value: Any
    """The new value; None if the key is gone (``kind`` tells)."""
    previous: Any
    """The value before; None if there was none."""
    revision: int
    """The revision that made the change, shared by all changes of one ``update``. ``since=revision`` goes on behind it.
    For the state that ``snapshot=True`` begins with: the revision of that state."""
    kind: Literal["put", "delete", "expire"]
    """``"expire"``: gone because the lease it was put with has ended."""
