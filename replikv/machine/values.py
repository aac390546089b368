"""The codec of values: plain data to CBOR (RFC 8949) and back, strict in both directions.

What may be stored is a closed list of exact types: None, bool, int, float, str, bytes, list, tuple (comes back as
list), dict, set and frozenset (both come back as set), datetime, date, Decimal, UUID. Instances of subclasses
(IntEnum, OrderedDict, a str subclass ...) are refused: they would come back as something else than was put, and what
they do when they are iterated or compared is not ours to run.

Everything is checked *iteratively* before the encoder sees it. Where hashing is involved (dict keys, set elements),
tuples and frozensets stay what they are.
"""

from __future__ import annotations

import datetime
import decimal
import io
import uuid
from collections.abc import Callable, Iterable
from typing import Any, Final

import cbor2

from replikv.errors import EncodingError, ValueTooLargeError

__all__ = ["DEPTH_MAX", "FOREIGN_KEYS_MAX", "decode_value", "encode_value"]

DEPTH_MAX: Final = 64
"""Containers within containers. JSON parsers: 20 (PHP's old default) to 512; deeper data is a mistake or an attack."""

FOREIGN_KEYS_MAX: Final = 1024
"""Dict keys that are no str, and set elements that are neither str nor bytes, in one value.

The hashes of str and bytes are seeded per process; all others can be chosen to collide, and n colliding keys cost n²
comparisons on every replica. 1,024 cost about 20 ms at the worst.
"""

DECIMAL_DIGITS_MAX: Final = 1000
"""Digits of one Decimal: decoding costs their square. 34 is what IEEE 754 decimal128 holds."""

_KEY_BITS: Final = 512
"""A key of so many bits counts as one more against FOREIGN_KEYS_MAX: comparisons of long keys cost more."""

# "First come, first served" numbers of the CBOR tag registry (RFC 8949, section 9.2): "rkv0", "rkv1" in ASCII.
_NAIVE_DATETIME_TAG: Final = 0x726B7630
_DECIMAL_TEXT_TAG: Final = 0x726B7631

_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})
_ATOMS: Final = _SCALARS | {datetime.datetime, datetime.date, decimal.Decimal, uuid.UUID}
_CONTAINERS: Final = frozenset({list, tuple, dict, set, frozenset})

_DECODER_DEPTH_MAX: Final = 2 * DEPTH_MAX + 4
"""In the decoder's count: a set is a tag around an array, and so are the innermost Decimal and the outermost margin."""


def encode_value(value: object, bytes_max: int) -> bytes:
    """The CBOR bytes of a value, proved to be readable again by :func:`decode_value`.

    Raises:
        EncodingError: not plain data; nothing a replica would store.
        ValueTooLargeError: plain data, but more than ``bytes_max`` bytes, or deeper than ``DEPTH_MAX``.
    """
    kind = type(value)
    if kind is bytes or kind is str:
        if len(value) > bytes_max:  # type: ignore[arg-type]  # no isinstance: this is the hot path of every put
            raise _too_large(bytes_max)
    elif kind is int:
        if value.bit_length() >> 3 > bytes_max:  # type: ignore[attr-defined]  # as above
            raise _too_large(bytes_max)
    elif kind not in _SCALARS:
        return _encode_checked(value, bytes_max)
    try:
        data = cbor2.dumps(value)  # a scalar always decodes: no proof needed
    except UnicodeEncodeError as exc:
        raise _lone_surrogate(exc) from exc
    if len(data) > bytes_max:
        raise _too_large(bytes_max)
    return data


def decode_value(data: bytes) -> Any:
    """The value whose CBOR bytes these are; a new object for each call, but for small immutable ones.

    Raises EncodingError for bytes that :func:`encode_value` cannot have made: other tags, indefinite lengths,
    duplicate keys, bytes behind the value.
    """
    size = len(data)
    major = data[0] >> 5 if size else 0
    if major == 2 or major == 3:  # a byte string or a text string, sliced here: half of the decoder's time
        info = data[0] & 31
        if info < 24:
            start, length = 1, info
        elif info == 24 and size > 1:
            start, length = 2, data[1]
        elif info == 25:
            start, length = 3, int.from_bytes(data[1:3], "big")
        elif info == 26:
            start, length = 5, int.from_bytes(data[1:5], "big")
        else:
            start, length = 9, -1
        if start + length == size:
            try:
                return data[start:] if major == 2 else data[start:].decode()
            except UnicodeDecodeError as exc:
                raise EncodingError(f"no UTF-8 at byte {exc.start} of a str: it was not put by replikv") from exc
    elif size and _FIXED_SIZES.get(data[0]) == size:
        return cbor2.loads(data)
    source = io.BytesIO(data)
    try:
        value = cbor2.CBORDecoder(
            source,
            max_depth=_DECODER_DEPTH_MAX,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            semantic_decoders=_TAGS,
            tag_hook=_refuse_tag,
        ).decode()
    except Exception as exc:  # whatever the constructors of datetime, Decimal ... make of foreign bytes
        raise EncodingError(f"these {size} bytes are no value that replikv has put: {_reason(exc)}") from exc
    if source.tell() != size:
        raise EncodingError(f"{size - source.tell()} bytes follow the value: it was not put by replikv")
    return value


