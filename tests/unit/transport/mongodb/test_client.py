"""What a Connection's address means to pymongo, and pymongo's errors as those of greenconn."""

from __future__ import annotations

import copy
import ssl
from typing import Any

import pytest
from pymongo import ReadPreference, errors

from greenconn import Connection
from greenconn.exceptions import AccessRefused
from greenconn.transport.mongodb import MongoOptions, Transport
from greenconn.transport.mongodb.client import (
    Address,
    Client,
    LinkLost,
    LoginRefused,
    ReplyLate,
    address_of,
    translated_error,
)


def address(*args: Any, **kwargs: Any) -> Address:
    """The address of a connection."""
    connection = Connection(*args, **kwargs)
    options = MongoOptions(**connection.transport_options)
    return address_of(connection, options)


@pytest.mark.parametrize(
    ("url", "host", "database"),
    [
        ("mongodb://", "mongodb://127.0.0.1", "kombu_default"),
        ("mongodb:///mail", "mongodb://127.0.0.1/mail", "mail"),
        ("mongodb://db", "mongodb://db", "kombu_default"),
        ("mongodb://db/", "mongodb://db/", "kombu_default"),
        ("mongodb://a:1,b:2/mail?replicaSet=rs0", "mongodb://a:1,b:2/mail?replicaSet=rs0", "mail"),
        ("mongodb+srv://db.example.org/mail", "mongodb+srv://db.example.org/mail", "mail"),
    ],
)
def test_urls(url: str, host: str, database: str) -> None:
    found = address(url)
    assert (found.host, found.database) == (host, database)


@pytest.mark.parametrize(
    ("options", "concern"),
    [
        ("", {"w": "majority", "j": True}),
        ("?w=1", {"w": 1, "j": True}),
        ("?journal=false", {"w": "majority", "j": False}),
        ("?wTimeoutMS=500", {"w": "majority", "j": True, "wtimeout": 500}),
        ("?w=0", {"w": 0}),
    ],
)
def test_a_confirm_means_that_a_majority_has_it_on_disk(
    options: str, concern: dict[str, Any]
) -> None:
    client = Client(address(f"mongodb://127.0.0.1:1/mail{options}"), "", 1)
    assert client.durable.write_concern.document == concern
    client.close()


def test_options_of_the_url_win() -> None:
    for scheme in ("mongodb", "mongodb+srv"):
        found = address(
            f"{scheme}://db.a.org/?connectTimeoutMS=7&serverMonitoringMode=stream&tls=false",
            connect_timeout=3,
            ssl=True,
        )
        options = dict(found.options)
        assert "connectTimeoutMS" not in options
        assert "serverMonitoringMode" not in options
        assert "tls" not in options
        assert options["serverSelectionTimeoutMS"] == 3000


def test_options_of_ours_may_stand_in_the_url() -> None:
    tags = "readPreferenceTags=dc:ny,rack:1&readPreferenceTags="
    url = f"mongodb://db/mail?lease=7&{tags}&polling_interval=none&w=1"
    with Connection(url, transport_options={"lease": 60, "threads": 2}) as connection:
        options = connection.transport.options
        assert (options.lease, options.polling_interval, options.threads) == (7.0, None, 2)
        assert address_of(connection, options).host == f"mongodb://db/mail?{tags}&w=1"
    wrong = Connection("mongodb://db?lease=soon").transport
    with pytest.raises(ValueError, match="URL option lease must be a number, got 'soon'"):
        wrong.options  # noqa: B018


@pytest.mark.parametrize("scheme", ["mongodb", "mongodb+srv"])
@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("w=2&journl=true", r"/x\?w=2&journl=true': option 'journl': Unknown option"),
        ("maxPoolSize=many", "option 'maxPoolSize': .* must be an integer"),
        ("tlsCAFile=/missing", r"option 'tlsCAFile': \[Errno 2\]"),
    ],
)
def test_misspelt_options_are_refused(scheme: str, query: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        address(f"{scheme}://db.a.org/x?{query}")


def test_tls() -> None:
    given = {"ca_certs": "ca.pem", "certfile": "both.pem", "cert_reqs": ssl.CERT_NONE}
    options = dict(address("mongodb://db", ssl=given).options)
    assert {name: value for name, value in options.items() if name.startswith("tls")} == {
        "tls": True,
        "tlsCAFile": "ca.pem",
        "tlsCertificateKeyFile": "both.pem",
        "tlsAllowInvalidCertificates": True,
    }
    options = dict(address("mongodb://db", ssl={"check_hostname": False}).options)
    assert options["tlsAllowInvalidHostnames"] is True
    assert "tlsAllowInvalidCertificates" not in options
    with pytest.raises(ValueError, match="in one file"):
        address("mongodb://db", ssl={"certfile": "a.pem", "keyfile": "b.pem"})


def test_malformed_urls_name_no_password() -> None:
    for url in (
        *("mongodb://u:secret-word@a:port/x", "mongodb://u:secret-word@a/x?w"),
        "mongodb+srv://a/x?authMechanismProperties=AWS_SESSION_TOKEN:its-part,secret-word:x",
    ):
        with pytest.raises(ValueError) as caught:
            address(url)
        assert "secret-word" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_secrets_are_masked() -> None:
    url = (
        "mongodb://u:secret-word@a,b/x?authMechanism=MONGODB-AWS"
        "&authMechanismProperties=AWS_SESSION_TOKEN:secret-token&appname=me"
    )
    connection = Connection(url)
    shown = connection.as_uri() + repr(connection) + repr(address(url))
    assert "secret" not in shown
    assert "a,b/x" in shown
    assert connection.as_uri(include_password=True) == url


def test_nothing_is_read_from_a_secondary() -> None:
    """It may not know yet of a queue that was declared just now."""
    found = address("mongodb://127.0.0.1:1/mail?readPreference=secondaryPreferred")
    client = Client(found, "mongodb://127.0.0.1:1", 1)
    assert client.database["queues"].read_preference == ReadPreference.PRIMARY
    client.close()


WHERE = "mongodb://host/"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.AutoReconnect("gone"), LinkLost),
        (errors.NetworkTimeout("late"), ReplyLate),
        (errors.ExecutionTimeout("late"), ReplyLate),
        (errors.ServerSelectionTimeoutError("none, Timeout: 3s, Topology..."), LinkLost),
        (errors.OperationFailure("who are you", 18), LoginRefused),
        (errors.OperationFailure("not allowed", 13), LoginRefused),
    ],
)
def test_errors_of_the_driver(error: Exception, kind: type[Exception]) -> None:
    found = translated_error(error, WHERE)  # type: ignore[arg-type]
    assert type(found) is kind
    assert str(found).startswith(WHERE)
    assert "Topology" not in str(found)
    assert str(copy.copy(found)) == str(found)


def test_a_login_that_was_refused_behind_a_lost_connection() -> None:
    error = errors.AutoReconnect("gone")
    error.__cause__ = errors.OperationFailure("who are you", 18)
    found = translated_error(error, WHERE)
    assert isinstance(found, AccessRefused)
    assert "check user name, password" in str(found)


def test_a_lost_connection_is_no_error_of_a_channel() -> None:
    for kind in (LinkLost, ReplyLate, errors.ConnectionFailure, errors.AutoReconnect):
        assert issubclass(kind, Transport.connection_errors)
        assert issubclass(kind, Transport.recoverable_connection_errors)
        assert not issubclass(kind, Transport.channel_errors)
    assert issubclass(errors.OperationFailure, Transport.channel_errors)
