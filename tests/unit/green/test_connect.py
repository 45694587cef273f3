"""Connecting: one deadline for the name and all its addresses, and no descriptor left behind."""

from __future__ import annotations

import _socket
import errno
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from greenconn.green import stream as connect_module
from greenconn.green.deadline import Deadline
from greenconn.green.stream import KEEPALIVE, avoid, connect_tcp, connect_unix, numeric
from greenconn.importing import native
from tests.brokers.ports import free_ports
from tests.fix_interrupts import interruptions
from tests.fix_leaks import open_sockets
from tests.fix_peer import PeerFactory
from tests.fix_wires import until
from tests.forked import holds_in_child

LONG = Deadline(24 * 3600)  # made once for all tests, each of which has a timeout of its own


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port of which the connections neither come nor are refused: its backlog is full."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    port = listener.getsockname()[1]
    callers = []
    try:
        while True:
            caller = socket.socket()
            caller.settimeout(0.2)
            callers.append(caller)
            assert len(callers) < 200
            try:
                caller.connect(("127.0.0.1", port))
            except TimeoutError:
                break
        yield port
    finally:
        for each in [*callers, listener]:
            each.close()


def test_a_number_is_dialled_without_a_lookup(
    peer: PeerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect_module, "_look_up", None)
    server = peer(lambda client: client.sendall(client.recv(10)))
    sock = connect_tcp(server.host, server.port, LONG)
    try:
        assert sock.getpeername() == server.address
        assert sock.gettimeout() == 0.0
        assert sock.getsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY)
        assert sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE)
        assert type(sock).__mro__[0] is _socket.socket
        sock.send(b"hello")
        while True:
            try:
                assert sock.recv(10) == b"hello"
                break
            except BlockingIOError:
                gevent.sleep(0.001)
    finally:
        sock.close()


def test_a_name_is_looked_up(peer: PeerFactory) -> None:
    server = peer(lambda client: client.recv(1))
    sock = connect_tcp("localhost", server.port, LONG)
    assert sock.getpeername()[1] == server.port
    sock.close()


def test_where_nothing_listens_the_error_names_the_place() -> None:
    port = free_ports(1)[0]
    with pytest.raises(ConnectionRefusedError, match=f"127.0.0.1:{port}") as caught:
        connect_tcp("127.0.0.1", port, LONG)
    assert caught.value.errno == errno.ECONNREFUSED


def test_a_unix_socket_that_is_not_there_leaves_no_descriptor(tmp_path: Path) -> None:
    path = str(tmp_path / "none.sock")
    before = open_sockets()
    with pytest.raises(FileNotFoundError, match=f"cannot connect to {path}") as caught:
        connect_unix(path, LONG)
    # While the traceback still holds what the attempt had opened.
    assert open_sockets().keys() <= before.keys()
    assert caught.value.errno == errno.ENOENT


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(socket.gaierror, match=r"nobody\.invalid") as caught:
        connect_tcp("nobody.invalid", 5672, LONG)
    assert caught.value.errno


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "two..dots", ".", "\udcff"])
def test_what_cannot_be_a_name_is_an_unknown_name(host: str) -> None:
    with pytest.raises(socket.gaierror, match="cannot find host"):
        connect_tcp(host, 5672, LONG)


def test_an_address_that_does_not_answer_takes_no_longer_than_the_deadline(
    silent_port: int,
) -> None:
    began = monotonic()
    with pytest.raises(TimeoutError, match=f"127.0.0.1:{silent_port} took longer than 0.1 s"):
        connect_tcp("127.0.0.1", silent_port, Deadline(0.1))
    assert 0.1 <= monotonic() - began < 10


def test_without_any_time_nothing_is_waited_for(silent_port: int) -> None:
    with pytest.raises(TimeoutError):
        connect_tcp("127.0.0.1", silent_port, Deadline(0))


def found(*places: tuple[str, int]) -> Any:
    """A lookup that gives these places."""

    def look_up(*_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(_socket.AF_INET, _socket.SOCK_STREAM, 6, "", place) for place in places]

    return look_up


