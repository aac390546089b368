"""A disk in memory that loses whatever was not synced, tears writes, rots, fills up, and fails where it is told to.

It implements the seam of ``storage/filesystem.py`` and promises exactly what that promises, no more:

1.  ``fdatasync`` makes the bytes of a file durable, ``fsync`` its length too, neither of them its name.
2.  A name that was made, changed or removed is durable once ``sync_directory`` has returned for its directory.
3.  A sector of 512 bytes is written whole or not at all; of what was not synced, any sectors may be, in any order, also
    an earlier version of one that was written twice. The same holds of changes of names; a rename is one change.
4.  After a sync that failed, what it was to write counts as written and is not, and is never tried again
    ("fsyncgate": Rebello et al., ATC '20). It may be read from the page cache until that is dropped. Changes of names
    only wait on: file systems with a journal write them later, or stop.

:meth:`SimulatedDisk.crash` cuts the power, :meth:`SimulatedDisk.kill` ends the process only. All choices come from the
random generator, and nothing is a real file: so a run is a function of its seed, and costs microseconds a call.
"""

from __future__ import annotations

import copy
import dataclasses
import errno
import fnmatch
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from random import Random
from typing import Final

from replikv.errors import InternalError
from replikv.storage.filesystem import SECTOR_BYTES, File, FileSystem, directory_sync_refusal, refusal

__all__ = ["Call", "PowerCut", "SimulatedDisk"]

Call = tuple[str, str]
"""What was asked (see :attr:`SimulatedDisk.calls`), and the name of the file or directory."""

_SYNCS: Final = frozenset({"fdatasync", "fsync", "sync_directory"})


class PowerCut(BaseException):
    """The process ends here. No Exception: nothing between the disk and the test may take it for an error to handle."""


