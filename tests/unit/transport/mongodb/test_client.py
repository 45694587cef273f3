"""What a Connection's address means to pymongo."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from pymongo import ReadPreference

from greenconn import Connection
from greenconn.transport.mongodb.client import Address, Client, address_of
from greenconn.transport.mongodb.options import MongoOptions


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
        (
            "mongodb://a:1,b:2/mail?replicaSet=rs0",
            "mongodb://a:1,b:2/mail?replicaSet=rs0",
            "mail",
        ),
        ("mongodb+srv://db.example.org/mail", "mongodb+srv://db.example.org/mail", "mail"),
    ],
)
def test_urls(url: str, host: str, database: str) -> None:
    found = address(url)
    assert (found.host, found.database) == (host, database)


def test_host_and_keywords() -> None:
    found = address("db", transport="mongodb", virtual_host="/mail", port=1, userid="u")
    assert (found.host, found.database) == ("mongodb://db", "mail")
    assert dict(found.options)["port"] == 1
    assert dict(found.options)["username"] == "u"


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
    for url in ("mongodb://u:secret-word@a:port/x", "mongodb://u:secret-word@a/x?w"):
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
