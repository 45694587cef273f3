"""The broker with the arguments and attributes of Dramatiq's broker for Redis."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from dramatiq import Middleware

from greenconn.connection import Connection
from greenconn.contrib.dramatiq.broker import GreenconnBroker

logger = logging.getLogger("greenconn.contrib.dramatiq")

#: Arguments of redis-py -> arguments of a connection.
_ARGUMENTS: Final = {
    "credential_provider": "credential_provider",
    "db": "virtual_host",
    "host": "hostname",
    "password": "password",
    "port": "port",
    "username": "userid",
}
#: Arguments of redis-py that are transport options of the same name.
_OPTIONS: Final = frozenset(
    {
        "client_name",
        "health_check_interval",
        "max_connections",
        "socket_connect_timeout",
        "socket_keepalive",
        "socket_keepalive_options",
        "socket_timeout",
    }
)
#: Arguments of redis-py for TLS, which are keys of a connection's ``ssl``.
_TLS: Final = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_ciphers",
        "ssl_keyfile",
        "ssl_password",
    }
)
#: Arguments of redis-py that only say which class of connections it uses.
_UNIX: Final = frozenset({"unix_socket_path", "path"})
_PARAMETERS: Final = frozenset({*_ARGUMENTS, *_OPTIONS, *_TLS, *_UNIX, "ssl"})


class RedisBroker(GreenconnBroker):
    """A :class:`GreenconnBroker` that takes the place of Dramatiq's ``RedisBroker``.

    Messages are kept under other keys and in another form than Dramatiq's.

    Arguments:
        url: the URL of the server, as in ``redis.Redis.from_url``.
        middleware: the list of middleware, as in ``dramatiq.Broker``.
        namespace: prefix of all keys, before a dot.  None uses no prefix.
        maintenance_chance: accepted without effect: messages of dead workers are found by time.
        heartbeat_timeout: milliseconds after which the messages of a worker that shows no sign of life
            are requeued.  None is 30 seconds.
        dead_message_ttl: milliseconds for which dead letters are kept, as in :class:`GreenconnBroker`.
        client: a client of redis-py, which is :attr:`client`.  Messages are sent to its server and
            database, on a connection of greenconn.
        kwargs: in place of *url* and *client*, the arguments of ``redis.Redis`` for an address, a login,
            TLS and timeouts; and further arguments of :class:`GreenconnBroker`.

    Raises:
        TypeError: there is no such argument, or the client has no address of one server.
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        middleware: list[Middleware] | None = None,
        namespace: str | None = None,
        maintenance_chance: int | None = None,
        heartbeat_timeout: int | None = None,
        dead_message_ttl: int | None = None,
        client: Any = None,
        **kwargs: Any,
    ) -> None:
        parameters = {name: kwargs.pop(name) for name in _PARAMETERS & kwargs.keys()}
        if client is not None:
            parameters = _parameters_of(client)
        if url is not None:
            url, parameters = _split_url(url, parameters)
        address, arguments, options = _arguments(parameters)
        if namespace is not None:
            options["global_keyprefix"] = f"{namespace}."
        if maintenance_chance is not None:
            logger.info("maintenance_chance has no effect: dead workers are found by time")
        if heartbeat_timeout is not None:
            options["lease"] = heartbeat_timeout / 1000
        options.update(kwargs.pop("transport_options", {}))
        super().__init__(
            _url(**address) if url is None else url,
            middleware=middleware,
            dead_message_ttl=dead_message_ttl,
            **{**arguments, "transport_options": options, **kwargs},
        )
        self._client = client

    @property
    def client(self) -> Any:
        """The client that was given, or one that works on :attr:`connection`.  May switch."""
        return super().client if self._client is None else self._client

    def join(
        self,
        queue_name: str,
        min_successes: int = 10,
        idle_time: int = 100,
        *,
        interval: int | None = None,
        timeout: int | None = None,
    ) -> None:
        """Wait until all messages of a queue were processed.  May switch.

        Arguments:
            queue_name, min_successes, idle_time, timeout: as in :class:`GreenconnBroker`.
            interval: Dramatiq's name for *idle_time*.
        """
        if interval is not None:
            idle_time = interval
        super().join(queue_name, min_successes, idle_time, timeout=timeout)


def _parameters_of(client: Any) -> dict[str, Any]:
    """Return the arguments of redis-py with which *client* connects."""
    pool: Any = getattr(client, "connection_pool", None)
    known = getattr(pool, "connection_kwargs", {})
    if not {"host", "path"} & known.keys():
        raise TypeError(
            f"client must be a redis.Redis with the address of one server, got "
            f"{type(client).__name__}: give Sentinel or a cluster as a url"
        )
    found = {name: value for name, value in known.items() if name in _PARAMETERS}
    if any(each.__name__ == "SSLConnection" for each in pool.connection_class.__mro__):
        found["ssl"] = True
    return found


def _split_url(url: str, parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a URL as greenconn has it, and *parameters* without what the URL says.

    redis-py names the database in the query, too, and a socket by ``unix://``.
    """
    address, _, query = url.partition("?")
    pairs = dict(parse_qsl(query, keep_blank_values=True))
    database = pairs.pop("db", None)
    parts = urlsplit(address)
    left = {name: value for name, value in parameters.items() if name not in _ARGUMENTS}
    if parts.scheme == "unix":
        address = f"redis+socket{address.removeprefix('unix')}"
        pairs["virtual_host"] = database or "0"
    elif database is not None:
        address = f"{address[: len(address) - len(parts.path)]}/{database}"
    return f"{address}?{urlencode(pairs)}" if pairs else address, left


def _arguments(
    parameters: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the address, the other arguments of a connection, and its transport options."""
    address: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    options: dict[str, Any] = {}
    tls: dict[str, Any] = {}
    for name, value in parameters.items():
        if value is None or (name == "ssl" and not value):
            continue
        if name == "credential_provider":
            arguments[name] = value
        elif name in _ARGUMENTS:
            address[_ARGUMENTS[name]] = str(value) if name == "db" else value
        elif name in _OPTIONS:
            options[name] = value
        elif name in _UNIX:
            address["path"] = value
        elif name in _TLS:
            tls[name] = value
    if parameters.get("ssl"):
        arguments["ssl"] = tls or True
    return address, arguments, options


def _url(path: str | None = None, **address: Any) -> str:
    """Return the URL of a server.

    Arguments:
        path: the path of a UNIX socket, in place of a host.
        address: arguments of a connection.
    """
    url = Connection(**address, transport="redis").as_uri(include_password=True)
    if path is None:
        return url
    login = urlsplit(url).netloc.rpartition("@")
    return (
        f"redis+socket://{''.join(login[:2])}{path}?virtual_host={address.get('virtual_host', 0)}"
    )
