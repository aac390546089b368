"""What a class is stored as, and that only that is read as the class again."""

# ruff: noqa: DTZ001, RUF009, UP007, UP045  # forms that users write are what is tested

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import uuid
from collections import OrderedDict
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, NewType, Optional, TypeVar, Union

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replikv.errors import ConfigurationError, EncodingError, SchemaError
from replikv.machine.values import decode_value, encode_value
from replikv.store.schema import VERSION_ENTRY, Schema

T = TypeVar("T")
Zip = NewType("Zip", str)


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Mixed(enum.Enum):
    TEXT = "1"
    NUMBER = 1


class Unstorable(enum.Enum):
    A = (1, 2)


class Empty(enum.Enum):
    pass


class Pair(NamedTuple):
    left: int
    right: int


@dataclasses.dataclass(frozen=True)
class Address:
    street: str
    zip: Zip = Zip("")
    lines: tuple[str, ...] = ()


@dataclasses.dataclass
class Everything:
    text: str
    number: int = 0
    flag: bool = False
    ratio: float = 0.5
    data: bytes = b""
    nothing: None = None
    when: datetime.datetime = datetime.datetime(2024, 2, 29, 12)
    day: datetime.date = datetime.date(2024, 2, 29)
    price: decimal.Decimal = decimal.Decimal("1.10")
    name: uuid.UUID = uuid.UUID(int=5)
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    rights: Rights = Rights.READ
    mixed: Mixed = Mixed.NUMBER
    choice: Literal["a", 1, None] = "a"
    home: Address | None = None
    work: Optional[Address] = None
    either: Union[int, str, list[int]] = 1
    real: int | float = 1
    addresses: list[Address] = dataclasses.field(default_factory=list)
    by_name: dict[str, Address] = dataclasses.field(default_factory=dict)
    by_level: dict[Level, list[Colour]] = dataclasses.field(default_factory=dict)
    visited: set[Address] = dataclasses.field(default_factory=set)
    colours: set[Colour] = dataclasses.field(default_factory=set)
    frozen: frozenset[tuple[int, str]] = frozenset()
    pair: tuple[int, Address] = (1, Address("here"))
    whatever: Any = None
    several: list = dataclasses.field(default_factory=list)  # type: ignore[type-arg]  # what users write
    noted: Annotated[int, "of something"] = 0
    final: Final[int] = 3
    shared: ClassVar[int] = 7
    sum: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        self.sum = self.number + self.noted


@attrs.define
class Machine:
    name: str
    _secret: int = 0
    parts: list[Machine] = attrs.field(factory=list)
    volts: int = attrs.field(default=230, validator=attrs.validators.gt(0))
    _made: int = attrs.field(init=False, default=1)


@dataclasses.dataclass
class Node:
    name: str
    children: list[Node] = dataclasses.field(default_factory=list)
    parent: Node | None = None


@dataclasses.dataclass
class User:
    name: str
    age: int = 0


@dataclasses.dataclass
class Admin(User):
    pass


def schema(record_class: type[T], **options: Any) -> Schema[T]:
    return Schema(
        record_class, options.get("version", 1), options.get("upgrade", {}), options.get("ignore_unknown", False)
    )


def through_the_map(plain: Any) -> Any:
    return decode_value(encode_value(plain, 1 << 20))


def returned(record_class: type[T], value: T) -> T:
    """What a reader gets."""
    one = schema(record_class)
    return one.decode("key", through_the_map(one.encode("key", value)))


# -- what is stored ----------------------------------------------------------------------------------------------------


def test_an_object_is_stored_as_a_dict_of_its_fields() -> None:
    """With the version, and nested ones as dicts without: who reads the map untyped understands it."""
    value = Everything("a", home=Address("there", Zip("12")), by_level={Level.HIGH: [Colour.BLUE]})
    plain = through_the_map(schema(Everything, version=3).encode("key", value))
    assert 3 == plain[VERSION_ENTRY]
    assert {"street": "there", "zip": "12", "lines": []} == plain["home"]
    assert {2: ["blue"]} == plain["by_level"]
    assert ("red", 1, 1, "a") == (plain["colour"], plain["level"], plain["mixed"], plain["choice"])
    assert {"shared", "sum"}.isdisjoint(plain)


