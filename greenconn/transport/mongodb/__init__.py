"""The MongoDB transport: kombu's collections, with claims that come back when a process dies."""

from __future__ import annotations

from greenconn.importing import needed

needed("pymongo", "pymongo", "mongodb")

from greenconn.transport.mongodb.transport import Channel, Transport  # noqa: E402 - as said above

__all__ = ["Channel", "Transport"]
