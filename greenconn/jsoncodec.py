"""JSON with typed values, in kombu's format.

A value of a type that JSON lacks is encoded as ``{"__type__": name, "__value__": encoded}``: datetime,
date, time, decimal, uuid, bytes (``bytes`` if they are UTF-8, else ``base64``), and the types added by
:func:`register_type`.

The text of :func:`dumps` is kombu's.  That of a message's body (:func:`encode_body`) has no spaces and
fewer escapes where msgspec encodes it, and means the same: kombu's consumers read both.

msgspec decodes, with the results of the standard library or an error, and encodes the values that
:func:`_is_plain` accepts.  In all other cases (NaN, lone surrogates, typed values) the standard library
does, by one C encoder and one C scanner for all bodies; a Python function is called for each object only
if the text may contain a typed value.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import uuid
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from json import encoder as _json_encoder
from typing import Any, Final, TypeVar

from msgspec.json import Decoder, Encoder

__all__ = [
    "JSONEncoder",
    "NestedTooDeeply",
    "dumps",
    "encode",
    "encode_body",
    "loads",
    "object_hook",
    "register_default_types",
    "register_type",
]

T = TypeVar("T")
Encoded = TypeVar("Encoded")


class NestedTooDeeply(ValueError):
    """JSON that is nested more deeply than Python's recursion limit allows."""


# In order of registration: a subclass must precede its base class (datetime before date).
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
    """Register a type, so that its values can be encoded as JSON and decoded again.

    Arguments:
        t: the type; its subclasses are encoded in the same way.
        marker: the value of ``__type__``.  None writes the result of *encoder* without an envelope.
        encoder: a function that converts a value to a value that JSON supports.
        decoder: a function that converts the encoded value back.  It is not used if *marker* is None.
    """
    _encoders[t] = (marker, encoder)
    if marker is not None:
        _decoders[marker] = decoder


def _default(value: Any) -> Any:
    """Convert a value of a type that JSON lacks."""
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
    plain = as_plain(value, _default)
    if plain is value:
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
    return plain


def _is_lazy_translation(value: Any) -> bool:
    # Such a value can exist only if Django was imported before.
    django = sys.modules.get("django.utils.functional")
    return django is not None and isinstance(value, getattr(django, "Promise", ()))


class JSONEncoder(json.JSONEncoder):
    """A ``json.JSONEncoder`` that supports ``__json__`` methods and the registered types."""

    def default(self, o: Any) -> Any:
        """Convert a value of a type that JSON lacks."""
        return _default(o)


def _make_encode() -> Callable[[Any], str]:
    make: Any = getattr(_json_encoder, "c_make_encoder", None)
    if make is None:  # no C accelerator (PyPy has a fast encoder of its own)
        return JSONEncoder().encode
    # Without markers for circular references, which all greenlets would share.  A circular reference
    # raises RecursionError instead.
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


def encode_body(value: Any) -> str:
    """Return *value* as the JSON text of a message's body.

    Raises:
        TypeError: a value is of a type that is not registered.
        RecursionError: the value is nested too deeply, or contains itself.
    """
    if value.__class__ is dict or value.__class__ is list:
        try:
            if _is_plain(value):
                return str(_plain_encode(value), "utf-8")
        except (ValueError, OverflowError, RecursionError):
            pass  # lone surrogates, integers above 64 bits in older versions, depth
    return encode(value)


def _is_plain(value: Any) -> bool:
    """Return whether a container has only values that msgspec encodes as the standard library does.

    msgspec has formats of its own for bytes, UUIDs and others, and encodes NaN as null.
    """
    if value.__class__ is dict:
        for key in value:
            if key.__class__ is not str:
                return False
        value = value.values()
    for item in value:
        kind = item.__class__
        if kind in _PLAIN_TYPES:
            continue
        if kind is float:
            if item - item != 0.0:  # infinite or NaN
                return False
        elif kind not in _CONTAINERS or not _is_plain(item):
            return False
    return True


_PLAIN_TYPES: Final = frozenset({str, int, bool, type(None)})
_CONTAINERS: Final = frozenset({dict, list, tuple})
_plain_encode: Final = Encoder().encode