addresses = st.builds(
    Address, st.text(max_size=3), st.text(max_size=3).map(Zip), st.lists(st.text(max_size=3), max_size=2).map(tuple)
)
everything = st.builds(
    Everything,
    st.text(max_size=5),
    st.integers(),
    st.booleans(),
    st.floats(allow_nan=False),
    st.binary(max_size=5),
    st.none(),
    st.datetimes(),
    st.dates(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.sampled_from(Colour),
    st.sampled_from(Level),
    st.sampled_from([Rights.READ, Rights.READ | Rights.WRITE, Rights(0)]),
    st.sampled_from(Mixed),
    st.sampled_from(["a", 1, None]),
    st.none() | addresses,
    st.none() | addresses,
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    st.integers() | st.floats(allow_nan=False),
    st.lists(addresses, max_size=2),
    st.dictionaries(st.text(max_size=3), addresses, max_size=2),
    st.dictionaries(st.sampled_from(Level), st.lists(st.sampled_from(Colour), max_size=2)),
    st.sets(addresses, max_size=3),
    st.sets(st.sampled_from(Colour)),
    st.frozensets(st.tuples(st.integers(), st.text(max_size=3)), max_size=2),
    st.tuples(st.integers(), addresses),
    st.none() | st.integers() | st.lists(st.text(max_size=2), max_size=2),
    st.lists(st.integers(), max_size=2),
    st.integers(),
)


@settings(max_examples=50)  # of thirty values each
@given(everything)
def test_what_is_put_comes_back(value: Everything) -> None:
    """Equal, and of the same types, whatever is in it."""
    back = returned(Everything, value)
    assert value == back
    names = [field.name for field in dataclasses.fields(Everything)]
    assert [type(getattr(value, name)) for name in names] == [type(getattr(back, name)) for name in names]


def test_equal_sets_are_stored_alike() -> None:
    """Also where their elements have no hash once they are stored: the order is that of the bytes."""
    elements = [Address(name) for name in "abcdefgh"]
    stored = [
        schema(Everything).encode("k", Everything("", visited=set(order))) for order in (elements, elements[::-1])
    ]
    assert stored[0] == stored[1]


def test_attrs_classes() -> None:
    """By their own names for __init__, validators included; attrs is not imported for it."""
    value = Machine("a", secret=5, parts=[Machine("b", volts=12)])
    assert value == returned(Machine, value)
    assert {"name", "_secret", "parts", "volts", VERSION_ENTRY} == schema(Machine).encode("key", value).keys()
    with pytest.raises(
        SchemaError, match=r"is no Machine: Machine\.parts\[0\]: Machine refuses it: ValueError: 'volts'"
    ):
        schema(Machine).decode("m", {VERSION_ENTRY: 1, "name": "a", "parts": [{"name": "b", "volts": -1}]})


def test_a_class_within_itself() -> None:
    """As deep as values may be; one that contains itself in fact is refused."""
    tree = Node("root", [Node("a", [Node("b")]), Node("c")])
    assert tree == returned(Node, tree)
    tree.children[0].parent = tree
    with pytest.raises(SchemaError, match="'t' cannot be put: the Node contains itself, or is too deep"):
        schema(Node).encode("t", tree)


def test_a_default_that_is_not_stored() -> None:
    """A field with a default may be missing: it was added since, or somebody left it out."""
    assert User("Ann") == schema(User).decode("key", {VERSION_ENTRY: 1, "name": "Ann"})


@dataclasses.dataclass
class Number:
    value: float | int
    other: int | float = 0


def test_of_an_int_int_knows_better_than_float() -> None:
    """In whichever order they are named: it stays an int, of any size."""
    for number in (2**60 + 1, 1.5):
        again = returned(Number, Number(number, number))
        assert [(type(number), number)] * 2 == [(type(again.value), again.value), (type(again.other), again.other)]


def test_floats_are_numbers() -> None:
    """1 is a float, as for a type checker, and comes back as one; not where it is another number."""
    assert math.isclose(1.0, returned(Everything, Everything("", ratio=1)).ratio)
    assert isinstance(returned(Everything, Everything("", ratio=1)).ratio, float)
    for number in (2**53 + 1, 10**400):
        with pytest.raises(SchemaError, match="an int that no float is equal to"):
            schema(Everything).encode("key", Everything("", ratio=number))


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"text": 1}, "text", "expected str, found int 1"),
        ({}, "text", "expected str, found nothing"),
        ({"text": "", "number": True}, "number", "expected int, found True"),
        ({"text": "", "number": 1.0}, "number", "expected int, found float 1.0"),
        ({"text": "", "flag": 1}, "flag", "expected bool, found int 1"),
        ({"text": "", "ratio": "1"}, "ratio", "expected float, found str '1'"),
        ({"text": "", "day": datetime.datetime(2024, 1, 1)}, "day", "expected date, found datetime"),
        ({"text": "", "colour": "green"}, "colour", "expected a value of Colour, found str 'green'"),
        ({"text": "", "level": True}, "level", "expected a value of Level, found True"),
        ({"text": "", "rights": 8}, "rights", "expected a value of Rights, found int 8"),
        ({"text": "", "choice": True}, "choice", "expected 'a' or 1 or None, found True"),
        ({"text": "", "choice": "b"}, "choice", "expected 'a' or 1 or None, found str 'b'"),
        ({"text": "", "home": []}, "home", "expected Address or None, found list of 0"),
        ({"text": "", "home": {"street": 1}}, "home.street", "expected str, found int 1"),
        ({"text": "", "home": {"street": "", "town": ""}}, "home.town", "Address has no such field"),
        ({"text": "", "home": {"street": "", "lines": ["", 1]}}, "home.lines[1]", "expected str, found int 1"),
        ({"text": "", "either": 1.5}, "either", "expected int or str or list, found float 1.5"),
        ({"text": "", "either": ["x"]}, "either[0]", "expected int, found str 'x'"),
        ({"text": "", "by_name": {"a b": 1}}, "by_name['a b']", "expected Address, found int 1"),
        ({"text": "", "by_level": {3: []}}, "by_level[3]", "expected a value of Level, found int 3"),
        ({"text": "", "visited": {1}}, "visited", "expected set, found set of 1"),
        ({"text": "", "visited": [{"street": ""}] * 2}, "visited", "expected a set, found equal elements in it"),
        ({"text": "", "colours": {"pink"}}, "colours[an element]", "expected a value of Colour, found str 'pink'"),
        ({"text": "", "pair": [1]}, "pair", "expected tuple of 2, found list of 1"),
        ({"text": "", "pair": [1, 2]}, "pair[1]", "expected Address, found int 2"),
        ({"text": "", "sum": 1}, "sum", "Everything has no such field"),
        ({"text": "", 5: 1}, "5", "Everything has no such field"),
    ],
)
def test_what_is_stored_and_does_not_fit(fields: dict[Any, Any], field: str, reason: str) -> None:
    """The error names key, class, field, what was expected and what was found, and has what is stored."""
    stored = {VERSION_ENTRY: 1, **fields}
    with pytest.raises(SchemaError) as caught:
        schema(Everything).decode("ann", stored)
    assert f"what is stored under 'ann' is no Everything: Everything.{field}: {reason}" == str(caught.value)
    assert ("ann", field, stored) == (caught.value.key, caught.value.field, caught.value.value)
    assert isinstance(caught.value, EncodingError)


