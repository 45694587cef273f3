"""Opening a connection: what a real RabbitMQ demands, refuses, agrees to and shows."""

from __future__ import annotations

import _socket
import json
import ssl
from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import pytest
from amqp import spec
from gevent.monkey import get_original

from greenconn.connection import Connection
from greenconn.exceptions import (
    AccessRefused,
    ConnectionBlocked,
    ConnectionForced,
    ContentTooLarge,
    InternalError,
    NotAllowed,
)
from greenconn.green import stream as connect_module
from greenconn.green.stream import KEEPALIVE
from greenconn.green.supervisor import Ticker
from greenconn.transport.amqp.link import AmqpLink
from tests.brokers.ports import free_ports
from tests.brokers.rabbitmq import RabbitMQ, RabbitMQHandle
from tests.brokers.tls import CERTS
from tests.fix_amqp import AmqpPeer, AmqpPeers, BrokerEnd, Links, method_frame
from tests.fix_brokers import Brokers
from tests.fix_peer import PeerFactory
from tests.fix_wires import until

pytestmark = pytest.mark.halved

SOON = 30.0


def socket_of(connection: Connection) -> Any:
    """The TCP socket of a connection."""
    return connection.session.life.link.stream._sock


# Sockets.


def test_options_of_the_socket(amqp_url: str) -> None:
    with Connection(amqp_url) as connection:
        connection.connect()
        sock = socket_of(connection)
        assert sock.getsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY)
        assert sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE)
        for name, value in KEEPALIVE.items():
            assert sock.getsockopt(_socket.IPPROTO_TCP, getattr(_socket, str(name))) == value
        assert KEEPALIVE["TCP_USER_TIMEOUT"] == 150_000
    options = {"socket_settings": {"TCP_USER_TIMEOUT": 7000, "TCP_KEEPIDLE": 7}}
    with Connection(amqp_url, transport_options=options) as connection:
        connection.connect()
        sock = socket_of(connection)
        assert sock.getsockopt(_socket.IPPROTO_TCP, _socket.TCP_USER_TIMEOUT) == 7000
        assert sock.getsockopt(_socket.IPPROTO_TCP, _socket.TCP_KEEPIDLE) == 7


@pytest.mark.full
@pytest.mark.skipif(not hasattr(_socket, "TCP_USER_TIMEOUT"), reason="Linux has it")
def test_a_broker_that_blocks_may_take_nothing_for_longer_than_the_user_timeout(
    amqp_peer: AmqpPeer,
) -> None:
    # Its window is full, and the kernel would end the connection though the peer is well.
    links = Links(amqp_peer.url)
    link = links(socket_settings={"TCP_USER_TIMEOUT": 500}, blocked_timeout=0.05)
    channel = link.channel()
    end = amqp_peer.end
    end.is_reading.clear()
    message = channel.prepare_message(bytes(100_000))
    with pytest.raises(TimeoutError):
        for _ in range(1000):
            channel.basic_publish(message, "", "q")
    end.method(0, spec.Connection.Blocked, "s", "low on memory")
    until(lambda: link.flow_control.blocked)
    gevent.sleep(2.0)
    assert link.is_open
    end.is_reading.set()
    end.method(0, spec.Connection.Unblocked)
    until(lambda: not link.writer.pending)
    links.close()


