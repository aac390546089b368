"""A data directory is replaced by another, and kept under a name of its own, whatever is interrupted and where.

For a directory D and a stamp T, which tells one attempt from another, these names stand side by side:

===========================  ===========================================================================================
D                            nothing was done yet, or everything
D, D.recovering-T            the new directory was being written; it is worth nothing
D.recovering-T, D.before-T   between the two renames; the new directory is whole, but nobody has been told of it
D, D.before-T                done: D is new, and D.before-T is what it was
all three                    between the two renames, and somebody has made another D since
===========================  ===========================================================================================

(``before`` is short for ``before-recover``.) So whoever finds the third gives D its old content back and begins anew,
which :func:`settle` does; the fifth is for a person to sort out. A directory cannot be renamed over one that is not
empty, so what somebody else has made meanwhile is never lost.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from replikv.errors import ConfigurationError, DataDirInUseError, StorageError
from replikv.storage.filesystem import FileSystem

__all__ = ["Replacement", "check_replaceable", "discard_leftovers", "settle"]

_NEW: Final = ".recovering-"
_KEPT: Final = ".before-recover-"


class Replacement:
    """One attempt to replace ``directory``, an absolute path. Its caller holds the directory's lock."""

    def __init__(self, filesystem: FileSystem, directory: Path, stamp: str) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self.new = directory.with_name(f"{directory.name}{_NEW}{stamp}")
        """Where the new directory is written. It must be closed before :meth:`swap`."""
        self.kept = directory.with_name(f"{directory.name}{_KEPT}{stamp}")
        """What the old one is called afterwards."""

    def swap(self) -> None:
        """Make the new directory the one, durably.

        Raises StorageError. Then the old directory is where it was, or under ``kept``, as the message says; to begin
        again from :func:`settle` on is safe.
        """
        if self.kept.exists():
            raise StorageError(f"{self.kept} is there already: try again")
        parent = self._directory.parent
        self._filesystem.rename(self._directory, self.kept)
        try:
            self._filesystem.sync_directory(parent)
            self._filesystem.rename(self.new, self._directory)
            self._filesystem.sync_directory(parent)
        except StorageError as exc:
            raise StorageError(
                f"{exc}; the recovery of {self._directory} was interrupted, and its data is in {self.kept}, unchanged:"
                " recover it once more"
            ) from exc

    def discard(self) -> None:
        """Remove what was written of the new directory."""
        _remove(self.new)


def settle(filesystem: FileSystem, directory: Path) -> None:
    """Give ``directory``, an absolute path, its old content back where a replacement was interrupted after that moved.

    Raises DataDirInUseError while the replacement is under way, StorageError for what only a person can sort out.
    """
    for stamp in _stamps(filesystem, directory):
        interrupted = Replacement(filesystem, directory, stamp)
        if not interrupted.kept.exists():
            continue
        if directory.exists():
            raise StorageError(
                f"a recovery of {directory} was interrupted, and something has made another {directory} since:"
                f" the data is in {interrupted.kept}; stop what uses {directory}, move that away, rename"
                f" {interrupted.kept} to {directory}, and recover once more"
            )
        lock = filesystem.open(interrupted.kept / "lock", create=True)
        try:
            if not lock.try_lock():
                raise DataDirInUseError(
                    f"{directory} is being recovered by another process just now, or {interrupted.kept} is in use:"
                    " wait for that, or stop it"
                )
            filesystem.rename(interrupted.kept, directory)
            filesystem.sync_directory(directory.parent)
        finally:
            lock.close()


def discard_leftovers(filesystem: FileSystem, directory: Path) -> None:
    """Remove what attempts that were interrupted have begun to write. The caller holds the directory's lock."""
    for stamp in _stamps(filesystem, directory):
        Replacement(filesystem, directory, stamp).discard()


def check_replaceable(directory: Path) -> None:
    """Raise ConfigurationError for a directory that cannot be renamed."""
    if directory.is_mount():
        raise ConfigurationError(
            f"{directory} is a mount point, which cannot be renamed: copy what is in it to a directory elsewhere,"
            " recover that, and copy the result back"
        )


def _stamps(filesystem: FileSystem, directory: Path) -> list[str]:
    start = f"{directory.name}{_NEW}"
    return [name.removeprefix(start) for name in filesystem.list_directory(directory.parent) if name.startswith(start)]


def _remove(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise StorageError(f"cannot remove {directory}: {exc.strerror or exc}; remove it by hand") from exc
