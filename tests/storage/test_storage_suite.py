"""Both storages of replikv against the suite that a user's own is held to."""

from __future__ import annotations

from pathlib import Path
from random import Random

from replikv.storage.base import Storage
from replikv.storage.disk import DiskStorage
from replikv.storage.memory import VolatileStorage
from replikv.testing.simulated_disk import SimulatedDisk
from replikv.testing.storage_suite import DurableStorageSuite, StorageSuite


class TestDiskStorage(DurableStorageSuite):
    def open_storage(self, directory: Path) -> Storage:
        return DiskStorage(directory, segment_bytes=64 * 1024)


class TestDiskStorageOfTinySegments(DurableStorageSuite):
    """Every few writes cut a segment, and some frames are larger than one."""

    def open_storage(self, directory: Path) -> Storage:
        return DiskStorage(directory, segment_bytes=4096)


class TestDiskStorageThatLosesPower(DurableStorageSuite):
    """Whenever it is opened, all that was not synced before may be gone."""

    disk: SimulatedDisk | None = None

    def open_storage(self, directory: Path) -> Storage:
        if self.disk is None:
            self.disk = SimulatedDisk(Random(directory.name))
        self.disk.crash()
        return DiskStorage(directory, segment_bytes=4096, filesystem=self.disk, prepare_ahead=False)


class TestVolatileStorage(StorageSuite):
    def open_storage(self, directory: Path) -> Storage:
        return VolatileStorage()
