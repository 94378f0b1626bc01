"""What several cases share."""

from __future__ import annotations

from mqcore.spi import (
    Capability,
)

DEDUP = "Backend.publish: DEDUP by Message.copy_name"


COPIES = "where the driver writes and reads a Message; pack and unpack of mqcore.spi"


WINDOWS = (Capability.DEDUP,)
