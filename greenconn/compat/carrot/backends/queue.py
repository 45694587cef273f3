"""carrot's name of the memory transport."""

from __future__ import annotations

from greenconn.compat.carrot.backends import get_backend_cls
from greenconn.compat.carrot.backends.base import BaseMessage as Message

__all__ = ["Backend", "Message"]

Backend = get_backend_cls("queue")
