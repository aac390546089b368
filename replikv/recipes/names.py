"""Where a recipe keeps its keys."""

from __future__ import annotations

from replikv import ConfigurationError, Store

__all__ = ["check_store", "home"]


def check_store(store: object) -> None:
    """Raise ConfigurationError unless it is a map, or a scope of one."""
    if not isinstance(store, Store):
        raise ConfigurationError(f"recipes are made of a store, such as cluster.store, not of {store!r:.100}")


def home(store: Store, recipe: str, name: str) -> str:
    """The prefix of everything that a recipe keeps in a store under a name: ``locks/reports/``.

    Raises ConfigurationError for what is no store, and for a name that is empty, or has a slash: "a/b" would stand
    among what "a" keeps.
    """
    check_store(store)
    if type(name) is not str or not name or "/" in name:
        raise ConfigurationError(
            f"the name of one of the {recipe} must be a str, not empty and without '/', not {name!r:.100}:"
            " to sort them into groups, give a scope of the store (store.scoped('group/'))"
        )
    return f"{recipe}/{name}/"
