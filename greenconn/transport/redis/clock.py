"""The server's clock, by which leases end."""

from __future__ import annotations

__all__ = ["server_time"]


def server_time(reply: list[bytes]) -> float:
    """Seconds in a reply to ``TIME``."""
    seconds, microseconds = reply
    return int(seconds) + int(microseconds) / 1e6
