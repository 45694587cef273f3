"""Dramatiq's actors over greenconn: sent from here, done by ``dramatiq-gevent`` in its own processes."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest

pytest.importorskip("dramatiq")

import dramatiq
from dramatiq.errors import ConnectionFailed

from greenconn import Connection
from greenconn.contrib.dramatiq import (
    GreenconnBroker,
    RabbitmqBroker,
    RedisBroker,
    dead_letter_name,
)
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_wires import until
from tests.integration.processes import ROOT, Running, start

pytestmark = [pytest.mark.full, pytest.mark.programs]

SOON = 90.0
#: Its types know decorators without arguments, or with, and no calls.
make_actor: Any = dramatiq.actor
APPS = ROOT / "tests" / "integration" / "dramatiq_apps"
DRAMATIQ = (
    "import sys; from gevent import monkey; monkey.patch_all(); "
    "from dramatiq.cli import main, make_argument_parser as parser; sys.exit(main())"
)


class Actors:
    """A broker to send by, the workers that it has, and what they have noted.

    Arguments:
        broker: sends messages; None is a ``GreenconnBroker``.
    """

    def __init__(
        self, url: str, queue: str, folder: Path, broker: GreenconnBroker | None = None
    ) -> None:
        self.url = url
        self.queue = queue
        self._done = folder / "done"
        self.broker = GreenconnBroker(url, timeout=SOON) if broker is None else broker
        self.work = self.actor("work")
        self.fail = self.actor("fail", max_retries=2, min_backoff=100)
        self.workers: list[Running] = []

    def actor(self, name: str, **options: Any) -> Any:
        """Return the actor of that name of the workers, to be sent messages."""

        def function(*arguments: Any) -> None:
            raise AssertionError("it is done elsewhere")

        return make_actor(
            function, actor_name=name, queue_name=self.queue, broker=self.broker, **options
        )

    def start(self) -> Running:
        """Start a worker process."""
        env = {
            "ACTORS_BROKER": type(self.broker).__name__,
            "ACTORS_URL": self.url,
            "ACTORS_QUEUE": self.queue,
            "ACTORS_DONE": str(self._done),
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, APPS))),
        }
        worker = start(
            "-c", DRAMATIQ, "actors", "--processes=1", "--threads=4", "--skip-logging", env=env
        )
        self.workers.append(worker)
        return worker

    def lines(self) -> list[list[str]]:
        """What was noted so far."""
        return (
            [line.split() for line in self._done.read_text().splitlines()]
            if self._done.exists()
            else []
        )

    def done(self, word: str = "done") -> Counter[int]:
        """How often each number was noted."""
        return Counter(int(line[1]) for line in self.lines() if line[0] == word)

    def pids(self) -> set[int]:
        """The processes that have begun something."""
        return {int(line[2]) for line in self.lines() if line[0] == "begun"}

    def end(self) -> None:
        for worker in self.workers:
            worker.end()
        self.broker.flush_all()
        self.broker.close()


@pytest.fixture(
    params=[
        "amqp",
        pytest.param("redis", marks=pytest.mark.long),
        pytest.param("sqlite", marks=pytest.mark.long),
    ]
)
def actors(request: pytest.FixtureRequest, unique: str, tmp_path: Path) -> Iterator[Actors]:
    kind = request.param
    url = (
        f"sqlite:///{tmp_path}/q.db" if kind == "sqlite" else request.getfixturevalue(f"{kind}_url")
    )
    actors = Actors(url, unique, tmp_path)
    yield actors
    actors.end()


def test_what_is_sent_is_done_and_what_fails_is_a_dead_letter(actors: Actors) -> None:
    for number in range(20):
        actors.work.send(number)
    actors.fail.send(7)
    began = monotonic()
    actors.work.send_with_options(args=(100,), delay=1500)
    actors.work.send_with_options(args=(101,), delay=50)
    worker = actors.start()
    expected = Counter({*range(20), 100, 101})
    until(lambda: actors.done() == expected, timeout=SOON, what="all done")
    assert monotonic() - began >= 1.5
    until(lambda: actors.done("failed")[7] == 3, timeout=SOON, what="all retries")
    until(
        lambda: actors.broker.get_queue_message_counts(actors.queue)[2] == 1,
        timeout=SOON,
        what="the dead letter",
    )
    actors.broker.join(actors.queue, min_successes=1, timeout=int(1000 * SOON))
    worker.signal(signal.SIGTERM)
    assert worker.outcome(timeout=SOON).code == 0


def test_its_connection_and_channel_may_be_used_and_closed(actors: Actors) -> None:
    actors.work.send(1)
    count = actors.broker.channel.queue_declare(actors.queue, passive=True).message_count
    assert count == 1
    actors.broker.connection.close()
    actors.work.send(2)
    del actors.broker.connection
    actors.work.send(3)
    assert actors.broker.channel.queue_purge(actors.queue) == 3
    if actors.url.startswith("redis"):
        assert actors.broker.client.ping()


def test_a_worker_that_is_killed_loses_nothing(actors: Actors) -> None:
    actors.start()
    for number in range(8):
        actors.work.send(number, 0.0 if number else 3600.0)
    until(lambda: len(actors.done()) == 7 and actors.pids(), timeout=SOON, what="the first begun")
    for pid in actors.pids():
        os.kill(pid, signal.SIGKILL)
    # Its master starts no other one within the time of this test; the message is another's.
    actors.workers[0].end()
    actors.start()
    until(lambda: len(actors.pids()) == 2, timeout=SOON, what="it is begun again")
    assert actors.done("begun")[0] == 2


def test_a_worker_that_stops_gives_back_what_it_has_not_begun(actors: Actors) -> None:
    worker = actors.start()
    for number in range(12):
        actors.work.send(number, 0.5)
    until(lambda: len(actors.done("begun")) >= 4, timeout=SOON, what="the first begun")
    worker.signal(signal.SIGTERM)
    worker.outcome(timeout=SOON)
    begun, done = actors.done("begun"), actors.done()
    assert begun == done  # it let them finish
    actors.start()
    until(lambda: len(actors.done()) == 12, timeout=SOON, what="the others are done")
    assert actors.done() == Counter(range(12))  # none twice


def test_a_restart_of_the_broker(own_rabbitmq: RabbitMQ, unique: str, tmp_path: Path) -> None:
    actors = Actors(own_rabbitmq.url, unique, tmp_path)
    try:
        actors.work.send(0)
        actors.start()
        until(lambda: actors.done()[0] == 1, timeout=SOON, what="the first")
        actors.work.send_with_options(args=(1,), delay=3000)
        own_rabbitmq.stop()
        sending = gevent.spawn(actors.work.send, 2)
        own_rabbitmq.start()
        sending.get(timeout=SOON)
        until(lambda: set(actors.done()) == {0, 1, 2}, timeout=SOON, what="all three")
    finally:
        actors.end()


def test_a_queue_that_was_deleted_is_declared_again(actors: Actors) -> None:
    actors.work.send(0)
    connection = actors.broker._connections.get()
    assert connection is not None
    with connection.clone() as other:
        other.default_channel.queue_delete(actors.queue)
    actors.work.send(1)
    actors.start()
    until(lambda: actors.done() == {1: 1}, timeout=SOON, what="the second")


def test_a_queue_that_was_deleted_under_a_worker_is_declared_again(actors: Actors) -> None:
    """Not at once: RabbitMQ 3.10 would not tell the worker, and give it nothing of the new queue."""
    actors.start()
    actors.work.send(0)
    until(lambda: actors.done()[0] == 1, timeout=SOON, what="the first")
    connection = actors.broker._connections.get()
    assert connection is not None
    with connection.clone() as other:
        other.default_channel.queue_delete(actors.queue)
    actors.work.send(1)
    until(lambda: actors.done()[1] == 1, timeout=SOON, what="the second")


def test_a_broker_that_is_away(unique: str) -> None:
    broker = GreenconnBroker("amqp://guest:guest@127.0.0.1:1//", timeout=0.3)
    actor = make_actor(print, actor_name="print", queue_name=unique, broker=broker)
    with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:1"):
        actor.send()
    broker.close()


def test_wrong_use(unique: str) -> None:
    broker = GreenconnBroker(f"memory:///{unique}")
    with pytest.raises(RuntimeError, match="run dramatiq-gevent instead of dramatiq"):
        broker.consume("nothing")
    with pytest.raises(ValueError, match="max_priority must be from 1 to 255, got 256"):
        GreenconnBroker("memory://", max_priority=256)
    with pytest.raises(KeyError, match="nothing"):
        GreenconnBroker("nothing://")
    broker.close()


def test_queues_of_dramatiqs_own_broker(amqp_url: str, unique: str) -> None:
    """With ``quorum=False`` the arguments are those of its queues."""
    pika_broker = pytest.importorskip("dramatiq.brokers.rabbitmq")
    theirs = pika_broker.RabbitmqBroker(url=amqp_url)
    theirs.declare_queue(unique)
    theirs._ensure_queue(unique)
    broker = GreenconnBroker(amqp_url, quorum=False)
    actor = make_actor(print, actor_name="print", queue_name=unique, broker=broker)
    actor.send("hello")
    until(lambda: theirs.get_queue_message_counts(unique) == (1, 0, 0), timeout=SOON, what="there")
    with broker._connections.get().channel() as channel:  # type: ignore[union-attr]
        for name in (unique, f"{unique}.DQ", dead_letter_name(unique)):
            channel.queue_delete(name)
    theirs.close()
    broker.close()


def test_the_place_of_dramatiqs_broker_for_rabbitmq(
    amqp_url: str, unique: str, tmp_path: Path
) -> None:
    """On the queues that it has declared, with its arguments."""
    pika = pytest.importorskip("pika")
    theirs = pytest.importorskip("dramatiq.brokers.rabbitmq").RabbitmqBroker(url=amqp_url)
    make_actor(print, actor_name="work", queue_name=unique, broker=theirs).send(0)
    theirs.close()
    at = Connection(amqp_url)
    arguments = {
        "host": at.hostname,
        "port": at.port or 5672,
        "virtual_host": at.virtual_host,
        "credentials": pika.PlainCredentials(at.userid or "guest", at.password or "guest"),
    }
    parameters = [{**arguments, "port": 1}, arguments]
    actors = Actors(amqp_url, unique, tmp_path, RabbitmqBroker(parameters=parameters, timeout=SOON))
    broker: Any = actors.broker
    actors.work.send(1)
    assert broker.connection.is_open
    until(
        lambda: broker.channel.queue_declare(unique, passive=True).method.message_count == 2,
        timeout=SOON,
        what="both",
    )
    actors.work.send_with_options(args=(2,), delay=1100)
    actors.actor("double").send(2)
    actors.fail.send(7)
    worker = actors.start()
    until(lambda: actors.done() == Counter([0, 1, 2, 4]), timeout=SOON, what="all done")
    dead_letters = dead_letter_name(unique)
    until(
        lambda: broker.channel.queue_declare(dead_letters, passive=True).method.message_count,
        timeout=SOON,
        what="the dead letter",
    )
    worker.signal(signal.SIGTERM)
    worker.outcome(timeout=SOON)  # it would declare the queue again
    broker.channel.queue_delete(unique)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker):
        broker.channel.queue_declare(unique, passive=True)
    for name in (unique, f"{unique}.DQ", dead_letters):
        broker.channel.queue_delete(name)
    actors.end()


def test_the_place_of_dramatiqs_broker_for_redis(
    redis_url: str, unique: str, tmp_path: Path
) -> None:
    """With results that its client keeps, and by the address of a client of redis-py."""
    redis = pytest.importorskip("redis")
    results = pytest.importorskip("dramatiq.results")
    backends = pytest.importorskip("dramatiq.results.backends")
    with redis.Redis.from_url(redis_url) as client:
        broker = RedisBroker(client=client, maintenance_chance=1, heartbeat_timeout=60_000)
        assert broker.client is client
        broker.close()
    broker = RedisBroker(url=redis_url, timeout=SOON)
    broker.add_middleware(results.Results(backend=backends.RedisBackend(client=broker.client)))
    actors = Actors(redis_url, unique, tmp_path, broker)
    sent = actors.actor("double", store_results=True).send(21)
    actors.work.send_with_options(args=(1,), delay=1100)
    actors.start()
    assert sent.get_result(backend=broker.get_results_backend(), block=True, timeout=90_000) == 42
    broker.join(unique, interval=10, timeout=int(1000 * SOON))
    until(lambda: actors.done() == Counter([42, 1]), timeout=SOON, what="all done")
    actors.end()
