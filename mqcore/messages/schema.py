"""What a schema says about a place in a payload type, and whether its values come back equal. Pure.

pydantic compiles a type to a core schema: nested mappings with a `type`. `Place` walks along it,
for `mqcore.messages.roundtrip`. `exact_classes` judges a whole schema once, so that most types need
no look at each message. What neither knows is taken as the stricter case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["ANYTHING", "NOWHERE", "Place", "Schema", "exact_classes", "is_open", "names_float"]

Schema = Mapping[str, Any]
_ANY: Schema = {"type": "any"}


class Place:
    """One place in a payload type: all schemas by which a value there may be read."""

    def __init__(self, schemas: Iterable[Schema], named: Mapping[str, Schema]) -> None:
        """`named` are the schema's definitions, by their names."""
        self._named = named
        self._schemas = [flat for schema in schemas for flat in self._flat(schema)]

    @classmethod
    def root(cls, schema: Any) -> Place:
        """Return the place of the whole value."""
        named = {item["ref"]: item for item in schema.get("definitions", ())}
        return cls([schema], named)

    @property
    def admits_any(self) -> bool:
        """Whether `Any` is declared here."""
        return "any" in {schema["type"] for schema in self._schemas}

    @property
    def has_choice(self) -> bool:
        """Whether more than one type is declared here, None aside."""
        return len([schema for schema in self._schemas if schema["type"] != "none"]) > 1

    @property
    def keys(self) -> Place:
        """Return the place of the keys of a dict."""
        keys = [
            schema.get("keys_schema", _ANY) for schema in self._schemas if schema["type"] == "dict"
        ]
        return Place(keys, self._named)

    @property
    def has_choice_below(self) -> bool:
        """Whether the items of a set have a choice of types."""
        below = self.below(0)
        return below.has_choice and not below.admits_any

    def below(self, name: object) -> Place:
        """Return the place of a field, a key or an item."""
        return Place(
            [found for schema in self._schemas for found in _below(schema, name)], self._named
        )

    def _flat(self, schema: Schema) -> Iterator[Schema]:
        """Look through what only wraps a schema, and into all choices."""
        inner = self._inside(schema)
        if inner is None:
            yield schema
        else:
            for each in inner:
                yield from self._flat(each)

    def _inside(self, schema: Schema) -> Sequence[Schema] | None:
        """Return what a schema only wraps, or its choices; None when it does neither."""
        kind = schema["type"]

        if kind == "definition-ref":
            return [self._named[schema["schema_ref"]]]

        if kind in {"union", "tagged-union"}:
            choices = schema["choices"]
            each = choices.values() if isinstance(choices, Mapping) else choices
            return [choice[0] if isinstance(choice, tuple) else choice for choice in each]

        if kind == "chain":
            return cast("Sequence[Schema]", schema["steps"][-1:])

        if kind == "json":
            return [schema.get("schema", _ANY)]

        inner = _READ_AS.get(kind, "schema")
        return [schema[inner]] if inner in schema and not schema.get("root_model") else None


_READ_AS = {"json-or-python": "json_schema", "lax-or-strict": "lax_schema"}


def _below(schema: Schema, name: Any) -> Sequence[Schema]:
    """Return the schemas of a field, a key or an item; of a root model, of its value."""
    kind = schema["type"]

    if kind == "any":
        return [schema]

    if kind == "model":
        return [schema["schema"]]

    if kind in {"model-fields", "typed-dict"}:
        return [schema["fields"][name]] if name in schema["fields"] else []

    if kind == "tuple":
        items = schema["items_schema"]
        return cast(
            "Sequence[Schema]", items if "variadic_item_index" in schema else items[name : name + 1]
        )

    if kind in {"dict", "list", "set", "frozenset", "deque", "generator"}:
        return [schema.get("values_schema" if kind == "dict" else "items_schema", _ANY)]

    fields = schema.get("fields") or schema.get("arguments_schema", {}).get("arguments_schema", ())
    return [field for field in fields if field["name"] == name]


ANYTHING = Place([_ANY], {})
NOWHERE = Place([], {})


def exact_classes(schema: Schema) -> tuple[type, ...] | None:
    """Return the models of a schema whose JSON is always read as the value that was written.

    None for any other schema.

    Such a schema has only int, float, bool, str, UUID, None, enums and literals of text, and lists,
    dicts and models of them, without a validator, a serializer or a name that is written and not
    read. An instance of a subclass of one of its models may still have more fields.
    """
    named = {item["ref"]: item for item in schema.get("definitions", ())}
    models: dict[str, type] = {}
    return tuple(models.values()) if _is_exact(schema, named, models) else None


