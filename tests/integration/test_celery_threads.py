"""Servers that answer in native threads, whose views send tasks over ``greenconn.contrib.celery``."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.pool import Pool

from greenconn.connection import Connection
from tests.brokers.ports import free_ports
from tests.fix_wires import until
from tests.integration.gunicorn import SOON, serving
from tests.integration.processes import start

pytest.importorskip("celery")
pytest.importorskip("django")

pytestmark = [pytest.mark.full, pytest.mark.programs, pytest.mark.timeout(180)]

#: Seconds for all that a server does.
TIMEOUT = 150.0

#: Requests, short and long.
MANY = {False: 100, True: 1500}
#: Descriptors that ten clients and their threads need, short and long: no multiple of the requests.
#: Ours end with their thread; those of Celery's backend of results wait for the garbage collector, so
#: that there are some 130 of them before it comes.
FEW = {False: 150, True: 400}


@pytest.fixture(params=["amqp", "redis"])
def env(
    request: pytest.FixtureRequest, amqp_url: str, redis_url: str, unique: str
) -> Iterator[dict[str, str]]:
    """What the application reads, with a queue of its own."""
    broker = amqp_url if request.param == "amqp" else redis_url
    yield {
        "BROKER": broker,
        "RESULTS": redis_url,
        "QUEUE": unique,
        "TRANSPORT": f"greenconn.contrib.celery:{request.param.capitalize()}Transport",
    }
    with Connection(broker) as connection:
        connection.default_channel.queue_delete(unique)


def fetch(port: int) -> Any:
    """Return what the view answers over a connection of its own.  May switch."""
    with (
        gevent.Timeout(SOON, AssertionError("no answer")),
        closing(socket.create_connection(("127.0.0.1", port))) as sock,
    ):
        sock.sendall(b"GET /send HTTP/1.0\r\nHost: localhost\r\n\r\n")
        answer = b""
        while part := sock.recv(65536):
            answer += part
    assert b" 200 " in answer.partition(b"\r\n")[0], answer.decode()
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def send_many(port: int, long: bool) -> int:
    """Send tasks from ten clients at once; what the server has open must not grow with them.

    Returns how many there were.
    """
    count = MANY[long]
    answers = list(Pool(10).imap_unordered(fetch, [port] * count))
    assert len({each["id"] for each in answers}) == count
    assert max(each["descriptors"] for each in answers) < FEW[long]
    return count


def is_answering(port: int) -> Callable[[], bool]:
    """Return what tells whether the server has begun."""

    def is_answering() -> bool:
        try:
            fetch(port)
        except OSError:
            return False
        return True

    return is_answering


def sent(env: dict[str, str]) -> int:
    """Return the number of tasks in the queue."""
    with Connection(env["BROKER"]) as connection:
        declared = connection.default_channel.queue_declare(env["QUEUE"], passive=True)
        return int(declared.message_count)


def test_threads_of_gunicorn(env: dict[str, str], long: bool) -> None:
    arguments = ("--worker-class=gthread", "--workers=1", "--threads=8")
    with serving(*arguments, "tests.integration.celery.web:application", env=env) as server:
        until(is_answering(server.port), what="an answer")
        count = send_many(server.port, long)
        until(lambda: sent(env) == count + 1, what="all tasks")
        server.stop()


def test_a_thread_for_each_request(env: dict[str, str], long: bool) -> None:
    """Django's ``runserver``."""
    (port,) = free_ports(1)
    program = ("-W", "ignore", "-m", "tests.integration.celery.web", "runserver", "--noreload")
    running = start(*program, f"127.0.0.1:{port}", env=env)
    try:
        # It prints a line for each request, and would wait for ever on a full pipe.
        ending = gevent.spawn(running.outcome, timeout=TIMEOUT)
        try:
            until(is_answering(port), what="an answer")
            count = send_many(port, long)
            until(lambda: sent(env) == count + 1, what="all tasks")
            running.signal(signal.SIGINT)
            outcome = ending.get()
        finally:
            ending.kill()
        assert outcome.code == 0, outcome.errors
        assert "Traceback" not in outcome.errors, outcome.errors
    finally:
        running.end()


#: What Flower does: one thread reads events, others ask the workers, and SIGTERM ends the process.
_MONITOR = """
import signal, sys, threading
from concurrent.futures import ThreadPoolExecutor
from celery.events import EventReceiver
from tests.integration.celery.app import add, app

kinds, have = set(), threading.Event()

def note(event):
    kinds.add(event["type"])
    if {"task-received", "task-succeeded"} <= kinds:
        have.set()

receivers = []

def watch():
    with app.connection() as connection:
        receiver = EventReceiver(connection, handlers={"*": note}, app=app)
        receivers.append(receiver)
        receiver.capture(limit=None, timeout=None, wakeup=True)

watcher = threading.Thread(target=watch)
watcher.start()
pool = ThreadPoolExecutor(4)

def ask(method):
    # More than once: the worker may be ready before it listens to commands.
    inspect = app.control.inspect(timeout=5.0, limit=1)
    return any(getattr(inspect, method)() for _ in range(6))

for _ in range(3):
    methods = ["ping", "stats", "active_queues", "registered", "conf"]
    assert all(pool.map(ask, methods)), "no answer"
for _ in range(100):
    add.delay(1, 2)
    if have.wait(0.2):
        break
assert have.is_set(), kinds
with app.connection() as connection:
    scheme = connection.as_uri().partition("://")[0]

def end(*args):
    receivers[0].should_stop = True
    raise SystemExit(0)

signal.signal(signal.SIGTERM, end)
print(scheme, flush=True)
while True:
    signal.pause()
"""


def test_a_monitor_of_many_threads(env: dict[str, str]) -> None:
    worker = start(
        *("-W", "ignore", "-m", "celery", "-A", "tests.integration.celery.app:app", "worker"),
        *("-P", "gevent", "-c", "10", "-l", "error", "--without-mingle"),
        env=env,
    )
    monitor = None
    try:
        while worker.line() != "ready":
            pass
        monitor = start("-W", "ignore", "-c", _MONITOR, env=env)
        # The protocol, as URLs of brokers say it: Flower's page of the broker reads that.
        assert monitor.line() == env["BROKER"].partition("://")[0]
        monitor.signal(signal.SIGTERM)
        assert monitor.outcome(timeout=SOON).code == 0
    finally:
        if monitor is not None:
            monitor.end()
        worker.end()
