"""A directory is replaced by another one, and the old one is never out of reach, wherever that is interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from replikv.errors import ConfigurationError, DataDirInUseError, StorageError
from replikv.storage.filesystem import OsFileSystem
from replikv.storage.replacement import Replacement, check_replaceable, discard_leftovers, settle

FILES = OsFileSystem()


def fill(path: Path, content: str) -> None:
    path.mkdir()
    (path / "content").write_text(content)


def contents(parent: Path) -> dict[str, str]:
    """Name -> what is in the directory of that name."""
    return {path.name: (path / "content").read_text() for path in parent.iterdir()}


def test_the_new_one_takes_the_place_and_the_old_one_is_kept(tmp_path: Path) -> None:
    """Under a name that begins with its own, so that both are found side by side."""
    directory = tmp_path / "a"
    replacement = Replacement(FILES, directory, "T")
    fill(directory, "old")
    fill(replacement.new, "new")
    replacement.swap()
    assert {"a": "new", "a.before-recover-T": "old"} == contents(tmp_path)


@pytest.mark.parametrize(
    ("found", "left"),
    [
        ({"a": "old"}, {"a": "old"}),
        ({"a": "old", "a.recovering-T": "half"}, {"a": "old"}),
        ({"a.recovering-T": "new", "a.before-recover-T": "old"}, {"a": "old"}),
        ({"a": "new", "a.before-recover-T": "old"}, {"a": "new", "a.before-recover-T": "old"}),
        (
            {
                "a.before-recover-S": "older",
                "a.before-recover-T": "old",
                "a.recovering-T": "new",
                "ab.recovering-T": "b",
            },
            {"a.before-recover-S": "older", "a": "old", "ab.recovering-T": "b"},
        ),
    ],
)
def test_an_attempt_that_was_interrupted_is_taken_back(
    tmp_path: Path, found: dict[str, str], left: dict[str, str]
) -> None:
    """Whatever stands there, the data is in its place again; done is done; what is another directory's stays."""
    for name, content in found.items():
        fill(tmp_path / name, content)
    settle(FILES, tmp_path / "a")
    discard_leftovers(FILES, tmp_path / "a")
    for lock in tmp_path.glob("*/lock"):
        lock.unlink()
    assert left == contents(tmp_path)


def test_a_directory_that_was_made_meanwhile_is_for_a_person(tmp_path: Path) -> None:
    """A supervisor started a peer anew between the two renames: nothing is touched, and the message names the data."""
    found = {"a": "somebody's", "a.recovering-T": "new", "a.before-recover-T": "old"}
    for name, content in found.items():
        fill(tmp_path / name, content)
    with pytest.raises(StorageError, match=r"the data is in .*a\.before-recover-T; stop what uses"):
        settle(FILES, tmp_path / "a")
    assert found == contents(tmp_path)


def test_a_directory_that_is_made_between_the_renames_is_not_overwritten(tmp_path: Path) -> None:
    """The second rename fails, and says where the data is."""

    class Hasty(OsFileSystem):
        def sync_directory(self, path: Path) -> None:
            if not (tmp_path / "a").exists():
                fill(tmp_path / "a", "somebody's")

    fill(tmp_path / "a", "old")
    replacement = Replacement(Hasty(), tmp_path / "a", "T")
    fill(replacement.new, "new")
    with pytest.raises(StorageError, match=r"its data is in .*a\.before-recover-T, unchanged"):
        replacement.swap()
    assert {"a": "somebody's", "a.recovering-T": "new", "a.before-recover-T": "old"} == contents(tmp_path)


def test_nothing_that_was_kept_is_replaced(tmp_path: Path) -> None:
    """Not by a second attempt with the same stamp, either."""
    fill(tmp_path / "a", "old")
    replacement = Replacement(FILES, tmp_path / "a", "T")
    replacement.kept.mkdir()
    with pytest.raises(StorageError, match="is there already"):
        replacement.swap()
    assert "old" == (tmp_path / "a" / "content").read_text()


def test_one_that_is_under_way_is_left_alone(tmp_path: Path) -> None:
    """Between its two renames the directory is missing; its lock has moved along."""
    fill(tmp_path / "a.recovering-T", "new")
    fill(tmp_path / "a.before-recover-T", "old")
    lock = FILES.open(tmp_path / "a.before-recover-T" / "lock", create=True)
    assert lock.try_lock()
    with pytest.raises(DataDirInUseError, match="another process"):
        settle(FILES, tmp_path / "a")
    lock.close()
    assert not (tmp_path / "a").exists()


def test_a_mount_point_cannot_be_replaced(tmp_path: Path) -> None:
    """It is told before anything is done, with a way around."""
    check_replaceable(tmp_path)
    with pytest.raises(ConfigurationError, match=r"mount point.*copy"):
        check_replaceable(Path("/proc"))
