"""The servers' addresses: arguments of MongoClient from those of a Connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from pymongo import errors, uri_parser

from greenconn.transport.mongodb.options import MongoOptions
from greenconn.url import mask_secrets

__all__ = ["Address", "address_of"]

#: Sockets that all greenlets of one process may use at once.
_LARGEST_POOL = 100
#: What says that any certificate will do; the first is ssl.CERT_NONE.
_NO_CERTIFICATES = (0, "none", "CERT_NONE")


class Address(NamedTuple):
    """The arguments of ``MongoClient``, and the database.  Holds secrets: never shown."""

    host: str
    options: tuple[tuple[str, Any], ...]
    database: str

    def __repr__(self) -> str:
        return "<Address>"


def address_of(client: Any, options: MongoOptions) -> Address:
    """Return the address that a ``Connection`` names.

    Raises:
        ValueError: the address is malformed; says how, with the password masked.
    """
    uri = _uri(client.hostname or "", options)
    port = client.port or options.default_port
    try:
        parsed = (
            uri_parser.parse_uri(uri, port, validate=False, warn=True) if _is_plain(uri) else {}
        )
    except (errors.InvalidURI, errors.ConfigurationError, ValueError) as exc:
        raise ValueError(f"{mask_secrets(uri)!r}: {mask_secrets(str(exc))}") from None
    database = parsed.get("database") or _database_in(uri) or _virtual_host(client)
    given = {name.lower() for name, _ in parse_qsl(uri.partition("?")[2], keep_blank_values=True)}
    settings = _settings(client, options, port)
    kept = {name: value for name, value in settings.items() if name.lower() not in given}
    if "tls" in given or "ssl" in given:
        kept.pop("tls", None)
    return Address(uri, tuple(sorted(kept.items())), database or options.default_database)


def _is_plain(uri: str) -> bool:
    """Whether it can be parsed without asking a name server."""
    return uri.startswith("mongodb://")


def _uri(host: str, options: MongoOptions) -> str:
    if host.startswith("srv://"):  # the session takes the name before the "+" off
        return f"mongodb+{host}"
    if not host.startswith(("mongodb://", "mongodb+srv://")):
        host = f"mongodb://{host}"
    scheme, _, rest = host.partition("://")
    return f"{scheme}://{options.default_hostname}{rest}" if rest[:1] in ("", "/", "?") else host


def _database_in(uri: str) -> str:
    """The database of an address that was not parsed."""
    path = uri.partition("://")[2].partition("?")[0]
    return path.rpartition("@")[2].partition("/")[2]


def _virtual_host(client: Any) -> str:
    return (client.virtual_host or "").strip("/")


def _settings(client: Any, options: MongoOptions, port: int) -> dict[str, Any]:
    connect = options.connect_timeout or client.connect_timeout
    settings: dict[str, Any] = {
        "port": port,
        "appname": "greenconn",
        "maxPoolSize": _LARGEST_POOL,
        # A look each ten seconds instead of a stream: half the threads, and none waits on a socket
        # when the process forks.  That a server is gone shows by the call that fails.
        "serverMonitoringMode": "poll",
    }
    if connect:
        settings["connectTimeoutMS"] = settings["serverSelectionTimeoutMS"] = int(connect * 1000)
    if options.reply_timeout:
        settings["socketTimeoutMS"] = int(options.reply_timeout * 1000)
    password = client.password
    if client.userid:
        settings["username"] = client.userid
        settings["password"] = password() if callable(password) else password
    if client.login_method:
        settings["authMechanism"] = client.login_method
    settings.update(_tls(client.ssl if options.ssl is None else options.ssl))
    return settings


def _tls(given: Any) -> dict[str, Any]:
    """pymongo's options for what ``ssl=`` says everywhere else."""
    if not given:
        return {}
    settings: dict[str, Any] = {"tls": True}
    if isinstance(given, Mapping):
        names = {"ca_certs": "tlsCAFile", "ssl_ca_certs": "tlsCAFile"}
        for name, theirs in names.items():
            if given.get(name):
                settings[theirs] = str(given[name])
        certificate = given.get("certfile") or given.get("ssl_certfile")
        key = given.get("keyfile") or given.get("ssl_keyfile")
        if key and key != certificate:
            raise ValueError(
                "MongoDB's driver needs certificate and key in one file: pass it as certfile"
            )
        if certificate:
            settings["tlsCertificateKeyFile"] = str(certificate)
        if given.get("cert_reqs", given.get("ssl_cert_reqs")) in _NO_CERTIFICATES:
            settings["tlsAllowInvalidCertificates"] = True
        if given.get("check_hostname", given.get("ssl_check_hostname", True)) is False:
            settings["tlsAllowInvalidHostnames"] = True
    return settings
