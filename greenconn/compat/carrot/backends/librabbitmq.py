"""carrot's name of the AMQP transport."""

from __future__ import annotations

from greenconn.compat.carrot.backends import get_backend_cls
from greenconn.compat.carrot.backends.base import BaseMessage as Message
from greenconn.compat.carrot.backends.base import QueueAlreadyExistsWarning

__all__ = ["Backend", "Message", "QueueAlreadyExistsWarning"]

Backend = get_backend_cls("librabbitmq")
