"""The hooks for gunicorn, with a worker that is none."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import gevent
import pytest
from gevent.event import Event

from greenconn import defaults, rpc
from greenconn.connection import Connection
from greenconn.contrib import gunicorn
from greenconn.green.hub import PerHub
from greenconn.publishing import publish
from greenconn.session import session as module
from greenconn.session.session import sessions_in_use
from greenconn.transport import memory
from greenconn.worker import ConsumerState, spawn_consumer, stop_consumers
from tests.fix_wires import until

SOON = 30.0


class Server:
    """What the hooks want of an arbiter."""

    def __init__(self) -> None:
        self.log = self
        self.warnings: list[str] = []

    def warning(self, text: str, *args: Any) -> None:
        self.warnings.append(text % args)


@pytest.fixture(autouse=True)
def signals() -> Iterator[list[int]]:
    """What the worker's own handlers got; the process has its former ones again afterwards."""
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in gunicorn.SIGNALS}
    for number in before:
        signal.signal(number, lambda signum, frame: came.append(signum))
    gunicorn._shutdown = None
    yield came
    gunicorn._shutdown = None
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def connection(unique: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """The connection of the program, the only one."""
    monkeypatch.setattr(module, "_in_use", PerHub(WeakSet))
    with Connection(f"memory:///{unique}") as connection:
        yield connection
    stop_consumers(0)
    defaults.reset()
    memory.reset(unique)


def worker_with(graceful_timeout: float = SOON, timeout: float = SOON) -> Any:
    cfg = SimpleNamespace(graceful_timeout=graceful_timeout, timeout=timeout)
    return SimpleNamespace(pid=os.getpid(), cfg=cfg)


class Handler:
    """One that is busy until it is let go."""

    def __init__(self) -> None:
        self.entered, self.go_on = Event(), Event()
        self.ended: list[Any] = []

    def __call__(self, body: Any, message: Any) -> None:
        self.entered.set()
        self.go_on.wait(SOON)
        self.ended.append(body)


@pytest.mark.parametrize("number", gunicorn.SIGNALS)
def test_consumers_stop_when_a_signal_comes(
    connection: Connection, signals: list[int], number: signal.Signals
) -> None:
    consumer = spawn_consumer("q", print, connection=connection)
    server = rpc.spawn_server("sum", sum, connection=connection)
    assert consumer.wait_ready(SOON)
    worker = worker_with()
    gunicorn.post_worker_init(worker)
    os.kill(os.getpid(), number)
    until(lambda: signals == [number])  # the worker's own handler has run
    until(consumer.ready)
    assert consumer.state is ConsumerState.STOPPED
    # A request may wait for an answer, and may publish.
    assert rpc.call("sum", [1, 2], connection=connection, timeout=SOON) == 3
    publish("q", "late", connection=connection)
    assert not server.ready()
    gunicorn.worker_exit(Server(), worker)
    assert server.state is ConsumerState.STOPPED
    assert not connection.connected
    assert sessions_in_use() == []


def test_handlers_finish_before_all_is_closed(connection: Connection) -> None:
    handler = Handler()
    consumer = spawn_consumer("q", handler, connection=connection)
    publish("q", 1, connection=connection)
    assert handler.entered.wait(SOON)
    worker = worker_with()
    gunicorn.worker_int(worker)
    exiting = gevent.spawn(gunicorn.worker_exit, Server(), worker)
    until(lambda: consumer.state is ConsumerState.STOPPING)
    assert connection.connected
    handler.go_on.set()
    exiting.get(timeout=SOON)
    assert handler.ended == [1]
    assert consumer.stats()["handled"] == 1


@pytest.mark.parametrize("times", [{"graceful_timeout": 0.2}, {"timeout": 0.2}])
def test_handlers_that_take_too_long_are_interrupted(
    connection: Connection, times: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    handler = Handler()
    consumer = spawn_consumer("q", handler, connection=connection)
    publish("q", 1, connection=connection)
    assert handler.entered.wait(SOON)
    gunicorn.worker_exit(Server(), worker_with(**times))
    assert handler.ended == []
    assert consumer.stats()["requeued"] == 1
    assert "interrupted" in caplog.text


def test_timeout_zero_is_none(connection: Connection) -> None:
    consumer = spawn_consumer("q", print, connection=connection)
    gunicorn.worker_exit(Server(), worker_with(timeout=0))
    assert consumer.ready()


def test_the_arbiter_itself_is_left_alone(connection: Connection) -> None:
    connection.connect()
    worker = worker_with()
    worker.pid += 1
    gunicorn.worker_exit(Server(), worker)
    assert connection.connected


def test_consumers_of_the_arbiter_are_named(connection: Connection) -> None:
    server = Server()
    gunicorn.post_fork(server, worker_with())
    assert server.warnings == []
    consumer = spawn_consumer("q", print, connection=connection, name="mine")
    gunicorn.post_fork(server, worker_with())
    (warning,) = server.warnings
    assert "mine" in warning
    assert "post_worker_init" in warning
    consumer.stop(SOON)


def test_signals_that_nobody_handles_are_left_alone() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gunicorn.post_worker_init(worker_with())
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
