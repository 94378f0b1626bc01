"""A value is published only when its consumer reads the same value."""

import enum
from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    RootModel,
    SecretBytes,
    SecretStr,
    StringConstraints,
    TypeAdapter,
    create_model,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from mqcore.errors import ValidationError
from mqcore.messages.codec import Codecs, JsonCodec, Payload, encode_any
from mqcore.messages.roundtrip import difference, has_no_float, is_exact, is_plain, keeps_plain

CODECS = Codecs.default()
SECRET = "hunter2"


class Colour(enum.Enum):
    RED = "red"


class Word(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Order(BaseModel):
    order_id: int = 1


class Rush(Order):
    until: int = 5


class SameAsOrder(Order):
    """Adds no field."""


class Basket(BaseModel):
    orders: list[Order]


class Account(BaseModel):
    name: str = "ann"
    password: SecretStr


class Spoken(BaseModel):
    password: SecretStr

    @field_serializer("password")
    def say(self, value: SecretStr) -> str:
        return value.get_secret_value()


class Renamed(BaseModel):
    order_id: int = Field(default=0, serialization_alias="orderId")


class Excluded(BaseModel):
    shown: int = 1
    hidden: int = Field(default=0, exclude=True)


class Doubled(BaseModel):
    amount: int

    @field_validator("amount", mode="before")
    @classmethod
    def double(cls, value: int) -> int:
        return 2 * value


class Stripped(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True)
    name: str


class Rounded(BaseModel):
    model_config = ConfigDict(ser_json_timedelta="float")
    price: Annotated[float, PlainSerializer(lambda value: round(value, 1))]


class Summed(BaseModel):
    a: int
    total: int = 0

    @model_validator(mode="after")
    def add(self) -> "Summed":
        self.__dict__["total"] = self.total + self.a
        return self


class Flat(BaseModel):
    a: int
    b: int = 0

    @model_serializer
    def write(self) -> dict[str, int]:
        return {"a": self.a}


class Cat(BaseModel):
    name: str = "x"


class Dog(BaseModel):
    name: str = "x"


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")


class Holder(BaseModel):
    value: Any = None


class Noted(BaseModel):
    a: int
    _seen: int = PrivateAttr(0)


class Colours(BaseModel):
    colour: Colour | str
    numbers: int | float = 0
    words: list[Word | str] = []


class Abstract(BaseModel):
    model_config = ConfigDict(validate_assignment=False)
    items: Sequence[int] = []
    table: Mapping[str, int] = {}
    label: str = ""
    count: int = 0


@dataclass
class Plain:
    a: int
    made: int = field(default=0, init=False)


@dataclass
class Child(Plain):
    b: int = 0


class Point(NamedTuple):
    x: float
    label: SecretStr


class Opaque:
    """Knows no equality but identity, as many a class of an application does."""

    known: ClassVar[int] = 0

    def __init__(self, text: str) -> None:
        self.text = text


Carried = Annotated[
    Opaque,
    BeforeValidator(lambda value: Opaque(value) if isinstance(value, str) else value),
    PlainSerializer(lambda value: value.text),
]
Cut = Annotated[
    Opaque,
    BeforeValidator(lambda value: Opaque(value) if isinstance(value, str) else value),
    PlainSerializer(lambda value: value.text[:3]),
]


class Opaques(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    whole: Carried
    cut: Cut = Opaque("abc")


def changed(model: Any, **values: Any) -> Any:
    for name, value in values.items():
        setattr(model, name, value)
    return model


def plain_made(a: int, made: int) -> Plain:
    plain = Plain(a)
    plain.made = made
    return plain


REFUSED: list[tuple[str, Any, Any, str]] = [
    ("a secret", SecretStr, SecretStr(SECRET), "a SecretStr is written as asterisks"),
    (
        "a secret in a model",
        Account,
        Account(password=SecretStr(SECRET)),
        "password: a SecretStr is written",
    ),
    ("secret bytes", SecretBytes, SecretBytes(b"hunter2"), "a SecretBytes is written"),
    ("a secret in a named tuple", Point, Point(1, SecretStr(SECRET)), "label: a SecretStr"),
    ("a subclass", Order, Rush(), "the consumer gets Order in place of Rush"),
    ("a subclass that adds nothing", Order, SameAsOrder(), "Order in place of SameAsOrder"),
    (
        "a subclass inside",
        Basket,
        Basket(orders=[Order(), Rush()]),
        "orders.1: the consumer gets Order in place",
    ),
    ("a subclass in a dict", dict[str, Order], {"a": Rush()}, "a: the consumer gets Order"),
    ("a subclass of a dataclass", Plain, Child(1), "Plain in place of Child"),
    ("another alias", Renamed, Renamed(order_id=7), "order_id: the field is written as 'orderId'"),
    ("an excluded field", Excluded, Excluded(hidden=3), "hidden: the field is excluded"),
    ("a field of no init", Plain, plain_made(1, 2), "made: the consumer gets another int"),
    (
        "a converting validator",
        Doubled,
        Doubled(amount=2),
        "amount: the consumer gets another int: a validator",
    ),
    (
        "a converting validator of a text",
        Annotated[str, AfterValidator(lambda text: text + "!")],
        "a",
        "another str",
    ),
    (
        "a text that is stripped",
        Annotated[str, StringConstraints(strip_whitespace=True)],
        " a ",
        "another str",
    ),
    (
        "a text that is stripped, set later",
        Stripped,
        changed(Stripped(name="a"), name=" a "),
        "name: ",
    ),
    (
        "a rounding serializer",
        Rounded,
        Rounded(price=1.25),
        "price: the consumer gets another float",
    ),
    ("a model validator", Summed, Summed(a=1), "total: the consumer gets another int"),
    ("a model serializer", Flat, Flat(a=1, b=2), "b: the consumer gets another int"),
    (
        "an enum or a text",
        TypeAdapter(Colour | str),
        Colour.RED,
        "the consumer gets str in place of Colour",
    ),
    (
        "an enum or a text in a model",
        Colours,
        Colours(colour=Colour.RED),
        "colour: the consumer gets str",
    ),
    (
        "a text enum or a text",
        Colours,
        Colours(colour="a", words=[Word.RED]),
        "words.0: the consumer gets str",
    ),
    (
        "one of two equal models",
        TypeAdapter(Cat | Dog),
        Dog(),
        "the consumer gets Cat in place of Dog",
    ),
    (
        "a dict or a model",
        TypeAdapter(Order | Any),
        {"a": (1,)},
        "the consumer gets Order in place of dict",
    ),
    (
        "a tuple or a list",
        TypeAdapter(list[int] | tuple[int, ...]),
        (1, 2),
        "list in place of tuple",
    ),
    ("a text or bytes", TypeAdapter(str | bytes), b"a", "the consumer gets str in place of bytes"),
    (
        "a moment or a text",
        TypeAdapter(str | datetime),
        datetime(2026, 1, 1, tzinfo=UTC),
        "str in place of datetime",
    ),
    ("a text that looks like a number", TypeAdapter(Decimal | str), "1", "Decimal in place of str"),
    (
        "an offset of seconds",
        datetime,
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(seconds=3208))),
        "datetime",
    ),
    (
        "an unknown class",
        Opaques,
        Opaques(whole=Opaque("ab"), cut=Opaque("abcd")),
        "cut: the consumer gets another",
    ),
    (
        "a secret under Any",
        Holder,
        Holder(value={"a": [SecretStr(SECRET)]}),
        "value.a.0: a SecretStr",
    ),
    (
        "a secret's model under Any",
        list,
        [Account(password=SecretStr(SECRET))],
        "0.password: a SecretStr",
    ),
    ("two keys of one text", dict, {1: "a", "1": "b"}, "two keys are written as the same text"),
    (
        "two keys of one text under Any",
        Holder,
        Holder(value={None: 1, "None": 2}),
        "value: two keys",
    ),
    (
        "a secret in an extra field",
        Loose,
        Loose.model_validate({"x": SecretStr(SECRET)}),
        "x: a SecretStr",
    ),
    ("a root model", RootModel[list[SecretStr]], RootModel([SecretStr(SECRET)]), "SecretStr"),
]


