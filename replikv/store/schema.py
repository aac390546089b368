"""What a typed map knows of its class: how it is stored, in which version, and how older versions become this one.

Stored is a dict of the fields, with one entry more: ``"schema-version"``, which is no identifier, so that no field is
called that. Whoever reads the map untyped sees what he would expect.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import decimal
import enum
import inspect
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeAlias, TypeVar

from replikv.errors import ConfigurationError, SchemaError
from replikv.store.models import ModelCodec, model_codec_of
from replikv.store.shapes import (
    AnyShape,
    AtomShape,
    DictShape,
    EnumShape,
    FieldShape,
    FloatShape,
    ListShape,
    LiteralShape,
    MismatchError,
    RecordShape,
    SetShape,
    Shape,
    TupleShape,
    UnionShape,
    VariadicShape,
    describe,
)

__all__ = ["VERSION_ENTRY", "Schema", "Upgrade"]

T = TypeVar("T")

Upgrade: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""From the fields of one version, as plain data, to those of the next."""

VERSION_ENTRY: Final = "schema-version"

_ATOMS: Final[frozenset[object]] = frozenset(
    {
        *(type(None), bool, int, str, bytes),
        *(datetime.datetime, datetime.date, decimal.Decimal, uuid.UUID),
    }
)
_STORABLE: Final = (
    "None, bool, int, float, str, bytes, datetime, date, Decimal, UUID, enums and Literals of those, lists, tuples,"
    " sets, dicts and Optionals of such types, Any, dataclasses and attrs classes"
)


class Schema(Generic[T]):
    """A class, at one version."""

    def __init__(
        self,
        record_class: type[T],
        version: int,
        upgrade: Mapping[int, Upgrade],
        ignore_unknown: bool,
    ) -> None:
        """Raises ConfigurationError for what makes no sense, and for a class that cannot be stored."""
        if type(version) is not int or version < 1:
            raise ConfigurationError(f"version must be an int of at least 1, not {version!r}")
        _check_upgrades(version, upgrade)
        self.record_class = record_class
        self.version = version
        self._upgrade = dict(upgrade)
        self._codec: Shape | ModelCodec = _codec_of(record_class, ignore_unknown)

    def encode(self, key: str, value: T) -> dict[str, Any]:
        """What is stored for the value. Raises SchemaError."""
        try:
            plain = self._codec.encode(value)
            if VERSION_ENTRY in plain:
                raise MismatchError(f"a field cannot be stored as {VERSION_ENTRY!r}: call it otherwise")
        except MismatchError as exc:
            raise self._error(f"{key!r} cannot be put", key, exc, value) from exc.__cause__
        except RecursionError as exc:
            message = f"{key!r} cannot be put: the {self._codec.words} contains itself, or is too deep"
            raise SchemaError(message, key, "", value) from exc
        return {VERSION_ENTRY: self.version, **plain}

    def decode(self, key: str, plain: Any) -> T:
        """The value that this is stored for. Raises SchemaError."""
        try:
            fields = self._upgraded(plain)
            value: T = self._codec.decode(fields)
        except MismatchError as exc:
            raise self._error(f"what is stored under {key!r} is no {self._codec.words}", key, exc, plain) from (
                exc.__cause__
            )
        return value

    def _upgraded(self, plain: Any) -> dict[str, Any]:
        """The fields as of this version."""
        if type(plain) is not dict:
            raise MismatchError.of("a dict of its fields", plain)
        fields = dict(plain)
        version = fields.pop(VERSION_ENTRY, 0)
        if type(version) is not int or version < 0 or (version == 0 and VERSION_ENTRY in plain):
            raise MismatchError.of("an int of at least 1", version).inside(f".{VERSION_ENTRY}")
        if version > self.version:
            raise MismatchError(
                f"it is of schema version {version}, and this process knows {self.version}: a newer one has put it;"
                " upgrade this process"
            )
        if version == self.version:
            return fields
        fields = copy.deepcopy(fields)  # what is stored is told in errors: an upgrade may change its own
        for step in range(version, self.version):
            upgrade = self._upgrade.get(step)
            if upgrade is None:
                was = f"of schema version {step}" if step else f"without {VERSION_ENTRY!r}: no typed map has put it"
                raise MismatchError(f"it is {was}; give upgrade={{{step}: ...}} to make version {step + 1} of it")
            try:
                fields = upgrade(fields)
            except Exception as exc:
                raise MismatchError(f"the upgrade of version {step} failed: {type(exc).__qualname__}: {exc}") from exc
            if type(fields) is not dict:
                raise MismatchError(f"the upgrade of version {step} must return a dict, not {describe(fields)}")
        return fields

    def _error(self, what: str, key: str, mismatch: MismatchError, value: object) -> SchemaError:
        field = mismatch.field.removeprefix(".")
        where = f"{self._codec.words}.{field}: " if field else ""
        return SchemaError(f"{what}: {where}{mismatch.problem}", key, field, value)


