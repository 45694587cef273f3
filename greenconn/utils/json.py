"""JSON with a registry of types (kombu.utils.json)."""

from __future__ import annotations

from greenconn.jsoncodec import (
    JSONEncoder,
    dumps,
    loads,
    object_hook,
    register_type,
    textual_types,
)

__all__ = [
    "JSONEncoder",
    "dumps",
    "loads",
    "object_hook",
    "register_type",
    "textual_types",
]