@pytest.mark.full
@pytest.mark.parametrize("is_refused", [True, False])
def test_several_addresses_of_both_families_are_tried_in_turn(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    parts = Connection(amqp_url)
    port = free_ports(1)[0]
    if not is_refused:
        # It accepts nothing: a listener whose queue is full.
        blocked = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        blocked.bind(("127.0.0.1", 0))
        blocked.listen(0)
        port = blocked.getsockname()[1]
        fillers = [_socket.socket(_socket.AF_INET, _socket.SOCK_STREAM) for _ in range(4)]
        for each in fillers:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
    kind = _socket.SOCK_STREAM
    found: list[Any] = [
        (_socket.AF_INET6, kind, 6, "", ("::1", free_ports(1)[0], 0, 0)),
        (_socket.AF_INET, kind, 6, "", ("127.0.0.1", port)),
        (_socket.AF_INET, kind, 6, "", (parts.hostname, parts.port)),
    ]
    monkeypatch.setattr(connect_module, "_look_up", lambda *_: found)
    monkeypatch.setattr(connect_module, "_shuffle", lambda addresses: None)
    monkeypatch.setattr(connect_module, "_failed_at", {})
    name = parts.clone(hostname="broker.example")
    began = monotonic()
    with name.clone(connect_timeout=3.0) as connection:
        connection.connect()
        assert connection.session.life.link.stream.peer_address()[1] == found[2][4]
    took = monotonic() - began
    assert is_refused or took >= 1.4  # half of what was left went to the silent one
    if not is_refused:
        for each in (*fillers, blocked):
            each.close()


# Logins.


def with_login(url: str, login: str) -> str:
    return f"amqp://{login}@{url.partition('@')[2]}"


def test_a_refused_login_of_a_broker_that_only_hangs_up(
    amqp_links: Links, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AmqpLink, "negotiate_capabilities", {})
    with pytest.raises(ConnectionResetError, match="are user name and password right") as caught:
        amqp_links(with_login(amqp_url, "guest:wrong"), connect_timeout=SOON)
    assert "guest:**@" in str(caught.value)


def test_it_opens_although_the_hub_is_blocked_for_longer_than_its_timeout(
    amqp_peer: AmqpPeer,
) -> None:
    with Connection(amqp_peer.url, connect_timeout=0.5) as connection:
        opening = gevent.spawn(connection.connect)
        gevent.sleep(0)
        get_original("time", "sleep")(1.5)
        opening.get(timeout=SOON)


def test_a_broker_that_hangs_up_at_the_virtual_host(amqp_peer: AmqpPeer) -> None:
    def prepare(end: BrokerEnd) -> None:
        end.ignored = {spec.Connection.Open}
        gevent.spawn(hang_up, end)

    def hang_up(end: BrokerEnd) -> None:
        end.expect(spec.Connection.Open)
        amqp_peer.peer.drop()

    amqp_peer.prepare = prepare
    links = Links(amqp_peer.url)
    with pytest.raises(ConnectionResetError, match="at the virtual host"):
        links()


def say_behind_open_ok(peer: AmqpPeer, *more: bytes, hangs_up: bool = False) -> None:
    """Have the broker say more in one piece with ``connection.open-ok``."""

    def prepare(end: BrokerEnd) -> None:
        end.ignored = {spec.Connection.Open}
        gevent.spawn(say, end)

    def say(end: BrokerEnd) -> None:
        end.expect(spec.Connection.Open)
        end.send(b"".join((method_frame(0, spec.Connection.OpenOk, "s", ""), *more)))
        if hangs_up:
            peer.peer.drop()

    peer.prepare = prepare


def test_a_broker_that_blocks_as_soon_as_it_is_open_is_heard(amqp_peer: AmqpPeer) -> None:
    say_behind_open_ok(amqp_peer, method_frame(0, spec.Connection.Blocked, "s", "low on disk"))
    links = Links(amqp_peer.url)
    link = links(blocked_timeout=0.0)
    channel = link.channel()
    with pytest.raises(ConnectionBlocked, match="low on disk"):
        channel.basic_publish(channel.prepare_message("x"), "", "q")
    amqp_peer.end.method(0, spec.Connection.Unblocked)
    until(lambda: link.flow_control.blocked is None)
    channel.basic_publish(channel.prepare_message("x"), "", "q")
    links.close()


@pytest.mark.parametrize("hangs_up", [False, True])
def test_a_broker_that_closes_as_soon_as_it_is_open_says_why(
    amqp_peer: AmqpPeer, hangs_up: bool
) -> None:
    close = method_frame(0, spec.Connection.Close, "BsBB", 320, "shutdown", 0, 0)
    say_behind_open_ok(amqp_peer, close, hangs_up=hangs_up)
    links = Links(amqp_peer.url)
    with pytest.raises(ConnectionForced, match="shutdown"):
        links()
    until(lambda: not amqp_peer.peer.sockets)


def test_a_broker_that_hangs_up_as_soon_as_it_is_open(amqp_peers: AmqpPeers) -> None:
    peer = amqp_peers((2047, 131072, 60))
    say_behind_open_ok(peer, hangs_up=True)
    began = Ticker.start
    tickers: list[Ticker] = []

    def start(ticker: Ticker) -> None:
        tickers.append(ticker)
        began(ticker)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ticker, "start", start)
        links = Links(peer.url)
        try:
            link = links()
        except OSError:
            pass  # it was noticed
        else:
            until(lambda: link.lost is not None)
    assert not any(ticker.is_running for ticker in tickers)


