"""A server that somebody else runs, given by its URL: a service of the CI, or one started by hand.

It is used, never touched.
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

    Its version is asked where no TLS and no password are in the way, and else left empty.
    """

    provider: ClassVar[Literal["url"]] = "url"
    controllable: ClassVar[bool] = False

    def __init__(self, name: str, product: Product, url: str) -> None:
        """Take it as it is; whether it can be reached is the driver's to say, in its own words."""
        parts = urlsplit(url)
        super().__init__(name, product, parts.hostname or "127.0.0.1", parts.port or product.port)
        self.url = url

    def log(self, lines: int = 15) -> str:  # noqa: ARG002 - as every server's
        """Return nothing: its log is not ours to read."""
        return ""

    def _make(self) -> None:
        """There is nothing to make."""

    def _wait(self, after: str) -> None:  # noqa: ARG002 - as every server's
        if urlsplit(self.url).scheme == self.product.scheme:
            try:
                self.version = self.product.ask(self.host, self.port, _QUESTION).version
            except OSError:
                self.version = ""

    def _not_ours(self) -> NoReturn:
        raise TypeError(
            f"{self.name} was given by its URL: it is not ours to kill, start, pause or run "
            "tools in (see `controllable`)"
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
