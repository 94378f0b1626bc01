"""Secrets are masked wherever a URL is shown. Pure."""

import re
from urllib.parse import unquote

__all__ = ["describe_error", "is_secret", "mask_text", "mask_url"]

_SHOWN = 300
_SECRET = re.compile(r"pass|pwd|secret|token|key|credential|auth|signature", re.IGNORECASE)
_ANY_URL = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]{0,30}://\S*[^\s:;,]"
)  # bounded: a long word takes no square of its length
_PAIR = re.compile(r"([?&])([^=&]*)(=?)([^&]*)")
_NO_PORT = re.compile(r"^([^:\[]*):(?!\d{1,5}$).+$")
_AFTER_HASH = re.compile(r"#.*", re.DOTALL)


def mask_url(url: str) -> str:
    """Return a URL, or text that was meant as one, without its secrets.

    The result is on one line and has at most 300 characters.

    Masks the password, and the values of options whose names sound secret. Where an `@` is in an
    unusual place the end of the password is unknown, so everything but the scheme is masked. Also
    masked are a port that is not a number, and what follows a `#`.
    """
    scheme, mark, rest = url.rpartition("://") if url.count("://") == 1 else ("", "", url)
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, host = authority.rpartition("@")
    if rest.count("@") > 1 or ("@" in rest and not (at and mark)):
        rest = "***"
    else:
        name, colon, _ = user.partition(":")
        if any(_NO_PORT.match(place) for place in host.split(",")):
            host = _NO_PORT.sub(r"\1:***", host)
        rest = f"{name}{colon and ':***'}{at}{host}{rest[len(authority) :]}"

    shown = _PAIR.sub(_masked, f"{scheme}{mark}{rest}")
    shown = _AFTER_HASH.sub("#***", shown)
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def mask_text(text: str) -> str:
    """Return text in which every URL is masked.

    An error of a driver or an application may quote the URL that it was given.
    """
    return _ANY_URL.sub(lambda match: mask_url(match[0]), text)


def describe_error(error: BaseException) -> str:
    """Return an exception's type and text, without the secrets of URLs in it."""
    return mask_text(f"{type(error).__name__}: {error}")


def is_secret(option: str) -> bool:
    """Whether an option's name sounds as if its value must not be shown."""
    return _SECRET.search(unquote(option)) is not None


def _masked(pair: re.Match[str]) -> str:
    start, name, equals, value = pair.groups()
    if not equals:
        return (
            f"{start}***" if name else start
        )  # no option: perhaps the end of a secret that holds a raw `&`
    return f"{start}{name}={'***' if is_secret(name) else value}"
