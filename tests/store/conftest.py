"""A store over a cluster of one that lives as long as the test."""

from __future__ import annotations

import pytest
import trio
from local_replicator import LocalReplicator

from replikv.settings import Settings
from replikv.store.store import Store
from replikv.store.watch_hub import WatchHub


@pytest.fixture
def settings() -> Settings:
    """Overridden where a limit is to be reached."""
    return Settings()


@pytest.fixture
def replicator(nursery: trio.Nursery, settings: Settings) -> LocalReplicator:
    replicator = LocalReplicator(nursery, settings)
    nursery.start_soon(replicator.run)
    return replicator


@pytest.fixture
def hub(replicator: LocalReplicator) -> WatchHub:
    return WatchHub(replicator)


@pytest.fixture
def store(replicator: LocalReplicator, hub: WatchHub) -> Store:
    return Store(replicator, hub)
