"""The frame of the write-ahead log: its bytes, and what is made of a bad one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replikv.storage.filesystem import SECTOR_BYTES
from replikv.storage.frames import HEADER_BYTES, Tail, decode_frame, encode_frame, frame_bytes, judge_tail

ROOM = bytes(8 * SECTOR_BYTES)
ONE_SECTOR = SECTOR_BYTES - HEADER_BYTES
LENGTHS = [
    0,
    1,
    ONE_SECTOR - 1,
    ONE_SECTOR,
    ONE_SECTOR + 1,
    ONE_SECTOR + 510,
    ONE_SECTOR + 511,
    ONE_SECTOR + 512,
    511 * 512,
    512 * 512 - HEADER_BYTES,
    600_001,
]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("fill", [b"\0", b"\x5a", b"\xa5", bytes(range(251))])
def test_frame_comes_back(length: int, fill: bytes) -> None:
    """Whatever the payload, the frame fills whole sectors, each with its mark, and gives the payload back."""
    payload = (fill * (length // len(fill) + 1))[:length]
    frame, checksum = encode_frame((payload[:7], payload[7:]), 9, 0xDEADBEEF)
    assert frame_bytes(length) == len(frame)
    assert b"\xa5" + b"\x5a" * (len(frame) // SECTOR_BYTES - 1) == frame[::SECTOR_BYTES]
    data = b"\xff" * SECTOR_BYTES + bytes(frame)
    found = decode_frame(data, SECTOR_BYTES, 9, 0xDEADBEEF)
    assert found == (payload, checksum, len(data))


def test_frame_has_as_few_sectors_as_its_marks_allow() -> None:
    """A sector holds 511 bytes beside its mark, and the first one the rest of the header too."""
    assert [frame_bytes(length) // SECTOR_BYTES for length in (0, ONE_SECTOR, ONE_SECTOR + 1, ONE_SECTOR + 511)] == [
        1,
        1,
        2,
        2,
    ]
    assert frame_bytes(ONE_SECTOR + 512) == 3 * SECTOR_BYTES


@pytest.mark.parametrize(("sequence", "previous"), [(8, 7), (10, 7), (9, 8)])
def test_frame_of_another_place_is_none(sequence: int, previous: int) -> None:
    """A frame counts only under its own number and chained to the one before it."""
    frame, _ = encode_frame((b"payload",), sequence, previous)
    assert decode_frame(bytes(frame), 0, 9, 7) is None


def test_any_changed_bit_makes_a_frame_invalid() -> None:
    """Header, payload, marks, displaced bytes and padding: all of it is checked."""
    frame, _ = encode_frame((b"x" * 700,), 1, 0)
    data = bytes(frame)
    for position in range(len(data)):
        for bit in (1, 0x80):
            changed = data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :]
            assert decode_frame(changed, 0, 1, 0) is None, position


def test_any_changed_bit_of_the_last_frame_is_damage() -> None:
    """A flipped bit is never taken for a torn write: no sector of the frame is unwritten."""
    frame, _ = encode_frame((b"x" * 700,), 1, 0)
    data = bytes(frame) + ROOM
    for position in range(len(frame)):
        changed = data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]
        assert judge_tail(changed, 0, 1, 0) is Tail.DAMAGED, position


@given(payload=st.binary(max_size=3000), written=st.sets(st.integers(0, 6)))
@settings(max_examples=200, deadline=None)
def test_any_missing_sectors_are_torn(payload: bytes, written: set[int]) -> None:
    """Whichever sectors of the last frame reached the disk: none is a clean end, some torn, all a valid frame."""
    frame, _ = encode_frame((payload,), 1, 0)
    sectors = range(len(frame) // SECTOR_BYTES)
    kept = [number for number in sectors if number in written]
    data = bytearray(len(frame)) + ROOM
    for number in kept:
        start = number * SECTOR_BYTES
        data[start : start + SECTOR_BYTES] = frame[start : start + SECTOR_BYTES]
    if len(kept) == len(sectors):
        assert decode_frame(bytes(data), 0, 1, 0) is not None
    else:
        assert decode_frame(bytes(data), 0, 1, 0) is None
        assert judge_tail(bytes(data), 0, 1, 0) is (Tail.TORN if kept else Tail.CLEAN)


def test_frame_begun_behind_a_bad_one_proves_damage() -> None:
    """Frame n + 1 is begun after frame n is synced: one sector of it is proof, though frame n lacks a sector.

    Damage in the middle was taken for the tail, and silently dropped: pebble#453.
    """
    first, checksum = encode_frame((b"x" * 1200,), 1, 0)
    second, _ = encode_frame((b"y" * 1200,), 2, checksum)
    first[SECTOR_BYTES : 2 * SECTOR_BYTES] = bytes(SECTOR_BYTES)
    assert judge_tail(bytes(first) + ROOM, 0, 1, 0) is Tail.TORN
    assert judge_tail(bytes(first + second[:SECTOR_BYTES]) + ROOM, 0, 1, 0) is Tail.DAMAGED


def test_bytes_behind_the_frame_prove_damage() -> None:
    """Nothing is ever written behind the last frame, however few of its own sectors were."""
    frame, _ = encode_frame((b"x" * 1200,), 1, 0)
    for missing in (1, 2):
        frame[missing * SECTOR_BYTES : (missing + 1) * SECTOR_BYTES] = bytes(SECTOR_BYTES)
        assert judge_tail(bytes(frame) + ROOM, 0, 1, 0) is Tail.TORN
        assert judge_tail(bytes(frame) + b"\x5a" + ROOM, 0, 1, 0) is Tail.DAMAGED
    assert judge_tail(bytes(SECTOR_BYTES) + b"\x01" + ROOM, 0, 1, 0) is Tail.DAMAGED


def test_length_beyond_the_file_is_damage() -> None:
    """A length is believed only when it fits; here the header is sound, so nothing was torn."""
    frame, _ = encode_frame((b"x" * 5000,), 1, 0)
    data = bytes(frame[: 2 * SECTOR_BYTES])
    assert decode_frame(data, 0, 1, 0) is None
    assert judge_tail(data, 0, 1, 0) is Tail.DAMAGED
