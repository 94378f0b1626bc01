"""The broker's URL: parsed strictly, and shown without its secrets. Pure.

A malformed URL is refused in one line before anything is imported or connected. `str(BrokerUrl)` is
safe to print; only a driver uses `reveal()`.
"""

import re
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from mqcore.errors import ConfigurationError
from mqcore.rules.redact import mask_url
from mqcore.spi import split_url

__all__ = ["BrokerUrl", "parse_url"]

_EXAMPLES = "for instance memory:// or redis://localhost/0"
_LONGEST = 4096
_START = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class BrokerUrl:
    """A broker's URL whose `str`, `repr` and dumps do not contain its secrets."""

    __slots__ = ("_url", "scheme")

    def __init__(self, url: "str | BrokerUrl") -> None:
        """Parse a URL. Raises `ConfigurationError`, without the secrets, when it is malformed."""
        self._url = url.reveal() if isinstance(url, BrokerUrl) else url
        self.scheme = parse_url(self._url)[0]

    def reveal(self) -> str:
        """Return the whole URL with its secrets, for the driver. Never log it."""
        return self._url

    def __str__(self) -> str:
        return mask_url(self._url)

    def __repr__(self) -> str:
        return f"BrokerUrl({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BrokerUrl) and self._url == other._url

    def __hash__(self) -> int:
        return hash(self._url)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Allow pydantic models to have a field of this type; it is dumped masked."""
        return core_schema.no_info_plain_validator_function(
            cls._validate, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def _validate(cls, value: object) -> "BrokerUrl":
        if not isinstance(value, (str, BrokerUrl)):
            raise ValueError(f"a URL is text, {_EXAMPLES}")  # noqa: TRY004 - pydantic wants a ValueError
        try:
            return cls(value)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None


def parse_url(url: str | BrokerUrl) -> tuple[str, dict[str, str]]:
    """Return the scheme (in lower case) and the query options of a broker's URL.

    Raises `ConfigurationError`, in one line and without secrets, for a text that is not a valid
    URL: without a scheme, with white space or control characters, with an impossible port, with a
    bare `%` or `#`, with an option that has no value or is given twice.
    """
    if isinstance(url, BrokerUrl):
        url = url.reveal()
    if not isinstance(url, str):
        raise ConfigurationError(f"a broker URL is text, {_EXAMPLES}, not {type(url).__name__}")
    if why := _malformed(url):
        raise ConfigurationError(f"the broker URL {mask_url(url)!r} is not usable: {why}")
    options: dict[str, str] = {}

    try:
        parts = split_url(url)
        ports = [
            urlsplit(f"//{place}").port for place in parts.netloc.rpartition("@")[2].split(",")
        ]
        pairs = (
            parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True, errors="strict")
            if parts.query
            else []
        )
    except ValueError:
        why = (
            "its host, port or options cannot be read; a special character in a password is "
            "written as %XX"
        )
        raise ConfigurationError(f"the broker URL {mask_url(url)!r} is not usable: {why}") from None

    if 0 in ports:
        raise ConfigurationError(
            f"the broker URL {mask_url(url)!r} is not usable: port 0 is not valid (1 to 65535)"
        )

    for name, value in pairs:
        if name in options:
            raise ConfigurationError(
                f"the broker URL {mask_url(url)!r} is not usable: option {name!r:.60} is given "
                "twice"
            )
        options[name] = value

    return parts.scheme.lower(), options


def _malformed(url: str) -> str | None:
    """Return what is wrong with the characters of a URL, or None."""
    plain = unquote(url, errors="replace")
    odd = any(char.isspace() or not char.isprintable() for char in url) or any(
        ord(char) < ord(" ") for char in plain
    )
    checks = (
        (not url, f"it is empty; a broker URL starts with a scheme, {_EXAMPLES}"),
        (len(url) > _LONGEST, f"it is longer than {_LONGEST:,} characters"),
        (odd, "it contains white space or control characters"),
        (not _START.match(url), f"a broker URL starts with a scheme and '://', {_EXAMPLES}"),
        (_BAD_PERCENT.search(url), "a '%' that stands for itself is written as %25"),
        ("#" in url, "a '#' in a password or option is written as %23"),
    )
    return next((why for wrong, why in checks if wrong), None)


def refused_clause(error: BaseException | None) -> str:
    """Return a clause for an error's text when the server's port is closed, else an empty text.

    Client libraries hide a refused connection behind exceptions of their own.
    """
    seen: set[int] = set()  # a chain of causes may be a circle
    while error is not None and id(error) not in seen:
        if isinstance(error, ConnectionRefusedError):
            return ", where nothing listens: the connection was refused"
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return ""
