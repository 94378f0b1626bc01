"""Content encodings and charsets of foreign messages: undone within a bound, or named."""

from __future__ import annotations

import gzip
import zlib
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqcore.errors import DecodeError
from mqcore.messages.codec import Codecs, Payload
from mqcore.messages.encoding import charset_of, undone

TEXT = '{"name": "Grüße"}'
BODY = TEXT.encode()
MOST = 1000


def raw_deflate(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(body) + compressor.flush()


@pytest.mark.parametrize(
    ("sent", "encoding", "charset"),
    [
        (gzip.compress(BODY), "gzip", None),
        (gzip.compress(BODY), " X-GZip ", None),
        (gzip.compress(BODY[:5]) + gzip.compress(BODY[5:]), "gzip", None),
        (zlib.compress(BODY), "deflate", None),
        (raw_deflate(BODY), "deflate", None),
        (gzip.compress(zlib.compress(BODY)), "deflate, gzip", None),
        (gzip.compress(TEXT.encode("latin-1")), "gzip", "latin-1"),
        (TEXT.encode("utf-16"), None, "UTF-16"),
        (TEXT.encode("cp1252"), None, "windows-1252"),
        (BODY, "utf-8", None),  # as kombu writes it
        (TEXT.encode("latin-1"), "iso-8859-1", None),
        (BODY, "binary", None),
        (BODY, "identity", "utf8"),
        (BODY, None, None),
    ],
)
def test_what_a_plain_client_encodes_is_decoded(
    sent: bytes, encoding: str | None, charset: str | None
) -> None:
    assert undone(sent, encoding, charset, MOST) == BODY


@pytest.mark.parametrize(
    ("sent", "encoding", "charset", "named"),
    [
        (BODY, "br", None, "content encoding 'br' is not supported"),
        (BODY, "gzip", None, "content encoding 'gzip'"),
        (gzip.compress(BODY)[:-9], "gzip", None, "ends too soon"),
        (gzip.compress(BODY) + b"more", "gzip", None, "content encoding 'gzip'"),
        (b"", "deflate", None, "content encoding 'deflate'"),
        (gzip.compress(bytes(MOST + 1)), "gzip", None, "more than 1,000 bytes"),
        (zlib.compress(bytes(10**8)), "deflate", None, "more than 1,000 bytes"),
        (
            gzip.compress(bytes(600)) + gzip.compress(bytes(600)),
            "gzip",
            None,
            "more than 1,000 bytes",
        ),
        (BODY, ",".join(["gzip"] * 4), None, "4 content encodings, and 3 are allowed"),
        (BODY, "zlib_codec", None, "content encoding 'zlib_codec' is not supported"),
        (BODY, None, "klingon", "charset 'klingon' is not supported"),
        (BODY, None, "rot13", "charset 'rot13' is not supported"),
        (BODY, None, "unicode_escape", "charset 'unicode_escape' is not supported"),
        (BODY + b"\xff", None, "ascii", "charset 'ascii': the body is not written in it"),
    ],
)
def test_what_cannot_be_decoded_is_named(
    sent: bytes, encoding: str | None, charset: str | None, named: str
) -> None:
    with pytest.raises(DecodeError) as error:
        undone(sent, encoding, charset, MOST)
    assert named in str(error.value)


ENCODINGS = st.text(max_size=20) | st.sampled_from(["gzip", "deflate", "gzip, utf-16"])


@given(st.binary(max_size=80), ENCODINGS, st.none() | st.text(max_size=9))
@example(b"", "gzip", "\x00")
def test_any_body_is_decoded_or_named(body: bytes, encoding: str, charset: str | None) -> None:
    with suppress(DecodeError):
        assert len(undone(body, encoding, charset, MOST)) <= 4 * MOST


def test_a_payload_of_bytes_is_as_it_was_sent() -> None:
    sent, codecs = gzip.compress(BODY), Codecs.default()
    assert Payload(bytes).decode(sent, "application/json; charset=utf-16", codecs, "gzip") == sent
    assert Payload(str).decode(sent, None, codecs, "gzip") == TEXT
    assert Payload(dict[str, str]).decode(sent, "application/json", codecs, "gzip") == {
        "name": "Grüße"
    }


def test_the_bound_is_that_of_a_payload() -> None:
    sent = gzip.compress(b'"' + b"x" * 2000 + b'"')
    assert len(Payload(str, "json").decode(sent, None, Codecs.default(), "gzip")) == 2000
    with pytest.raises(DecodeError, match="more than 1,000 bytes"):
        Payload(str, "json").decode(sent, None, Codecs.default().bounded(MOST), "gzip")


@pytest.mark.parametrize(
    ("content_type", "charset"),
    [
        ("text/plain", None),
        ("text/plain; charset=UTF-8", "utf-8"),
        ('a/b; x=y; Charset="x"', "x"),
        ("a/b; charset=", ""),
    ],
)
def test_a_charset_is_found(content_type: str, charset: str | None) -> None:
    assert charset_of(content_type) == charset