@pytest.mark.parametrize("error", [ValueError, TypeError, LookupError])
def test_an_error_of_the_programs_own_hook_is_not_the_brokers(
    amqp_peer: AmqpPeer, error: type[Exception]
) -> None:
    def fail() -> None:
        raise error("mine")

    links = Links(amqp_peer.url)
    with pytest.raises(error, match="mine"):
        links(on_tune_ok=fail)
    until(lambda: not amqp_peer.peer.sockets)


@pytest.mark.parametrize("password", [b"guest", 5])
def test_a_password_that_is_no_text_is_an_error_of_the_program(password: Any) -> None:
    connection = Connection("amqp://nowhere.invalid//", password=lambda: password)
    with connection, pytest.raises(TypeError, match="the password of a login must be text, got"):
        connection.connect()


@pytest.mark.full
def test_a_refused_login_is_final_and_a_full_virtual_host_is_waited_for(
    rabbitmq: RabbitMQHandle, unique: str
) -> None:
    url = rabbitmq.add_vhost(unique)
    with Connection(with_login(url, "guest:wrong")) as connection, pytest.raises(AccessRefused):
        connection.ensure_connection(timeout=SOON)
    rabbitmq.ctl("set_vhost_limits", "-p", unique, json.dumps({"max-connections": 0}))
    with Connection(url) as connection:
        with pytest.raises(NotAllowed, match="limit"):
            connection.connect()
        waiting = gevent.spawn(connection.ensure_connection, timeout=SOON)
        gevent.sleep(0.3)
        assert not waiting.ready()
        rabbitmq.ctl("clear_vhost_limits", "-p", unique)
        waiting.get(timeout=SOON)
        assert connection.connected
    rabbitmq.delete_vhost(unique)
    with Connection(url) as connection, pytest.raises(NotAllowed, match="not found"):
        connection.ensure_connection(timeout=SOON)


