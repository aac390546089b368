"""Typed maps of msgspec Structs and pydantic models: as strict as those of dataclasses."""

from __future__ import annotations

import datetime
import decimal
import enum
import sys
import uuid
from typing import Any

import msgspec
import pydantic
import pydantic.v1
import pytest

from replikv.errors import ConfigurationError, SchemaError
from replikv.machine.values import decode_value, encode_value
from replikv.store.schema import VERSION_ENTRY, Schema


class Colour(enum.Enum):
    RED = "red"


NOW = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC)


class Part(msgspec.Struct, frozen=True):
    size: int = 1


class Struct(msgspec.Struct, kw_only=True):
    name: str
    count: int = 0
    ratio: float = 0.5
    when: datetime.datetime = NOW
    id: uuid.UUID = uuid.UUID(int=5)
    price: decimal.Decimal = decimal.Decimal("1.10")
    data: bytes = b"\x00"
    colour: Colour = Colour.RED
    pair: tuple[int, str] = (1, "a")
    tags: set[str] = msgspec.field(default_factory=set)
    parts: list[Part] = msgspec.field(default_factory=list)


class SubModel(pydantic.BaseModel):
    size: int = 1


class Model(pydantic.BaseModel):
    name: str
    count: int = 0
    ratio: float = 0.5
    when: datetime.datetime = NOW
    id: uuid.UUID = uuid.UUID(int=5)
    price: decimal.Decimal = decimal.Decimal("1.10")
    data: bytes = b"\x00"
    colour: Colour = Colour.RED
    pair: tuple[int, str] = (1, "a")
    tags: set[str] = pydantic.Field(default_factory=set)
    parts: list[SubModel] = pydantic.Field(default_factory=list)


KINDS: list[tuple[Any, Any]] = [(Struct, Part), (Model, SubModel)]
kinds = pytest.mark.parametrize(("kind", "part"), KINDS, ids=["msgspec", "pydantic"])


def schema(kind: Any, **options: Any) -> Schema[Any]:
    return Schema(kind, options.get("version", 1), options.get("upgrade", {}), options.get("ignore_unknown", False))


@kinds
def test_what_is_put_comes_back(kind: Any, part: Any) -> None:
    """With every type in it, stored as what it is and not as text."""
    value = kind(name="a", tags={"y", "x"}, parts=[part(size=2), part()], ratio=1)
    one = schema(kind, version=2)
    plain = decode_value(encode_value(one.encode("key", value), 1000))
    assert (2, NOW, uuid.UUID(int=5), b"\x00", "red", [1, "a"]) == tuple(
        plain[name] for name in (VERSION_ENTRY, "when", "id", "data", "colour", "pair")
    )
    assert value == one.decode("key", plain)


@kinds
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "refuses it"),
        ({"name": 5}, "refuses it"),
        ({"name": "a", "count": "5"}, r"count|refuses it"),
        ({"name": "a", "count": True}, r"count|refuses it"),
        ({"name": "a", "parts": [{"size": "2"}]}, r"parts\[0\]|refuses it"),
        ({"name": "a", "more": 1}, r"{kind}\.more: {kind} has no such field"),
        ({"name": "a", "parts": [{"more": 1}]}, r"{kind}\.parts\[0\]\.more: {kind} has no such field"),
        ({"name": "a", "when": "2024-02-29T12:00:00Z"}, r"when: expected datetime, found str|refuses it"),
        ({"name": "a", "id": "00000000-0000-0000-0000-000000000005"}, r"id: expected UUID, found str|refuses it"),
    ],
)
def test_what_does_not_fit(kind: Any, part: Any, fields: dict[str, Any], reason: str) -> None:
    """Nothing is made of something else, and nothing is passed over, whatever the library would do."""
    with pytest.raises(SchemaError, match=reason.replace("{kind}", kind.__name__)) as caught:
        schema(kind).decode("key", {VERSION_ENTRY: 1, **fields})
    assert "\n" not in str(caught.value)


@kinds
def test_unknown_fields_may_be_ignored_and_versions_upgraded(kind: Any, part: Any) -> None:
    """As with dataclasses."""
    one = schema(kind, version=2, upgrade={1: lambda fields: fields | {"name": "b"}}, ignore_unknown=True)
    assert kind(name="b") == one.decode("key", {VERSION_ENTRY: 1, "more": 1})


@kinds
def test_what_is_put_is_of_the_class(kind: Any, part: Any) -> None:
    """And not of a subclass, or of another."""
    with pytest.raises(SchemaError, match=f"'key' cannot be put: expected {kind.__name__}, found {part.__name__}"):
        schema(kind).encode("key", part())


class Positional(msgspec.Struct, array_like=True):
    name: str


class Computed(pydantic.BaseModel, extra="forbid"):
    name: str

    @pydantic.computed_field  # type: ignore[prop-decorator]  # as pydantic's documentation has it
    @property
    def upper(self) -> str:
        return self.name.upper()


class Renamed(msgspec.Struct, rename={"version": VERSION_ENTRY}):
    version: int


class Unchecked(pydantic.BaseModel):
    name: str


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Positional("a"), "Positional becomes list of 1, and a dict of its fields can be stored"),
        (Computed(name="a"), "Computed refuses it: ValidationError"),
        (Unchecked.model_construct(name=5), "Unchecked refuses it|does not become plain data"),
        (Renamed(5), "a field cannot be stored as 'schema-version'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_what_could_not_be_read_again_is_not_put(value: Any, reason: str) -> None:
    """Found out by the one who puts it."""
    with pytest.raises(SchemaError, match=reason):
        schema(type(value)).encode("key", value)


@pytest.mark.parametrize(("kind", "library"), [(Struct, "msgspec"), (Model, "pydantic")])
def test_a_library_that_is_missing(kind: Any, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigurationError, match=rf"needs {library}, which .* install replikv\[{library}\]"):
        schema(kind)


def test_models_of_the_first_pydantic() -> None:
    """Are told apart."""

    class Old(pydantic.v1.BaseModel):
        name: str

    with pytest.raises(ConfigurationError, match="Old is a model of pydantic 1"):
        schema(Old)