@pytest.mark.parametrize("stored", [None, [], "text", 5])
def test_what_is_no_dict(stored: object) -> None:
    """Told as such."""
    with pytest.raises(SchemaError, match="under 'k' is no User: expected a dict of its fields, found"):
        schema(User).decode("k", stored)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Admin("Ann"), "expected User, found Admin"),
        ({"name": "Ann"}, "expected User, found dict of 1"),
        (User(5), r"User\.name: expected str, found int 5"),  # type: ignore[arg-type]  # the point
        (User("Ann", True), r"User\.age: expected int, found True"),
        (None, "expected User, found None"),
    ],
)
def test_what_is_put_and_does_not_fit(value: Any, reason: str) -> None:
    """Annotations are kept to on the way in: nobody finds it out on the way out, on another machine."""
    with pytest.raises(SchemaError, match=f"'ann' cannot be put: {reason}") as caught:
        schema(User).encode("ann", value)
    assert value is caught.value.value


def test_an_object_without_one_of_its_fields() -> None:
    """Deleted from it, or never set."""
    ann = User("Ann")
    del ann.name
    with pytest.raises(SchemaError, match=r"'ann' cannot be put: User\.name: expected str, found nothing"):
        schema(User).encode("ann", ann)


def test_unknown_fields_may_be_ignored() -> None:
    """Nested ones, too."""
    one = schema(Everything, ignore_unknown=True)
    home = {"street": "there", "town": 5}
    assert Everything("", home=Address("there")) == one.decode(
        "key", {VERSION_ENTRY: 1, "text": "", "more": 1, "home": home}
    )


