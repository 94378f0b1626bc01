"""How one message is run, where a consumer treats its messages differently. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType
from typing import TYPE_CHECKING, Literal

from mqcore.errors import ConfigurationError
from mqcore.rules.checks import check_seconds
from mqcore.rules.retry import RetryPolicy

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["MODES", "Mode", "Profile"]

Mode = Literal["async", "thread", "process"]
"""Where a handler runs: in the event loop, in a thread, or in a process of its own."""
MODES: tuple[Mode, ...] = ("async", "thread", "process")


@dataclass(frozen=True, slots=True)
class Profile:
    """How one message is run, in place of its consumer's own settings. What is left out is theirs.

    `mode` is that of the consumer's handler, or one of its `modes`. `timeout` is in seconds, None
    for no limit. `retry` is the policy for this message (G10). Raises `ConfigurationError` for a
    value that could not work.
    """

    mode: Mode | None = None
    timeout: float | timedelta | EllipsisType | None = ...
    retry: RetryPolicy | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be acted on."""
        if self.mode is not None and self.mode not in MODES:
            raise ConfigurationError(
                f"profile: mode={self.mode!r:.60} is unknown; it is one of {', '.join(MODES)}"
            )
        if self.timeout is not None and not isinstance(self.timeout, EllipsisType):
            check_seconds("timeout", self.timeout, "profile")
        if self.retry is not None and not isinstance(self.retry, RetryPolicy):
            raise ConfigurationError(
                f"profile: retry={self.retry!r:.60} is not a RetryPolicy; give "
                "RetryPolicy(max_attempts=…)"
            )
