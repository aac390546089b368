"""How an object of a known type is told in plain data, and made of it again: strict in both directions.

A *shape* is what is known of one type. Plain data is recognised by its exact type, before anything is made of it; what
may stand in one place and could not be told apart there is refused when the shape is made (``schema.py``).
"""

from __future__ import annotations

import abc
import enum
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from replikv.machine.values import encode_value

__all__ = [
    "AnyShape",
    "AtomShape",
    "DictShape",
    "EnumShape",
    "FieldShape",
    "FloatShape",
    "ListShape",
    "LiteralShape",
    "MismatchError",
    "RecordShape",
    "SetShape",
    "Shape",
    "TupleShape",
    "UnionShape",
    "VariadicShape",
    "describe",
]

_SORT_BYTES_MAX: Final = 2**31
"""No limit: what is stored in the end is held to ``value_bytes_max``."""


class MismatchError(Exception):
    """Something does not fit. ``field`` says where, and grows on the way out."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.field = ""

    @classmethod
    def of(cls, expected: str, found: object) -> MismatchError:
        """One thing was expected, and another was found."""
        return cls(f"expected {expected}, found {describe(found)}")

    def inside(self, step: str) -> MismatchError:
        """It was found one step further in: ``".name"`` or ``"[3]"``."""
        self.field = step + self.field
        return self


def describe(found: object) -> str:
    """A value in a message: its type, and what can be shown of it in a few words."""
    kind = type(found).__qualname__
    if found is None or found is True or found is False:
        return repr(found)
    if type(found) in {int, float, str, bytes}:
        return f"{kind} {reprlib.repr(found)}"
    if type(found) in {list, tuple, dict, set, frozenset}:
        return f"{kind} of {len(found)}"  # type: ignore[arg-type]  # a container
    return kind


class Shape(abc.ABC):
    """One type. ``kinds`` are the exact types of plain data that it is stored as."""

    kinds: frozenset[type]
    words: str
    """What it is called in a message."""
    hashed = False
    """Whether it may be a key, or an element of a set, in its stored form."""

    def encode(self, value: Any) -> Any:
        """The object as plain data. Raises MismatchError."""
        if not self._takes(value):
            raise MismatchError.of(self.words, value)
        return self._to_plain(value)

    def decode(self, plain: Any) -> Any:
        """The object that such plain data stands for. Raises MismatchError."""
        if type(plain) not in self.kinds:
            raise MismatchError.of(self.words, plain)
        return self._from_plain(plain)

    @abc.abstractmethod
    def _takes(self, value: Any) -> bool:
        """Whether the object is of this type, as far as can be told without looking into it."""

    def _to_plain(self, value: Any) -> Any:
        return value

    def _from_plain(self, plain: Any) -> Any:
        return plain


class AnyShape(Shape):
    """Plain data, whatever it is: the map itself says what can be stored."""

    kinds = frozenset()
    words = "plain data"

    def _takes(self, _value: Any) -> bool:
        return True

    def decode(self, plain: Any) -> Any:
        """As :meth:`Shape.decode`: it is what it is."""
        return plain


class AtomShape(Shape):
    """One of the types that are stored as they are. No subclass: it would come back as another type."""

    hashed = True

    def __init__(self, kind: type) -> None:
        self.kinds = frozenset({kind})
        self.words = "None" if kind is type(None) else kind.__qualname__

    def _takes(self, value: Any) -> bool:
        return type(value) in self.kinds


class FloatShape(Shape):
    """A float. An int is one, too (PEP 484), where it is the same number."""

    kinds = frozenset({float, int})
    words = "float"
    hashed = True

    def _takes(self, value: Any) -> bool:
        return type(value) in self.kinds

    def _to_plain(self, value: Any) -> Any:
        try:
            number = float(value)
        except OverflowError:
            number = float("inf")
        if type(value) is int and number != value:
            raise MismatchError(f"expected float, found an int that no float is equal to: {reprlib.repr(value)}")
        return number

    def _from_plain(self, plain: Any) -> Any:
        return self._to_plain(plain)


class EnumShape(Shape):
    """A member of an enum, stored as its value."""

    hashed = True

    def __init__(self, enum_class: type[enum.Enum], kinds: frozenset[type]) -> None:
        self._class = enum_class
        self.kinds = kinds
        self.words = f"a value of {enum_class.__qualname__}"

    def _takes(self, value: Any) -> bool:
        return isinstance(value, self._class)

    def _to_plain(self, value: Any) -> Any:
        return value.value

    def _from_plain(self, plain: Any) -> Any:
        try:
            return self._class(plain)
        except ValueError as exc:
            raise MismatchError.of(self.words, plain) from exc


class LiteralShape(Shape):
    """One of some values: 1 is not True here."""

    hashed = True

    def __init__(self, values: Sequence[Any]) -> None:
        self._values = frozenset((type(value), value) for value in values)
        self.kinds = frozenset(type(value) for value in values)
        self.words = " or ".join(map(repr, values))

    def _takes(self, value: Any) -> bool:
        return type(value) in self.kinds and (type(value), value) in self._values

    def _from_plain(self, plain: Any) -> Any:
        return self.encode(plain)


class UnionShape(Shape):
    """One of several types, which differ in what they are stored as."""

    def __init__(self, shapes: Sequence[Shape], by_kind: Mapping[type, Shape]) -> None:
        self._shapes = shapes
        self._by_kind = by_kind
        self.kinds = frozenset(by_kind)
        self.words = " or ".join(shape.words for shape in shapes)
        self.hashed = all(shape.hashed for shape in shapes)

    def _takes(self, value: Any) -> bool:
        return any(shape._takes(value) for shape in self._shapes)

    def _to_plain(self, value: Any) -> Any:
        return next(shape for shape in self._shapes if shape._takes(value)).encode(value)

    def _from_plain(self, plain: Any) -> Any:
        return self._by_kind[type(plain)].decode(plain)


class ListShape(Shape):
    """A list of one type."""

    kinds = frozenset({list})

    def __init__(self, item: Shape) -> None:
        self._item = item
        self.words = "list"

    def _takes(self, value: Any) -> bool:
        return type(value) is list

    def _to_plain(self, value: Any) -> Any:
        return [_inside(self._item.encode, item, "[{}]", place) for place, item in enumerate(value)]

    def _from_plain(self, plain: Any) -> Any:
        return [_inside(self._item.decode, item, "[{}]", place) for place, item in enumerate(plain)]


class VariadicShape(ListShape):
    """``tuple[T, ...]``: stored as a list, as tuples are."""

    kinds = frozenset({list, tuple})

    def __init__(self, item: Shape) -> None:
        super().__init__(item)
        self.words = "tuple"
        self.hashed = item.hashed

    def _takes(self, value: Any) -> bool:
        return type(value) is tuple

    def _to_plain(self, value: Any) -> Any:
        return tuple(super()._to_plain(value))

    def _from_plain(self, plain: Any) -> Any:
        return tuple(super()._from_plain(plain))


class TupleShape(Shape):
    """A tuple of a known length, each item of a type of its own."""

    kinds = frozenset({list, tuple})

    def __init__(self, items: Sequence[Shape]) -> None:
        self._items = items
        self.words = f"tuple of {len(items)}"
        self.hashed = all(item.hashed for item in items)

    def _takes(self, value: Any) -> bool:
        return type(value) is tuple

    def _to_plain(self, value: Any) -> Any:
        self._check_length(value)
        pairs = zip(self._items, value, strict=True)
        return tuple(_inside(shape.encode, item, "[{}]", place) for place, (shape, item) in enumerate(pairs))

    def _from_plain(self, plain: Any) -> Any:
        self._check_length(plain)
        pairs = zip(self._items, plain, strict=True)
        return tuple(_inside(shape.decode, item, "[{}]", place) for place, (shape, item) in enumerate(pairs))

    def _check_length(self, value: Any) -> None:
        if len(value) != len(self._items):
            raise MismatchError.of(self.words, value)


class SetShape(Shape):
    """A set or a frozenset: stored as a set, or as a list where its elements are stored as something that has no hash.

    Such a list is sorted by the bytes of its elements, so that equal sets are stored alike.
    """

    def __init__(self, element: Shape, kind: type) -> None:
        self._element = element
        self._kind = kind
        self.kinds = frozenset({set, frozenset}) if element.hashed else frozenset({list})
        self.words = kind.__qualname__
        self.hashed = element.hashed and kind is frozenset

    def _takes(self, value: Any) -> bool:
        return type(value) is self._kind

    def _to_plain(self, value: Any) -> Any:
        plain = [_inside(self._element.encode, element, "[{}]", "an element") for element in value]
        if self._element.hashed:
            return self._kind(plain)
        return sorted(plain, key=lambda element: encode_value(element, _SORT_BYTES_MAX))

    def _from_plain(self, plain: Any) -> Any:
        elements = [_inside(self._element.decode, element, "[{}]", "an element") for element in plain]
        try:
            found = self._kind(elements)
        except TypeError as exc:
            raise MismatchError(f"a {self.words} cannot have these elements: {exc}") from exc
        if len(found) != len(elements):
            raise MismatchError(f"expected a {self.words}, found equal elements in it")
        return found


class DictShape(Shape):
    """A dict of one type of keys and one of values."""

    kinds = frozenset({dict})

    def __init__(self, key: Shape, value: Shape) -> None:
        self._key = key
        self._value = value
        self.words = "dict"

    def _takes(self, value: Any) -> bool:
        return type(value) is dict

    def _to_plain(self, value: Any) -> Any:
        return self._each(value, self._key.encode, self._value.encode)

    def _from_plain(self, plain: Any) -> Any:
        return self._each(plain, self._key.decode, self._value.decode)

    @staticmethod
    def _each(value: Mapping[Any, Any], of_key: Callable[[Any], Any], of_value: Callable[[Any], Any]) -> dict[Any, Any]:
        return {
            _inside(of_key, key, "[{!r}]", key): _inside(of_value, item, "[{!r}]", key) for key, item in value.items()
        }


class FieldShape(NamedTuple):
    """One field of a class."""

    name: str
    argument: str
    """What ``__init__`` calls it."""
    shape: Shape
    required: bool
    """Whether it has no default."""


class RecordShape(Shape):
    """A dataclass or an attrs class: a dict of its fields."""

    kinds = frozenset({dict})

    def __init__(self, record_class: type, *, ignore_unknown: bool) -> None:
        self._class = record_class
        self._ignore_unknown = ignore_unknown
        self.words = record_class.__qualname__
        self.fields: dict[str, FieldShape] = {}
        """By name. Filled in later: a class may contain itself."""

    def _takes(self, value: Any) -> bool:
        return type(value) is self._class

    def _to_plain(self, value: Any) -> Any:
        return {
            name: _inside(field.shape.encode, getattr(value, name, _NOTHING), ".{}", name)
            for name, field in self.fields.items()
        }

    def _from_plain(self, plain: Any) -> Any:
        arguments: dict[str, Any] = {}
        for name, field in self.fields.items():
            if name in plain:
                arguments[field.argument] = _inside(field.shape.decode, plain[name], ".{}", name)
            elif field.required:
                raise MismatchError.of(field.shape.words, _NOTHING).inside(f".{name}")
        if not self._ignore_unknown and len(arguments) < len(plain):
            unknown = next(name for name in plain if name not in self.fields)
            raise MismatchError(f"{self.words} has no such field").inside(f".{unknown}")
        try:
            return self._class(**arguments)
        except Exception as exc:  # a validator, __post_init__: whatever the class makes of it
            raise MismatchError(f"{self.words} refuses it: {type(exc).__qualname__}: {exc}") from exc


class _Nothing:
    """What is found where a field is missing."""


_Nothing.__qualname__ = "nothing"
_NOTHING: Final = _Nothing()


def _inside(call: Callable[[Any], Any], value: Any, step: str, name: object) -> Any:
    """``call(value)``, where the value is found at ``step.format(name)``."""
    try:
        return call(value)
    except MismatchError as exc:
        raise exc.inside(step.format(name)) from exc.__cause__
