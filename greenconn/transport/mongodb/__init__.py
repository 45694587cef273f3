"""The MongoDB transport: kombu's collections, with claims that come back when a process dies."""

from __future__ import annotations

from greenconn.transport.mongodb.transport import Channel, Transport

__all__ = ["Channel", "Transport"]
