"""Conversion between text and bytes (kombu.utils.encoding)."""

from __future__ import annotations

import sys
from encodings import normalize_encoding
from encodings.aliases import aliases
from functools import lru_cache
from typing import Any, Final, TypeVar, overload

T = TypeVar("T")

#: Codecs that have one name only.  (Not those for host names, which take the square of the time.)
_WITHOUT_ALIAS: Final = (
    *("cp1006", "cp720", "cp737", "cp856", "cp874", "cp875", "koi8_t", "koi8_u", "mac_arabic"),
    *("mac_croatian", "mac_farsi", "mac_romanian", "palmos", "raw_unicode_escape"),
    *("unicode_escape", "utf_8_sig"),
)
#: All names of Python's own codecs -> the one it is known by.
_CHARSETS: Final = {name: name for name in (*aliases.values(), *_WITHOUT_ALIAS)} | aliases

#: The file whose encoding is the default one; None means the file system's encoding.
default_encoding_file: Any = None


def plain_text(value: T) -> T:
    """Return the text that a ``str`` of another class holds; any other value as it is.

    What ``str()`` and ``format()`` make of such a value is up to its class: of a member of an ``Enum``
    that is a ``str`` they make its name.
    """
    if value.__class__ is str or not isinstance(value, str):
        return value
    return str.__str__(value)  # type: ignore[return-value]  # a str is what it is


def set_default_encoding_file(file: Any) -> None:
    """Let the default encoding be that of *file*."""
    global default_encoding_file
    default_encoding_file = file


def get_default_encoding_file() -> Any:
    """Return the file whose encoding is the default one."""
    return default_encoding_file


def default_encoding(file: Any = None) -> str:
    """Return the encoding of *file*, of the default file, or of the file system."""
    file = file or default_encoding_file
    return getattr(file, "encoding", None) or sys.getfilesystemencoding()


@overload
def str_to_bytes(s: str) -> bytes: ...
@overload
def str_to_bytes(s: T) -> T: ...
def str_to_bytes(s: Any) -> Any:
    """Encode text as UTF-8; anything else stays as it is."""
    return s.encode() if isinstance(s, str) else s


@overload
def bytes_to_str(s: bytes) -> str: ...
@overload
def bytes_to_str(s: T) -> T: ...
def bytes_to_str(s: Any) -> Any:
    """Decode bytes as UTF-8, with replacement characters; anything else stays as it is."""
    return s.decode(errors="replace") if isinstance(s, bytes) else s


def from_utf8(s: T, *args: Any, **kwargs: Any) -> T:
    """Return *s* (a relic of Python 2)."""
    return s


@overload
def ensure_bytes(s: str) -> bytes: ...
@overload
def ensure_bytes(s: T) -> T: ...
def ensure_bytes(s: Any) -> Any:
    """Encode text as UTF-8; anything else stays as it is."""
    return s.encode() if isinstance(s, str) else s


def default_encode(obj: T) -> T:
    """Return *obj* (a relic of Python 2)."""
    return obj


def safe_str(s: Any, errors: str = "replace") -> str:
    """Return text for *s* whatever it is: bytes are decoded, objects shown by their repr."""
    if isinstance(s, bytes):
        return s.decode(errors=errors)
    return s if isinstance(s, str) else safe_repr(s, errors)


def safe_repr(o: Any, errors: str = "replace") -> str:
    """Return the repr of *o*, or text that says why there is none.  Never raises an Exception."""
    for describe in (repr, str):
        try:
            return describe(o)
        except Exception as exc:
            reason = f"{type(exc).__name__} in {describe.__name__}()"
    return f"<Unrepresentable {type(o)!r}: {reason}>"


@lru_cache(maxsize=256)
def charset(name: str) -> str | None:
    """Return the character set of that name; None if Python has none.

    The name may be a stranger's, so Python is not asked: it remembers each name that it did not find.
    """
    return _CHARSETS.get(normalize_encoding(name).lower())


class _Charsets(dict[Any, str | None]):
    """Content encoding -> its character set; None: it is not one of text."""

    def __missing__(self, encoding: Any) -> str | None:
        known = charset(encoding) if encoding and isinstance(encoding, str) else None
        if len(self) < 256:
            self[encoding] = known
        return known


charsets: Final = _Charsets()


def as_text(raw: Any, encoding: Any) -> Any:
    """Return a body as amqp's ``auto_decode``: text where *encoding* is one of text, else as it is."""
    try:
        known = charsets[encoding]
        return raw if known is None else str(raw, known)
    except (LookupError, UnicodeError, TypeError):  # not one of text, or text already
        return raw
