"""CouchDB: ``couchdb://host:5984/database``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Final

from greenconn._version import __version__
from greenconn.broker.channel import StoreChannel
from greenconn.broker.link import StoreLink
from greenconn.broker.transport import StoreOptions, StoreTransport
from greenconn.checks import check_count, check_seconds, invalid
from greenconn.credentials import supplied
from greenconn.green.http import HttpClient
from greenconn.transport.couchdb.store import CouchStore
from greenconn.url import BrokerURL

__all__ = ["Channel", "CouchOptions", "Transport"]


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


#: Kombu's.
DEFAULT_DATABASE: Final = "kombu_default"


class Channel(StoreChannel[StoreLink]):
    """A channel over CouchDB."""


class Transport(StoreTransport):
    """``couchdb://``: a document for each message; ``couchdb+https://``, or *ssl*, for TLS.

    ``transport_options`` are those of :class:`~greenconn.transport.couchdb.CouchOptions`.
    """

    Channel: ClassVar[type[StoreChannel[StoreLink]]] = Channel
    Options: ClassVar[type[StoreOptions]] = CouchOptions
    driver_type = "couchdb"
    driver_name = "greenconn"
    default_port = 5984
    inner_schemes = frozenset({"http", "https"})

    def make_store(self, wake: Callable[[str | None], None]) -> CouchStore:
        client, url = self.client, self._url()
        ssl = client.ssl
        if url is not None and url.inner_scheme == "https":
            ssl = ssl or True
        host = (url.hostname if url is not None else client.hostname) or "localhost"
        port = (url.port if url is not None else client.port) or self.default_port
        database = (url.virtual_host if url is not None else client.virtual_host) or ""
        web = HttpClient(host, port, ssl=ssl, limit=self.options.max_http_connections)
        name = database.strip("/") or DEFAULT_DATABASE
        return CouchStore(
            client, wake, self.options, web, name, partial(supplied, self._credentials)
        )

    def _url(self) -> BrokerURL | None:
        """Return the address of ``couchdb+https``, which comes unparsed, as kombu has it."""
        host = self.client.hostname or ""
        return BrokerURL.parse(f"couchdb+{host}") if "://" in host else None

    def _credentials(self) -> tuple[str | None, str | None]:
        """User and password of now.  May switch, where they are a function's."""
        client, url = self.client, self._url()
        provider = getattr(client, "credential_provider", None)
        if provider is not None:
            user, password = provider.get_credentials()
            return user, password
        if url is not None and url.password is not None:
            return url.userid, url.password
        password = client.password
        return client.userid or None, (password() if callable(password) else password) or None

    def driver_version(self) -> str:
        return __version__
