"""The file that says whose a data directory is."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from replikv.errors import CorruptionError, StorageError
from replikv.storage.base import Identity
from replikv.storage.filesystem import OsFileSystem
from replikv.storage.meta import forget_incarnation, read_incarnation, read_meta, write_incarnation, write_meta

IDENTITY = Identity("cluster", "ä", "incarnation", "10.0.0.1:7001", "0.0.0.0:7001")


def test_identity_comes_back(tmp_path: Path) -> None:
    """And there is none where none was written."""
    assert read_meta(OsFileSystem(), tmp_path) is None
    write_meta(OsFileSystem(), tmp_path, IDENTITY)
    assert IDENTITY == read_meta(OsFileSystem(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["meta"]


def test_any_byte_changed_is_damage(tmp_path: Path) -> None:
    """A peer that takes itself for another would vote twice."""
    write_meta(OsFileSystem(), tmp_path, IDENTITY)
    path = tmp_path / "meta"
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(CorruptionError) as caught:
            read_meta(OsFileSystem(), tmp_path)
        assert str(path) == caught.value.file


@pytest.mark.parametrize("line", [b"", b"{}", b"[1]", b'{"format":1}', b'{"format":1,"more":2}'])
def test_what_replikv_does_not_write_is_damage(tmp_path: Path, line: bytes) -> None:
    """Also where the checksum fits."""
    (tmp_path / "meta").write_bytes(b"%b\ncrc32 %08x\n" % (line, zlib.crc32(line)))
    with pytest.raises(CorruptionError):
        read_meta(OsFileSystem(), tmp_path)


def test_newer_format_says_which(tmp_path: Path) -> None:
    """Whatever fields it has: only the two lines stay the same."""
    line = json.dumps({"format": 7, "something": "new"}).encode()
    (tmp_path / "meta").write_bytes(b"%b\ncrc32 %08x\n" % (line, zlib.crc32(line)))
    with pytest.raises(StorageError, match=r"format 7.*format 1"):
        read_meta(OsFileSystem(), tmp_path)


def test_an_incarnation_comes_back(tmp_path: Path) -> None:
    """Until it is forgotten; there is none before, and to forget nothing is nothing."""
    filesystem = OsFileSystem()
    assert read_incarnation(filesystem, tmp_path) is None
    forget_incarnation(filesystem, tmp_path)
    write_incarnation(filesystem, tmp_path, "drawn")
    assert "drawn" == read_incarnation(filesystem, tmp_path)
    assert ["incarnation"] == [path.name for path in tmp_path.iterdir()]
    assert b"drawn\ncrc32 " == (tmp_path / "incarnation").read_bytes()[:12]
    forget_incarnation(filesystem, tmp_path)
    assert read_incarnation(filesystem, tmp_path) is None
    assert [] == list(tmp_path.iterdir())


def test_any_byte_of_an_incarnation_changed_is_damage(tmp_path: Path) -> None:
    """Others may know the peer by it already: it would come as another."""
    write_incarnation(OsFileSystem(), tmp_path, "drawn")
    path = tmp_path / "incarnation"
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(CorruptionError) as caught:
            read_incarnation(OsFileSystem(), tmp_path)
        assert str(path) == caught.value.file
