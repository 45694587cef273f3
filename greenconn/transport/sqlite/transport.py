"""The transport over a SQLite file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from greenconn.broker.channel import StoreChannel
from greenconn.broker.link import StoreLink
from greenconn.broker.transport import StoreOptions, StoreTransport
from greenconn.transport.sqlite.database import SqliteOptions
from greenconn.transport.sqlite.store import SqliteStore

#: How to write the address.
_FORM = "write sqlite:///relative.db or sqlite:////absolute/path.db"


class Channel(StoreChannel[StoreLink]):
    """A channel over a SQLite file."""

    supported_arguments = replace(
        StoreChannel.supported_arguments,
        queue=StoreChannel.supported_arguments.queue
        | {
            "x-expires",
            "x-max-length",
            "x-max-length-bytes",
            "x-overflow",
            "x-single-active-consumer",
        },
    )


class Transport(StoreTransport):
    """``sqlite:///path.db``: one file, shared by the processes of one machine, without a server.

    ``transport_options`` are those of :class:`~greenconn.transport.sqlite.database.SqliteOptions`.
    """

    Channel = Channel
    Options: ClassVar[type[StoreOptions]] = SqliteOptions
    driver_type = "sqlite"
    driver_name = "sqlite3"
    default_port = None
    has_host = False

    @property
    def path(self) -> str:
        """The file, as an absolute path.

        Raises:
            ValueError: the address names none.
        """
        client = self.client
        host: str | None = client.hostname
        path: str | None = client.virtual_host
        if host and host != "localhost":
            raise ValueError(f"{client.as_uri()}: a SQLite file has no host {host!r}; {_FORM}")
        if not path or path == "/":
            raise ValueError(f"{client.as_uri()}: a URL must name a SQLite file; {_FORM}")
        if path == ":memory:":
            raise ValueError(
                f"{client.as_uri()}: an in-memory database cannot be shared; use memory:// for a "
                f"broker in this process"
            )
        if "\0" in path:
            raise ValueError(f"{client.as_uri()}: a path must not contain a zero byte; {_FORM}")
        return os.path.abspath(path)

    def place(self) -> str:
        """Return the file."""
        return os.path.realpath(self.path)

    def make_store(self, wake: Callable[[str | None], None]) -> SqliteStore:
        """Return a store that is not open yet."""
        return SqliteStore(self.client, wake, self.path, self.options)

    def driver_version(self) -> str:
        return sqlite3.sqlite_version

    @property
    def default_connection_params(self) -> dict[str, Any]:
        return {}
