"""Serializers (carrot.serialization): those of :mod:`greenconn.serialization` under carrot's names.

pickle and yaml are not decoded unless the program calls ``enable_insecure_serializers``: carrot decoded
them always, so that every publisher could run code.
"""

from __future__ import annotations

from typing import Any

from greenconn.exceptions import SerializerNotInstalled
from greenconn.serialization import SerializerRegistry, raw_encode, registry

__all__ = [
    "SerializerNotInstalled",
    "SerializerRegistry",
    "decode",
    "encode",
    "raw_encode",
    "registry",
    "set_default_serializer",
]


def encode(data: Any, serializer: str | None = None) -> tuple[str, str, Any]:
    """Return content type, content encoding and the serialised body.

    Arguments:
        serializer: its name; None: JSON, text and bytes as they are.

    Raises:
        SerializerNotInstalled: there is none of this name.
        EncodeError: it cannot serialise this.
    """
    return registry.dumps(data, serializer)


def decode(data: Any, content_type: str | None, content_encoding: str | None) -> Any:
    """Return what was serialised.

    Raises:
        ContentDisallowed: the content type is not enabled.
        DecodeError: it is malformed.
    """
    return registry.loads(data, content_type, content_encoding)


def set_default_serializer(name: str) -> None:
    """Serialise with *name* where nothing is said.

    Raises:
        SerializerNotInstalled: there is none of this name.
    """
    registry._set_default_serializer(name)
