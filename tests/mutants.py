"""Bytes that somebody hostile, or a bad cable, might send: good ones, changed. A pure function of a seed."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["BOMBS", "attack", "mutants"]

INTERESTING = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**61 - 1, 2**63, 2**64 - 1]

COLLIDING = b"".join(b"\x1b" + struct.pack(">Q", number * (2**61 - 1) % 2**64) + b"\x00" for number in range(400))
"""Keys and values of a map: the hashes of these keys are all the same."""

BOMBS = [
    b"",
    b"\x81" * 4000,  # depth
    b"\xa1\x00" * 2000,
    b"\xc1" * 4000,
    b"\xd8\x1c\x81\xd8\x1d\x00",  # a list that holds itself
    b"\xd8\x1c\x82\xd8\x1d\x00" * 300,  # references to what is being read
    b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",  # claims of length
    b"\xbb\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\x5b\x00\x00\x00\x7f\xff\xff\xff\xff",
    b"\x7b\x00\x00\x00\x00\xff\xff\xff\xff",
    b"\x9a\xff\xff\xff\xff" + b"\x00" * 100,
    b"\x9f" * 2000 + b"\xff" * 2000,  # indefinite lengths
    b"\x5f\x41x\xff",
    b"\xb9\x01\x90" + COLLIDING,
    b"\xd9\x01\x02\x99\x01\x90" + b"".join(COLLIDING[start : start + 9] for start in range(0, 4000, 10)),
    b"\xa2\x61a\x01\x61a\x02",  # a key twice
    b"\xa2\x00\x01\x00\x02",
    b"\xa1\xa0\xa0",  # a key that has no hash
    b"\xf6\x00",  # bytes behind the value
    b"\xc4\x82\x1a\x3b\x9a\xc9\xff\x01",  # 1e999999999
    b"\xc5\x82\x1a\x3b\x9a\xc9\xff\x01",
    b"\xd8\x1e\x82\x01\x00",  # a fraction over nothing
    b"\xd8\x23\x64(a+)",  # a regular expression
    b"\xc2\x59\x0f\xa0" + b"\xff" * 4000,  # a number of 9,600 digits
    b"\xfb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"\xf8\x00",  # no simple value
    b"\x61\xff",  # no UTF-8
    b"[" * 4000,  # the same in JSON
    b'{"a":' * 2000,
    b"1" * 4000,
    b"1e999999999",
    b'{"kind":"\\ud800"}',
    b'{"kind":"join","kind":"change"}',
    b"NaN",
    b"\xff" * 4000,
]
"""What is small and may cost much, or is nearly right. Some are CBOR, some JSON."""


def mutants(seed: int, corpus: Sequence[bytes]) -> Iterator[bytes]:
    """Endless changes of the corpus, some of them none at all."""
    chance = random.Random(seed)
    while True:
        data = bytearray(chance.choice(corpus))
        for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 8))):
            _change(data, chance, corpus)
        yield bytes(data[:70_000])


def _change(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    to = min(len(data), at + chance.choice((1, 1, 2, 4, 8, 30)))
    what = chance.randrange(8)
    if what == 0 and at < len(data):
        data[at] ^= 1 << chance.randrange(8)
    elif what == 1 and at < len(data):
        data[at] = chance.randrange(256)
    elif what == 2:
        data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 20)))
    elif what == 3:
        del data[at:to]
    elif what == 4:
        del data[at:]
    elif what == 5:
        data[at:at] = bytes(data[at:to]) * chance.choice((1, 2, 1000))
    elif what == 6:
        size = chance.choice((1, 2, 4, 8))
        data[at : at + size] = (chance.choice(INTERESTING) % 256**size).to_bytes(size, "big")
    else:
        other = chance.choice(corpus)
        start = chance.randrange(len(other) + 1)
        data[at:] = other[start:]


def attack(
    target: Callable[[bytes], Any],
    inputs: Iterator[bytes],
    count: int,
    *,
    seconds_max: float = 0.5,
    bytes_max: int = 8 * 1024 * 1024,
) -> None:
    """Have the target take so many inputs, each within bounds of processor time and of memory."""
    tracemalloc.start()
    try:
        for _ in range(count):
            data = next(inputs)
            tracemalloc.reset_peak()
            held, began = tracemalloc.get_traced_memory()[0], time.thread_time()
            try:
                target(data)
            except Exception as exc:
                raise AssertionError(f"{data[:200]!r} ({len(data)} bytes) raised {exc!r}") from exc
            seconds, peak = time.thread_time() - began, tracemalloc.get_traced_memory()[1] - held
            assert seconds < seconds_max, f"{data[:200]!r} ({len(data)} bytes) took {seconds:.2f} s"
            assert peak < bytes_max, f"{data[:200]!r} ({len(data)} bytes) took {peak} bytes"
    finally:
        tracemalloc.stop()
