"""What a watcher is told."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

__all__ = ["Change", "Kind"]

Kind: TypeAlias = Literal["put", "delete", "expire", "progress"]
"""What a :class:`Change` tells of."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One key that a committed revision changed; or, with ``progress=True``, a mark of how far a watch has come.

    The values are this watcher's own copies: changing them changes nobody else's.
    """

    key: str
    value: Any
    """The new value; None if the key is gone (``kind`` tells)."""
    previous: Any
    """The value before; None if there was none, or with ``previous=False``."""
    revision: int
    """The revision that made the change, shared by all changes of one ``update``. ``since=revision`` goes on behind it.
    For the state that ``snapshot=True`` begins with: the revision of that state. Of a mark: everything that this watch
    is to be told of up to this revision, inclusive, has been told."""
    kind: Kind
    """``"expire"``: gone because the lease it was put with has ended. ``"progress"``: a mark, with the key "" and no
    values; nothing changed."""
    created: bool = False
    """Whether this put made the key: there was none before. (``previous`` alone does not tell: None is a value.) False
    in the state that ``snapshot=True`` begins with: nothing is known of what was before."""