def equal_values(left: bytes, right: bytes) -> bool:
    """Python equality of two encoded values: 1 == 1.0 == True, NaN equals nothing, sets and dicts have no order."""
    if left == right and left[:1] < b"\x80":  # an int, bytes or str: equal bytes are equal values
        return True
    return bool(decode_value(left) == decode_value(right))


# -- encoding ----------------------------------------------------------------------------------------------------------


def _encode_checked(value: object, bytes_max: int) -> bytes:
    walk = _Walk(bytes_max)
    walk.check(value)
    try:
        data = cbor2.dumps(value, encoders=_ENCODERS if walk.needs_encoders else None)
    except UnicodeEncodeError as exc:
        raise _lone_surrogate(exc) from exc
    except Exception as exc:  # a tzinfo of the caller's own may raise anything
        raise EncodingError(f"the value cannot be encoded: {_reason(exc)}") from exc
    if len(data) > bytes_max:
        raise _too_large(bytes_max)
    try:
        decode_value(data)
    except EncodingError as exc:
        raise EncodingError(f"the value would not be readable again: {_reason(exc)}; store it as a str") from exc
    return data


class _Walk:
    """One pass over a value that was not encoded yet, without recursion.

    ``size`` is a lower bound of the encoded size: it ends the walk over values that share or contain themselves.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.size = 0
        self.foreign_keys = 0
        self.needs_encoders = False

    def check(self, value: object) -> None:
        # (value, containers around it, whether it is hashed: a key or an element, or part of one)
        pending: list[tuple[object, int, bool]] = [(value, 0, False)]
        while pending:
            item, depth, hashed = pending.pop()
            kind = type(item)
            if kind not in _CONTAINERS:
                self._atom(item, kind, hashed)
                continue
            if depth == DEPTH_MAX:
                raise ValueTooLargeError(f"the value is deeper than {DEPTH_MAX} containers, or contains itself")
            self._grow(1)
            depth += 1
            if kind is dict:
                keys = [key for key in item if type(key) is str]  # type: ignore[attr-defined]  # a dict
                self._grow(len(keys) + sum(map(len, keys)))
                pending += [(key, depth, True) for key in item if type(key) is not str]  # type: ignore[attr-defined]
                self._children(item.values(), depth, False, pending)  # type: ignore[attr-defined]  # as above
            elif kind is set or kind is frozenset:
                self._children(item, depth, True, pending)  # type: ignore[arg-type]  # as above
            else:
                if hashed:
                    self._count_key(0)
                self._children(item, depth, hashed, pending)  # type: ignore[arg-type]  # as above

    def _children(
        self, items: Iterable[object], depth: int, hashed: bool, pending: list[tuple[object, int, bool]]
    ) -> None:
        size = 0
        for item in items:
            kind = type(item)
            if kind is str or kind is bytes:
                size += 1 + len(item)  # type: ignore[arg-type]  # kind says what it is
            elif hashed or kind not in _SCALARS:
                pending.append((item, depth, hashed))
            elif kind is int:
                size += 1 + (item.bit_length() >> 3)  # type: ignore[attr-defined]  # as above
            else:
                size += 1
        self._grow(size)

    def _atom(self, item: object, kind: type, hashed: bool) -> None:
        bits = 0
        if kind is int:
            bits = item.bit_length()  # type: ignore[attr-defined]  # kind says what it is
            self._grow(1 + (bits >> 3))
        elif kind is str or kind is bytes:
            self._grow(1 + len(item))  # type: ignore[arg-type]  # as above
            bits = 8 * len(item)  # type: ignore[arg-type]  # as above
        elif kind not in _ATOMS:
            raise EncodingError(_refusal(kind))
        else:
            self._grow(1)
            if isinstance(item, decimal.Decimal):
                bits = 4 * self._decimal(item)
            elif isinstance(item, datetime.datetime):
                self.needs_encoders = self.needs_encoders or _is_naive(item)
        if hashed:
            self._count_key(bits)

    def _decimal(self, item: decimal.Decimal) -> int:
        if item.is_snan():
            raise EncodingError("Decimal('sNaN') cannot be stored: it raises when it is compared; store a quiet NaN")
        digits = len(item.as_tuple().digits)
        if digits > DECIMAL_DIGITS_MAX:
            raise ValueTooLargeError(f"a Decimal of {digits} digits: {DECIMAL_DIGITS_MAX} can be stored; store a str")
        self.needs_encoders = self.needs_encoders or _needs_text(item)
        return digits

    def _grow(self, size: int) -> None:
        self.size += size
        if self.size > self.bytes_max:
            raise _too_large(self.bytes_max)

    def _count_key(self, bits: int) -> None:
        self.foreign_keys += 1 + bits // _KEY_BITS
        if self.foreign_keys > FOREIGN_KEYS_MAX:
            raise ValueTooLargeError(
                f"more than {FOREIGN_KEYS_MAX} dict keys or set elements that are no str: use str keys, or a list"
            )


def _is_naive(value: datetime.datetime) -> bool:
    try:
        return value.utcoffset() is None
    except Exception as exc:  # a tzinfo of the caller's own may raise anything
        raise EncodingError(f"the tzinfo of a datetime failed: {_reason(exc)}") from exc


def _needs_text(value: decimal.Decimal) -> bool:
    """Whether tag 4 (mantissa and exponent) would lose something: infinity, NaN, the sign of zero."""
    return not value.is_finite() or (value.is_zero() and value.is_signed())


def _encode_datetime(encoder: cbor2.CBOREncoder, value: datetime.datetime) -> None:
    if _is_naive(value):
        encoder.encode_semantic(_NAIVE_DATETIME_TAG, value.replace(tzinfo=None).isoformat())
    else:
        encoder.encode_datetime(value)


def _encode_decimal(encoder: cbor2.CBOREncoder, value: decimal.Decimal) -> None:
    if _needs_text(value):
        encoder.encode_semantic(_DECIMAL_TEXT_TAG, str(value))
    else:
        encoder.encode_decimal(value)


_ENCODERS: Final[dict[type, Callable[[cbor2.CBOREncoder, Any], Any]]] = {
    datetime.datetime: _encode_datetime,
    decimal.Decimal: _encode_decimal,
}


# -- decoding ----------------------------------------------------------------------------------------------------------


_FIXED_SIZES: Final = {0xF4: 1, 0xF5: 1, 0xF6: 1, 0xFB: 9} | {
    major << 5 | info: size
    for major in (0, 1)
    for info, size in (*((info, 1) for info in range(24)), (24, 2), (25, 3), (26, 5), (27, 9))
}
"""First byte -> size of the whole: False, True, None, double floats and integers of at most eight bytes. No tag, no
container, nothing behind them: the decoder's defaults are strict enough, and a third of the price."""


