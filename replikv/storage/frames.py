"""Frames of the write-ahead log: the unit of a sync, and the decision whether a bad one is torn or damaged.

The rules, on which everything else rests:

1. A frame is exactly what one sync covered. Frame n + 1 is begun only after frame n is synced.
2. Frames start at a sector, fill whole sectors, and carry in the first byte of each sector a mark that is not zero.
   The space behind the last frame is zero. So a sector that is all zero was never written, and nothing else is.
3. Each frame carries a sequence number and the checksum of the frame before it.

Hence, where no valid frame stands (:func:`judge_tail`): all zero is the end. Anything that was begun after the bad
frame proves that the bad one was synced, and so is damaged (rule 1). Otherwise it is the last frame: with a sector
that was never written it is torn, and its write was never acknowledged; with all of its sectors written it is damaged.

The bytes that the marks displace follow the payload (as NTFS keeps its update sequence): two strided copies, where
laying out each sector by itself costs more than the checksum of the whole frame. ``docs/format.md`` has the layout.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterable
from typing import Final, NamedTuple

from replikv.storage.filesystem import SECTOR_BYTES

__all__ = ["FIRST_SEQUENCE", "Frame", "Tail", "decode_frame", "encode_frame", "frame_bytes", "judge_tail"]

FIRST_SEQUENCE: Final = 1
"""The sequence number of the first frame of a log; the checksum before it counts as 0."""

# The two marks differ in every bit: no damage of less than eight bits takes one for the other.
_FIRST: Final = b"\xa5"
_CONTINUED: Final = b"\x5a"
_MAGIC: Final = b"\xa5rkF"
# magic (its first byte is the first sector's mark), payload bytes, sequence, checksum of the frame before
_FIXED: Final = struct.Struct(">4sIQI")
# checksum of those fields and the payload, checksum of everything before it in the header
_CHECKSUM: Final = struct.Struct(">I")
HEADER_BYTES: Final = _FIXED.size + 2 * _CHECKSUM.size
_PAYLOAD_PER_SECTOR: Final = SECTOR_BYTES - 1
_ZEROS: Final = bytes(1 << 20)


class Frame(NamedTuple):
    """A valid frame."""

    payload: bytes
    checksum: int
    end: int
    """The offset behind its last sector."""


class Tail(enum.Enum):
    """What stands where no valid frame does."""

    CLEAN = "clean"
    TORN = "torn"
    DAMAGED = "damaged"


def frame_bytes(payload_bytes: int) -> int:
    """What a payload of this length takes on disk: a multiple of the sector."""
    return -(-(HEADER_BYTES - 1 + payload_bytes) // _PAYLOAD_PER_SECTOR) * SECTOR_BYTES


def encode_frame(parts: Iterable[bytes], sequence: int, previous: int) -> tuple[bytearray, int]:
    """The bytes of a frame whose payload is the parts joined, and its checksum."""
    payload = b"".join(parts)
    fixed = _FIXED.pack(_MAGIC, len(payload), sequence, previous)
    checksum = zlib.crc32(payload, zlib.crc32(fixed))
    header = fixed + _CHECKSUM.pack(checksum)
    frame = bytearray().join((header, _CHECKSUM.pack(zlib.crc32(header)), payload))
    displaced = frame[SECTOR_BYTES::SECTOR_BYTES]
    frame[SECTOR_BYTES::SECTOR_BYTES] = _CONTINUED * len(displaced)
    room = -len(frame) % SECTOR_BYTES
    frame += displaced[:room]
    for start in range(room, len(displaced), _PAYLOAD_PER_SECTOR):
        frame += _CONTINUED + displaced[start : start + _PAYLOAD_PER_SECTOR]
    frame += bytes(-len(frame) % SECTOR_BYTES)
    return frame, checksum


def decode_frame(data: bytes, offset: int, sequence: int, previous: int) -> Frame | None:
    """The frame at the offset; None unless it is sound, of this sequence number, and chained to ``previous``."""
    length = _payload_length(data, offset, sequence, previous)
    if length is None:
        return None
    body_end, end = offset + HEADER_BYTES + length, offset + frame_bytes(length)
    if data[offset + SECTOR_BYTES : end : SECTOR_BYTES].strip(_CONTINUED):
        return None
    body, rest = bytearray(data[offset:body_end]), bytearray(data[body_end:end])
    del rest[-len(body) % SECTOR_BYTES :: SECTOR_BYTES]
    displaced = len(range(SECTOR_BYTES, len(body), SECTOR_BYTES))
    body[SECTOR_BYTES::SECTOR_BYTES] = rest[:displaced]
    payload = bytes(memoryview(body)[HEADER_BYTES:])
    checksum = zlib.crc32(payload, zlib.crc32(body[: _FIXED.size]))
    if (checksum,) != _CHECKSUM.unpack_from(body, _FIXED.size) or not _is_zero(rest[displaced:]):
        return None
    return Frame(payload, checksum, end)


def judge_tail(data: bytes, offset: int, sequence: int, previous: int) -> Tail:
    """What stands from the offset to the end of the *last* segment, where :func:`decode_frame` found no frame.

    In any other segment only ``CLEAN`` is no damage: a later segment is begun after every frame before it is synced.
    """
    if _is_zero(data[offset:]):
        return Tail.CLEAN
    marks = data[offset::SECTOR_BYTES]
    written = [number for number in range(len(marks)) if not _is_zero(_sector(data, offset, number))]
    # Another frame behind this one, or bytes that we never wrote.
    if any(marks[number] != _CONTINUED[0] for number in written if number > 0):
        return Tail.DAMAGED
    if written[0] != 0:
        return Tail.TORN
    length = _payload_length(data, offset, sequence, previous)
    if length is None:
        # A sector is written whole: this header was, and is no longer what it was.
        return Tail.DAMAGED
    sectors = frame_bytes(length) // SECTOR_BYTES
    torn = len(written) < sectors and written[-1] < sectors
    return Tail.TORN if torn else Tail.DAMAGED


def _payload_length(data: bytes, offset: int, sequence: int, previous: int) -> int | None:
    """The length that a sound header claims, if it is of the frame that belongs here and lies within the data."""
    if len(data) - offset < SECTOR_BYTES:
        return None
    header = data[offset : offset + HEADER_BYTES]
    if (zlib.crc32(header[: -_CHECKSUM.size]),) != _CHECKSUM.unpack_from(header, HEADER_BYTES - _CHECKSUM.size):
        return None
    magic, length, found_sequence, found_previous = _FIXED.unpack_from(header)
    if magic != _MAGIC or found_sequence != sequence or found_previous != previous:
        return None
    return length if frame_bytes(length) <= len(data) - offset else None


def _sector(data: bytes, offset: int, number: int) -> bytes:
    start = offset + number * SECTOR_BYTES
    return data[start : start + SECTOR_BYTES]


def _is_zero(data: bytes | bytearray) -> bool:
    steps = range(0, len(data), len(_ZEROS))
    return all(data[start : start + len(_ZEROS)] == _ZEROS[: len(data) - start] for start in steps)
