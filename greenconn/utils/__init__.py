"""The paths of kombu's utilities, for programs that import them; greenconn itself does not.

Each is defined in the room that uses it, or here where only programs do.
"""

from __future__ import annotations

from greenconn.caching import EqualityDict, cached_property, maybe_list
from greenconn.importing import symbol_by_name
from greenconn.utils.compat import fileno, maybe_fileno, nested, register_after_fork
from greenconn.utils.div import emergency_dump_state
from greenconn.utils.functional import (
    fxrange,
    fxrangemax,
    reprcall,
    reprkwargs,
    retry_over_time,
)
from greenconn.utils.uuid import uuid  # of the module, which else would take the function's place

__all__ = [
    "EqualityDict",
    "cached_property",
    "emergency_dump_state",
    "fileno",
    "fxrange",
    "fxrangemax",
    "maybe_fileno",
    "maybe_list",
    "nested",
    "register_after_fork",
    "reprcall",
    "reprkwargs",
    "retry_over_time",
    "symbol_by_name",
    "uuid",
]
