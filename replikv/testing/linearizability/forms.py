"""JSON values as things that can be hashed, by both equalities that the model knows."""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any, Final

from replikv.store.entry import ABSENT

__all__ = ["loose_form", "strict_form"]

_SCALARS: Final = frozenset({str, int, float, bool, type(None)})


def strict_form(value: Any) -> Hashable:
    """Equal for the same JSON values only: 1, 1.0 and true differ, a tuple is a list.

    Raises ValueError for what is no JSON value, NaN included: it equals nothing.
    """
    kind = type(value)
    if kind in _SCALARS and value == value:  # NaN does not
        return kind, value
    if value is ABSENT:
        form: Hashable = value
        return form
    try:
        return (list, json.dumps(value, sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as exc:
        raise ValueError(f"{value!r:.100} is not a JSON value: {exc}") from exc


def loose_form(value: Any) -> Hashable:
    """Equal for values that are equal in Python: 1 == 1.0 == True, in lists and dicts, too."""
    if isinstance(value, list | tuple):
        return (list, tuple(loose_form(item) for item in value))
    if isinstance(value, dict):
        return (dict, frozenset((key, loose_form(item)) for key, item in value.items()))
    form: Hashable = value
    return form
