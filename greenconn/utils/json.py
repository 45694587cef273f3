"""JSON with a registry of types (kombu.utils.json)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenconn.jsoncodec import (
    JSONEncoder,
    dumps,
    loads,
    object_hook,
    register_default_types,
    register_type,
)

__all__ = [
    "JSONEncoder",
    "dumps",
    "loads",
    "object_hook",
    "register_type",
    "textual_types",
]

#: kombu's private name.
_register_default_types = register_default_types

if TYPE_CHECKING:
    #: Types whose values are written as their text: Django's lazy translations, if that is installed.
    textual_types: tuple[type, ...]
else:  # or a type checker would let any name pass

    def __getattr__(name: str) -> Any:
        if name != "textual_types":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            from django.utils.functional import Promise  # only for who asks
        except ImportError:
            return ()
        return (Promise,)
