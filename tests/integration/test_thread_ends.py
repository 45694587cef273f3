"""Programs whose native threads use greenconn and end."""

from __future__ import annotations

import pytest

from greenconn.connection import Connection
from tests.integration.gunicorn import until
from tests.integration.processes import run

#: One thread after the other publishes a message and ends; the parent's descriptors stay the same.
_PROGRAM = """
import os, sys, threading
import greenconn
from greenconn import Connection
from greenconn.green import thread_end

thread_end.POOL_TIMEOUT = 20.0  # a busy machine may need longer than usual
url, name, threads = sys.argv[1:]
greenconn.configure(url)
counts = []

def use(number):
    if number % 2:
        greenconn.publish(name, {"n": number})
    else:
        connection = Connection(url)
        connection.Producer().publish({"n": number}, routing_key=name)

for number in range(int(threads)):
    thread = threading.Thread(target=use, args=(number,))
    thread.start()
    thread.join()
    counts.append(len(os.listdir("/proc/self/fd")))
print(max(counts) - min(counts[2:10]))
"""


@pytest.mark.parametrize("transport", ["amqp", "redis"])
def test_what_a_thread_has_opened_ends_with_it(
    transport: str, amqp_url: str, redis_url: str, unique: str, long: bool
) -> None:
    url = amqp_url if transport == "amqp" else redis_url
    threads = 1000 if long else 40
    with Connection(url) as connection:
        channel = connection.default_channel
        channel.queue_declare(unique, durable=True, auto_delete=False)
        outcome = run("-W", "ignore", "-c", _PROGRAM, url, unique, str(threads), timeout=120)
        assert outcome.code == 0, outcome.errors
        assert outcome.errors == ""
        assert int(outcome.output) <= 4
        # Half of them were published without confirms.
        until(
            lambda: channel.queue_declare(unique, passive=True).message_count == threads,
            "all messages",
        )
        channel.queue_delete(unique)
