"""Where a recipe keeps its keys."""

from __future__ import annotations

from replikv import ConfigurationError

__all__ = ["home"]


def home(recipe: str, name: str) -> str:
    """The prefix of everything that a recipe keeps under a name: ``locks/reports/``.

    Raises ConfigurationError for a name that is empty, or has a slash: "a/b" would stand among what "a" keeps.
    """
    if type(name) is not str or not name or "/" in name:
        raise ConfigurationError(
            f"the name of one of the {recipe} must be a str, not empty and without '/', not {name!r:.100}:"
            " to sort them into groups, give a scope of the store (store.scoped('group/'))"
        )
    return f"{recipe}/{name}/"
