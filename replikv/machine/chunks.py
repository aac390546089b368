"""How items become the chunks of a snapshot: bounded in bytes and in items, and a function of the items alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

__all__ = ["CHUNK_BYTES", "CHUNK_ITEMS", "pack_chunks", "split_chunks"]

CHUNK_BYTES: Final = 64 * 1024
"""A chunk is closed once it is this large: what a snapshot is written, sent and restored by."""

CHUNK_ITEMS: Final = 128
"""... or has this many items: at 2 to 4 µs per item, making or reading a chunk takes well under a millisecond."""


def pack_chunks(items: Iterable[bytes]) -> Iterator[bytes]:
    """Join items to chunks. The boundaries are part of the bytes: equal states give equal chunks.

    An empty item is none, but comes out as an empty chunk, a *breath*: nothing was found for a while, and whoever asks
    for chunks in slices can do something else before he goes on.
    """
    parts: list[bytes] = []
    size = 0
    for item in items:
        if not item:
            yield item
            continue
        parts.append(item)
        size += len(item)
        if size >= CHUNK_BYTES or len(parts) == CHUNK_ITEMS:
            yield b"".join(parts)
            parts.clear()
            size = 0
    if parts:
        yield b"".join(parts)


def split_chunks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut each chunk into pieces of at most ``CHUNK_BYTES``; an empty one is none. Not for items: it cuts those."""
    for chunk in chunks:
        for start in range(0, len(chunk), CHUNK_BYTES):
            yield chunk[start : start + CHUNK_BYTES]
