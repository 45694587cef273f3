"""Who may read along, and who may pretend to be the broker: TLS of every transport that has it.

The brokers are real; a peer before them ends the TLS, since it can show any certificate.
"""

from __future__ import annotations

import ssl
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from gevent import socket

from greenconn.connection import Connection
from greenconn.exceptions import OperationalError
from tests.brokers.tls import CERTS
from tests.fix_peer import PeerFactory
from tests.fix_tls import TlsFront

DEADLINE = 30.0
CA = str(CERTS / "ca.pem")
OWN = {"certfile": str(CERTS / "client.pem"), "keyfile": str(CERTS / "client.key")}


class Broker(NamedTuple):
    """A broker that speaks no TLS, and how to reach one that does by the same login."""

    scheme: str
    url: str

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def over_tls(self, port: int, ssl_options: Any, host: str = "localhost") -> Connection:
        """A connection to *port*, where TLS is spoken."""
        parts = urlsplit(self.url)
        login, at, _ = parts.netloc.rpartition("@")
        url = f"{self.scheme}://{login}{at}{host}:{port}{parts.path}"
        return Connection(url, ssl=ssl_options, connect_timeout=DEADLINE)


@pytest.fixture(params=["amqps", "rediss"])
def broker(request: pytest.FixtureRequest) -> Broker:
    """RabbitMQ and Redis."""
    name = {"amqps": "amqp_url", "rediss": "redis_url"}[request.param]
    return Broker(request.param, request.getfixturevalue(name))


def works(connection: Connection, name: str) -> bool:
    """Whether a message goes there and back."""
    with connection, connection.SimpleBuffer(name) as queue:
        queue.put("over TLS")
        return bool(queue.get(timeout=DEADLINE).payload == "over TLS")


def refusal(connection: Connection) -> BaseException:
    """Why it cannot connect."""
    with pytest.raises(connection.connection_errors) as caught:
        connection.connect()
    assert not connection.connected
    return caught.value


def reasons(error: BaseException | None) -> str:
    """All that an error and those behind it say."""
    texts = []
    while error is not None:
        texts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def test_the_right_certificate(broker: Broker, tls_front: TlsFront, unique: str) -> None:
    port = tls_front(broker.address)
    assert works(broker.over_tls(port, {"ca_certs": CA}), unique)


@pytest.mark.parametrize("ssl_options", [True, {}, {"cert_reqs": "required"}])
def test_an_unknown_authority(broker: Broker, tls_front: TlsFront, ssl_options: Any) -> None:
    port = tls_front(broker.address)
    assert "ca_certs" in reasons(refusal(broker.over_tls(port, ssl_options)))


def test_a_certificate_that_signed_itself(broker: Broker, tls_front: TlsFront) -> None:
    port = tls_front(broker.address, certificate="alone")
    assert "certificate verify failed" in reasons(refusal(broker.over_tls(port, {"ca_certs": CA})))


def test_the_certificate_of_another_host(broker: Broker, tls_front: TlsFront) -> None:
    port = tls_front(broker.address, certificate="elsewhere")
    said = reasons(refusal(broker.over_tls(port, {"ca_certs": CA})))
    assert "localhost" in said
    assert "match" in said.lower()


def test_a_certificate_that_has_expired(broker: Broker, tls_front: TlsFront) -> None:
    port = tls_front(broker.address, certificate="expired")
    assert "expired" in reasons(refusal(broker.over_tls(port, {"ca_certs": CA})))


def test_the_broker_wants_a_certificate_of_ours(
    broker: Broker, tls_front: TlsFront, unique: str
) -> None:
    port = tls_front(broker.address, client_authority="ca")
    assert works(broker.over_tls(port, {"ca_certs": CA, **OWN}), unique)


def test_the_broker_wants_a_certificate_and_gets_none(broker: Broker, tls_front: TlsFront) -> None:
    port = tls_front(broker.address, client_authority="ca")
    assert "certfile" in reasons(refusal(broker.over_tls(port, {"ca_certs": CA})))


def test_the_broker_does_not_trust_our_certificate(broker: Broker, tls_front: TlsFront) -> None:
    port = tls_front(broker.address, client_authority="other-ca")
    refusal(broker.over_tls(port, {"ca_certs": CA, **OWN}))


def test_verification_is_off_only_when_asked(
    broker: Broker, tls_front: TlsFront, unique: str
) -> None:
    port = tls_front(broker.address, certificate="expired")
    assert works(broker.over_tls(port, {"cert_reqs": ssl.CERT_NONE}), unique)


def test_nothing_below_tls_1_2(broker: Broker, tls_front: TlsFront) -> None:
    port = tls_front(broker.address, most=ssl.TLSVersion.TLSv1_1)
    refusal(broker.over_tls(port, {"ca_certs": CA}))


@pytest.mark.parametrize(
    "answer", [b"", b"-ERR no TLS here\r\n", b"AMQP\x00\x00\x09\x01", b"\0" * 64]
)
def test_there_is_no_way_down_to_plain_text(
    broker: Broker, peer: PeerFactory, answer: bytes
) -> None:
    """Whoever stands between cannot talk us out of TLS: no byte of the login leaves in the clear."""
    heard = bytearray()

    def stripping(client: socket.socket) -> None:
        heard.extend(client.recv(65536))
        client.sendall(answer)
        client.settimeout(1.0)
        try:
            while data := client.recv(65536):
                heard.extend(data)
        except OSError:
            pass

    connection = broker.over_tls(peer(stripping).port, {"ca_certs": CA})
    refusal(connection.clone(userid="somebody", password="told-to-nobody"))
    assert heard[:2] == b"\x16\x03"  # a TLS record
    assert b"told-to-nobody" not in heard
    assert b"AMQP\x00" not in heard
    assert b"HELLO" not in heard


def test_what_does_not_verify_learns_no_password(broker: Broker, tls_front: TlsFront) -> None:
    heard: list[bytes] = []
    port = tls_front(broker.address, certificate="alone", on_plain=heard.append)
    refusal(broker.over_tls(port, {"ca_certs": CA}).clone(password="told-to-nobody"))
    assert heard == []


@pytest.mark.parametrize("broken", ["certfile", "ca_certs"])
def test_files_that_are_not_there_are_named(broker: Broker, broken: str) -> None:
    connection = broker.over_tls(9, {broken: "/no/such/file.pem"})
    with pytest.raises((OSError, ValueError, OperationalError), match=f"{broken}.*/no/such/file"):
        connection.connect()