def _check_upgrades(version: int, upgrade: Mapping[int, Upgrade]) -> None:
    if not isinstance(upgrade, Mapping):
        raise ConfigurationError(f"upgrade must be a dict of version -> function, not {upgrade!r}")
    for step, function in upgrade.items():
        if type(step) is not int or not 0 <= step < version:
            raise ConfigurationError(f"upgrade has {step!r}: it goes from a version to the next, up to {version}")
        if not callable(function):
            raise ConfigurationError(f"upgrade[{step}] must be callable, not {function!r}")
        if step + 1 not in {*upgrade, version}:
            raise ConfigurationError(f"upgrade has {step}, and no {step + 1}: that never becomes version {version}")


def _codec_of(record_class: type, ignore_unknown: bool) -> Shape | ModelCodec:
    if not inspect.isclass(record_class):
        raise ConfigurationError(f"a typed map needs a class, not {record_class!r}")
    model = model_codec_of(record_class, ignore_unknown)
    if model is not None:
        return model
    if not _is_record(record_class):
        raise ConfigurationError(
            f"{record_class.__qualname__} is no dataclass, attrs class, msgspec Struct or pydantic model: a typed map"
            " needs a class with fields"
        )
    return _Shapes(ignore_unknown).shape_of(record_class, record_class.__qualname__)


def _is_record(annotation: object) -> bool:
    return inspect.isclass(annotation) and (
        dataclasses.is_dataclass(annotation) or "__attrs_attrs__" in vars(annotation)
    )


class _Shapes:
    """Makes shapes of annotations. A class that is found within itself has one shape."""

    def __init__(self, ignore_unknown: bool) -> None:
        self._ignore_unknown = ignore_unknown
        self._records: dict[type, RecordShape] = {}

    def shape_of(self, annotation: Any, where: str) -> Shape:
        """The shape of what is annotated so at ``where``. Raises ConfigurationError."""
        annotation = _resolved(annotation)
        if annotation is Any or annotation is object:
            return AnyShape()
        if annotation is float:
            return FloatShape()
        if annotation is None:
            annotation = type(None)
        if isinstance(annotation, type) and annotation in _ATOMS:
            return AtomShape(annotation)
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is typing.Literal:
            return _literal(arguments, where)
        if origin is typing.Union or origin is types.UnionType:
            return self._union(arguments, where)
        kind = origin or annotation
        if kind in {list, set, frozenset, dict, tuple}:
            return self._container(kind, arguments, where)
        if _is_record(annotation):
            return self._record(annotation)
        if inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
            return _enum(annotation, where)
        raise ConfigurationError(f"{where} is annotated {annotation!r}, which cannot be stored: use {_STORABLE}")

    def _container(self, kind: Any, arguments: tuple[Any, ...], where: str) -> Shape:
        if kind is tuple and arguments and arguments[-1:] != (Ellipsis,):
            return TupleShape([self.shape_of(argument, where) for argument in arguments])
        items = [self.shape_of(argument, where) for argument in arguments if argument is not Ellipsis]
        if kind is dict:
            key, value = items or (AnyShape(), AnyShape())
            if not (key.hashed or isinstance(key, AnyShape)):
                raise ConfigurationError(f"{where}: a {key.words} cannot be the key of a dict that is stored")
            return DictShape(key, value)
        item = items[0] if items else AnyShape()
        if kind is list:
            return ListShape(item)
        if kind is tuple:
            return VariadicShape(item)
        if isinstance(item, AnyShape):
            raise ConfigurationError(f"{where}: say what is in the {kind.__name__}, as in {kind.__name__}[str]")
        return SetShape(item, kind)

    def _union(self, arguments: tuple[Any, ...], where: str) -> Shape:
        shapes = [self.shape_of(argument, where) for argument in arguments]
        if any(isinstance(shape, AnyShape) for shape in shapes):
            return AnyShape()
        # Of an int, int knows better than float.
        shapes.sort(key=lambda shape: isinstance(shape, FloatShape))
        by_kind: dict[type, Shape] = {}
        for shape in shapes:
            for kind in shape.kinds:
                other = by_kind.setdefault(kind, shape)
                if other is not shape and not isinstance(shape, FloatShape):
                    raise ConfigurationError(
                        f"{where}: {other.words} and {shape.words} are both stored as {kind.__name__}, and could not be"
                        " told apart: use one of them"
                    )
        return UnionShape(shapes, by_kind)

    def _record(self, record_class: type) -> RecordShape:
        shape = self._records.get(record_class)
        if shape is None:
            shape = self._records[record_class] = RecordShape(record_class, ignore_unknown=self._ignore_unknown)
            name = record_class.__qualname__
            for field, (argument, annotation, required) in _fields_of(record_class).items():
                field_shape = self.shape_of(annotation, f"{name}.{field}")
                shape.fields[field] = FieldShape(field, argument, field_shape, required)
        return shape