@pytest.mark.parametrize(
    ("type_", "value", "why"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_a_consumer_would_read_as_another_value_is_refused_with_place_and_reason(
    type_: Any, value: Any, why: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Payload(type_).encode(value, CODECS)
    text = str(caught.value)
    assert why in text
    assert SECRET not in text
    assert "\n" not in text


ACCEPTED: list[tuple[str, Any, Any, Any]] = [
    ("a secret with a serializer", Spoken, Spoken(password=SecretStr(SECRET)), None),
    ("the default under another alias", Renamed, Renamed(), None),
    ("an excluded default", Excluded, Excluded(), None),
    ("a text where an enum could be", Colours, Colours(colour="red", numbers=1), None),
    ("an int as a float", list[float], [1, 2.5], [1.0, 2.5]),
    ("a text enum as text", str, Word.RED, "red"),
    ("an int enum as int", int, Number.ONE, 1),
    (
        "a text enum set later",
        Abstract,
        changed(Abstract(), label=Word.RED, count=True),
        Abstract(label="red", count=1),
    ),
    ("a tuple as a sequence", Abstract, Abstract(items=(1, 2)), Abstract(items=[1, 2])),
    (
        "a view as a mapping",
        Abstract,
        Abstract(table=MappingProxyType({"a": 1})),
        Abstract(table={"a": 1}),
    ),
    ("an ordered dict", dict[str, int], OrderedDict(a=1), {"a": 1}),
    ("a default dict", dict[str, int], defaultdict(int, a=1), {"a": 1}),
    ("keys of a number", dict[int, str], {1: "a", 2: "b"}, None),
    ("a private attribute", Noted, changed(Noted(a=1), _seen=3), Noted(a=1)),
    ("an unknown class", Opaques, Opaques(whole=Opaque("abcdef")), Any),
    ("sets", set[str | int], {"a", 1}, None),
    ("a tuple of Any", tuple[Any, int], ((1, 2), 3), ([1, 2], 3)),
    ("Any or a number", TypeAdapter(int | Any), {"a": (1,)}, {"a": [1]}),
    ("literals", TypeAdapter(Literal["a", 1]), 1, None),
    (
        "a named zone is an offset",
        datetime,
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2), "CEST")),
        None,
    ),
]


