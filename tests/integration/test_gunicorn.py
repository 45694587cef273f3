"""A Flask application under gunicorn's gevent workers: nothing is ever lost.

The ledger: each order that was answered with 200 is shipped once or more, or waits in its queue.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

import greenconn
from greenconn.connection import Connection
from greenconn.exceptions import NotFound
from tests.fix_wires import until
from tests.integration.gunicorn import ROOT, SOON, Load, Server, serving

pytest.importorskip("gunicorn")
pytest.importorskip("flask")

pytestmark = [pytest.mark.full, pytest.mark.programs]

#: The shop, and variants of it that do not begin as it does.
APPS = ROOT / "tests" / "integration" / "gunicorn_apps"
HOOKED = ("-c", str(APPS / "hooked.conf.py"))


class Ledger:
    """What became of the orders of one shop."""

    def __init__(self, url: str, prefix: str) -> None:
        self.prefix = prefix
        path = os.pathsep.join(map(str, (ROOT, APPS)))
        self.env = {"GREENCONN_URL": url, "SHOP_PREFIX": prefix, "PYTHONPATH": path}
        self._connection = Connection(url)
        self.shipped: set[str] = set()
        #: How often one was shipped again.
        self.repeated = 0
        self.hands: set[int] = set()

    def read(self) -> set[str]:
        """All that was shipped so far."""
        for done in self._take("shipped"):
            self.repeated += done["id"] in self.shipped
            self.shipped.add(done["id"])
            self.hands.add(done["by"])
        return self.shipped

    def waiting(self) -> set[str]:
        """What waits in the queue of orders, which is emptied."""
        return {order["id"] for order in self._take("orders")}

    def has_all(self, taken: set[str]) -> bool:
        """Whether all of *taken* was shipped."""
        return not taken - self.read()

    def _take(self, queue: str) -> Iterator[dict[str, Any]]:
        while True:
            try:
                channel = self._connection.default_channel
                message = channel.basic_get(f"{self.prefix}-{queue}", no_ack=True)
            except NotFound:
                return  # nothing was published yet
            if message is None:
                return
            yield message.decode()

    def consumers(self) -> int:
        """How many processes take orders."""
        channel = self._connection.default_channel
        return int(channel.queue_declare(f"{self.prefix}-orders", passive=True).consumer_count)

    def publish(self, queue: str, body: Any) -> None:
        """Put a message into a queue of the shop."""
        greenconn.publish(f"{self.prefix}-{queue}", body, connection=self._connection, declare=True)

    def close(self) -> None:
        for name in ("orders", "prices", "shipped", "go"):
            self._connection.default_channel.queue_delete(f"{self.prefix}-{name}")
        self._connection.default_channel.exchange_delete(f"{self.prefix}-news")
        self._connection.close()


@pytest.fixture(params=["amqp", "redis"])
def ledger(request: pytest.FixtureRequest, unique: str, long: bool) -> Iterator[Ledger]:
    """A shop on each broker in turn."""
    if request.param == "redis" and not long:
        pytest.skip("runs only with --long: the messages of dead workers are leased for 30 s")
    kept = Ledger(request.getfixturevalue(f"{request.param}_url"), unique)
    yield kept
    kept.close()


def replace_workers(server: Server) -> None:
    """HUP, and wait until the old workers have ended.  May switch."""
    old = set(server.living())
    server.signal(signal.SIGHUP)
    until(lambda: not old & set(server.living()), what="the end of the old ones")


def test_reload_and_stop_under_load(ledger: Ledger, long: bool) -> None:
    """200 requests at once, HUP, and TERM while they go on."""
    with serving(
        *HOOKED, "tests.integration.gunicorn_apps.web_shop:application", env=ledger.env
    ) as server:
        server.wait_ready()
        with Load(server, clients=200) as load:
            until(lambda: len(load.taken) >= 200, what="200 answers")
            assert load.refused == {}
            assert load.unanswered == 0
            for _ in range(5 if long else 1):
                replace_workers(server)
                load.wait_more(100)
                until(lambda: load.workers >= set(server.living()), what="answers of both new ones")
            assert load.refused == {}, server.log
            before = len(load.taken)
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
            load.stop()
        assert len(load.taken) >= before
        assert load.refused == {}, server.log
        lost = load.taken - ledger.read() - ledger.waiting()
        assert not lost
        assert ledger.repeated == 0  # all ended in good order
        assert server.complaints == [], server.log


def test_a_worker_asked_to_stop_takes_nothing_more_while_its_requests_publish(
    ledger: Ledger,
) -> None:
    with serving(*HOOKED, "troubled:application", cwd=APPS, env=ledger.env) as server:
        server.wait_ready()
        until(lambda: ledger.consumers() == 2, what="consumers in both workers")
        assert server.request("/health/live").json == {"live": True}
        order = server.request("/orders", {"id": "first", "item": "teapot"})
        assert order.json["price"] == 18
        page = server.request("/")
        assert page.status == 200
        for text in (f"{ledger.prefix}-orders", "running", "://", "which is ready"):
            assert text in page.body.decode()
        until(lambda: b"first" in server.request("/").body, what="the news on the page")
        request = gevent.spawn(server.request, "/late")
        until(lambda: "begun" in ledger.read(), what="the request")
        server.signal(signal.SIGTERM)
        until(lambda: ledger.consumers() == 0, what="consumers that stop")
        assert not request.ready()
        ledger.publish("orders", {"id": "for another", "item": "teapot"})
        ledger.publish("go", "on")
        assert request.get(timeout=30).body == b"published"
        assert server.wait() == 0
        assert "late" in ledger.read()
        assert ledger.waiting() == {"for another"}
        assert server.complaints == [], server.log


def test_preloading_and_restarts_after_so_many_requests(ledger: Ledger, long: bool) -> None:
    """What was opened before the fork is the arbiter's alone."""
    few = ("--max-requests=60", "--max-requests-jitter=10")
    arguments = (*HOOKED, "--preload", *few, "preloaded:application")
    with serving(*arguments, cwd=APPS, env=ledger.env) as server:
        server.wait_ready()
        with Load(server, clients=20) as load:
            until(
                lambda: len(server.booted) > (20 if long else 3), what="workers that replace others"
            )
            until(lambda: len(load.workers) > 2, what="answers of the new ones")
        assert load.refused == {}, server.log
        until(lambda: ledger.has_all(load.taken), what="all shipped")
        assert "from-the-arbiter" in ledger.shipped
        assert ledger.repeated == 0
        warnings = [line for line in server.log.splitlines() if "before the fork" in line]
        assert len(warnings) == len(server.booted)
        assert "never-in-the-workers" in warnings[0]
        assert server.complaints == warnings, server.log
        # gunicorn loses a TERM that comes while a worker begins.
        until(
            lambda: ledger.consumers() == 2 == len(server.living()), what="workers that are whole"
        )
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert ledger.hands <= {*server.booted}


