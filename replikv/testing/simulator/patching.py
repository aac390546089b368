"""Attributes that are other than they were, for a while."""

from __future__ import annotations

from typing import Any, Self

__all__ = ["Patch"]


class Patch:
    """Sets attributes of classes and modules, and sets them back in the end."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> Any:
        """Set ``owner.name``; what it was. Raises AttributeError when it was not there."""
        before = vars(owner)[name] if name in vars(owner) else getattr(owner, name)
        self._before.append((owner, name, before))
        setattr(owner, name, value)
        return before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._before:
            setattr(*self._before.pop())