def _resolved(annotation: Any) -> Any:
    """Without what says nothing of the form: Annotated, Final, NewType, an alias by ``type``."""
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = annotation.__origin__
        elif typing.get_origin(annotation) is typing.Final:
            (annotation,) = typing.get_args(annotation)
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


def _fields_of(record_class: type) -> dict[str, tuple[str, Any, bool]]:
    """Name -> what ``__init__`` calls it, its annotation, and whether it is required. Raises ConfigurationError."""
    name = record_class.__qualname__
    try:
        hints = typing.get_type_hints(record_class, include_extras=True)
        parameters = dict(inspect.signature(record_class).parameters)
    except Exception as exc:  # a name that cannot be found from where the class stands
        raise ConfigurationError(f"the annotations of {name} cannot be read: {exc}; define it in a module") from exc
    if "__attrs_attrs__" in vars(record_class):
        attributes: Any = vars(record_class)["__attrs_attrs__"]
        arguments = {one.name: one.alias for one in attributes if one.init}
    else:
        arguments = {one.name: one.name for one in dataclasses.fields(record_class) if one.init}
    fields: dict[str, tuple[str, Any, bool]] = {}
    for field, argument in arguments.items():
        if field not in hints:
            raise ConfigurationError(f"{name}.{field} has no annotation: a typed map needs to know its type")
        parameter = parameters.pop(argument, None)
        if parameter is None or parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigurationError(f"{name}() takes no {argument}=: a typed map makes it of its fields")
        fields[field] = (argument, hints[field], parameter.default is parameter.empty)
    for parameter in parameters.values():
        if parameter.default is parameter.empty and parameter.kind in _NAMED:
            raise ConfigurationError(
                f"{name}() needs {parameter.name}=, which is no field of it: a typed map makes it of its fields"
            )
    return fields


_NAMED: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)


def _enum(enum_class: type[enum.Enum], where: str) -> Shape:
    kinds = frozenset(type(member.value) for member in enum_class)
    if not kinds or not kinds <= _ATOMS | {float}:
        raise ConfigurationError(f"{where}: the values of {enum_class.__qualname__} cannot be stored: use str or int")
    return EnumShape(enum_class, kinds)


def _literal(values: tuple[Any, ...], where: str) -> Shape:
    if not {type(value) for value in values} <= _ATOMS:
        raise ConfigurationError(f"{where}: a Literal that is stored has str, int, bool, bytes or None only")
    return LiteralShape(values)
