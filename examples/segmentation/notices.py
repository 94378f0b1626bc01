"""Telling users how their tasks ended: the hook where a service puts its WebSocket or its mail.

    def to_browser(notice: Notice) -> None:
        for socket in sockets_of(notice.task):     # your own register of open pages
            socket.send_json(notice.model_dump())

Each task ends once for its user: with its objects, or failed for good. An attempt that will be
repeated is not told.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from examples.segmentation.images import Tier


class Notice(BaseModel):
    """How a task ended: `task` is the id of its message."""

    model_config = ConfigDict(frozen=True)

    task: str
    name: str
    tier: Tier
    status: Literal["completed", "failed"]
    text: str


Notify: TypeAlias = Callable[[Notice], None]


def into_file(path: Path) -> Notify:
    """Return a hook that appends each notice to a file as a line of JSON."""
    path.unlink(missing_ok=True)

    def notify(notice: Notice) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(notice.model_dump_json() + "\n")

    return notify
