"""The transport options of CouchDB."""

from __future__ import annotations

from greenconn.broker.options import StoreOptions
from greenconn.checks import check_count, check_seconds, invalid


class CouchOptions(StoreOptions):
    """The options of a connection to CouchDB."""

    feed_heartbeat: float = 10.0
    """Seconds between heartbeats of the server in the changes feed; the connection is lost after
    three without data."""

    max_http_connections: int = 10
    """Maximum number of HTTP connections, without that of the changes feed."""

    def __post_init__(self) -> None:
        StoreOptions.__post_init__(self)
        check_seconds(self, "feed_heartbeat", optional=False)
        check_count(self, "max_http_connections", least=1, optional=False)
        if self.feed_heartbeat < 0.1:
            raise invalid(self, "feed_heartbeat", "a number of seconds, at least 0.1")
