"""Sending and receiving messages (carrot.messaging)."""

from __future__ import annotations

from greenconn.compat.carrot.messaging.consumer import Consumer
from greenconn.compat.carrot.messaging.consumers import ConsumerSet
from greenconn.compat.carrot.messaging.publisher import Messaging, Publisher

__all__ = ["Consumer", "ConsumerSet", "Messaging", "Publisher"]
