"""kombu's pooled connections over greenconn's transports, in programs with native threads."""

from __future__ import annotations

import signal

import pytest

from tests.integration.processes import run, start

pytest.importorskip("kombu")

_PROGRAM = """
import queue, sys, threading, time
from kombu import Connection, Queue, pools
from greenconn.contrib import celery

how, url, name = sys.argv[1:]
broker = Connection(url, transport=f"greenconn.contrib.celery:{how}Transport")
pool = pools.connections[broker]
pool.limit = 2

def use(number):
    # What Celery's clients do: a pooled connection, its default channel, back to the pool.
    with pool.acquire(block=True, timeout=20) as connection:
        producer = connection.Producer()
        producer.publish({"n": number}, routing_key=name, declare=[Queue(name)], retry=True)

jobs, errors = queue.Queue(), []

def work():
    while (number := jobs.get()) is not None:
        try:
            use(number)
        except BaseException as exc:
            errors.append(repr(exc))
        jobs.task_done()

threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
for each in threads:
    each.start()
for number in range(60):
    jobs.put(number)
jobs.join()
with Connection(url, transport=f"greenconn.contrib.celery:{how}Transport") as connection:
    channel = connection.default_channel
    count = channel.queue_declare(name, passive=True).message_count
    channel.queue_delete(name)
assert errors == [], errors
assert count == 60, count
pool.force_close_all()  # in another thread than most links were made in
held = broker.clone()
held.connect()
closer = threading.Thread(target=held.close)
closer.start()
closer.join(20)
assert not closer.is_alive()
held.connect()  # and opened anew
print("done", flush=True)
if sys.stdin.readline():
    threading.Event().wait()
"""


@pytest.mark.parametrize("how", ["Amqp", "Redis"])
def test_pooled_connections_go_from_thread_to_thread(
    how: str, amqp_url: str, redis_url: str, unique: str
) -> None:
    url = amqp_url if how == "Amqp" else redis_url
    outcome = run("-W", "ignore", "-c", _PROGRAM, how, url, unique, timeout=60)
    assert outcome.code == 0, outcome.errors
    assert outcome.output == "done\n"


@pytest.mark.full
@pytest.mark.parametrize("how", ["Amqp", "Redis"])
def test_sigterm_ends_such_a_program(how: str, amqp_url: str, redis_url: str, unique: str) -> None:
    url = amqp_url if how == "Amqp" else redis_url
    running = start("-W", "ignore", "-c", _PROGRAM, how, url, unique)
    try:
        assert running.line(60) == "done"
        running.input.write(b"wait\n")
        running.input.flush()
        running.signal(signal.SIGTERM)
        assert running.outcome(timeout=60).code == -signal.SIGTERM
    finally:
        running.end()
