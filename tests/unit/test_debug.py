"""The picture of what a process is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection
from greenconn.debug import dump, dump_on_signal
from greenconn.transport import memory
from tests.fix_wires import until


@pytest.fixture
def connection(unique: str) -> Iterator[Connection]:
    with Connection(f"memory:///{unique}") as connection:
        yield connection
    memory.reset(unique)


def test_who_holds_and_who_waits(connection: Connection, unique: str) -> None:
    is_over = Event()
    pool = connection.Pool(2)

    def hold() -> None:
        with pool.acquire(block=True) as held:
            held.connect()
            is_over.wait()

    holders = [gevent.spawn(hold) for _ in range(3)]
    until(lambda: pool.stats()["waiting"] == 1)
    text = dump()
    is_over.set()
    gevent.joinall(holders, raise_error=True)
    pool.force_close_all()
    assert f"  memory://localhost/{unique}: open, opened 1 times" in text
    assert "2 of 2 in use, 1 waiting" in text
    assert text.count("    held for 0.") == 2
    assert "resource.py:" in text
    assert "test_debug.py:" in text


def test_consumers_and_their_handlers(connection: Connection, unique: str) -> None:
    is_over = Event()

    def handler(body: object, message: object) -> None:
        is_over.wait()

    consumer = greenconn.spawn_consumer(unique, handler, connection=connection, concurrency=25)
    assert consumer.wait_ready(30)
    for number in range(25):
        greenconn.publish(unique, "secret", connection=connection, message_id=f"m{number}")
    until(lambda: consumer.stats()["in_flight"] == 25)
    text = dump()
    is_over.set()
    assert consumer.stop(30)
    assert f"  {unique}: running: received 25, in_flight 25" in text
    assert text.count("    a handler has message m") == 20
    assert "    and 5 more" in text
    assert "25 x greenconn:worker: unit/test_debug.py:" in text
    assert "secret" not in text


def test_a_process_that_does_nothing() -> None:
    assert "consumers: 0" in dump()
    assert "greenlets: " in dump()


def test_a_proxy_whose_object_is_gone() -> None:
    class Something:
        pass

    something = Something()
    left = weakref.proxy(something)
    del something
    assert "greenlets: " in dump()
    del left


def test_on_a_signal(caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        dump_on_signal()
        os.kill(os.getpid(), signal.SIGUSR1)
        until(lambda: bool(caplog.records))
    finally:
        signal.signal(signal.SIGUSR1, before)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("greenconn.debug", "WARNING")
    assert "connections: " in record.getMessage()


@pytest.mark.parametrize("is_first", [True, False])
def test_modules_imported_before_the_patch_are_listed(is_first: bool) -> None:
    """In processes of their own."""
    patch = "from gevent import monkey; monkey.patch_all()"
    imports = "import redis.retry, urllib3, click, sqlalchemy, prometheus_client"
    lines = [patch, imports] if is_first else [imports, patch]
    lines += ["from greenconn.debug import dump, find_unpatched"]
    lines += ["print(sorted({(each.module, each.original) for each in find_unpatched()}))"]
    lines += ["print('imported before the monkey patch' in dump())"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=True,
    )
    found, is_dumped = done.stdout.splitlines()
    assert is_dumped == str(not is_first)
    if is_first:
        assert found == "[]"
        return
    assert "('redis.retry', 'time.sleep')" in found
    assert "('urllib3.util.ssl_', 'ssl.SSLContext')" in found
    assert "('click.globals', 'threading.local')" in found
    assert "'threading.Lock')" in found