def names_float(schema: object) -> bool:
    """Whether a float is declared anywhere in a schema."""
    if isinstance(schema, Mapping):
        return schema.get("type") == "float" or any(map(names_float, schema.values()))
    return isinstance(schema, list | tuple) and any(map(names_float, schema))


def is_open(schema: Schema) -> bool:
    """Whether a schema is `Any`, or a dict or list of `Any`, and says nothing else."""
    kind = schema["type"]
    if kind == "any":
        return schema.keys() <= _NEUTRAL_KEYS

    if kind == "dict":
        keys = schema.get("keys_schema", _ANY)
        values = schema.get("values_schema", _ANY)
        own = {"keys_schema", "values_schema"}
        are_open = is_open(values) and (is_open(keys) or _is_text(keys))
    elif kind == "list":
        own = {"items_schema"}
        are_open = is_open(schema.get("items_schema", _ANY))
    else:
        return False

    return are_open and schema.keys() <= _NEUTRAL_KEYS | own


def _is_text(schema: Schema) -> bool:
    return schema["type"] == "str" and schema.keys() <= _NEUTRAL_KEYS


def _is_exact(schema: Schema, named: Mapping[str, Schema], models: dict[str, type]) -> bool:
    """Collects the models on its way."""
    kind = schema["type"]

    if kind == "definition-ref":
        name = schema["schema_ref"]
        return name in models or _is_exact(named[name], named, models)

    if kind not in _EXACT_KEYS or not schema.keys() <= _EXACT_KEYS[kind] | _NEUTRAL_KEYS:
        return False

    if kind in {"literal", "enum"}:
        values = (
            schema["expected"]
            if kind == "literal"
            else [member.value for member in schema["members"]]
        )
        return all(type(value) is str for value in values)

    if kind == "model":
        models[schema.get("ref", str(id(schema)))] = schema["cls"]

    fields, is_typed_dict = schema.get("fields", {}).values(), kind == "typed-dict"
    if (
        schema.get("custom_init")
        or not schema.get("config", {}).keys() <= (_CLOSED if is_typed_dict else _EXACT_CONFIG)
        or (is_typed_dict and schema.get("extra_behavior") != "forbid")
        or (kind == "dict" and schema.get("keys_schema", _ANY)["type"] != "str")
        or any(
            field.get("validation_alias") != field.get("serialization_alias") for field in fields
        )
    ):
        return False

    inner = [schema[key] for key in _INNER_KEYS if key in schema]
    return all(_is_exact(each, named, models) for each in (*inner, *fields))


_NEUTRAL_KEYS = frozenset({"type", "ref", "metadata", "strict"})
_BOUNDS = frozenset(
    {"gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern", "allow_inf_nan"}
)
_EXACT_KEYS = {
    "int": _BOUNDS,
    "float": _BOUNDS,
    "str": _BOUNDS,
    "bool": frozenset(),
    "none": frozenset(),
    "uuid": frozenset(),
    "literal": frozenset({"expected"}),
    "enum": frozenset({"cls", "members", "sub_type"}),
    "nullable": frozenset({"schema"}),
    "default": frozenset({"schema", "default", "default_factory", "default_factory_takes_data"}),
    "list": frozenset({"items_schema", "min_length", "max_length"}),
    "dict": frozenset({"keys_schema", "values_schema", "min_length", "max_length"}),
    "definitions": frozenset({"schema", "definitions"}),
    "model": frozenset({"cls", "schema", "custom_init", "root_model", "config", "generic_origin"}),
    "model-fields": frozenset({"fields", "model_name", "computed_fields", "extra_behavior"}),
    "typed-dict": frozenset({"cls", "fields", "computed_fields", "extra_behavior", "config"}),
    "typed-dict-field": frozenset({"schema", "required"}),
    "model-field": frozenset({"schema", "validation_alias", "serialization_alias", "frozen"}),
}
"""All that a schema of each kind may say; whatever else it says may change the value on its way."""
_INNER_KEYS = ("schema", "items_schema", "values_schema", "keys_schema")
_EXACT_CONFIG = frozenset(
    {"title", "frozen", "strict", "validate_assignment", "from_attributes", "hide_input_in_errors"}
)
_CLOSED = frozenset({"title", "extra_fields_behavior"})
"""The config of a typed dict without further keys. By default it drops them."""
