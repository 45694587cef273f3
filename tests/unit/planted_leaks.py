"""What test_leaks.py runs in a process of its own: tests that leave something, tests that do not.

Not collected with the other tests, since its name does not begin with ``test_``.
"""

from __future__ import annotations

import logging
import threading
import time

import gevent
import pytest
from gevent import get_hub, monkey, socket
from gevent.event import Event

from greenconn.green.supervisor import spawn
from tests import fix_leaks
from tests.fix_leaks import HubErrors
from tests.fix_peer import PeerFactory

fix_leaks.SETTLE = 0.2
#: Longer than the looks for what is left take, on a busy machine, too.
NAP = 60.0

real_sleep = monkey.get_original("time", "sleep")
start_thread = monkey.get_original("_thread", "start_new_thread")
kept: list[object] = []


def wait() -> None:
    Event().wait()


def fail() -> None:
    raise LookupError("planted")


class Broken:
    """Fails when it goes."""

    def __init__(self) -> None:
        self.cycle: Broken | None = None

    def __del__(self) -> None:
        fail()


def test_leaves_greenlet() -> None:
    gevent.spawn(wait).name = "planted"


def test_leaves_raw_greenlet() -> None:
    kept.append(gevent.spawn_raw(wait))


def test_leaves_disabled_logging() -> None:
    logging.disable()


def test_leaves_socket() -> None:
    kept.append(socket.socket())


def test_leaves_connected_sockets() -> None:
    kept.extend(socket.socketpair())


def test_leaves_forgotten_socket() -> None:
    socket.socket()


def test_leaves_socket_in_a_cycle() -> None:
    cycle: list[object] = [socket.socket()]
    cycle.append(cycle)


def test_leaves_error_in_greenlet() -> None:
    gevent.spawn(fail).join()


def test_leaves_error_in_timer() -> None:
    timer = get_hub().loop.timer(0)
    timer.start(fail)
    gevent.sleep(0.01)
    timer.close()


def test_leaves_error_in_peer(peer: PeerFactory) -> None:
    server = peer(lambda client: fail())
    with socket.create_connection(server.address) as client:
        assert client.recv(1) == b""


def test_leaves_error_in_log() -> None:
    spawn("planted", fail).join()


def test_leaves_error_in_del() -> None:
    Broken()


def test_leaves_error_in_del_of_a_cycle() -> None:
    broken = Broken()
    broken.cycle = broken


def test_leaves_thread() -> None:
    # Of a patched process, this is a greenlet.
    threading.Thread(target=time.sleep, args=(NAP,), name="planted", daemon=True).start()


def test_leaves_nameless_thread() -> None:
    start_thread(real_sleep, (NAP,))


@pytest.mark.timeout(0.3)
def test_leaves_nothing_but_is_stuck() -> None:
    gevent.sleep(10)


@pytest.mark.timeout(0.3)
def test_leaves_nothing_but_is_stuck_beside_a_busy_greenlet() -> None:
    def spin() -> None:
        while True:
            pass

    gevent.spawn(spin)
    wait()


def test_fails_and_leaves_socket() -> None:
    kept.append(socket.socket())
    fail()


def test_ends_a_greenlet_soon() -> None:
    gevent.spawn(gevent.sleep, 0.05)


def test_kills_a_greenlet() -> None:
    gevent.spawn(wait).kill()


def test_sees_an_error() -> None:
    with pytest.raises(LookupError):
        gevent.spawn(fail).get()


def test_clears_an_error(hub_errors: HubErrors) -> None:
    gevent.spawn(fail).join()
    assert "planted" in repr(hub_errors.unseen)
    hub_errors.clear()


def test_looks_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    spawn("planted", fail).join()
    assert "planted" in caplog.text


def test_uses_the_thread_pool() -> None:
    assert get_hub().threadpool.apply(int) == 0
    assert socket.getaddrinfo("localhost", 80)


def test_closes_a_socket() -> None:
    with socket.socket():
        pass


def test_joins_a_thread() -> None:
    thread = threading.Thread(target=time.sleep, args=(0.01,))
    thread.start()
    thread.join()


def test_uses_a_peer(peer: PeerFactory) -> None:
    server = peer(lambda client: client.sendall(client.recv(5)))
    with socket.create_connection(server.address) as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"


def test_leaves_a_connection_to_a_peer_that_waits(peer: PeerFactory) -> None:
    server = peer(lambda client: wait())
    kept.append(socket.create_connection(server.address))