def test_workers_that_hang_or_are_killed(ledger: Ledger) -> None:
    """What they had not acknowledged is shipped by others."""
    env = {**ledger.env, "SHOP_WORK": "0.3"}
    # gunicorn kills a worker that a busy machine holds up for so long, too, also while it begins.
    with serving(*HOOKED, "--timeout=15", "troubled:application", cwd=APPS, env=env) as server:
        server.wait_ready()
        with Load(server, clients=50) as load:
            until(lambda: len(load.taken) >= 200, what="answers")
            killed = server.living()[0]
            server.signal(signal.SIGKILL, killed)
            until(lambda: killed not in server.living(), what="its end")
            until(lambda: len(server.living()) == 2, what="its successor")
            hanging = gevent.spawn(server.knock, "/forever")
            until(lambda: "WORKER TIMEOUT" in server.log, what="a worker that hangs")
            until(
                lambda: len(server.booted) >= 4 and len(server.living()) == 2, what="its successor"
            )
            hanging.join(timeout=SOON)
            until(lambda: ledger.consumers() == 2, what="consumers in both workers")
        until(lambda: ledger.has_all(load.taken), what="all shipped")
        assert {*load.refused} <= {500, 503}
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_the_hook_at_fork_is_enough(ledger: Ledger, long: bool) -> None:
    """Without any hook of gunicorn's nothing is lost either."""
    arguments = ("--graceful-timeout=20", "unhooked:application")
    with serving(*arguments, cwd=APPS, env=ledger.env) as server:
        server.wait_ready()
        with Load(server, clients=50) as load:
            until(lambda: len(load.taken) >= 200, what="answers")
            if long:
                replace_workers(server)
                load.wait_more(50)
            assert load.refused == {}, server.log
            until(lambda: ledger.consumers() == 2, what="consumers in both workers")
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
        assert not load.taken - ledger.read() - ledger.waiting()


@pytest.mark.long
def test_stop_at_once_under_load(ledger: Ledger) -> None:
    """INT: gunicorn waits for no request; what was answered is shipped all the same."""
    with serving(
        *HOOKED, "tests.integration.gunicorn_apps.web_shop:application", env=ledger.env
    ) as server:
        server.wait_ready()
        with Load(server, clients=50) as load:
            until(lambda: len(load.taken) >= 200, what="answers")
            server.signal(signal.SIGINT)
            assert server.wait() == 0
        assert not load.taken - ledger.read() - ledger.waiting()
        assert server.complaints == [], server.log
