"""A server that is started elsewhere and given by its URL: a CI service, or a local one.

It is used, and neither started, stopped nor killed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, NoReturn
from urllib.parse import urlsplit

from mqcore.contract.brokers.server import Server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.contract.brokers.catalogue import Product

__all__ = ["ExternalServer"]

_QUESTION = 2.0


class ExternalServer(Server):
    """A server known by its URL.

    Its version is asked where neither TLS nor a password prevents it; otherwise it is empty.
    """

    provider: ClassVar[Literal["url"]] = "url"
    controllable: ClassVar[bool] = False

    def __init__(self, name: str, product: Product, url: str) -> None:
        """Take the URL; the driver reports whether it can be reached."""
        parts = urlsplit(url)
        super().__init__(name, product, parts.hostname or "127.0.0.1", parts.port or product.port)
        self.url = url

    def log(self, lines: int = 15) -> str:  # noqa: ARG002 - as every server's
        """Return nothing: the log is not available here."""
        return ""

    def _make(self) -> None:
        """Do nothing: the server exists."""

    def _wait(self, after: str) -> None:  # noqa: ARG002 - as every server's
        if urlsplit(self.url).scheme == self.product.scheme:
            try:
                self.version = self.product.ask(self.host, self.port, _QUESTION).version
            except OSError:
                self.version = ""

    def _not_ours(self) -> NoReturn:
        raise TypeError(
            f"{self.name} was given by its URL, so it cannot be killed, started, paused or used "
            "to run tools (see `controllable`)"
        )

    def _start(self) -> None:
        self._not_ours()

    def _kill(self) -> None:
        self._not_ours()

    def _pause(self) -> None:
        self._not_ours()

    def _resume(self) -> None:
        self._not_ours()

    def _run_tool(self, words: Sequence[str]) -> tuple[int, str]:  # noqa: ARG002 - as every server's
        self._not_ours()

    def _stop(self) -> None:
        """Leave it running."""
