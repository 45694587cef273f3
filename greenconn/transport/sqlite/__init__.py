"""SQLite: a durable broker in a file, which the processes of one machine share without a server."""

from greenconn.transport.sqlite.transport import Channel, Transport

__all__ = ["Channel", "Transport"]
