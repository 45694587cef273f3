"""Looks at a Redis from outside, and waits for what must come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from greenconn import Connection
from greenconn.wire.resp import pack


class Control:
    """A connection of its own that sends plain commands."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(self, *command: Any) -> Any:
        """Send a command; its reply.  May switch."""
        return self._connection.connection.commands.call(pack(*command))

    def calls(self, *names: str) -> int:
        """How often the server has carried out commands.  May switch."""
        count = 0
        for line in self("INFO", "commandstats").decode().splitlines():
            name, _, text = line.partition(":")
            if name.removeprefix("cmdstat_") in names:
                count += int(text.partition("calls=")[2].partition(",")[0])
        return count

    def stat(self, name: str, section: str = "stats") -> str:
        """A field of ``INFO``.  May switch."""
        text: bytes = self("INFO", section)
        return text.decode().partition(f"{name}:")[2].split()[0]

    def is_settled(self) -> bool:
        """Whether nobody holds a message.  May switch."""
        return not (self("HLEN", "unacked") or self("ZCARD", "unacked_index"))


@contextmanager
def control(url: str) -> Iterator[Control]:
    """A control of the server at *url*."""
    with Connection(url) as connection:
        yield Control(connection)