def dumps(
    s: Any,
    _dumps: Callable[..., str] = json.dumps,
    cls: type[json.JSONEncoder] = JSONEncoder,
    default_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> str:
    """Return *s* as JSON text.

    Arguments:
        s: the value to encode.
        cls: the class of the encoder.
        default_kwargs, kwargs: further keyword arguments of ``json.dumps``.

    Raises:
        TypeError: a value is of a type that is not registered.
        RecursionError: the value is nested too deeply, or contains itself.
    """
    if cls is JSONEncoder and _dumps is json.dumps and not kwargs and not default_kwargs:
        return encode(s)
    return _dumps(s, cls=cls, **{**(default_kwargs or {}), **kwargs})


def object_hook(o: dict[str, Any]) -> Any:
    """Return the typed value of an envelope; return any other object unchanged.

    Raises:
        ValueError: the type is not registered, or the value is invalid for it.
    """
    if len(o) == 2 and "__type__" in o and "__value__" in o:
        name = o["__type__"]
        decode = _decoders.get(name) if isinstance(name, str) else None
        if decode is None:
            raise ValueError(f"no JSON type {str(name)[:40]!r} is registered")
        try:
            return decode(o["__value__"])
        except (TypeError, AttributeError, LookupError, ArithmeticError) as exc:
            raise ValueError(f"invalid value of JSON type {name!r}: {type(exc).__name__}") from exc
    return o


_plain: Final = json.JSONDecoder()
_plain_scan: Final[Callable[[str, int], tuple[Any, int]]] = vars(_plain)["scan_once"]
_plain_decode: Final = _plain.decode
_typed_decode: Final = json.JSONDecoder(object_hook=object_hook).decode
#: Characters of "__type__", as another encoder may escape them.
_find_escaped: Final = re.compile(r"\\u00[567]").search
_msgspec_decode: Final = Decoder().decode


def loads(
    s: str | bytes | bytearray | memoryview,
    _loads: Callable[..., Any] = json.loads,
    decode_bytes: bool = True,
    object_hook: Callable[[dict[str, Any]], Any] = object_hook,
) -> Any:
    """Decode JSON text and return its value.

    Arguments:
        s: the JSON text.  Bytes must be UTF-8.
        decode_bytes: whether to decode ``bytes`` as UTF-8.  False passes them to the JSON library.
        object_hook: a function that is called with each decoded object, and returns its replacement.

    Raises:
        ValueError: the text is not JSON (``json.JSONDecodeError``), not UTF-8
            (``UnicodeDecodeError``), or nested too deeply (:class:`NestedTooDeeply`).
    """
    try:
        if type(s) is not str:
            if isinstance(s, (bytearray, memoryview)) or (decode_bytes and isinstance(s, bytes)):
                s = str(s, "utf-8")
            else:
                return _loads(s, object_hook=object_hook)
        if object_hook is not _own_hook or _loads is not json.loads:
            return _loads(s, object_hook=object_hook)
        # A backslash first: one character is found several times as fast as three.
        if "__type__" in s or ("\\" in s and "\\u00" in s and _find_escaped(s)):
            return _typed_decode(s)
        try:
            return _msgspec_decode(s)
        except Exception:  # that of older versions is no ValueError
            pass  # NaN, infinity, lone surrogates, large numbers, or an error
        try:
            value, end = _plain_scan(s, 0)
        except StopIteration:
            return _plain_decode(s)  # leading whitespace, or an error, which it locates
        return value if end == len(s) else _plain_decode(s)
    except RecursionError:
        raise NestedTooDeeply("JSON text is nested too deeply") from None


_own_hook: Final = object_hook


def register_default_types() -> None:
    """Register dates, times, decimals and UUIDs.  Importing this module calls this function."""
    register_type(datetime, "datetime", datetime.isoformat, datetime.fromisoformat)
    register_type(date, "date", date.isoformat, lambda text: datetime.fromisoformat(text).date())
    register_type(time, "time", time.isoformat, time.fromisoformat)
    register_type(Decimal, "decimal", str, Decimal)
    register_type(uuid.UUID, "uuid", lambda u: {"hex": u.hex}, lambda fields: uuid.UUID(**fields))


register_default_types()


#: An attribute of the classes of pydantic: models, root models and its dataclasses.
MODEL: Final = "__pydantic_validator__"
#: An attribute of msgspec's Structs.
STRUCT: Final = "__struct_fields__"


def as_plain(value: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """Return an object with fields as plain values, whose own fields may be such objects.

    What is none of these is returned as it is.

    A dataclass is a dict of its fields, an enumeration its value.  A Struct is what msgspec makes of
    it, a model what pydantic makes of it for JSON.

    Arguments:
        other: does this for what msgspec does not know; None: this function.
    """
    kind = type(value)
    if hasattr(kind, MODEL):
        return _model_as_plain(value)
    if hasattr(kind, STRUCT):
        return sys.modules["msgspec"].to_builtins(value, str_keys=True, enc_hook=other or as_plain)
    if hasattr(kind, "__dataclass_fields__"):
        fields = sys.modules["dataclasses"].fields
        return {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, Enum):
        return value.value
    return value


def _model_as_plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is None:  # a dataclass of pydantic
        dump = sys.modules["pydantic"].RootModel[type(value)](value).model_dump
    return dump(mode="json", by_alias=True)
