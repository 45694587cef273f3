"""Headers of messages that are sent as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from greenconn.jsoncodec import dumps

__all__ = ["UNSENDABLE", "check_headers", "unsendable"]

#: What the codec raises.
UNSENDABLE = (TypeError, ValueError, RecursionError)


def check_headers(headers: Mapping[str, Any]) -> None:
    """Refuse headers that cannot be sent.

    Raises:
        ValueError: names the first one, and no value, which may be a secret.
    """
    try:
        dumps(headers)
    except UNSENDABLE:
        raise unsendable(headers, {}) from None


def unsendable(headers: Mapping[str, Any] | None, properties: Mapping[str, Any]) -> ValueError:
    """Return the error of a message of which a header or a property is nothing for JSON."""
    for what, given in (("header", headers or {}), ("property", properties)):
        for key, value in given.items():
            try:
                dumps({key: value})
            except UNSENDABLE:
                kind = type(value).__name__
                inside = ", or in it," if isinstance(value, (Mapping, list, tuple)) else ""
                return ValueError(
                    f"{what} {key!r}: a value of type {kind}{inside} cannot be sent as JSON"
                )
    return ValueError("the headers cannot be sent as JSON")