@pytest.mark.parametrize(
    ("type_", "value", "read"), [case[1:] for case in ACCEPTED], ids=[case[0] for case in ACCEPTED]
)
def test_what_is_equal_for_the_declared_type_is_published(
    type_: Any, value: Any, read: Any
) -> None:
    payload: Payload[Any] = Payload(type_)
    found = payload.decode(*payload.encode(value, CODECS), CODECS)
    if read is not Any:
        assert found == (value if read is None else read)


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ((1, (2,)), [1, [2]]),
        ({1: "a", None: "b", False: "c"}, {"1": "a", "None": "b", "false": "c"}),
        ({2.5: "a"}, {"2.5": "a"}),
        ({Colour.RED}, ["red"]),
        (deque([1]), [1]),
        (b"text", "text"),
        (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00Z"),
        (Decimal("1.50"), "1.50"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (timedelta(seconds=90), "PT1M30S"),
        (Colour.RED, "red"),
        (Order(), {"order_id": 1}),
        (Plain(1), {"a": 1, "made": 0}),
    ],
    ids=repr,
)
def test_under_any_a_value_arrives_in_its_json_form(value: Any, form: Any) -> None:
    payload: Payload[Any] = Payload(TypeAdapter(Any), "json")
    assert payload.decode(*payload.encode(value, CODECS), CODECS) == form
    inside: Payload[Any] = Payload(TypeAdapter(dict[str, Any]))
    assert inside.decode(*inside.encode({"x": value}, CODECS), CODECS) == {"x": form}


