"""Formats that need a package of their own, and what is said when a body fits no format."""

from __future__ import annotations

import importlib
from json import JSONDecodeError
from typing import Any

from greenconn.exceptions import DecodeError, EncodeError, SerializerNotInstalled

__all__ = [
    "decode_error",
    "encode_error",
    "msgpack_dumps",
    "msgpack_loads",
    "yaml_dumps",
    "yaml_loads",
]


def _needed(module: str, package: str) -> Any:
    """Import *module* when it is first needed: it is optional, and slow to start with."""
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise SerializerNotInstalled(
            f"No encoder/decoder installed for {module}: pip install {package}"
        ) from exc


def yaml_dumps(value: Any) -> Any:
    """Encode as YAML, with its safe types only."""
    return _needed("yaml", "PyYAML").safe_dump(value)


def yaml_loads(body: Any) -> Any:
    """Decode YAML; it makes no objects but those of its safe types."""
    # PyYAML takes what is neither text nor bytes for a file.
    is_buffer = isinstance(body, (bytearray, memoryview))
    return _needed("yaml", "PyYAML").safe_load(bytes(body) if is_buffer else body)


def msgpack_dumps(value: Any) -> Any:
    """Encode as MessagePack, with text and bytes apart."""
    return _needed("msgpack", "msgpack").packb(value, use_bin_type=True)


def msgpack_loads(body: Any) -> Any:
    """Decode MessagePack."""
    return _needed("msgpack", "msgpack").unpackb(body, raw=False)


def encode_error(exc: BaseException, content_type: str) -> EncodeError:
    """Return the error for a value that cannot be encoded; it never quotes the value."""
    reason = type(exc).__name__
    # json's own words name types only.  Those of others may quote the body.
    if isinstance(exc, TypeError) and str(exc).startswith(("Object of type ", "keys must be ")):
        reason += f": {exc}"
    return EncodeError(f"cannot encode a body as {content_type}: {reason}")


def decode_error(exc: BaseException, what: str) -> DecodeError:
    """Return the error for a body that cannot be decoded; it never quotes the body."""
    reason = type(exc).__name__
    if isinstance(exc, JSONDecodeError):
        reason += f" at character {exc.pos}"
    elif isinstance(exc, UnicodeDecodeError):
        reason += f" at byte {exc.start}: {exc.reason}"
    return DecodeError(f"cannot decode a body {what}: {reason}")
