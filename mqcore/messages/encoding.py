"""Content encodings and charsets of foreign messages, undone within a bound. Pure.

    body, "gzip", "iso-8859-1" ─► decompress, at most so many bytes ─► UTF-8

mqcore itself sends neither. A plain client may: AMQP has a property `content_encoding`, which most
clients fill with a compression and some (kombu) with a charset.
"""

from __future__ import annotations

import codecs
import zlib

from mqcore.errors import DecodeError

__all__ = ["MOST", "charset_of", "undone"]

MOST = 1024 * 1024
"""Default limit in bytes of a decompressed body: as much as a payload may have."""
_LAYERS = 3
"""Encodings of one body at most: each is another chance for a small body to become a large one."""
_NONE = {"", "identity", "binary", "7bit", "8bit"}
_COMPRESSED = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""Names of compressions, and how zlib calls their format."""
_RAW_DEFLATE = -15
_CHARSETS = {
    *(
        "utf-8",
        "ascii",
        "iso8859-1",
        "utf-16",
        "utf-16-le",
        "utf-16-be",
        "utf-32",
        "utf-32-le",
        "utf-32-be",
    ),
    *(f"iso8859-{part}" for part in (*range(2, 12), *range(13, 17))),
    *(f"cp125{page}" for page in range(9)),
    *(
        "koi8-r",
        "koi8-u",
        "shift_jis",
        "euc_jp",
        "iso2022_jp",
        "euc_kr",
        "gb2312",
        "gbk",
        "gb18030",
        "big5",
    ),
}
"""By Python's names. Python has others that are not charsets, or take quadratic time (idna)."""


def charset_of(content_type: str) -> str | None:
    """Return the charset that a content type names, None when it names none."""
    if ";" not in content_type:
        return None

    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip(' "').lower()

    return None


def undone(body: bytes, encoding: str | None, charset: str | None, most: int) -> bytes:
    """Return a body without its content encodings, as UTF-8.

    Raises `DecodeError` that names the encoding or charset when it is not supported, when the body
    is not written in it, and when the result would have more than `most` bytes.
    """
    names = [name.strip().lower() for name in (encoding or "").split(",")]
    if len(names) > _LAYERS:
        raise DecodeError(f"it has {len(names):,} content encodings, and {_LAYERS} are allowed")

    for name in reversed(names):
        if name in _COMPRESSED:
            body = _decompressed(body, name, most)
        elif name in _NONE:
            continue
        elif _is_charset(name):
            charset = charset or name
        else:
            supported = ", ".join(_COMPRESSED)
            raise DecodeError(
                f"content encoding {name!r:.60} is not supported; supported are {supported} and "
                "charsets"
            )

    return body if charset is None else _utf8(body, charset)


def _decompressed(body: bytes, name: str, most: int) -> bytes:
    """Decompress, and stop as soon as there is too much."""
    form = _COMPRESSED[name]
    if name == "deflate" and not _has_zlib_header(body):
        form = _RAW_DEFLATE  # what some clients call deflate is without zlib's header
    plain = bytearray()

    while True:
        decompressor = zlib.decompressobj(form)
        try:
            plain += decompressor.decompress(body, most + 1 - len(plain))
        except zlib.error:
            raise DecodeError(
                f"content encoding {name!r}: the body is not compressed so, or is damaged"
            ) from None

        if len(plain) > most:
            raise DecodeError(
                f"content encoding {name!r}: the body has more than {most:,} bytes when "
                "decompressed; "
                "a larger payload is allowed by limits=Limits(payload=...)"
            )
        if not decompressor.eof:
            raise DecodeError(f"content encoding {name!r}: the compressed body ends too soon")

        body = decompressor.unused_data
        if not body:
            return bytes(plain)


def _has_zlib_header(body: bytes) -> bool:
    """Whether a body begins with a header of RFC 1950: method deflate, and a valid check."""
    return (
        len(body) > 1
        and body[0] & 0x0F == zlib.DEFLATED
        and int.from_bytes(body[:2], "big") % 31 == 0
    )


def _is_charset(name: str) -> bool:
    try:
        return codecs.lookup(name).name in _CHARSETS
    except (LookupError, ValueError):
        return False


def _utf8(body: bytes, charset: str) -> bytes:
    if not _is_charset(charset):
        raise DecodeError(f"charset {charset!r:.60} is not supported")
    if (name := codecs.lookup(charset).name) == "utf-8":
        return body

    try:
        return body.decode(name).encode()
    except UnicodeError:
        raise DecodeError(f"charset {charset!r}: the body is not written in it") from None
