"""JSON with typed values, as kombu writes it.

Values that JSON does not know travel as ``{"__type__": name, "__value__": encoded}``: datetime,
date, time, decimal, uuid, bytes (``bytes`` when they are UTF-8, else ``base64``), and what
:func:`register_type` adds.

The text is kombu's to the byte.  What makes this quicker: one C encoder and one C scanner are kept
instead of being made for each body, and the decoder calls into Python for objects only when the
text can hold a typed value at all.
"""

from __future__ import annotations

import base64
import json
import sys
import uuid
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from json import encoder as _json_encoder
from typing import Any, Final, TypeVar

__all__ = [
    "JSONEncoder",
    "NestedTooDeeply",
    "dumps",
    "encode",
    "loads",
    "object_hook",
    "register_default_types",
    "register_type",
]

T = TypeVar("T")
Encoded = TypeVar("Encoded")


class NestedTooDeeply(ValueError):
    """JSON that is nested more deeply than Python's stack goes."""


# In order of registration, since a subclass must come before its base (datetime before date).
_encoders: dict[type, tuple[str | None, Callable[[Any], Any]]] = {}
_decoders: dict[str, Callable[[Any], Any]] = {
    "bytes": lambda text: text.encode("utf-8"),
    "base64": lambda text: base64.b64decode(text.encode("utf-8")),
}


def _same(value: Any) -> Any:
    return value


def register_type(
    t: type[T],
    marker: str | None,
    encoder: Callable[[T], Encoded],
    decoder: Callable[[Encoded], T] = _same,
) -> None:
    """Let values of type *t* travel in JSON.

    Arguments:
        t: the type; its subclasses are encoded the same way.
        marker: the name on the wire; None writes what *encoder* returns without an envelope.
        encoder: turns the value into something that JSON knows.
        decoder: turns that back; not used when *marker* is None.
    """
    _encoders[t] = (marker, encoder)
    if marker is not None:
        _decoders[marker] = decoder


def _default(value: Any) -> Any:
    """Encode a value that JSON does not know."""
    reducer = getattr(value, "__json__", None)
    if reducer is not None:
        return reducer()
    if _is_lazy_translation(value):
        return str(value)
    for known, (marker, encode) in _encoders.items():
        if isinstance(value, known):
            encoded = encode(value)
            return encoded if marker is None else {"__type__": marker, "__value__": encoded}
    if isinstance(value, bytes):
        try:
            return {"__type__": "bytes", "__value__": value.decode("utf-8")}
        except UnicodeDecodeError:
            return {"__type__": "base64", "__value__": base64.b64encode(value).decode("ascii")}
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _is_lazy_translation(value: Any) -> bool:
    # Such a value exists only if Django was imported, so there is no need to import it here.
    django = sys.modules.get("django.utils.functional")
    return django is not None and isinstance(value, getattr(django, "Promise", ()))


class JSONEncoder(json.JSONEncoder):
    """A ``json.JSONEncoder`` that knows ``__json__`` methods and the registered types."""

    def default(self, o: Any) -> Any:
        """Encode a value that JSON does not know."""
        return _default(o)


def _make_encode() -> Callable[[Any], str]:
    make: Any = getattr(_json_encoder, "c_make_encoder", None)
    if make is None:  # no C accelerator (PyPy has a quick encoder of its own)
        return JSONEncoder().encode
    # No markers for circular references: they would be shared by all greenlets.  A circle ends as a
    # RecursionError instead.
    chunks = make(
        None,
        _default,
        _json_encoder.encode_basestring_ascii,
        None,
        ": ",
        ", ",
        False,
        False,
        True,
    )
    join = "".join

    def encoded(value: Any) -> str:
        return join(chunks(value, 0))

    return encoded


#: Return a value as JSON text: :func:`dumps` without its options.
encode: Final = _make_encode()


def dumps(
    s: Any,
    _dumps: Callable[..., str] = json.dumps,
    cls: type[json.JSONEncoder] = JSONEncoder,
    default_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> str:
    """Return *s* as JSON text.

    Arguments:
        s: the value.
        cls: the encoder class.
        default_kwargs, kwargs: for ``json.dumps``.

    Raises:
        TypeError: a value is of a type that is not registered.
        RecursionError: it is nested too deeply, or in a circle.
    """
    if cls is JSONEncoder and _dumps is json.dumps and not kwargs and not default_kwargs:
        return encode(s)
    return _dumps(s, cls=cls, **{**(default_kwargs or {}), **kwargs})


def object_hook(o: dict[str, Any]) -> Any:
    """Turn the envelope of a typed value into the value; other objects stay as they are.

    Raises:
        ValueError: the type is not registered, or the value is none of that type.
    """
    if len(o) == 2 and "__type__" in o and "__value__" in o:
        name = o["__type__"]
        decode = _decoders.get(name) if isinstance(name, str) else None
        if decode is None:
            raise ValueError(f"no JSON type {str(name)[:40]!r} is registered")
        try:
            return decode(o["__value__"])
        except (TypeError, AttributeError, LookupError, ArithmeticError) as exc:
            raise ValueError(f"no value of JSON type {name!r}: {type(exc).__name__}") from exc
    return o


_plain: Final = json.JSONDecoder()
_plain_scan: Final[Callable[[str, int], tuple[Any, int]]] = vars(_plain)["scan_once"]
_plain_decode: Final = _plain.decode
_typed_decode: Final = json.JSONDecoder(object_hook=object_hook).decode


def loads(
    s: str | bytes | bytearray | memoryview,
    _loads: Callable[..., Any] = json.loads,
    decode_bytes: bool = True,
    object_hook: Callable[[dict[str, Any]], Any] = object_hook,
) -> Any:
    """Return the value of JSON text.

    Arguments:
        s: the text; bytes are UTF-8.
        decode_bytes: False leaves ``bytes`` to the JSON library.
        object_hook: called with each object.

    Raises:
        ValueError: it is not JSON (``json.JSONDecodeError``), not UTF-8 (``UnicodeDecodeError``), or
            nested too deeply (:class:`NestedTooDeeply`).
    """
    try:
        if s.__class__ is not str:
            if isinstance(s, (bytearray, memoryview)) or (decode_bytes and isinstance(s, bytes)):
                s = str(s, "utf-8")
            else:
                return _loads(s, object_hook=object_hook)
        if object_hook is not _own_hook or _loads is not json.loads:
            return _loads(s, object_hook=object_hook)
        # A foreign encoder might write the letters of the marker as \u00xx.
        if "__type__" in s or "\\u00" in s:
            return _typed_decode(s)
        try:
            value, end = _plain_scan(s, 0)
        except StopIteration:
            return _plain_decode(s)  # blanks in front, or an error that says where
        return value if end == len(s) else _plain_decode(s)
    except RecursionError:
        raise NestedTooDeeply("it is nested too deeply") from None


_own_hook: Final = object_hook


def register_default_types() -> None:
    """Register dates, times, decimals and UUIDs, as they are when the module is imported."""
    register_type(datetime, "datetime", datetime.isoformat, datetime.fromisoformat)
    register_type(date, "date", date.isoformat, lambda text: datetime.fromisoformat(text).date())
    register_type(time, "time", time.isoformat, time.fromisoformat)
    register_type(Decimal, "decimal", str, Decimal)
    register_type(uuid.UUID, "uuid", lambda u: {"hex": u.hex}, lambda fields: uuid.UUID(**fields))


register_default_types()
