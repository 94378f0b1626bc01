"""Bytes and values: what goes out comes back equal, and nothing else goes out or comes in."""

import enum
import math
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Json,
    TypeAdapter,
    computed_field,
    field_validator,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

from mqcore.errors import ConfigurationError, DecodeError, MessageError, ValidationError
from mqcore.messages.codec import BytesCodec, Codecs, JsonCodec, Payload, TextCodec, encode_any

CODECS = Codecs.default()
JSON = "application/json"
SECRET = "hunter2"
NAN, INFINITY = math.nan, math.inf


class Colour(enum.Enum):
    RED = "red"


class Order(BaseModel):
    order_id: int = Field(ge=0)
    total: float | None = None
    lines: "list[Line]" = []


class Line(BaseModel):
    sku: str = Field(alias="SKU")


class Tree(BaseModel):
    children: "list[Tree]" = []


class Shown(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented way
    @property
    def double(self) -> int:
        return 2 * self.a


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")


class Packed(BaseModel):
    data: Json[list[int]]


class Constants(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    f: float


class Strings(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="strings")
    f: float


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


@dataclass
class Plain:
    a: int
    f: float | None = None


@pydantic_dataclass
class Checked:
    a: int


class Point(NamedTuple):
    x: float
    y: float


class Row(TypedDict):
    name: str
    when: datetime


class Picky(BaseModel):
    a: int

    @field_validator("a")
    @classmethod
    def fragile(cls, value: int) -> int:
        return {1: 1}[value]  # a validator with a bug: KeyError for everything but 1


class Upper:
    name = "upper"
    content_types: tuple[str, ...] = ("text/x-upper", "Text/Upper")

    def encode(self, value: object, adapter: TypeAdapter[Any]) -> bytes:
        return str(value).upper().encode()

    def decode(self, body: bytes, adapter: TypeAdapter[Any]) -> object:
        return adapter.validate_python(body.decode().lower())


WHEN = datetime(2026, 5, 4, 3, 2, 1, 999, tzinfo=UTC)

ROUND_TRIPS: list[tuple[str, Any, Any]] = [
    ("model", Order, Order(order_id=1, total=9.5, lines=[Line(SKU="a")])),
    ("alias", Line, Line(SKU="ü€😀")),
    ("none inside", Order, Order(order_id=1)),
    ("int", int, 10**300),
    ("bool", bool, True),
    ("float", float, -1.5e-300),
    ("int as float", float, 3),
    ("none", type(None), None),
    ("str", str, "zwölf \x00 😀"),
    ("empty str", str, ""),
    ("bytes", bytes, b"\xff\x00"),
    ("empty bytes", bytes, b""),
    ("datetime", datetime, WHEN),
    ("date", date, date(2026, 1, 2)),
    ("time", time, time(1, 2, 3)),
    ("timedelta", timedelta, timedelta(days=-1, microseconds=5)),
    ("decimal", Decimal, Decimal("0.10")),
    ("uuid", UUID, UUID(int=5)),
    ("enum", Colour, Colour.RED),
    ("literal", Literal["a", 1], 1),
    ("list of models", list[Order], [Order(order_id=1), Order(order_id=2)]),
    ("set", set[int], {1, 2}),
    ("frozenset", frozenset[str], frozenset({"a"})),
    ("deque", deque[int], deque([1, 2])),
    ("tuple", tuple[int, str], (1, "a")),
    ("dict", dict[str, list[int]], {"nan": [1], "Infinity": []}),
    ("union", TypeAdapter(int | str), "NaN"),
    ("union of none", TypeAdapter(int | None), None),
    ("tagged union", TypeAdapter(Pet), Dog(kind="dog")),
    ("dataclass", Plain, Plain(1, 2.5)),
    ("pydantic dataclass", Checked, Checked(1)),
    ("named tuple", Point, Point(1, 2)),
    ("typed dict", Row, {"name": "x", "when": WHEN}),
    ("computed field", Shown, Shown(a=2)),
    ("extra fields", Loose, Loose.model_validate({"a": [1, None]})),
    ("recursive", Tree, Tree(children=[Tree()])),
    ("json in json", Packed, Packed.model_validate({"data": "[1, 2]"})),
    ("anything", TypeAdapter(Any), {"a": [None, True, "inf", 1.5]}),
    ("constrained str", TypeAdapter(Annotated[str, Field(max_length=3)]), "abc"),
]


@pytest.mark.parametrize(
    ("type_", "value"), [case[1:] for case in ROUND_TRIPS], ids=[case[0] for case in ROUND_TRIPS]
)
def test_what_goes_out_comes_back_equal(type_: Any, value: Any) -> None:
    payload = Payload(type_)
    body, content_type = payload.encode(value, CODECS)
    back = payload.decode(body, content_type, CODECS)
    assert back == value
    assert type(back) is type(value) or type_ is float
    assert payload.decode(body, None, CODECS) == value


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_anything_published_can_be_read_back_or_is_refused(value: Any) -> None:
    payload: Payload[Any] = Payload(TypeAdapter(Any), "json")
    try:
        body, content_type = payload.encode(value, CODECS)
    except ValidationError:
        assert not sound(value)
    else:
        assert sound(value)
        assert payload.decode(body, content_type, CODECS) == value


def sound(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(sound, value.values()))
    return all(map(sound, value)) if isinstance(value, list) else True


@given(
    st.binary(max_size=60) | st.text(max_size=60).map(str.encode),
    st.sampled_from([JSON, "text/plain", "", None]),
)
def test_any_bytes_end_in_a_value_or_a_typed_error(body: bytes, content_type: str | None) -> None:
    for type_ in (Order, str, bytes, int, dict):
        value: object = None
        with suppress(DecodeError, ValidationError):
            value = Payload[Any](type_).decode(body, content_type, CODECS)
        assert value is None or isinstance(value, type_)


def mutated(**changes: Any) -> Order:
    order = Order(order_id=1)
    for name, value in changes.items():
        setattr(order, name, value)
    return order


def looped() -> list[Any]:
    inner: list[Any] = []
    inner.append(inner)
    return inner


def nested(depth: int) -> list[Any]:
    outer: list[Any] = []
    for _ in range(depth):
        outer = [outer]
    return outer


def circular() -> Tree:
    tree = Tree()
    tree.children = [tree]
    return tree


MISFITS: list[tuple[str, Any, Any, str]] = [
    ("text for int", int, SECRET, "valid integer"),
    ("digits for int", int, "5", "valid integer"),
    ("bool for int", int, True, "valid integer"),
    ("float for int", int, 1.0, "valid integer"),
    ("text for bytes", bytes, SECRET, "valid bytes"),
    ("bytes for text", str, SECRET.encode(), "valid string"),
    ("bytearray for bytes", bytes, bytearray(b"x"), "valid bytes"),
    ("dict for a model", Order, {"order_id": 1}, "Order"),
    ("dict in a list of models", list[Order], [{"order_id": 1}], "Order"),
    ("dict inside a model", Order, mutated(lines=[{"SKU": SECRET}]), "Line"),
    ("another model", Order, Tree(), "instance of Order"),
    ("none", Order, None, "instance of Order"),
    ("the class", Order, Order, "instance of Order"),
    (
        "wrong type set later",
        Order,
        mutated(order_id=SECRET),
        "field 'order_id': expected `int`, not str",
    ),
    ("out of bounds set later", Order, mutated(order_id=-1), "greater than or equal to 0"),
    ("never validated", Order, Order.model_construct(total=1.0), "order_id: Field required"),
    ("plain dataclass, wrong inside", Plain, Plain(SECRET), "field 'a': expected `int`"),  # type: ignore[arg-type]  # the case
    ("list for tuple", tuple[int, int], [1, 2], "valid tuple"),
    ("text for datetime", datetime, "2026-01-01", "valid datetime"),
    ("text for enum", Colour, "red", "Colour"),
    ("nan", float, NAN, "NaN"),
    ("infinity", float, INFINITY, "NaN"),
    ("minus infinity", float, -INFINITY, "NaN"),
    ("nan in an optional field", Order, mutated(total=NAN), "NaN"),
    ("nan deep inside", TypeAdapter(Any), {"a": [({"b": NAN},)]}, "NaN"),
    ("nan in a set", set[float], {NAN}, "NaN"),
    ("nan as a typed key", dict[float, int], {NAN: 1}, "NaN"),
    ("nan as a key", dict, {NAN: 1}, "NaN"),
    ("nan in a dataclass", Plain, Plain(1, NAN), "NaN"),
    ("nan in a named tuple", Point, Point(1, NAN), "NaN"),
    ("nan in an extra field", Loose, Loose.model_validate({"a": NAN}), "NaN"),
    ("nan written as a constant", Constants, Constants(f=NAN), "NaN"),
    ("infinity written as a string", Strings, Strings(f=INFINITY), "NaN"),
    ("nan in an ordered dict", dict, OrderedDict(a=NAN), "NaN"),
    ("decimal nan", Decimal, Decimal("NaN"), "finite"),
    ("decimal nan inside", dict, {"a": Decimal("sNaN")}, "NaN"),
    ("lone surrogate", str, "\ud800", "surrogate"),
    ("lone surrogate in json", dict, {"a": "\udfff"}, "surrogate"),
    ("lone surrogate as key", dict, {"\udfff": 1}, "surrogate"),
    ("list in itself", list, looped(), "contains itself"),
    ("model in itself", Tree, circular(), "contains itself"),
    ("deeper than a parser reads", list, nested(210), "recursion limit"),
    ("too deep", list, nested(10_000), "nested too deeply"),
    ("bytes that are no text", dict, {"a": b"\xff"}, "not UTF-8"),
    ("an object", list, [object()], "<class 'object'>"),
    ("too many digits", int, 10**5000, "cannot be read back"),
]


@pytest.mark.parametrize(
    ("type_", "value", "why"), [case[1:] for case in MISFITS], ids=[case[0] for case in MISFITS]
)
def test_what_does_not_fit_is_refused_at_publish_in_one_line_without_its_value(
    type_: Any, value: Any, why: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Payload(type_).encode(value, CODECS)
    text = str(caught.value)
    assert why in text
    assert SECRET not in text
    assert "\n" not in text
    assert len(text) < 500
    assert caught.value.__suppress_context__


UNDECODABLE: list[tuple[str, bytes, str | None]] = [
    ("empty", b"", JSON),
    ("blank", b"  ", JSON),
    ("truncated", b'{"order_id": 1', JSON),
    ("trailing garbage", b'{"order_id": 1} x', JSON),
    ("not utf-8", b'{"order_id": 1, "x": "\xff"}', JSON),
    ("overlong utf-8", b'{"x": "\xc0\x80"}', JSON),
    ("byte order mark", b'\xef\xbb\xbf{"order_id": 1}', JSON),
    ("utf-16", '{"order_id": 1}'.encode("utf-16"), JSON),
    ("utf-32", '{"order_id": 1}'.encode("utf-32"), JSON),
    ("lone surrogate", b'{"x": "\\ud800"}', JSON),
    ("raw surrogate", b'"\xed\xa0\x80"', JSON),
    ("single quotes", b"{'order_id': 1}", JSON),
    ("nul at the end", b'{"order_id": 1}\x00', JSON),
    ("control character", b'{"x": "\n"}', JSON),
    ("too deep", b"[" * 100_000, JSON),
    ("too deep and closed", b"[" * 300 + b"]" * 300, JSON),
    ("4,301 digits", b"1" * 4301, JSON),
    ("pickle", b"\x80\x04K\x01.", JSON),
    ("pickle by name", b"\x80\x04K\x01.", "application/x-python-pickle"),
    ("pickle by another name", b"\x80\x04K\x01.", " Application/X-Python-Serialize ; q=1"),
    ("yaml", b"order_id: 1", "application/yaml"),
    ("no content type, and no json", b"\xff", None),
    ("empty content type, and no json", b"\xff", ""),
    ("blank content type", b'{"order_id": 1}', " "),
    ("unknown content type", b'{"order_id": 1}', "application/x"),
    ("huge content type", b'{"order_id": 1}', "x" * 100_000),
    ("content type with line breaks", b'{"order_id": 1}', "application/json\r\nx"),
    ("latin-1 of another body", b'{"order_id": 1}', "application/json; charset=utf-32"),
    ("utf-16 by charset", b'{"order_id": 1} ', 'application/json;charset="UTF-16"'),
    ("no such charset", b'{"order_id": 1}', "application/json; charset=klingon"),
    ("a codec that is no charset", b'{"order_id": 1}', "application/json; charset=zlib"),
    ("a charset that takes long", b'{"order_id": 1}', "application/json; charset=idna"),
    ("no charset", b'{"order_id": 1}', "application/json; charset="),
    ("text that is no utf-8", b"\xff", "text/plain"),
]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [case[1:] for case in UNDECODABLE],
    ids=[case[0] for case in UNDECODABLE],
)
def test_what_cannot_be_read_is_a_decode_error(body: bytes, content_type: str | None) -> None:
    with pytest.raises(DecodeError) as caught:
        Payload(Order).decode(body, content_type, CODECS)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


INVALID: list[tuple[str, Any, bytes, str | None]] = [
    ("wrong type", Order, b'{"order_id": "hunter2"}', JSON),
    ("missing", Order, b'{"x": "hunter2"}', JSON),
    ("out of bounds", Order, b'{"order_id": -1}', JSON),
    ("null", Order, b"null", JSON),
    ("a list", Order, b'["hunter2"]', JSON),
    ("nested", Order, b'{"order_id": 1, "lines": [{"SKU": ["hunter2"]}]}', JSON),
    ("nan", Order, b'{"order_id": 1, "total": NaN}', JSON),
    ("infinity", Order, b'{"order_id": 1, "total": -Infinity}', JSON),
    ("overflowing exponent", Order, b'{"order_id": 1, "total": 1e400}', JSON),
    (
        "overflowing exponent, written otherwise",
        Order,
        b'{"order_id": 1, "total": -1.5E+0400}',
        JSON,
    ),
    ("overflowing digits", Order, b'{"order_id": 1, "total": ' + b"9" * 309 + b"}", JSON),
    ("overflowing digits, far in", list[float], b"[1," + b" " * 77 + b"9" * 309 + b".5]", JSON),
    ("nan as a string", Order, b'{"order_id": 1, "total": "nan"}', JSON),
    ("infinity for anything", TypeAdapter(Any), b'[{"a": Infinity}]', JSON),
    ("nan as a key", dict[float, int], b'{"NaN": 1}', JSON),
    ("tag", TypeAdapter(Pet), b'{"kind": "hunter2"}', JSON),
    ("forbidden field", Shown, b'{"a": 1, "b": "hunter2"}', JSON),
    ("text for a model", Order, b"hunter2", "text/plain"),
    ("bytes for a model", Order, b"hunter2", "application/octet-stream"),
    ("json number for str", str, b"1", JSON),
    ("text too long", TypeAdapter(Annotated[str, Field(max_length=3)]), b"hunter2", "text/plain"),
    ("bytes too long", TypeAdapter(Annotated[bytes, Field(max_length=3)]), b"hunter2", None),
    ("a validator's bug", Picky, b'{"a": 2}', JSON),
    ("json in json", Packed, b'{"data": "hunter2"}', JSON),
]


@pytest.mark.parametrize(
    ("type_", "body", "content_type"),
    [case[1:] for case in INVALID],
    ids=[case[0] for case in INVALID],
)
def test_what_is_read_and_does_not_fit_is_a_validation_error(
    type_: Any, body: bytes, content_type: str | None
) -> None:
    with pytest.raises(ValidationError) as caught:
        Payload(type_).decode(body, content_type, CODECS)
    assert SECRET not in str(caught.value)
    assert len(str(caught.value)) < 500


READABLE: list[tuple[str, Any, bytes, str | None, Any]] = [
    ("upper case", int, b"1", "APPLICATION/JSON", 1),
    ("empty content type", int, b"1", "", 1),
    ("charset", int, b"1", "application/json; charset=UTF-8", 1),
    ("quoted charset", int, b"1", 'application/json ;foo=bar; Charset="utf8"', 1),
    ("structured suffix", int, b"1", "application/vnd.shop.v1+json", 1),
    ("stray semicolons", int, b"1", "application/json;;", 1),
    ("duplicate keys: the last wins", dict, b'{"a": 1, "a": 2}', JSON, {"a": 2}),
    ("json for a str", str, b'"a"', JSON, "a"),
    ("text for an int", int, b"5", "text/plain", 5),
    ("lax, as json has no dates", datetime, b'"2026-05-04T03:02:01.000999Z"', JSON, WHEN),
    ("raw bytes whatever they claim", bytes, b"\xff", "application/json; charset=latin-1", b"\xff"),
    ("raw bytes of an unknown type", bytes, b"\xff", "image/png", b"\xff"),
    (
        "a word that sounds like infinity",
        dict,
        b'{"info": "1e400", "nano": 1}',
        JSON,
        {"info": "1e400", "nano": 1},
    ),
    ("many digits for an int", int, b"9" * 309, JSON, 10**309 - 1),
    ("many digits in a text", list[str], b'["' + b"9" * 400 + b'"]', JSON, ["9" * 400]),
    ("the largest float", float, b"1.7976931348623157e308", JSON, 1.7976931348623157e308),
    ("200 levels", list, b"[" * 200 + b"]" * 200, JSON, nested(199)),
]


@pytest.mark.parametrize(
    ("type_", "body", "content_type", "value"),
    [case[1:] for case in READABLE],
    ids=[case[0] for case in READABLE],
)
def test_what_foreign_clients_send_is_read(
    type_: Any, body: bytes, content_type: str | None, value: Any
) -> None:
    assert Payload(type_).decode(body, content_type, CODECS) == value


def test_a_payload_picks_its_codec_by_type_and_takes_another_by_name() -> None:
    assert [Payload(t).codec for t in (bytes, str, int, Order)] == ["bytes", "text", "json", "json"]
    payload = Payload(str, "json")
    assert payload.encode("ü", CODECS) == ('"ü"'.encode(), JSON)
    assert Payload(str).encode("ü", CODECS) == ("ü".encode(), "text/plain")
    assert Payload(bytes).encode(b"\xff", CODECS) == (b"\xff", "application/octet-stream")
    assert [Payload(t).name for t in (int, Order, list[int])] == ["int", "Order", "list[int]"]


def test_a_codec_that_cannot_carry_the_value_says_so() -> None:
    for codec in ("text", "bytes"):
        with pytest.raises(ValidationError, match=f"codec '{codec}' carries"):
            Payload(int, codec).encode(5, CODECS)


@pytest.mark.parametrize("bad", [5, "Nowhere", list["Nowhere"], Upper], ids=repr)  # type: ignore[name-defined]  # noqa: F821 - the case
def test_a_type_that_cannot_be_checked_is_refused_when_the_queue_is_made(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be checked"):
        Payload(bad)


def test_the_first_three_problems_are_named_and_the_rest_counted() -> None:
    body = b"[" + b",".join([b'"hunter2"'] * 5) + b"]"
    with pytest.raises(ValidationError, match=r"0: .*; 1: .*; 2: .*; and 2 more$") as caught:
        Payload(list[int]).decode(body, JSON, CODECS)
    assert SECRET not in str(caught.value)


def test_a_key_from_the_wire_cannot_forge_a_log_line() -> None:
    with pytest.raises(ValidationError) as caught:
        Payload(dict[str, int]).decode(
            b'{"a\\n2026 INFO all well \\u001b[31m' + b"x" * 5000 + b'": "x"}', JSON, CODECS
        )
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_bug_in_a_users_validator_is_named_and_kept_as_the_cause() -> None:
    with pytest.raises(ValidationError, match="raised KeyError") as caught:
        Payload(Picky).decode(b'{"a": 2}', JSON, CODECS)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(ValidationError, match="raised KeyError") as caught:
        Payload(Picky).encode(Picky.model_construct(a=2), CODECS)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_plugins_codec_is_used_by_name_and_by_content_type() -> None:
    codecs = CODECS.extended([Upper()])
    payload = Payload(str, "upper")
    assert payload.encode("abc", codecs) == (b"ABC", "text/x-upper")
    assert payload.decode(b"ABC", "TEXT/UPPER; charset=utf-8", codecs) == "abc"
    assert payload.decode(b"ABC", None, codecs) == "abc"
    with pytest.raises(ConfigurationError, match="'upper' is not installed or not allowed"):
        payload.encode("abc", CODECS)
    with pytest.raises(DecodeError, match="not allowed"):
        Payload(str).decode(b"ABC", "text/upper", CODECS)


def test_an_exception_of_a_plugins_codec_is_a_typed_error() -> None:
    class Broken(Upper):
        def decode(self, body: bytes, adapter: TypeAdapter[Any]) -> object:
            raise IndexError(body, adapter)

    with pytest.raises(MessageError, match="raised IndexError"):
        Payload(str, "upper").decode(b"x", None, CODECS.extended([Broken()]))


def test_a_plugins_codec_that_returns_no_bytes_is_refused_before_anything_is_sent() -> None:
    class Text(Upper):
        def encode(self, value: object, adapter: TypeAdapter[Any]) -> bytes:
            return cast("bytes", str(value))

        def decode(self, body: bytes, adapter: TypeAdapter[Any]) -> object:
            return body

    with pytest.raises(ValidationError, match=r"'upper' must encode to bytes, and returned str"):
        Payload(str, "upper").encode("abc", CODECS.extended([Text()]))


def test_the_allow_list_can_be_narrowed() -> None:
    only = CODECS.only(["text"])
    assert only.names == ("text",)
    with pytest.raises(DecodeError, match="allowed are: text/plain"):
        Payload(int).decode(b"1", JSON, only)
    with pytest.raises(ConfigurationError, match="allowed are: text"):
        Payload(int).encode(1, only)
    with pytest.raises(ConfigurationError, match="msgpack"):
        CODECS.only(["json", "msgpack"])


def test_two_codecs_of_one_name_or_type_are_refused() -> None:
    class Other(Upper):
        name = "other"

    with pytest.raises(ConfigurationError, match="two codecs claim 'json'"):
        CODECS.extended([JsonCodec()])
    with pytest.raises(ConfigurationError, match="'text/x-upper'"):
        CODECS.extended([Upper(), Other()])


ANY: list[tuple[str, Any, bytes, str]] = [
    ("bytes", b"\xff", b"\xff", "application/octet-stream"),
    ("bytearray", bytearray(b"x"), b"x", "application/octet-stream"),
    ("memoryview", memoryview(b"x"), b"x", "application/octet-stream"),
    ("text", "ü", "ü".encode(), "text/plain"),
    ("none", None, b"null", JSON),
    ("number", 1, b"1", JSON),
    ("dict", {"a": [1, None]}, b'{"a":[1,null]}', JSON),
    ("model", Line(SKU="x"), b'{"SKU":"x"}', JSON),
    ("models", [Line(SKU="x")], b'[{"SKU":"x"}]', JSON),
    ("enum", Colour.RED, b'"red"', JSON),
    ("dataclass", Plain(1), b'{"a":1,"f":null}', JSON),
    ("datetime", WHEN, b'"2026-05-04T03:02:01.000999Z"', JSON),
]


@pytest.mark.parametrize(
    ("value", "body", "content_type"), [case[1:] for case in ANY], ids=[case[0] for case in ANY]
)
def test_a_bare_name_takes_any_value(value: Any, body: bytes, content_type: str) -> None:
    assert encode_any(value, CODECS) == (body, content_type)


@pytest.mark.parametrize(
    "value",
    [
        [NAN],
        {"a": INFINITY},
        Decimal("Infinity"),
        Plain(1, NAN),
        "\ud800",
        looped(),
        nested(1000),
        object(),
        print,
        {1: object()},
    ],
    ids=[
        "nan",
        "infinity",
        "decimal",
        "dataclass",
        "surrogate",
        "loop",
        "deep",
        "object",
        "function",
        "inside",
    ],
)
def test_a_bare_name_refuses_what_cannot_be_written(value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        encode_any(value, CODECS)
    assert "\n" not in str(caught.value)


def test_the_builtin_codecs_are_codecs_by_themselves() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Any)
    for codec, value in ((JsonCodec(), [1]), (TextCodec(), "a"), (BytesCodec(), b"a")):
        assert codec.decode(codec.encode(value, adapter), adapter) == value
