"""A broadcast reaches each of several processes once, also those that replace others."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from time import monotonic
from typing import Any

import gevent
import pytest

import greenconn
from greenconn import Broadcast, Connection
from greenconn.exceptions import NotFound
from tests.fix_wires import until
from tests.integration.gunicorn import serving
from tests.integration.processes import ROOT, start

pytestmark = [pytest.mark.programs, pytest.mark.timeout(600)]

APPS = ROOT / "tests" / "integration" / "running_apps"
#: Processes, and consumers of the broadcast in each.
PROCESSES = 3
CONSUMERS = 2


class Heard:
    """Who has heard what."""

    def __init__(self, url: str, prefix: str, is_kept: bool) -> None:
        self.prefix = prefix
        path = os.pathsep.join(map(str, (ROOT, APPS)))
        self.env = {"GREENCONN_URL": url, "HEARD_PREFIX": prefix, "PYTHONPATH": path}
        if is_kept:
            self.env["HEARD_KEPT"] = "1"
        self.connection = Connection(url)
        self._heard = greenconn.Queue(f"{prefix}-heard")(self.connection.default_channel)
        self._heard.declare()
        self.queues: set[str] = set()
        #: (what, process, consumer) -> how often.
        self.reports: Counter[tuple[Any, int, int]] = Counter()
        self._numbers = count()

    def read(self) -> None:
        """Read what the processes have reported."""
        while (message := self._heard.get(no_ack=True)) is not None:
            report = message.payload
            self.queues.add(report["queue"])
            self.reports[report["id"], report["pid"], report["consumer"]] += 1

    def publish(self, what: Any) -> None:
        """Broadcast *what*."""
        greenconn.publish(Broadcast(f"{self.prefix}-news"), what, connection=self.connection)

    def hearers(self, what: Any) -> set[int]:
        """The processes all of whose consumers have heard *what*."""
        self.read()
        heard = Counter(pid for each, pid, _ in self.reports if each == what)
        return {pid for pid, consumers in heard.items() if consumers == CONSUMERS}

    def wait_listening(self, without: set[int]) -> set[int]:
        """Wait until as many processes listen, none of them of *without*; return them."""
        with gevent.Timeout(120):
            while True:
                probe = f"probe {next(self._numbers)}"
                self.publish(probe)
                # An error that is thrown into a get without an ack loses what was on its way.
                waited = monotonic() + 2
                while len(self.hearers(probe)) < PROCESSES and monotonic() < waited:
                    gevent.sleep(0.02)
                found = self.hearers(probe)
                if len(found) == PROCESSES and not found & without:
                    return found

    def check(self, processes: set[int]) -> None:
        """Publish messages: each of *processes* must hear each once."""
        messages = [next(self._numbers) for _ in range(20)]
        for each in messages:
            self.publish(each)
        self.wait_heard(messages, processes)

    def wait_heard(self, messages: list[Any], processes: set[int]) -> None:
        """Wait until each of *processes* has heard each of *messages* once."""
        heard: dict[Any, set[int]] = {}

        def is_all() -> bool:
            heard.update((each, self.hearers(each)) for each in messages)
            return all(pids == processes for pids in heard.values())

        with suppress(AssertionError):
            until(is_all)
        assert heard == dict.fromkeys(messages, processes), f"reports: {self.reports}"
        assert set(self.reports.values()) == {1}

    def check_over_time(self, manager: int, hang_up: Callable[[], Any]) -> None:
        """Check it at the beginning, after HUP and after the end of one process by kill -9."""
        first = self.wait_listening(set())
        self.check(first)
        os.kill(manager, signal.SIGHUP)
        second = self.wait_listening(first)
        until(lambda: not any(map(is_alive, first)), what="the end of the old ones")
        self.check(second)
        victim = min(second)
        os.kill(victim, signal.SIGKILL)
        third = self.wait_listening({victim})
        self.check(third)
        assert len(third - second) == 1
        hang_up()

    def remaining(self) -> set[str]:
        """The queues that are left."""
        if self.connection.transport.driver_type != "amqp":
            # To declare a queue is to use it: it would not expire.
            return self.queues.intersection(self.connection.default_channel.list_queues())
        left = set()
        for name in self.queues:
            try:
                self.connection.channel().queue_declare(name, passive=True)
            except NotFound:
                continue
            left.add(name)
        return left

    def wait_for_end_of_queues(self) -> None:
        """Wait until no queue is left: that of a killed process goes within a minute."""
        with gevent.Timeout(500):
            while self.remaining():
                self.publish("to see who is there")
                gevent.sleep(0.5)

    def close(self) -> None:
        """Delete all that the test has left."""
        channel = self.connection.default_channel
        for name in (*self.queues, f"{self.prefix}-heard"):
            channel.queue_delete(name)
        channel.exchange_delete(f"{self.prefix}-news")
        self.connection.close()


def is_alive(pid: int) -> bool:
    """Return whether a process has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def hearing(url: str, prefix: str, *, is_kept: bool = False) -> Iterator[Heard]:
    """An account of who has heard what."""
    made = Heard(url, prefix, is_kept)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(
    "kind", ["amqp", *(pytest.param(kind, marks=pytest.mark.full) for kind in ("redis", "sqlite"))]
)
def test_processes_of_greenconn_run(request: pytest.FixtureRequest, kind: str, unique: str) -> None:
    with hearing(request.getfixturevalue(f"{kind}_url"), unique) as heard:
        running = start(
            *("-m", "greenconn", "run", "heard", "--processes=3", "--log-level=error"),
            env=heard.env,
        )

        def stop() -> None:
            running.signal(signal.SIGTERM)
            assert running.outcome().code == 0

        try:
            heard.check_over_time(running.pid, stop)
        finally:
            running.end()
        heard.wait_for_end_of_queues()


