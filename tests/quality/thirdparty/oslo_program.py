"""The processes of the run with oslo.messaging, which is patched for gevent.

``oslo_program.py WAY ROLE URL COUNT``: *driver* runs the unit tests of the rabbit driver and prints
their number and the names of those that failed; *server* answers calls and notes casts until its end;
*client* makes them, waits for SIGUSR1 in the middle, and prints how many were right.
"""

from __future__ import annotations

import sys
from typing import Any

from gevent import monkey

monkey.patch_all()

WAY, ROLE, URL, COUNT = sys.argv[1:5]

if WAY != "kombu":
    from greenconn.compat import install_as_kombu

    install_as_kombu()

import json  # noqa: E402 - what is imported below is chosen above
import os  # noqa: E402
import signal  # noqa: E402
import unittest  # noqa: E402

import eventlet  # noqa: E402
import oslo_messaging  # noqa: E402
from gevent import Timeout, signal_handler  # noqa: E402
from gevent.event import Event  # noqa: E402
from gevent.pool import Pool  # noqa: E402
from oslo_config import cfg  # noqa: E402
from oslo_messaging.conffixture import ConfFixture  # noqa: E402

#: Seconds for one test; the longest takes 15.
TEST_TIMEOUT = 60.0
#: Seconds for one call, and how often a call that had no answer is made.
CALL_TIMEOUT, ATTEMPTS = 10, 6
#: Greenlets that make calls.
CLIENTS = 20
DRIVER_TESTS = tuple(
    f"oslo_messaging.tests.drivers.{name}"
    for name in ("test_impl_rabbit", "test_amqpdriver", "test_pool")
)
TARGET = oslo_messaging.Target(topic="greenconn", version="1.0")


class TooLong(Exception):
    """The limit of one test."""


class Outcome(unittest.TestResult):
    """Counts, and ends tests that take too long."""

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802 - unittest's name
        super().startTest(test)
        self._limit = Timeout.start_new(TEST_TIMEOUT, TooLong(f"{TEST_TIMEOUT:g} s"))

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802 - unittest's name
        self._limit.close()
        super().stopTest(test)
        if WAY != "kombu":
            # Its consumers get messages until they are closed, and these tests leave some open.
            from greenconn.transport import memory

            memory.reset()

    def names(self) -> dict[str, str]:
        """Return the tests that failed, each with the last line of its error."""
        problems = [*self.errors, *self.failures]
        return {each.id().rpartition(".drivers.")[2]: text for each, text in problems}


def run_driver_tests() -> None:
    """Run the tests."""
    eventlet.monkey_patch = lambda *args, **kwargs: None  # the tests call it on import
    suite = unittest.defaultTestLoader.loadTestsFromNames(DRIVER_TESTS)
    outcome = Outcome()
    suite.run(outcome)
    failed = outcome.names()
    for name, text in failed.items():
        print(f"{name}\n{text}")
    count = outcome.testsRun - len(outcome.skipped)
    print("\nresult", json.dumps({"count": count, "failed": sorted(failed)}))


class Endpoint:
    """The methods of the server."""

    target = TARGET

    def __init__(self) -> None:
        self._noted: set[int] = set()

    def add(self, context: Any, one: int, other: int) -> int:
        """Return the sum."""
        return one + other

    def note(self, context: Any, number: int) -> None:
        """Keep the number of a cast."""
        self._noted.add(number)

    def noted(self, context: Any) -> list[int]:
        """Return the numbers of all casts that came."""
        return sorted(self._noted)


def transport() -> Any:
    """Return the transport of RPC over the broker."""
    conf = cfg.ConfigOpts()
    conf([])
    ConfFixture(conf)  # registers all options, some of which are read without being registered
    url = URL.replace("amqp://", "rabbit://")
    return oslo_messaging.get_rpc_transport(conf, url=url)


def serve() -> None:
    """Serve until the process is ended."""
    target = oslo_messaging.Target(topic=TARGET.topic, server="one")
    server = oslo_messaging.get_rpc_server(transport(), target, [Endpoint()], executor="threading")
    server.start()
    print("ready", flush=True)
    server.wait()


def call() -> None:
    """Make calls and casts, half of them after SIGUSR1."""
    go_on = Event()
    signal_handler(signal.SIGUSR1, go_on.set)
    client = oslo_messaging.get_rpc_client(transport(), TARGET, timeout=CALL_TIMEOUT)
    pool, count, right = Pool(CLIENTS), int(COUNT), 0

    def answer(method: str, **arguments: Any) -> Any:
        for _ in range(ATTEMPTS):
            try:
                return client.call({}, method, **arguments)
            except oslo_messaging.MessagingTimeout:
                continue
        return None

    def one(number: int) -> bool:
        client.cast({}, "note", number=number)
        return bool(answer("add", one=number, other=1) == number + 1)

    right += sum(pool.map(one, range(count // 2)))
    right += len(set(answer("noted") or ()))
    print("half", flush=True)
    go_on.wait()
    answer("add", one=1, other=1)  # the server's queue is there again
    right += sum(pool.map(one, range(count // 2, count)))
    right += len(set(answer("noted") or ()) & set(range(count // 2, count)))
    print("right", right)


if __name__ == "__main__":
    {"driver": run_driver_tests, "server": serve, "client": call}[ROLE]()
    sys.stdout.flush()
    os._exit(0)  # their threads need not end
