"""The least that a transport asks of a connection: for tests below the connection."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit


class TinyClient:
    """Stands for a ``Connection``.

    Arguments:
        url: of the broker.
        options: the transport options.
    """

    def __init__(self, url: str = "memory://", **options: Any) -> None:
        parts = urlsplit(url)
        self.hostname = parts.hostname
        self.port = parts.port
        self.userid = unquote(parts.username) if parts.username else None
        self.password = unquote(parts.password) if parts.password else None
        self.virtual_host = unquote(parts.path[1:]) or "/"
        self.login_method = None
        self.ssl = False
        self.connect_timeout = 10.0
        self.heartbeat = 0
        self.transport_options = options

    def as_uri(self) -> str:
        """For messages."""
        return f"tiny://{self.hostname}:{self.port}/{self.virtual_host}"
