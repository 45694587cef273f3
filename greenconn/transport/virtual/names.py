"""Names of queues and routing keys, as far as strangers may have written them."""

from __future__ import annotations

from typing import Any

__all__ = ["is_name"]


def is_name(value: Any) -> bool:
    """Whether *value*, which a stranger may have written, can name something."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a character
        return False
    return True