# -- versions ----------------------------------------------------------------------------------------------------------


def full_name(fields: dict[str, Any]) -> dict[str, Any]:
    return {"name": f"{fields.pop('first')} {fields.pop('last')}", **fields}


def test_older_versions_become_the_present_one() -> None:
    """Step by step; 0 is what was put untyped. What is stored stays as it is."""
    upgrades = {0: lambda fields: {"first": fields["vorname"], "last": ""}, 1: full_name, 2: lambda f: {**f, "age": 1}}
    one = schema(User, version=3, upgrade=upgrades)
    first = {VERSION_ENTRY: 1, "first": "Ann", "last": "Lee"}
    assert User("Ann Lee", 1) == one.decode("key", first)
    assert User("Ann ", 1) == one.decode("key", {"vorname": "Ann"})
    assert User("Ann", 1) == one.decode("key", {VERSION_ENTRY: 2, "name": "Ann"})
    assert User("Ann", 5) == one.decode("key", {VERSION_ENTRY: 3, "name": "Ann", "age": 5})
    assert {VERSION_ENTRY: 1, "first": "Ann", "last": "Lee"} == first


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ({VERSION_ENTRY: 4, "name": ""}, "it is of schema version 4, and this process knows 3"),
        ({VERSION_ENTRY: 1, "name": ""}, r"it is of schema version 1; give upgrade=\{1: ...\} to make version 2 of it"),
        ({"name": ""}, r"without 'schema-version': no typed map has put it; give upgrade=\{0: ...\}"),
        ({VERSION_ENTRY: 2}, "the upgrade of version 2 failed: KeyError: 'first'"),
        ({VERSION_ENTRY: 2, "first": "", "last": "", "age": ""}, r"User\.age: expected int, found str ''"),
        ({VERSION_ENTRY: "1"}, "schema-version: expected an int of at least 1, found str '1'"),
        ({VERSION_ENTRY: True}, "schema-version: expected an int of at least 1, found True"),
        ({VERSION_ENTRY: 0}, "schema-version: expected an int of at least 1, found int 0"),
    ],
)
def test_versions_that_do_not_fit(stored: dict[str, Any], reason: str) -> None:
    """A newer one, one without an upgrade, one whose upgrade fails."""
    with pytest.raises(SchemaError, match=reason):
        schema(User, version=3, upgrade={2: full_name}).decode("key", stored)


