"""Classes that bring their own way to plain data and back: msgspec Structs and pydantic models.

Neither library is needed here unless such a class is given. Both are less strict than a typed map: pydantic makes an
int of ``"5"``, and both drop what they do not know, unless told otherwise. So whatever is read is told again, and has
to come out as it was stored; and whatever is put is read first.
"""

from __future__ import annotations

import abc
import datetime
import decimal
import enum
import importlib
import types
import uuid
from typing import Any, Final

from replikv.errors import ConfigurationError
from replikv.store.shapes import MismatchError, describe

__all__ = ["ModelCodec", "model_codec_of"]


_MSGSPEC_TYPES: Final = (bytes, datetime.datetime, datetime.date, decimal.Decimal, uuid.UUID)
"""What is stored as it is, and need not become a str."""

_SEQUENCES: Final = frozenset({list, tuple})


class ModelCodec(abc.ABC):
    """One class of another library."""

    def __init__(self, model_class: Any, library: types.ModuleType, ignore_unknown: bool) -> None:
        self._class = model_class
        self._library = library
        self._ignore_unknown = ignore_unknown
        self.words: str = model_class.__qualname__

    @abc.abstractmethod
    def dump(self, value: Any) -> Any:
        """The model as builtin objects."""

    @abc.abstractmethod
    def load(self, plain: Any) -> Any:
        """The model of such a dict. Raises whatever the library does."""

    def encode(self, value: Any) -> dict[str, Any]:
        """As :meth:`Shape.encode`."""
        if type(value) is not self._class:
            raise MismatchError.of(self.words, value)
        try:
            plain = _plain(self.dump(value))
        except Exception as exc:
            raise MismatchError(f"{self.words} does not become plain data: {_reason(exc)}") from exc
        if type(plain) is not dict:
            raise MismatchError(f"{self.words} becomes {describe(plain)}, and a dict of its fields can be stored")
        self.decode(plain)
        return plain

    def decode(self, plain: Any) -> Any:
        """As :meth:`Shape.decode`."""
        try:
            value = self.load(plain)
        except Exception as exc:
            raise MismatchError(f"{self.words} refuses it: {_reason(exc)}") from exc
        self._compare(plain, _plain(self.dump(value)))
        return value

    def _compare(self, stored: Any, told: Any) -> None:
        """Raise MismatchError where the model makes something else of what is stored, defaults aside."""
        if type(stored) is dict and type(told) is dict:
            for key, value in stored.items():
                if key in told:
                    self._step(value, told[key], f".{key}" if isinstance(key, str) else f"[{key!r}]")
                elif not self._ignore_unknown:
                    raise MismatchError(f"{self.words} has no such field").inside(f".{key}")
        elif type(stored) in _SEQUENCES and type(told) in _SEQUENCES and len(stored) == len(told):
            for place, (value, again) in enumerate(zip(stored, told, strict=True)):
                self._step(value, again, f"[{place}]")
        elif not _same(stored, told):
            raise MismatchError.of(describe(told), stored)

    def _step(self, stored: Any, told: Any, step: str) -> None:
        try:
            self._compare(stored, told)
        except MismatchError as exc:
            raise exc.inside(step) from None


class _Struct(ModelCodec):
    """A ``msgspec.Struct``."""

    def dump(self, value: Any) -> Any:
        # Sets become lists: sorted, so that equal ones are stored alike.
        return self._library.to_builtins(value, builtin_types=_MSGSPEC_TYPES, order="deterministic")

    def load(self, plain: Any) -> Any:
        return self._library.convert(plain, self._class, builtin_types=_MSGSPEC_TYPES)


class _Model(ModelCodec):
    """A ``pydantic.BaseModel``, of pydantic 2."""

    def dump(self, value: Any) -> Any:
        return value.model_dump(by_alias=True)

    def load(self, plain: Any) -> Any:
        return self._class.model_validate(plain)


def model_codec_of(model_class: type, ignore_unknown: bool) -> ModelCodec | None:
    """The codec of a class of one of these libraries; None for any other class.

    Raises ConfigurationError where the library is missing, or of a version that is not supported.
    """
    bases = {(base.__module__.partition(".")[0], base.__name__) for base in model_class.__mro__}
    if ("msgspec", "Struct") in bases:
        return _Struct(model_class, _library("msgspec", model_class), ignore_unknown)
    if ("pydantic", "BaseModel") in bases:
        library = _library("pydantic", model_class)
        if not hasattr(model_class, "model_validate"):
            raise ConfigurationError(
                f"{model_class.__qualname__} is a model of pydantic 1: a typed map takes those of pydantic 2"
            )
        return _Model(model_class, library, ignore_unknown)
    return None


def _library(name: str, model_class: type) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise ConfigurationError(
            f"a typed map of {model_class.__qualname__} needs {name}, which cannot be imported: install replikv[{name}]"
        ) from exc


def _plain(value: Any) -> Any:
    """The same with the values of enums in place of their members."""
    if isinstance(value, enum.Enum):
        return value.value
    if type(value) is dict:
        return {_plain(key): _plain(item) for key, item in value.items()}
    if type(value) in {list, tuple, set, frozenset}:
        return type(value)(_plain(item) for item in value)
    return value


def _same(stored: object, told: object) -> bool:
    """Equal, and of the same type: 1 is not True. But an int may stand for a float, and NaN is NaN."""
    if type(stored) is not type(told) and not (type(stored) is int and type(told) is float):
        return False
    return stored == told or (stored != stored and told != told)  # NaN is what differs from itself


def _reason(exc: Exception) -> str:
    """What the library says, on one line."""
    return f"{type(exc).__qualname__}: {' '.join(str(exc).split())[:_REASON_MAX]}"


_REASON_MAX: Final = 300
