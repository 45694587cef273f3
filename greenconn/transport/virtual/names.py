"""Names of queues and routing keys: those of strangers, and those that are made up."""

from __future__ import annotations

import base64
import uuid
from typing import Any

__all__ = ["generated_name", "is_name"]


def is_name(value: Any) -> bool:
    """Whether *value*, which a stranger may have written, can name something."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a character
        return False
    return True


def generated_name(prefix: str) -> str:
    """Return a name such as a server makes: *prefix* and 22 letters that nobody else has."""
    return prefix + base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