class SimulatedDisk(FileSystem):
    """One disk. Its user is one process at a time, which :meth:`kill` or :meth:`crash` ends.

    ``files`` is what is there from the beginning, durably. ``capacity_bytes`` is what fits: the lengths of all files
    added up; None for no limit. ``ignored`` names the syncs that do nothing: a disk that lies, by which a test proves
    that it would notice.
    """

    def __init__(
        self,
        random: Random,
        *,
        files: Mapping[Path, bytes] | None = None,
        capacity_bytes: int | None = None,
        ignored: Collection[str] = (),
    ) -> None:
        if not _SYNCS.issuperset(ignored):
            raise ValueError(f"only syncs can be ignored, not {sorted(set(ignored) - _SYNCS)}")
        self.random = random
        self.capacity_bytes = capacity_bytes
        self.calls: list[Call] = []
        """Everything that was asked for, but sizes, locks and closes: ``create``, ``open``, ``pread``, ``pwrite``,
        ``fdatasync``, ``fsync``, ``rename`` (with the new name), ``unlink``, ``list_directory``, ``make_directory``
        (one for each that was missing) and ``sync_directory``. To be cleared at will."""
        self.syncs_after_failure: list[Call] = []
        """Syncs of files of which the same process has seen a sync fail: there must be none."""
        self._ignored = frozenset(ignored)
        self._faults: list[_Fault] = []
        self._root = _Directory()
        self._root.give("/")
        self._process = 0
        self._off = False
        for path, data in (files or {}).items():
            self.put(path, data)

    # -- what a test does ----------------------------------------------------------------------------------------------

    def fail(
        self, error: int, operation: str = "*", name: str = "*", *, after: int = 0, times: int | None = None
    ) -> None:
        """Make calls fail with this ``errno``, all that fit but the first ``after`` of them, ``times`` or for good.

        ``operation`` and ``name`` are patterns for what :attr:`calls` has. A ``pwrite`` that fails has written some of
        its first sectors, a sync what the fourth rule says, everything else nothing.
        """
        self._faults.append(_Fault(operation, name, after, times, error))

    def stop(self, operation: str = "*", name: str = "*", *, after: int = 0) -> None:
        """End the process in the middle of a call, the one after the first ``after`` that fit: it raises PowerCut.

        Whether the call has done anything is for :meth:`crash` to draw. Until that or :meth:`kill` all others raise it.
        """
        self._faults.append(_Fault(operation, name, after, 1, None))

    def heal(self) -> None:
        """Forget all faults that were set and have not come."""
        self._faults.clear()

    def crash(self) -> None:
        """Cut the power and start again: what was synced is there, and of everything else what the disk likes."""
        self._end_process()
        # Often all or nothing of it, where one draw for each sector would hardly ever give that.
        share = self.random.choice((0.0, 0.1, 0.5, 0.9, 1.0, self.random.random()))
        self._root.crash(self.random, share)

    def kill(self) -> None:
        """End the process, and leave the system up: nothing is lost but what a failed sync has lost already."""
        self._end_process()
        self._root.evict(self.random)

    def read(self, path: Path) -> bytes:
        """What a reader would find. Not a call."""
        return bytes(self._file(path).data)

    def put(self, path: Path, data: bytes) -> None:
        """Make this the durable content of a file behind everybody's back, and its directories if need be."""
        directory = self._root
        for part in path.parts[:-1]:
            directory = directory.give(part)
        directory.names[path.name] = directory.durable[path.name] = _Content(data)

    def remove(self, path: Path) -> None:
        """Remove a file or a whole directory, durably, behind everybody's back."""
        directory = self._directory(path.parent)
        del directory.names[path.name]
        directory.durable.pop(path.name, None)

    def flip(self, path: Path, position: int, mask: int) -> None:
        """Change bits of one byte of a file, on the disk and in what is read from it."""
        content = self._file(path)
        content.data[position] ^= mask
        if position < len(content.durable):
            content.durable[position] ^= mask

    def rot(self, path: Path) -> int:
        """Flip one bit of a file, drawn at random; the position of its byte."""
        position = self.random.randrange(len(self._file(path).data))
        self.flip(path, position, 1 << self.random.randrange(8))
        return position

    def files(self) -> dict[Path, bytes]:
        """Path -> content of every file, as a reader would find it."""
        found: dict[Path, bytes] = {}
        self._root.collect(Path(), found)
        return found

    def copy(self, random: Random) -> SimulatedDisk:
        """A disk in the same state, not synced parts and all, for another process; without faults and calls."""
        other = SimulatedDisk(random, capacity_bytes=self.capacity_bytes, ignored=self._ignored)
        other._root = copy.deepcopy(self._root)
        other._root.unlock()
        return other

    # -- what storage asks for -----------------------------------------------------------------------------------------

    def open(self, path: Path, *, create: bool = False) -> File:
        """As :meth:`FileSystem.open`."""
        fault = self._call("create" if create else "open", path.name)
        if fault is not None and fault.error is not None:
            raise self._failure(fault, "open", path)
        directory = self._directory(path.parent, "open")
        content = directory.names.get(path.name)
        if content is None:
            if not create:
                raise self._absent(fault, "open", path)
            content = _Content()
            directory.change(None, (path.name, content))
        if isinstance(content, _Directory):
            raise refusal("open", path, OSError(errno.EISDIR, os.strerror(errno.EISDIR)))
        if fault is not None:
            raise self._failure(fault, "open", path)
        return _OpenFile(self, path, content)

    def rename(self, source: Path, target: Path) -> None:
        """As :meth:`FileSystem.rename`."""
        fault = self._call("rename", target.name)
        if fault is None or fault.error is None:
            if source.parent != target.parent:
                raise InternalError(f"{source} was to be renamed to {target}, in another directory")
            directory = self._directory(source.parent, "rename")
            node = directory.names.get(source.name)
            if node is None:
                raise self._absent(fault, f"rename {source} to", target)
            directory.change((source.name, node), (target.name, node))
        if fault is not None:
            raise self._failure(fault, f"rename {source} to", target)

    def unlink(self, path: Path) -> None:
        """As :meth:`FileSystem.unlink`."""
        fault = self._call("unlink", path.name)
        if fault is None or fault.error is None:
            directory = self._directory(path.parent, "remove")
            node = directory.names.get(path.name)
            if node is None:
                raise self._absent(fault, "remove", path)
            directory.change((path.name, node), None)
        if fault is not None:
            raise self._failure(fault, "remove", path)

    def list_directory(self, path: Path) -> list[str]:
        """As :meth:`FileSystem.list_directory`."""
        fault = self._call("list_directory", path.name)
        if fault is not None:
            raise self._failure(fault, "list", path)
        return sorted(self._directory(path, "list").names)

    def free_bytes(self, path: Path) -> int | None:  # noqa: ARG002  # one disk has all directories
        """As :meth:`FileSystem.free_bytes`."""
        return None if self.capacity_bytes is None else max(self.capacity_bytes - self._used_bytes(), 0)

    def make_directory(self, path: Path) -> None:
        """As :meth:`FileSystem.make_directory`."""
        directory, above = self._root, Path()
        for part in path.parts:
            found = directory.names.get(part)
            if found is None:
                fault = self._call("make_directory", part)
                if fault is None or fault.error is None:
                    found = _Directory()
                    directory.change(None, (part, found))
                if fault is not None:
                    raise self._failure(fault, "make the directory", above / part)
                self.sync_directory(above)
            if not isinstance(found, _Directory):
                raise refusal("make the directory", path, OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
            directory, above = found, above / part

    def sync_directory(self, path: Path) -> None:
        """As :meth:`FileSystem.sync_directory`."""
        fault = self._call("sync_directory", path.name)
        directory = self._directory(path, "sync the directory")
        if directory.sync_failed_in == self._process:
            self.syncs_after_failure.append(("sync_directory", path.name))
        if fault is None:
            if "sync_directory" not in self._ignored:
                directory.sync()
        elif fault.error is None:
            raise self._failure(fault, "sync the directory", path)
        else:
            directory.sync_failed_in = self._process
            raise directory_sync_refusal(path, OSError(fault.error, os.strerror(fault.error)))

    # -- inside --------------------------------------------------------------------------------------------------------

    def _call(self, operation: str, name: str) -> _Fault | None:
        """Note a call; the fault that strikes it."""
        if self._off:
            raise PowerCut
        self.calls.append((operation, name))
        for place, fault in enumerate(self._faults):
            if fnmatch.fnmatchcase(operation, fault.operation) and fnmatch.fnmatchcase(name, fault.name):
                if fault.after > 0:
                    fault.after -= 1
                    continue
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        del self._faults[place]
                return fault
        return None

    def _failure(self, fault: _Fault, attempt: str, path: Path) -> BaseException:
        if fault.error is not None:
            return refusal(attempt, path, OSError(fault.error, os.strerror(fault.error)))
        self._off = True
        return PowerCut()

    def _absent(self, fault: _Fault | None, attempt: str, path: Path) -> BaseException:
        return self._failure(fault or _Fault("", "", 0, 1, errno.ENOENT), attempt, path)

    def _end_process(self) -> None:
        self._process += 1
        self._off = False
        self.heal()
        self._root.unlock()

    def _directory(self, path: Path, attempt: str = "find") -> _Directory:
        directory = self._root
        for part in path.parts:
            found = directory.names.get(part)
            if not isinstance(found, _Directory):
                raise refusal(attempt, path, OSError(errno.ENOENT, os.strerror(errno.ENOENT)))
            directory = found
        return directory

    def _file(self, path: Path) -> _Content:
        content = self._directory(path.parent).names.get(path.name)
        if not isinstance(content, _Content):
            raise refusal("open", path, OSError(errno.ENOENT, os.strerror(errno.ENOENT)))
        return content

    def _used_bytes(self) -> int:
        return sum(map(len, self.files().values()))

    def _room_for(self, growth: int) -> int:
        """How much of a growth by so many bytes fits."""
        if self.capacity_bytes is None or growth <= 0:
            return growth
        return min(max(self.capacity_bytes - self._used_bytes(), 0), growth)


class _OpenFile(File):
    """An open file. Good for as long as the process lives that opened it."""

    def __init__(self, disk: SimulatedDisk, path: Path, content: _Content) -> None:
        self.path = path
        self._disk = disk
        self._name = path.name
        self._content = content
        self._process = disk._process
        self._open = True

    def size(self) -> int:
        self._expect_open()
        return len(self._content.data)

    def pread(self, length: int, offset: int) -> bytes:
        self._expect_open()
        fault = self._disk._call("pread", self._name)
        if fault is not None:
            raise self._disk._failure(fault, "read", self.path)
        return bytes(memoryview(self._content.data)[offset : offset + length])

    def pwrite(self, data: bytes | bytearray, offset: int) -> None:
        self._expect_open()
        disk, content = self._disk, self._content
        fault = disk._call("pwrite", self._name)
        if fault is None:
            room = disk._room_for(offset + len(data) - len(content.data))
            missing = offset + len(data) - len(content.data) - room
            if missing <= 0:
                content.write(data, offset)
                return
            # What fits, in whole sectors.
            fault = _Fault("", "", 0, 1, errno.ENOSPC)
            end = max((offset + len(data) - missing) // SECTOR_BYTES * SECTOR_BYTES, offset)
        elif fault.error is None:
            end = offset + len(data)
        else:
            first, last = offset // SECTOR_BYTES, -(-(offset + len(data)) // SECTOR_BYTES)
            end = max(disk.random.randint(first, last) * SECTOR_BYTES, offset)
        if end > offset:
            content.write(data[: end - offset], offset)
        raise disk._failure(fault, "write to", self.path)

    def fdatasync(self) -> None:
        self._sync("fdatasync")

    def fsync(self) -> None:
        self._sync("fsync")

    def _sync(self, operation: str) -> None:
        self._expect_open()
        disk, content = self._disk, self._content
        fault = disk._call(operation, self._name)
        if content.sync_failed_in == self._process:
            disk.syncs_after_failure.append((operation, self._name))
        if fault is None:
            if operation not in disk._ignored:
                content.sync(length=operation == "fsync")
            return
        if fault.error is not None:
            content.sync_failed_in = self._process
            content.lose(disk.random)
        raise disk._failure(fault, "sync", self.path)

    def try_lock(self) -> bool:
        self._expect_open()
        if self._content.locked_by not in (None, id(self)):
            return False
        self._content.locked_by = id(self)
        return True

    def close(self) -> None:
        self._open = False
        if self._content.locked_by == id(self):
            self._content.locked_by = None

    def _expect_open(self) -> None:
        if self._process != self._disk._process:
            raise PowerCut
        if not self._open:
            raise InternalError(f"{self.path} was used after it was closed")


@dataclasses.dataclass(slots=True)
class _Fault:
    operation: str
    name: str
    after: int
    times: int | None
    error: int | None
    """The ``errno``; None to stop."""


class _Content:
    """What is in a file, whatever it is called."""

    __slots__ = ("data", "durable", "durable_length", "lengths", "locked_by", "lost", "sync_failed_in", "writes")

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        # What the disk has; behind durable_length is what a file that got longer would show there.
        self.durable = bytearray(data)
        self.durable_length = len(data)
        # Not synced: whole sectors from an offset on, as they were after each write, and the lengths the file has had.
        self.writes: list[tuple[int, bytes]] = []
        self.lengths: list[int] = []
        # Sectors that count as written since a sync failed, and are not.
        self.lost: set[int] = set()
        self.sync_failed_in: int | None = None
        self.locked_by: int | None = None

    def write(self, data: bytes | bytearray, offset: int) -> None:
        end = offset + len(data)
        if offset > len(self.data):
            self.data += bytes(offset - len(self.data))
        grown = end > len(self.data)
        self.data[offset:end] = data
        if grown:
            self.lengths.append(end)
        start, stop = offset // SECTOR_BYTES * SECTOR_BYTES, -(-end // SECTOR_BYTES) * SECTOR_BYTES
        self.writes.append((start, bytes(memoryview(self.data)[start:stop])))
        if self.lost:
            self.lost.difference_update(range(start // SECTOR_BYTES, stop // SECTOR_BYTES))

    def sync(self, *, length: bool) -> None:
        for start, data in self.writes:
            self._settle(start, data)
        self.writes.clear()
        if length:
            self.durable_length = len(self.data)
            self.lengths.clear()

    def lose(self, random: Random) -> None:
        """A sync fails: some sectors are written, and the others are forgotten."""
        for start, sector in self._sectors():
            if random.random() < 0.5:
                self._settle(start, sector)
        self.lost.update(start // SECTOR_BYTES for start, _ in self._sectors())
        self.writes.clear()

    def evict(self, random: Random) -> None:
        """The page cache drops what counts as clean, or some of it."""
        share = random.choice((0.0, 0.5, 1.0)) if self.lost else 0.0
        for number in sorted(self.lost):
            if random.random() < share:
                self.lost.remove(number)
                start = number * SECTOR_BYTES
                old = self.durable[start : start + SECTOR_BYTES].ljust(SECTOR_BYTES, b"\0")
                self.data[start : start + SECTOR_BYTES] = old[: len(self.data) - start]

    def crash(self, random: Random, share: float) -> None:
        for start, sector in self._sectors():
            if random.random() < share:
                self._settle(start, sector)
        length = self.durable_length
        for later in self.lengths:
            if random.random() < share:
                length = later
        self.durable = self.durable[:length].ljust(length, b"\0")
        self.data = bytearray(self.durable)
        self.durable_length = length
        self.writes.clear()
        self.lengths.clear()
        self.lost.clear()

    def _sectors(self) -> list[tuple[int, bytes]]:
        """Each sector that is not synced, as often as it was written."""
        return [
            (start + at, data[at : at + SECTOR_BYTES])
            for start, data in self.writes
            for at in range(0, len(data), SECTOR_BYTES)
        ]

    def _settle(self, start: int, data: bytes) -> None:
        if start > len(self.durable):
            self.durable += bytes(start - len(self.durable))
        self.durable[start : start + len(data)] = data


class _Directory:
    """The names in a directory, as they are seen, and as the disk has them."""

    __slots__ = ("durable", "names", "pending", "sync_failed_in")

    def __init__(self) -> None:
        self.names: dict[str, _Node] = {}
        self.durable: dict[str, _Node] = {}
        # What was done since the last sync: a name that went, a name that came; both for a rename.
        self.pending: list[tuple[tuple[str, _Node] | None, tuple[str, _Node] | None]] = []
        self.sync_failed_in: int | None = None

    def change(self, gone: tuple[str, _Node] | None, come: tuple[str, _Node] | None) -> None:
        _apply(self.names, gone, come)
        self.pending.append((gone, come))

    def give(self, name: str) -> _Directory:
        """The directory of this name, durably made if it is missing."""
        found = self.names.get(name)
        if not isinstance(found, _Directory):
            found = self.names[name] = self.durable[name] = _Directory()
        return found

    def sync(self) -> None:
        self.durable = dict(self.names)
        self.pending.clear()

    def crash(self, random: Random, share: float) -> None:
        kept = [change for change in self.pending if random.random() < share]
        if random.random() < 0.5:
            random.shuffle(kept)
        for gone, come in kept:
            # One that was made and then renamed does not come back under its first name.
            if gone is not None or come is None or all(node is not come[1] for node in self.durable.values()):
                _apply(self.durable, gone, come)
        self.names = dict(self.durable)
        self.pending.clear()
        for _, node in sorted(self.names.items()):
            node.crash(random, share)

    def evict(self, random: Random) -> None:
        for _, node in sorted(self.names.items()):
            node.evict(random)

    def unlock(self) -> None:
        for node in self.names.values():
            if isinstance(node, _Directory):
                node.unlock()
            else:
                node.locked_by = None

    def collect(self, path: Path, found: dict[Path, bytes]) -> None:
        for name, node in self.names.items():
            if isinstance(node, _Directory):
                node.collect(path / name, found)
            else:
                found[path / name] = bytes(node.data)


_Node = _Content | _Directory


def _apply(names: dict[str, _Node], gone: tuple[str, _Node] | None, come: tuple[str, _Node] | None) -> None:
    if gone is not None and names.get(gone[0]) is gone[1]:
        del names[gone[0]]
    if come is not None:
        names[come[0]] = come[1]
