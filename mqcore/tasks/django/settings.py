"""The setting `MQCORE`, as it is read and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from django import conf
from django.utils.connection import ConnectionDoesNotExist

from mqcore.config.plugins import default_plugins
from mqcore.django import database_url
from mqcore.errors import ConfigurationError
from mqcore.rules.checks import check_duration, check_flag, check_options, described
from mqcore.tasks.store.plugins import default_store_plugins

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

__all__ = ["MqcoreSettings", "broker_url", "include", "mqcore_settings", "result_ttl", "store_url"]

_WHERE = "settings: MQCORE"
_DATABASE = "django://"


class MqcoreSettings(TypedDict, total=False):
    """The keys of the setting `MQCORE`. All may be left out.

    `BROKER` and `STORE` are URLs; `django://ALIAS` is one of Django's own databases, on SQLite or
    PostgreSQL. Without `BROKER` mqcore's configuration says it (`MQCORE_URL`). `STORE` holds the
    table of tasks, and is `django://default` by default. `INCLUDE` names modules with tasks, beside
    the modules `tasks` of the installed apps. `ON_COMMIT`: what is enqueued inside a transaction is
    sent when that commits; off by default, as in Django. `RESULT_TTL` is how long an ended task is
    kept, a day by default.
    """

    BROKER: str
    STORE: str
    INCLUDE: Sequence[str]
    ON_COMMIT: bool
    RESULT_TTL: str | float | timedelta


def mqcore_settings() -> MqcoreSettings:
    """Return the setting. Raises `ConfigurationError` for a wrong one."""
    given: Any = getattr(conf.settings, "MQCORE", None) or {}
    if not isinstance(given, dict):
        raise ConfigurationError(f"{_WHERE} is a dict, not {described(given)}")
    check_options(given, MqcoreSettings, _WHERE)
    for name in ("BROKER", "STORE"):
        if "://" not in str(given.get(name, "://")):
            raise ConfigurationError(f"{_WHERE}: {name} is a URL, for instance redis://localhost/0")
    names = given.get("INCLUDE", ())
    if isinstance(names, str) or not all(isinstance(each, str) for each in names):
        raise ConfigurationError(f"{_WHERE}: INCLUDE takes a list of module names")
    check_flag("ON_COMMIT", given.get("ON_COMMIT", False), _WHERE)
    check_duration("RESULT_TTL", given.get("RESULT_TTL", 1.0), _WHERE)
    return given  # type: ignore[return-value]  # it was checked


def broker_url() -> str | None:
    """Return the broker's URL; None where mqcore's own configuration says it."""
    url = mqcore_settings().get("BROKER")
    if url is None:
        return None
    url = _resolved(url)
    default_plugins().backend_for(url.partition("://")[0])
    return url


def store_url() -> str:
    """Return the URL of the table of tasks."""
    url = _resolved(mqcore_settings().get("STORE", f"{_DATABASE}default"))
    default_store_plugins().store_for(url.partition("://")[0])
    return url


def include() -> Sequence[str]:
    """Return the names of further modules with tasks."""
    return mqcore_settings().get("INCLUDE", ())


def result_ttl() -> str | float | timedelta:
    """Return how long an ended task is kept."""
    return mqcore_settings().get("RESULT_TTL", 86_400.0)


def _resolved(url: str) -> str:
    """Return a URL that mqcore knows, for one that may name a database of Django."""
    if not url.startswith(_DATABASE):
        return url
    try:
        return database_url(url.removeprefix(_DATABASE) or None)
    except (ConfigurationError, ConnectionDoesNotExist) as error:
        raise ConfigurationError(
            f"{_WHERE}: {url} cannot be used: {error}. Or give another URL as BROKER and STORE"
        ) from None