@pytest.mark.full
@pytest.mark.parametrize("kind", ["amqp", "redis"])
def test_workers_of_gunicorn_that_were_preloaded(
    request: pytest.FixtureRequest, kind: str, unique: str
) -> None:
    pytest.importorskip("gunicorn")
    with hearing(request.getfixturevalue(f"{kind}_url"), unique) as heard:
        settings = ("-c", str(APPS / "heard.conf.py"), "--workers=3", "heard:application")
        with serving(*settings, cwd=APPS, env=heard.env) as server:

            def stop() -> None:
                server.signal(signal.SIGTERM)
                assert server.wait() == 0

            heard.check_over_time(server.process.pid, stop)
        heard.wait_for_end_of_queues()


@pytest.mark.full
@pytest.mark.parametrize("kind", ["amqp", "sqlite", "postgresql"])
@pytest.mark.parametrize("runner", ["greenconn run", "gunicorn"])
def test_processes_hear_what_was_sent_while_they_were_away(
    request: pytest.FixtureRequest, unique: str, runner: str, kind: str
) -> None:
    """The queues have the same names in each life: those of host and slot."""
    with hearing(request.getfixturevalue(f"{kind}_url"), unique, is_kept=True) as heard:
        for life in range(2):
            messages = [f"{life} {n}" for n in range(10)]
            if life:
                for each in messages:
                    heard.publish(each)
            with processes(runner, heard):
                pids = heard.wait_listening(set())
                if life:
                    heard.wait_heard(messages, pids)
        names = {
            f"{unique}.{os.uname().nodename}.{slot}.{n}" for slot in range(3) for n in range(2)
        }
        assert heard.remaining() == heard.queues == names


@contextmanager
def processes(runner: str, heard: Heard) -> Iterator[None]:
    """Three processes of the application."""
    if runner == "gunicorn":
        settings = ("-c", str(APPS / "heard.conf.py"), "--workers=3", "heard:application")
        with serving(*settings, cwd=APPS, env=heard.env) as server:
            yield
            server.stop()
        return
    running = start("-m", "greenconn", "run", "heard", "--processes=3", env=heard.env)
    try:
        yield
        running.signal(signal.SIGTERM)
        assert running.outcome().code == 0
    finally:
        running.end()
