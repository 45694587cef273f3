"""Between text and bytes."""

from __future__ import annotations

import encodings
import io
import sys
from typing import Any

import pytest

from greenconn import encoding
from greenconn.encoding import (
    as_text,
    bytes_to_str,
    charset,
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
from tests.unit.test_log import Unwilling


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


def test_character_sets_by_all_their_names() -> None:
    assert charset("UTF-8") == charset("utf8") == "utf_8"
    assert as_text(b"\xe4", "ISO-8859-1") == as_text(b"\xe4", "latin1") == "ä"
    for name in ("cp1252", "koi8-u", "utf-8-sig", "ascii", "utf-16-le", "big5", "cp874"):
        assert as_text("x".encode(name), name) == "x"


@pytest.mark.parametrize(
    "name", ["no-such", "", "binary", "zlib", "punycode", "idna", 5, [], None, "a.b"]
)
def test_what_is_no_character_set_leaves_a_body_as_it_is(name: Any) -> None:
    assert as_text(b"x", name) == b"x"


def test_names_of_other_programs_are_not_kept() -> None:
    known = len(encodings._cache)
    for number in range(1000):
        assert as_text(b"x", f"stranger-{number}") == b"x"
    assert len(encodings._cache) == known
