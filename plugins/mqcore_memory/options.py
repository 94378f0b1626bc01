"""The options of a URL such as `memory://shop?dedup_window=60`."""

from typing import Annotated

from pydantic import Field, SkipValidation

from mqcore.spi import Clock, Options, SystemClock

__all__ = ["TEN_YEARS", "MemoryOptions"]

TEN_YEARS = 10.0 * 365 * 86_400


class MemoryOptions(Options):
    """Options of the memory backend; times in seconds.

    `dedup_window` and `dedup_size`: how long, and for how many messages, each queue remembers the
    ids that were published to it; whichever limit is reached first. `max_delay`: a longer delay is
    refused. `clock`: core sets it to the clock of the Broker.
    """

    clock: Annotated[Clock, SkipValidation] = Field(default_factory=SystemClock, repr=False)
    dedup_window: float = Field(default=600.0, gt=0)
    dedup_size: int = Field(default=1_000_000, gt=0)
    max_delay: float = Field(default=TEN_YEARS, gt=0, le=TEN_YEARS)
