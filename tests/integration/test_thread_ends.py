"""Programs whose native threads use greenconn and end."""

from __future__ import annotations

import pytest

from greenconn.connection import Connection
from tests.fix_wires import until
from tests.integration.processes import run

#: One thread after the other publishes a message and ends; of their descriptors and native threads
#: nothing is left.  pymongo's own threads take a moment for their end.
_PROGRAM = """
import os, sys, threading, time
import greenconn
from greenconn import Connection
from greenconn.green import hub

hub.POOL_TIMEOUT = 20.0  # a busy machine may need longer than usual
url, name, threads = sys.argv[1:]
greenconn.configure(url)

def count():
    return len(os.listdir("/proc/self/fd")) + len(os.listdir("/proc/self/task"))

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
    if not number:
        first = count()
ends_at = time.monotonic() + 30
while count() > first + 4 and time.monotonic() < ends_at:
    time.sleep(0.01)
print(count() - first)
"""


@pytest.mark.timeout(700)
@pytest.mark.parametrize(
    "transport", ["amqp", "redis", "sqlite", "mongodb", "couchdb", "beanstalk", "sqs"]
)
@pytest.mark.sampled(2)
def test_what_a_thread_has_opened_ends_with_it(
    transport: str, unique: str, long: bool, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(f"{transport}_url")
    threads = 1000 if long else 40
    with Connection(url) as connection:
        channel = connection.default_channel
        channel.queue_declare(unique, durable=True, auto_delete=False)
        outcome = run("-W", "ignore", "-c", _PROGRAM, url, unique, str(threads), timeout=600)
        assert outcome.code == 0, outcome.errors
        assert outcome.errors == ""
        assert int(outcome.output) <= 4
        # Half of them were published without confirms.
        until(
            lambda: channel.queue_declare(unique, passive=True).message_count == threads,
            what="all messages",
        )
        channel.queue_delete(unique)