def _refuse(_value: object, _immutable: bool) -> object:
    raise ValueError("a tag that is not in the list of plain data")


def _refuse_tag(tag: cbor2.CBORTag, _immutable: bool) -> object:
    raise ValueError(f"tag {tag.tag} is not in the list of plain data")


def _decode_naive_datetime(text: str, _immutable: bool) -> datetime.datetime:
    value = datetime.datetime.fromisoformat(text)
    if value.tzinfo is not None:
        raise ValueError("a naive datetime with an offset")
    return value


def _decode_decimal_text(text: str, _immutable: bool) -> decimal.Decimal:
    value = decimal.Decimal(text)
    if not _needs_text(value) or value.is_snan() or len(text) > DECIMAL_DIGITS_MAX + 8:
        raise ValueError("a Decimal that belongs under tag 4")
    return value


# What cbor2 would build on top of our list: shared references (cycles), bigfloats and rationals (2**2**31), regular
# expressions, MIME messages, IP addresses, complex numbers.
_FOREIGN_TAGS: Final = (1, 5, 25, 28, 29, 30, 35, 36, 52, 54, 100, 256, 260, 261, 43000, 55799)
_TAGS: Final[dict[int, Any]] = {
    **dict.fromkeys(_FOREIGN_TAGS, _refuse),
    _NAIVE_DATETIME_TAG: _decode_naive_datetime,
    _DECIMAL_TEXT_TAG: _decode_decimal_text,
}


# -- words -------------------------------------------------------------------------------------------------------------


def _too_large(bytes_max: int) -> ValueTooLargeError:
    return ValueTooLargeError(
        f"the value takes more than {bytes_max} bytes: split it over several keys, or raise value_bytes_max"
    )


def _lone_surrogate(exc: UnicodeEncodeError) -> EncodingError:
    return EncodingError(f"a str with the lone surrogate {exc.object[exc.start]!r} has no UTF-8: store it as bytes")


def _refusal(kind: type) -> str:
    base = next((plain for plain in kind.__mro__[1:] if plain in _ATOMS | _CONTAINERS), None)
    if base is not None:
        return f"a {kind.__qualname__} would come back as a plain {base.__name__}: convert it before it is stored"
    if kind is bytearray or kind is memoryview:
        return f"a {kind.__qualname__} is not plain data: convert it with bytes()"
    return (
        f"a value of type {kind.__qualname__} is not plain data: None, bool, int, float, str, bytes, list, tuple, dict,"
        " set, datetime, date, Decimal and UUID can be stored"
    )


def _reason(exc: BaseException) -> str:
    cause = exc.__cause__
    return f"{exc} ({cause})" if isinstance(exc, cbor2.CBORError) and cause is not None else str(exc)
