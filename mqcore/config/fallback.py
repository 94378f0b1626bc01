"""`Fallback`: where messages are stored while the broker is away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mqcore.config.url import BrokerUrl
from mqcore.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

__all__ = ["Fallback", "FallbackOption"]


class _Explaining(ModelMetaclass):
    """Raises `ConfigurationError` for a wrong value in code."""

    if not TYPE_CHECKING:  # a type checker reads the fields

        def __call__(self, **values: Any) -> BaseModel:
            try:
                return super().__call__(**values)
            except ValidationError as error:
                found = error.errors(include_url=False, include_input=False)
                texts = [
                    f"{'.'.join(map(str, item['loc']))}: {item['msg']}".replace("Value error, ", "")
                    for item in found
                ]
                raise ConfigurationError(f"Fallback(...): {'; '.join(texts)}") from None


class Fallback(BaseModel, metaclass=_Explaining):
    """What a broker does while its server is away; given as `fallback=` or in the settings.

    `url`: the spool, `sqlite:///spool.db` or `postgresql://`. `after`: seconds that the broker has
    to confirm a publish; then it goes to the spool, and the broker gets it later. `max_length`: how
    many messages the spool takes for each queue; a publish that finds it full raises `QueueFull`.
    `consume`: whether workers handle what is in the spool while the broker stays away.

    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: BrokerUrl
    after: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    max_length: Annotated[int, Field(ge=1, strict=True)] = 100_000
    consume: Annotated[bool, Field(strict=True)] = False


def _as_table(value: object) -> Any:
    return {"url": value} if isinstance(value, (str, BrokerUrl)) else value


FallbackOption = Annotated[Fallback | None, BeforeValidator(_as_table)]
"""A setting that is a URL, or a table of the options of `Fallback`."""
