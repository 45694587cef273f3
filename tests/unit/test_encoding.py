"""Between text and bytes."""

from __future__ import annotations

import io
import sys

from greenconn import encoding
from greenconn.encoding import (
    bytes_to_str,
    default_encode,
    default_encoding,
    ensure_bytes,
    from_utf8,
    get_default_encoding_file,
    safe_repr,
    safe_str,
    set_default_encoding_file,
    str_to_bytes,
)


class Unwilling:
    def __repr__(self) -> str:
        raise KeyError("no")


class Half(Unwilling):
    def __str__(self) -> str:
        return "half"


def test_text_and_bytes() -> None:
    assert str_to_bytes("ä") == b"\xc3\xa4"
    assert str_to_bytes(b"\xff") == b"\xff"
    assert bytes_to_str(b"\xc3\xa4\xff") == "ä\ufffd"
    assert bytes_to_str("ä") == "ä"
    assert ensure_bytes("ä") == b"\xc3\xa4"
    assert ensure_bytes(b"x") == b"x"
    assert str_to_bytes(3) == bytes_to_str(3) == ensure_bytes(3) == 3
    assert from_utf8("x", 1, errors="y") == default_encode("x") == "x"


def test_default_encoding() -> None:
    assert default_encoding() == sys.getfilesystemencoding()
    file = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    assert default_encoding(file) == "latin-1"
    set_default_encoding_file(file)
    try:
        assert get_default_encoding_file() is file
        assert default_encoding() == "latin-1"
    finally:
        set_default_encoding_file(None)
    assert encoding.default_encoding_file is None


def test_safe_str() -> None:
    assert safe_str("ä") == "ä"
    assert safe_str(b"\xff") == "\ufffd"
    assert safe_str([1]) == "[1]"
    assert safe_str(Half()) == "half"
    assert safe_str(Unwilling()).startswith("<Unrepresentable <class")


def test_safe_repr() -> None:
    assert safe_repr("ä") == "'ä'"
    assert "KeyError" in safe_repr(Unwilling())