def test_the_next_address_is_tried_when_one_refuses(
    peer: PeerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = peer(lambda client: client.recv(1))
    refusing = ("127.0.0.1", free_ports(1)[0])
    monkeypatch.setattr(connect_module, "_look_up", found(refusing, server.address))
    sock = connect_tcp("broker.example", 5672, LONG)
    assert sock.getpeername() == server.address
    sock.close()


def test_no_address_takes_more_than_half_of_the_time_while_others_are_left(
    peer: PeerFactory, monkeypatch: pytest.MonkeyPatch, silent_port: int
) -> None:
    server = peer(lambda client: client.recv(1))
    silent = ("127.0.0.1", silent_port)
    monkeypatch.setattr(connect_module, "_look_up", found(silent, silent, server.address))
    monkeypatch.setattr(connect_module, "_shuffle", lambda addresses: None)
    began = monotonic()
    sock = connect_tcp("broker.example", 5672, Deadline(2))
    assert sock.getpeername() == server.address
    assert 1.4 <= monotonic() - began < 10
    sock.close()


def test_addresses_are_tried_in_random_order_family_by_family(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[Any] = []

    def connect(address: Any, *args: Any) -> Any:
        tried.append(address[3])
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    monkeypatch.setattr(connect_module, "_connect", connect)
    monkeypatch.setattr(connect_module, "_failed_at", {})
    monkeypatch.setattr(connect_module, "AVOIDED_FOR", -1.0)
    fours: list[Any] = [("127.0.0.1", port) for port in range(1, 6)]
    sixes: list[Any] = [("::1", port, 0, 0) for port in range(1, 6)]
    places = [(_socket.AF_INET6, _socket.SOCK_STREAM, 6, "", each) for each in sixes]
    places += [(_socket.AF_INET, _socket.SOCK_STREAM, 6, "", each) for each in fours]
    monkeypatch.setattr(connect_module, "_look_up", lambda *_: places)
    orders = set()
    for _ in range(20):
        with pytest.raises(ConnectionRefusedError):
            connect_tcp("brokers.example", 5672, LONG)
        assert sorted(tried[:5]) == sixes
        assert sorted(tried[5:]) == fours
        orders.add(tuple(tried))
        tried.clear()
    assert len(orders) > 10


def test_an_address_that_was_silent_is_tried_last(
    peer: PeerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = [peer(lambda client: client.recv(1)) for _ in range(2)]
    monkeypatch.setattr(connect_module, "_failed_at", {})
    monkeypatch.setattr(connect_module, "_look_up", found(*(each.address for each in servers)))
    sock = connect_tcp("brokers.example", 5672, LONG)
    silent = sock.getpeername()
    avoid(sock)
    sock.close()
    assert silent not in {connect_to("brokers.example") for _ in range(30)}


def connect_to(host: str) -> Any:
    """Connect and close; return the address."""
    sock = connect_tcp(host, 5672, LONG)
    address = sock.getpeername()
    sock.close()
    return address


def test_when_all_refuse_the_last_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = free_ports(2)
    monkeypatch.setattr(connect_module, "_look_up", found(*(("127.0.0.1", p) for p in ports)))
    with pytest.raises(ConnectionRefusedError, match=r"broker\.example:5672"):
        connect_tcp("broker.example", 5672, LONG)


class NameServer:
    """Lookups that wait until there is a reply.

    Attributes:
        asked: the names, in the order in which lookups began.
        replies: set when there is a reply.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.replies = Event()
        self.address = "127.0.0.1"

    def look_up(self, host: str, port: int) -> list[tuple[Any, ...]]:
        """As :func:`greenconn.green.stream._look_up`."""
        self.asked.append(host)
        assert self.replies.wait(60)
        return [(_socket.AF_INET, _socket.SOCK_STREAM, 6, "", (self.address, port))]


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    """A name server that is silent at first."""
    silent = NameServer()
    monkeypatch.setattr(connect_module, "_look_up", silent.look_up)
    yield silent
    silent.replies.set()


def test_a_lookup_that_takes_too_long(name_server: NameServer) -> None:
    with pytest.raises(TimeoutError, match=r"looking up 'broker\.example' took longer"):
        connect_tcp("broker.example", 5672, Deadline(0.02))


def test_a_name_is_looked_up_once_at_a_time(name_server: NameServer, peer: PeerFactory) -> None:
    server = peer(lambda client: client.recv(1))
    for _ in range(3):  # attempts of one connection, each of which gives up
        with pytest.raises(TimeoutError, match="looking up"):
            connect_tcp("broker.example", server.port, Deadline(0.02))
    others = [gevent.spawn(connect_tcp, "broker.example", server.port, LONG) for _ in range(20)]
    elsewhere = gevent.spawn(connect_tcp, "other.example", server.port, LONG)
    until(lambda: len(name_server.asked) == 2)
    gevent.killall(others[1:])
    assert name_server.asked == ["broker.example", "other.example"]
    name_server.replies.set()
    for each in (others[0], elsewhere):
        each.get(timeout=60).close()
    connect_tcp("broker.example", server.port, LONG).close()
    assert name_server.asked[2:] == ["broker.example"]  # nothing is remembered


def test_a_child_does_not_wait_for_a_lookup_of_its_parent(
    name_server: NameServer, peer: PeerFactory
) -> None:
    server = peer(lambda client: client.recv(1))
    waiting = gevent.spawn(connect_tcp, "broker.example", server.port, LONG)
    until(lambda: name_server.asked == ["broker.example"])

    def dial() -> bool:
        name_server.replies.set()
        connect_tcp("broker.example", server.port, Deadline(30)).close()
        return True

    assert holds_in_child(dial)
    name_server.replies.set()
    waiting.get(timeout=60).close()


def test_a_timeout_of_the_user_is_not_taken_for_ours(
    name_server: NameServer, silent_port: int
) -> None:
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.02) as timeout:
        connect_tcp("127.0.0.1", silent_port, LONG)
    assert caught.value is timeout
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.02) as timeout:
        connect_tcp("broker.example", 5672, LONG)
    assert caught.value is timeout


def test_settings_by_name_and_by_number(peer: PeerFactory) -> None:
    server = peer(lambda client: client.recv(1))
    settings: dict[str | int, int | bytes] = {"TCP_KEEPIDLE": 33, _socket.TCP_KEEPCNT: 3}
    sock = connect_tcp(server.host, server.port, LONG, settings)
    assert sock.getsockopt(_socket.IPPROTO_TCP, _socket.TCP_KEEPIDLE) == 33
    assert sock.getsockopt(_socket.IPPROTO_TCP, _socket.TCP_KEEPCNT) == 3
    sock.close()


def test_a_setting_that_the_platform_does_not_know() -> None:
    with pytest.raises(ValueError, match="TCP_TELEPATHY"):
        connect_tcp("127.0.0.1", 1, LONG, {"TCP_TELEPATHY": 1})


def test_each_switch_may_be_the_last(silent_port: int) -> None:
    def connect() -> None:
        with pytest.raises(TimeoutError):
            connect_tcp("127.0.0.1", silent_port, Deadline(0.01))

    ends = {run.raised is None for run in interruptions(connect, delays=(0, 1))}
    assert ends == {True, False}


def test_the_child_of_a_fork_closes_a_socket_on_its_way(silent_port: int) -> None:
    before = open_sockets().keys()
    connecting = gevent.spawn(connect_tcp, "127.0.0.1", silent_port, LONG)
    until(lambda: open_sockets().keys() - before)
    assert holds_in_child(lambda: open_sockets().keys() <= before)
    assert open_sockets().keys() - before
    connecting.kill()


def test_the_other_family_is_tried_when_one_refuses(
    peer: PeerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = peer(lambda client: client.recv(1))
    port = free_ports(1)[0]
    places: list[Any] = [
        (_socket.AF_INET6, _socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
        (_socket.AF_INET, _socket.SOCK_STREAM, 6, "", server.address),
    ]
    monkeypatch.setattr(connect_module, "_look_up", lambda *_: places)
    sock = connect_tcp("broker.example", 5672, LONG)
    assert sock.family == _socket.AF_INET
    assert sock.getpeername() == server.address
    sock.close()


def test_an_ipv6_number() -> None:
    listener = _socket.socket(_socket.AF_INET6, _socket.SOCK_STREAM)
    try:
        try:
            listener.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        listener.listen(1)
        sock = connect_tcp("::1", listener.getsockname()[1], LONG)
        assert sock.getpeername()[:2] == listener.getsockname()[:2]
        sock.close()
    finally:
        listener.close()


def test_what_is_set_on_each_socket(peer: PeerFactory) -> None:
    server = peer(lambda client: client.recv(1))
    sock = connect_tcp(server.host, server.port, LONG)
    assert sock.getsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY)
    assert sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE)
    for name, value in KEEPALIVE.items():
        if option := getattr(_socket, str(name), None):
            assert sock.getsockopt(_socket.IPPROTO_TCP, option) == value
    sock.close()


def test_localhost_is_an_address() -> None:
    assert numeric("localhost") == "127.0.0.1"
    assert numeric("host.example") == "host.example"
    assert numeric("::1") == "::1"


def test_a_unix_socket_that_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(1)
    sock = connect_unix(path, LONG)
    try:
        assert sock.getpeername() == path
        assert sock.gettimeout() == 0.0
    finally:
        sock.close()
        listener.close()


def test_a_timeout_of_the_kernel_is_raised_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*args: Any) -> Any:
        raise TimeoutError(errno.ETIMEDOUT, "the kernel gave up")

    monkeypatch.setattr(connect_module, "_connect", connect)
    with pytest.raises(
        TimeoutError, match=r"cannot connect to 127\.0\.0\.1:1: the kernel"
    ) as caught:
        connect_tcp("127.0.0.1", 1, LONG)
    assert caught.value.errno == errno.ETIMEDOUT


def test_a_name_that_is_found_while_the_hub_is_blocked_is_no_timeout(peer: PeerFactory) -> None:
    server = peer(lambda client: client.recv(10))
    connecting = gevent.spawn(connect_tcp, "localhost", server.port, Deadline(0.2))
    gevent.sleep(0)  # a thread looks it up
    native("time", "sleep")(0.5)
    connecting.get(timeout=60).close()


def test_an_error_of_a_lookup_is_that_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise _socket.gaierror(_socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(connect_module, "_look_up", fail)
    with pytest.raises(
        _socket.gaierror, match="cannot find host 'nowhere': no such name"
    ) as caught:
        connect_tcp("nowhere", 1, LONG)
    assert caught.value.errno == _socket.EAI_NONAME


def test_a_deadline_that_had_ended_is_not_begun_anew_without_a_lookup() -> None:
    ended = Deadline(0.001)
    until(lambda: ended.has_ended)
    assert connect_module.resolve("127.0.0.1", 1, ended)[1] is ended
    with pytest.raises(TimeoutError, match="looking up 'localhost' took longer"):
        connect_module.resolve("localhost", 1, ended)
