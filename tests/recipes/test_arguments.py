"""What makes no sense is refused when a recipe is made, in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from replikv import Cluster, ConfigurationError
from replikv.recipes import Barrier, Counter, Election, Lock, Queue, ReadWriteLock, Semaphore, ServiceRegistry

Make = Callable[[Any, Any], object]

TEXT: Any = "10"
HALF: Any = 0.5

RECIPES: dict[str, Make] = {
    "barriers": lambda store, name: Barrier(store, name, 2),
    "counters": Counter,
    "elections": Election,
    "locks": Lock,
    "queues": Queue,
    "read-write-locks": ReadWriteLock,
    "semaphores": lambda store, name: Semaphore(store, name, 2),
    "services": lambda store, name: ServiceRegistry(store).resolve(name),
}


@pytest.mark.parametrize("recipe", RECIPES)
async def test_names_and_stores(recipe: str, autojump_clock: trio.abc.Clock) -> None:
    """A name is a str without a slash, and a recipe is made of a store: not of the cluster that has it."""
    async with Cluster("a") as cluster:
        for name in (5, "", "a/b"):
            with pytest.raises(ConfigurationError, match=f"name of one of the {recipe} must be a str.*not {name!r}"):
                RECIPES[recipe](cluster.store, name)
        with pytest.raises(ConfigurationError, match=r"made of a store, such as cluster\.store, not of <.*Cluster"):
            RECIPES[recipe](cluster, "name")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda store: Lock(store, "a", ttl_s=TEXT), "ttl_s must be a number of seconds, not '10'"),
        (lambda store: Election(store, "a", ttl_s=-1), "ttl_s must be greater than 0, not -1"),
        (lambda store: Queue(store, "a", visibility_s=True), "visibility_s must be a number of seconds, not True"),
        (lambda store: Queue(store, "a", max_deliveries=TEXT), "max_deliveries must be at least 1, an int, not '10'"),
        (lambda store: Semaphore(store, "a", HALF), "limit must be at least 1, an int, not 0.5"),
        (lambda store: Barrier(store, "a", 0), "parties must be at least 1, an int, not 0"),
        (lambda store: ServiceRegistry(store, ttl_s=float("inf")), "ttl_s must be a number of seconds, not inf"),
        (lambda store: ServiceRegistry(store).balancer("a", retry_after_s=-1), "retry_after_s must be at least 0"),
    ],
)
async def test_numbers(make: Callable[[Any], object], match: str, autojump_clock: trio.abc.Clock) -> None:
    """Times are finite numbers, numbers of things are ints; the error names the argument and what was given."""
    async with Cluster("a") as cluster:
        with pytest.raises(ConfigurationError, match=match):
            make(cluster.store)