@pytest.mark.parametrize(
    "value", [Account(password=SecretStr(SECRET)), Renamed(order_id=3), {1: 1, "1": 2}]
)
def test_a_bare_name_and_a_reply_refuse_the_same(value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        encode_any(value, CODECS)
    assert SECRET not in str(caught.value)


def test_a_plugins_codec_that_loses_something_is_found() -> None:
    class Short:
        name = "short"
        content_types: tuple[str, ...] = ("text/x-short",)

        def encode(self, value: object, adapter: TypeAdapter[Any]) -> bytes:
            return str(value)[:3].encode()

        def decode(self, body: bytes, adapter: TypeAdapter[Any]) -> object:
            return adapter.validate_python(body.decode())

    payload = Payload(str, "short")
    assert payload.encode("abc", CODECS.extended([Short()]))[0] == b"abc"
    with pytest.raises(ValidationError, match="the consumer gets another str"):
        payload.encode("abcd", CODECS.extended([Short()]))


def form(value: Any) -> Any:
    """Return a value with all that matters: types, secrets and fields.

    An int may be read as a float.
    """
    if isinstance(value, BaseModel):
        return type(value), {name: form(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, SecretStr):
        return SecretStr, value.get_secret_value()
    if isinstance(value, dict):
        return dict, {(type(key), key): form(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [form(item) for item in value]
    return float if type(value) is int else type(value), value


Typed = tuple[Any, st.SearchStrategy[Any]]
LEAVES: list[Typed] = [
    (int, st.integers(-1000, 1000)),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (bool, st.booleans()),
    (str, st.sampled_from(["", "a", "red", "1", "true", " x "])),
    (Colour, st.just(Colour.RED)),
    (Word, st.just(Word.RED)),
    (UUID, st.just(UUID(int=1))),
    (Decimal, st.sampled_from([Decimal(1), Decimal("2.50")])),
    (datetime, st.datetimes(timezones=st.just(UTC))),
    (type(None), st.none()),
    (SecretStr, st.sampled_from(["", "hunter2"]).map(SecretStr)),
    (Order, st.sampled_from([Order(), Order(order_id=2), Rush(), SameAsOrder()])),
    (Doubled, st.sampled_from([Doubled(amount=0), Doubled(amount=1)])),
]
FIELDS: list[Any] = [
    Field(),
    Field(default=None),
    Field(default=None, serialization_alias="other"),
    Field(default=None, exclude=True),
    Field(alias="both"),
]


def listed(inner: Typed) -> Typed:
    return list[inner[0]], st.lists(inner[1], max_size=2)  # type: ignore[name-defined]  # made here


def paired(first: Typed, second: Typed) -> Typed:
    return tuple[first[0], second[0]], st.tuples(first[1], second[1])  # type: ignore[name-defined]  # as above


def keyed(inner: Typed) -> Typed:
    return dict[str, inner[0]], st.dictionaries(st.sampled_from("ab"), inner[1])  # type: ignore[name-defined]  # as above


def either(first: Typed, second: Typed) -> Typed:
    return first[0] | second[0], first[1] | second[1]


def modelled(inner: Typed, second: Typed, info: Any) -> Typed:
    model: Any = create_model(
        "Made", a=(inner[0], info), b=(second[0], ...), __config__={"validate_by_name": True}
    )
    return model, st.builds(lambda a, b: model.model_construct(a=a, b=b), inner[1], second[1])


def wider(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    return (
        st.builds(listed, inner)
        | st.builds(keyed, inner)
        | st.builds(paired, inner, inner)
        | st.builds(either, inner, inner)
        | st.builds(modelled, inner, inner, st.sampled_from(FIELDS))
    )


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_value_of_any_type_is_read_as_it_was_given_or_refused_for_a_reason(
    data: st.DataObject,
) -> None:
    type_, values = data.draw(st.recursive(st.sampled_from(LEAVES), wider, max_leaves=5))
    value = data.draw(values)
    payload: Payload[Any] = Payload(TypeAdapter(type_), "json")
    adapter = payload.adapter

    try:
        body, kind = payload.encode(value, CODECS)
    except ValidationError as error:
        if "the consumer gets" in str(error) or "is written" in str(
            error
        ):  # not for what was invalid before
            written = adapter.serializer.to_json(value, by_alias=True, round_trip=True)
            assert form(adapter.validator.validate_json(written)) != form(value)
    else:
        assert form(payload.decode(body, kind, CODECS)) == form(value)


EXACT: list[Any] = [
    int,
    float,
    bool,
    UUID,
    Colour,
    Literal["a", "b"],
    Order,
    Basket,
    Cat,
    dict[str, list[Order | None]],
]
NOT_EXACT: list[Any] = [
    *[
        datetime,
        SecretStr,
        Any,
        dict,
        list,
        int | str,
        Number,
        tuple[int, ...],
        set[int],
        Literal[1],
        dict[int, str],
    ],
    *[
        Account,
        Spoken,
        Renamed,
        Excluded,
        Doubled,
        Stripped,
        Rounded,
        Summed,
        Flat,
        Loose,
        Holder,
        Noted,
        Plain,
    ],
    Annotated[str, StringConstraints(strip_whitespace=True)],
    Annotated[str, AfterValidator(str.upper)],
]


@pytest.mark.parametrize("type_", EXACT, ids=repr)
def test_most_plain_types_need_no_look_at_each_message(type_: Any) -> None:
    class Alone(BaseModel):
        value: type_

    assert is_exact(TypeAdapter(Alone)) is not (
        "Order" in repr(type_) or type_ is Basket
    )  # Order has subclasses


@pytest.mark.parametrize("type_", NOT_EXACT, ids=repr)
def test_a_type_that_could_lose_something_is_looked_at(type_: Any) -> None:
    assert not is_exact(TypeAdapter(type_))
    assert not is_exact(TypeAdapter(list[type_]))


def test_a_subclass_that_is_defined_later_is_found() -> None:
    class Base(BaseModel):
        a: int = 1

    payload = Payload(list[Base])
    assert is_exact(payload.adapter)
    payload.encode([Base()], CODECS)

    class Later(Base):
        b: int = 2

    with pytest.raises(ValidationError, match=r"0: the consumer gets Base in place of Later"):
        payload.encode([Later()], CODECS)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
OPEN = [Any, dict, list, dict[str, Any], dict[Any, Any], list[Any], list[dict[str, Any]]]


@pytest.mark.parametrize("type_", OPEN, ids=str)
@given(value=PLAIN)
def test_what_is_written_without_a_look_is_what_the_look_would_have_found(
    type_: Any, value: Any
) -> None:
    payload: Payload[Any] = Payload(type_)
    assert keeps_plain(payload.adapter)
    assert is_plain(value)
    try:
        body, content_type = payload.encode(value, CODECS)
    except ValidationError:
        with pytest.raises(ValueError, match=r".*"):
            payload.adapter.validate_python(value, strict=True)
        return

    assert body == JsonCodec().encode(value, payload.adapter)
    read = payload.decode(body, content_type, CODECS)
    assert repr(read) == repr(value)
    assert difference(value, read, payload.adapter) is None


def test_a_plain_value_is_as_deep_as_every_parser_reads() -> None:
    deepest: Any = "x"
    for _ in range(100):
        deepest = [deepest]
    assert is_plain(deepest)
    assert not is_plain([deepest])
    assert not is_plain({"a": deepest})
    body, content_type = Payload(list).encode([deepest], CODECS)
    assert Payload(list).decode(body, content_type, CODECS) == [deepest]


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        2**63,
        -(2**63),
        Word.RED,
        Number.ONE,
        b"x",
        (1,),
        {1: "x"},
        {Word.RED: 1},
        {"a": [{"b": 1.0}]},
        OrderedDict(a=1),
        Decimal(1),
        UUID(int=1),
        Order(),
    ],
    ids=repr,
)
def test_whatever_else_is_looked_at(value: Any) -> None:
    assert not is_plain(value)


@pytest.mark.parametrize(
    "type_",
    [
        dict[int, Any],
        dict[str, int],
        list[str],
        tuple[Any, ...],
        Annotated[dict[str, Any], Field(max_length=3)],
        Annotated[Any, AfterValidator(repr)],
        Annotated[list[Any], PlainSerializer(len)],
        dict[Annotated[str, StringConstraints(to_lower=True)], Any],
        Order,
        Any | None,
    ],
    ids=str,
)
def test_a_type_that_says_more_than_any_is_looked_at(type_: Any) -> None:
    assert not keeps_plain(TypeAdapter(type_))


@pytest.mark.parametrize("type_", [dict[str, str], dict[str, Any]], ids=str)
def test_the_configuration_of_an_adapter_may_change_what_is_read(type_: Any) -> None:
    """Pydantic keeps it beside the schema, so the schema cannot show that nothing changes."""
    payload: Payload[Any] = Payload(TypeAdapter(type_, config=ConfigDict(str_to_lower=True)))
    assert payload.encode({"a": "b"}, CODECS)[0] == b'{"a":"b"}'
    with pytest.raises(ValidationError, match="the consumer"):
        payload.encode({"A": "b"}, CODECS)


class Counted(BaseModel):
    count: int
    words: list[str]


class Weighed(Counted):
    weight: dict[str, list[float | None]]


@pytest.mark.parametrize("type_", [int, str, list[int], dict[str, Order | None], UUID], ids=str)
def test_a_type_without_a_float_holds_no_nan(type_: Any) -> None:
    assert has_no_float(TypeAdapter(list[type_])) is ("Order" not in repr(type_))  # has subclasses


@pytest.mark.parametrize(
    "type_", [float, Any, dict, Weighed, list[float], Decimal, int | float, Counted], ids=str
)
def test_a_type_that_may_hold_a_float_is_looked_at(type_: Any) -> None:
    """`Counted` has a subclass with a float: such a value may be given where it is declared."""
    assert not has_no_float(TypeAdapter(type_))


def test_nan_in_a_subclass_is_refused_where_its_base_has_no_float() -> None:
    value = Weighed(count=1, words=[], weight={"a": [float("nan")]})
    payload: Payload[Any] = Payload(Counted)
    with pytest.raises(ValidationError):
        payload.encode(value, CODECS)