def test_an_upgrade_that_returns_no_dict() -> None:
    """It has changed the fields in place, say, and returns None."""
    with pytest.raises(SchemaError, match="the upgrade of version 1 must return a dict, not None"):
        schema(User, version=2, upgrade={1: lambda _: None}).decode("key", {VERSION_ENTRY: 1})


@pytest.mark.parametrize(
    ("version", "upgrade", "reason"),
    [
        (0, {}, "version must be an int of at least 1, not 0"),
        (True, {}, "not True"),
        (2, {2: full_name}, "upgrade has 2: it goes from a version to the next, up to 2"),
        (3, {1: full_name}, "upgrade has 1, and no 2: that never becomes version 3"),
        (2, {1: "function"}, r"upgrade\[1\] must be callable"),
        (2, [full_name], "upgrade must be a dict"),
    ],
)
def test_versions_that_make_no_sense(version: int, upgrade: Any, reason: str) -> None:
    """Told when the map is made, and not when the first old value is read."""
    with pytest.raises(ConfigurationError, match=reason):
        schema(User, version=version, upgrade=upgrade)


# -- classes that cannot be stored -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (complex, "Made.field is annotated <class 'complex'>, which cannot be stored: use None, bool, int"),
        (datetime.timedelta, "cannot be stored"),
        (OrderedDict[str, int], "cannot be stored"),
        (Pair, "cannot be stored"),
        (T, "cannot be stored"),
        (list[complex], "cannot be stored"),
        (Colour | str, "a value of Colour and str are both stored as str, and could not be told apart"),
        (User | Address, "User and Address are both stored as dict"),
        (list[int] | tuple[int, ...], "list and tuple are both stored as list"),
        (dict[Address, int], "a Address cannot be the key of a dict that is stored"),
        (set, r"say what is in the set, as in set\[str\]"),
        (Unstorable, "the values of Unstorable cannot be stored"),
        (Empty, "the values of Empty cannot be stored"),
        (Literal[Colour.RED], "a Literal that is stored has"),
    ],
)
def test_a_field_that_cannot_be_stored(annotation: Any, reason: str) -> None:
    """Told when the map is made, with the field and what could be used instead."""
    made = dataclasses.make_dataclass("Made", [("field", annotation)])
    with pytest.raises(ConfigurationError, match=reason):
        schema(made)


class NoRecord:
    pass


class Own:
    """A class with an __init__ of its own that asks for something else."""


@dataclasses.dataclass
class Initialized:
    name: str
    given: dataclasses.InitVar[int]


@dataclasses.dataclass(init=False)
class ByHand:
    name: str

    def __init__(self, other: str) -> None:
        self.name = other


@attrs.define
class Unannotated:
    name = attrs.field()  # type: ignore[var-annotated]  # the point


@pytest.mark.parametrize(
    ("record_class", "reason"),
    [
        (NoRecord, "NoRecord is no dataclass, attrs class, msgspec Struct or pydantic model"),
        (int, "int is no dataclass"),
        ("User", "a typed map needs a class, not 'User'"),
        (Initialized, "Initialized.. needs given=, which is no field of it"),
        (ByHand, "ByHand.. takes no name="),
        (Unannotated, "Unannotated.name has no annotation"),
    ],
)
def test_a_class_that_cannot_be_stored(record_class: Any, reason: str) -> None:
    """Told when the map is made."""
    with pytest.raises(ConfigurationError, match=reason):
        schema(record_class)


def test_annotations_that_cannot_be_read() -> None:
    """A name that only the function knows in which the class stands."""

    @dataclasses.dataclass
    class Local:
        inner: Inner

    @dataclasses.dataclass
    class Inner:
        name: str

    with pytest.raises(ConfigurationError, match=r"the annotations of .*Local cannot be read: name 'Inner'"):
        schema(Local)
