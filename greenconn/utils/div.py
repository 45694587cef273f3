"""Dumps of messages that cannot be kept at the broker (kombu.utils.div)."""

from __future__ import annotations

from greenconn.transport.hooks.channel import (
    emergency_dump_state,
)

__all__ = [
    "emergency_dump_state",
]