#: What a broker may answer to ``connection.open``, and whether to ask again.
REPLIES = [
    (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'", True),
    (403, "ACCESS_REFUSED - access to vhost '/' refused for user 'user'", False),
    (530, "NOT_ALLOWED - vhost / not found", False),
    (530, "NOT_ALLOWED - access to vhost '/' refused: connection limit (10) is reached", True),
    (541, "INTERNAL_ERROR - access to vhost '/' refused: vhost '/' is down", True),
]


@pytest.mark.parametrize(("code", "text", "is_repeated"), REPLIES)
def test_what_is_asked_again(amqp_peer: AmqpPeer, code: int, text: str, is_repeated: bool) -> None:
    def prepare(end: BrokerEnd) -> None:
        if len(amqp_peer.ends) <= 3:
            arguments = ("BsBB", code, text, 10, 40)
            end.answers[spec.Connection.Open] = (spec.Connection.Close, *arguments)

    amqp_peer.prepare = prepare
    with Connection(amqp_peer.url) as connection:
        pace: dict[str, Any] = {"interval_start": 0.01, "interval_step": 0, "interval_max": 0.01}
        opening = gevent.spawn(connection.ensure_connection, timeout=SOON, **pace)
        if is_repeated:
            opening.get(timeout=SOON)
            assert len(amqp_peer.ends) == 4
        else:
            with pytest.raises((AccessRefused, NotAllowed)):
                opening.get(timeout=SOON)
            assert len(amqp_peer.ends) < 4
    if code == 541:
        amqp_peer.ends.clear()
        with Connection(amqp_peer.url) as connection, pytest.raises(InternalError, match="down"):
            connection.connect()


# TLS, with RabbitMQ's own.


@pytest.fixture(scope="session")
def tls_rabbitmq(brokers: Brokers) -> Iterator[RabbitMQ]:
    """A RabbitMQ with TLS, logins by certificate and frames without a limit; never stop it."""
    port = free_ports(1)[0]
    broker = brokers.start(
        RabbitMQ,
        plugins=("rabbitmq_auth_mechanism_ssl",),
        settings={
            "listeners.ssl.default": f"127.0.0.1:{port}",
            "ssl_options.cacertfile": CERTS / "ca.pem",
            "ssl_options.certfile": CERTS / "server.pem",
            "ssl_options.keyfile": CERTS / "server.key",
            "ssl_options.verify": "verify_peer",
            "ssl_options.fail_if_no_peer_cert": "false",
            "ssl_cert_login_from": "common_name",
            "auth_mechanisms.1": "PLAIN",
            "auth_mechanisms.2": "EXTERNAL",
            "frame_max": 0,
        },
    )
    broker.tls_port = port  # type: ignore[attr-defined]
    broker.add_user("client", "no matter")
    yield broker
    broker.close()


def over_tls(broker: Any, login: str = "guest:guest@", **options: Any) -> Connection:
    """A connection over the broker's own TLS; ``ssl`` and others as of ``Connection``."""
    return Connection(
        f"amqps://{login}localhost:{broker.tls_port}//",
        **{"ssl": {"ca_certs": str(CERTS / "ca.pem")}, "connect_timeout": SOON, **options},
    )


OURS = {"certfile": str(CERTS / "client.pem"), "keyfile": str(CERTS / "client.key")}


@pytest.mark.full
def test_tls_of_the_broker(tls_rabbitmq: RabbitMQ, unique: str) -> None:
    with over_tls(tls_rabbitmq) as connection:
        queue = connection.SimpleQueue(unique)
        bodies = ["x" * size for size in (1, 20_000, 1_000_000)]
        for body in bodies:
            queue.put(body)
        assert [queue.get(timeout=SOON).payload for _ in bodies] == bodies
        queue.queue.delete()
        queue.close()
        session = connection.session.life.link._tls
        assert session.version in ("TLSv1.2", "TLSv1.3")
        assert session.server_hostname == "localhost"
    unknown = pytest.raises(ssl.SSLCertVerificationError, match="ca_certs")
    with over_tls(tls_rabbitmq, ssl=True) as connection, unknown:
        connection.connect()


@pytest.mark.full
def test_a_login_by_certificate(tls_rabbitmq: RabbitMQ, unique: str) -> None:
    tls = {"ca_certs": str(CERTS / "ca.pem"), **OURS}
    with over_tls(tls_rabbitmq, "", ssl=tls, login_method="EXTERNAL") as connection:
        connection.connect()
        name = f"{unique}-external"
        connection.session.life.link.channel().queue_declare(name, exclusive=True)
        rows = tls_rabbitmq.ctl("list_connections", "user", "auth_mechanism", "ssl_protocol")
        assert any(row.split("\t")[:2] == ["client", "EXTERNAL"] for row in rows.splitlines())
    # Without a certificate there is nothing to log in with.
    refused = pytest.raises(AccessRefused)
    with over_tls(tls_rabbitmq, "", login_method="EXTERNAL") as connection, refused:
        connection.connect()


def test_the_tls_handshake_has_the_deadline(peer: PeerFactory) -> None:
    def say_nothing(client: Any) -> None:
        while client.recv(4096):
            pass

    server = peer(say_nothing)
    url = f"amqps://guest:secret@{server.host}:{server.port}//"
    with Connection(url, connect_timeout=1.0) as connection:
        began = monotonic()
        with pytest.raises(TimeoutError, match="the TLS handshake"):
            connection.connect()
        assert monotonic() - began < SOON


# What both sides agree on, and what the broker shows.


@pytest.mark.full
def test_frames_without_a_limit_and_as_small_as_can_be(
    tls_rabbitmq: RabbitMQ, amqp_url: str, unique: str
) -> None:
    with Connection(amqp_url) as connection:
        connection.connect()
        version = connection.session.life.link.server_version
    smallest = 8192 if version is not None and version >= (4, 1) else 4096
    for url, ours, agreed in (
        (tls_rabbitmq.url, None, 131072),
        (tls_rabbitmq.url, 0, 0),
        (tls_rabbitmq.url, smallest, smallest),
        (amqp_url, 0, 131072),
        (amqp_url, smallest, smallest),
        (amqp_url, 1 << 20, 131072),
    ):
        options = {"frame_max": ours, "confirm_publish": True}
        with Connection(url, transport_options=options) as connection:
            channel = connection.default_channel
            assert connection.session.life.link.frame_max == agreed
            channel.queue_declare(unique, auto_delete=False, arguments={"x-expires": 60_000})
            for size in (0, 1, smallest - 8, smallest - 7, 70_000, 3_000_000):
                body = bytes([size % 251]) * size
                connection.Producer().publish(body, unique)
                assert channel.basic_get(unique, no_ack=True).body == body
            # More than one frame holds: refused here, at nobody's cost.
            if agreed == smallest:
                with pytest.raises(ContentTooLarge, match="do not fit into a frame"):
                    connection.Producer().publish("x", unique, headers={"x": "y" * smallest})
                assert channel.is_open
            channel.queue_delete(unique)
