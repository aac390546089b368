"""Frames from bytes, however the bytes are cut."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replikv.transport.wire import FrameDecoder, ProtocolError, encode_frames


@given(
    frames=st.lists(st.binary(max_size=40), max_size=8),
    cuts=st.lists(st.integers(min_value=1, max_value=30), min_size=1, max_size=20),
)
def test_any_cut_gives_the_same_frames(frames: list[bytes], cuts: list[int]) -> None:
    """How the network cuts the stream never shows in the frames."""
    stream, decoder, decoded, turn = encode_frames(frames), FrameDecoder(40), [], 0
    while stream:
        size = cuts[turn % len(cuts)]
        decoded += decoder.feed(stream[:size])
        stream, turn = stream[size:], turn + 1
    assert frames == decoded
    assert decoder.at_boundary


@given(pieces=st.lists(st.binary(max_size=30), max_size=10))
def test_any_bytes_give_frames_or_a_protocol_error(pieces: list[bytes]) -> None:
    """Garbage is either frames within the limit or refused: nothing else comes out."""
    decoder = FrameDecoder(64)
    try:
        frames = [frame for piece in pieces for frame in decoder.feed(piece)]
    except ProtocolError:
        return
    taken = encode_frames(frames)
    assert b"".join(pieces).startswith(taken)
    assert decoder.at_boundary == (len(taken) == sum(map(len, pieces)))


@pytest.mark.parametrize(
    ("length", "allowed"), [(0, True), (1, True), (99, True), (100, True), (101, False), (2**32 - 1, False)]
)
@pytest.mark.parametrize("header_in_two", [False, True])
def test_the_limit(length: int, allowed: bool, header_in_two: bool) -> None:
    """The limit itself is allowed, and one above is refused with the header alone."""
    decoder, header = FrameDecoder(100), struct.pack(">I", length)
    if header_in_two:
        assert [] == decoder.feed(header[:2])
        header = header[2:]
    if allowed:
        assert [bytes(length)] == decoder.feed(header + bytes(length))
    else:
        with pytest.raises(ProtocolError, match=f"{length} bytes was announced, the limit is 100"):
            decoder.feed(header)


def test_an_announced_frame_is_not_allocated() -> None:
    """A header that announces the limit costs nothing before its bytes come."""
    limit = 64 * 1024 * 1024
    decoder = FrameDecoder(limit)
    tracemalloc.start()
    try:
        decoder.feed(struct.pack(">I", limit) + b"x")
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_drops_of_one_byte_cost_no_more_than_the_frame() -> None:
    """A frame that drips in holds about its size, however small the drops are."""
    frame = bytes(50_000)
    decoder, stream = FrameDecoder(len(frame)), encode_frames([frame])
    tracemalloc.start()
    try:
        frames = [frame for position in range(len(stream)) for frame in decoder.feed(stream[position : position + 1])]
        assert tracemalloc.get_traced_memory()[1] < 6 * len(frame)
    finally:
        tracemalloc.stop()
    assert [frame] == frames
