"""Stores of message ids, and handlers whose process is killed."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import gevent
import pytest

pytest.importorskip("sqlalchemy")

from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError

import greenconn
from greenconn import Connection, Message, Queue
from greenconn.contrib.idempotency import Claim, IdStore, MemoryIds, handled_once
from greenconn.contrib.idempotency.redis import RedisIds
from greenconn.contrib.idempotency.sqlalchemy import SqlIds
from tests.fix_wires import until
from tests.integration.processes import ROOT, Running, start

pytestmark = pytest.mark.halved

SOON = 120.0
#: Seconds that nothing here lasts.
LONG = 1000.0
#: Seconds of what is to end.
SHORT = 0.05
#: Messages of a storm.
COUNT = 200


@pytest.fixture(params=["memory", "redis", "valkey", "redis-py", "sqlite"])
def ids(request: pytest.FixtureRequest, unique: str, tmp_path: Path) -> Iterator[IdStore]:
    if request.param == "memory":
        yield MemoryIds()
    elif request.param == "sqlite":
        engine = create_engine(f"sqlite:///{tmp_path}/ids.sqlite", connect_args={"timeout": 60})
        store = SqlIds(engine)
        store.create_table()
        yield store
        engine.dispose()
    elif request.param in ("redis", "valkey"):
        url = f"{request.param}:{request.getfixturevalue('redis_url').partition(':')[2]}"
        ours = RedisIds(url, prefix=unique)
        yield ours
        ours.close()
    else:
        import redis

        # Calls of killed handlers go on; redis-py 8 refuses more than 100 at once.
        client = redis.Redis.from_url(request.getfixturevalue("redis_url"), max_connections=1000)
        yield RedisIds(client, prefix=unique)
        client.close()


def test_an_id_is_claimed_once(ids: IdStore) -> None:
    assert ids.claim("a", "ada", LONG) is Claim.NEW
    assert ids.claim("a", "bob", LONG) is Claim.BUSY
    assert ids.claim("b", "bob", LONG) is Claim.NEW
    ids.finish("a", "ada", LONG)
    assert ids.claim("a", "bob", LONG) is Claim.HANDLED
    ids.release("a", "ada")  # it is finished
    assert ids.claim("a", "bob", LONG) is Claim.HANDLED


def left(connection: Connection, queue: str) -> int:
    """The number of messages that wait."""
    return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


@pytest.mark.sampled(2)
def test_interruptions_leave_no_claim_and_handle_nothing_twice(ids: IdStore, unique: str) -> None:
    """Timeouts and kills come at any moment of a call of the store.  A claim that is left lasts."""
    calls: Counter[int] = Counter()

    @handled_once(ids, name=unique, lease=LONG)
    def work(body: int, message: Message) -> None:
        calls[body] += 1

    with Connection(f"memory://localhost/{unique}") as connection:
        queue = Queue(unique)
        for n in range(COUNT):
            greenconn.publish(queue, n, connection=connection, message_id=f"m{n}")
        for timeout in (0.001, 0.002, 0.003, 0.005, None, None):
            consumer = greenconn.spawn_consumer(
                queue, work, connection=connection, concurrency=10, handler_timeout=timeout
            )
            assert consumer.wait_ready(SOON)
            gevent.sleep(random.uniform(0.0, 0.03))
            consumer.kill()
        consumer = greenconn.spawn_consumer(queue, work, connection=connection, concurrency=10)
        until(lambda: len(calls) == COUNT and not left(connection, unique), SOON)
        assert set(calls.values()) == {1}
        assert consumer.stop(SOON)


def test_a_released_id_is_free(ids: IdStore) -> None:
    assert ids.claim("a", "ada", LONG) is Claim.NEW
    ids.release("a", "bob")  # not his
    assert ids.claim("a", "bob", LONG) is Claim.BUSY
    ids.release("a", "ada")
    assert ids.claim("a", "bob", LONG) is Claim.NEW


def test_a_claim_ends_with_its_lease(ids: IdStore) -> None:
    assert ids.claim("a", "ada", SHORT) is Claim.NEW
    until(lambda: ids.claim("a", "bob", LONG) is Claim.NEW, SOON)
    assert ids.renew("a", "ada", LONG) is False
    ids.release("a", "ada")
    assert ids.claim("a", "eve", LONG) is Claim.BUSY


def test_a_renewed_claim_lasts(ids: IdStore) -> None:
    assert ids.claim("a", "ada", LONG) is Claim.NEW
    assert ids.renew("a", "ada", SHORT) is True
    # On a busy machine his claim may end before he renews it; then he claims again.
    until(lambda: ids.claim("a", "bob", SHORT) is Claim.NEW and ids.renew("a", "bob", LONG), SOON)
    gevent.sleep(2 * SHORT)
    assert ids.claim("a", "eve", LONG) is Claim.BUSY


def test_what_was_handled_is_forgotten_in_time(ids: IdStore) -> None:
    assert ids.claim("a", "ada", LONG) is Claim.NEW
    ids.finish("a", "ada", SHORT)
    until(lambda: ids.claim("a", "bob", LONG) is Claim.NEW, SOON)


def test_of_many_at_once_one_gets_it(ids: IdStore) -> None:
    jobs = [gevent.spawn(ids.claim, "a", f"owner-{number}", LONG) for number in range(20)]
    gevent.joinall(jobs, timeout=SOON, raise_error=True)
    found = Counter(job.value for job in jobs)
    assert found == {Claim.NEW: 1, Claim.BUSY: 19}


def test_old_rows_are_pruned(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/ids.sqlite")
    now = 1000.0
    store = SqlIds(engine, clock=lambda: now)
    store.create_table()
    for number in range(5):
        store.claim(f"id-{number}", "ada", 10)
    store.finish("id-3", "ada", 20)
    assert store.prune() == 0
    now += 10
    assert store.prune() == 4
    assert store.claim("id-3", "bob", 10) is Claim.HANDLED
    engine.dispose()


def test_a_mark_in_the_transaction_of_the_handler(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/ids.sqlite")
    store = SqlIds(engine)
    store.create_table()
    with pytest.raises(LookupError), engine.begin() as connection:
        store.add(connection, "a", timedelta(seconds=LONG))
        raise LookupError
    with engine.begin() as connection:
        store.add(connection, "a", LONG)
    with pytest.raises(IntegrityError), engine.begin() as connection:
        store.add(connection, "a", LONG)
    assert store.claim("a", "ada", LONG) is Claim.HANDLED
    engine.dispose()


@pytest.mark.full
@pytest.mark.programs
def test_killed_processes(
    amqp_url: str,
    redis_url: str,
    unique: str,
    tmp_path: Path,
    long: bool,
    request: pytest.FixtureRequest,
) -> None:
    chance = random.Random(request.config.getoption("randomly_seed", 0))
    done = tmp_path / "done"
    done.touch()
    env = {
        "PAYING_BROKER": amqp_url,
        "PAYING_IDS": redis_url,
        "PAYING_QUEUE": unique,
        "PAYING_DONE": str(done),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'integration' / 'idempotent_apps'}",
    }

    def begin() -> Running:
        return start("-m", "greenconn", "run", "paying", env=env, stderr=None)

    def lines() -> Counter[int]:
        return Counter(map(int, done.read_text().split()))

    kills, count = (30, 6000) if long else (3, 600)
    queue = Queue(unique)
    processes = [begin(), begin()]
    try:
        with Connection(amqp_url) as connection:

            def publish(numbers: range) -> None:
                for number in numbers:
                    options: dict[str, Any] = {"message_id": f"m{number}"}
                    for _ in range(2):
                        greenconn.publish(queue, number, connection=connection, **options)

            for kill in range(kills):
                before = len(lines())
                publish(range(kill * count // kills, (kill + 1) * count // kills))
                until(lambda: len(lines()) > before, SOON)  # noqa: B023
                gevent.sleep(chance.random() * 0.05)
                killed = processes.pop(chance.randrange(2))
                killed.signal(signal.SIGKILL)
                killed.end()
                processes.append(begin())
            until(lambda: len(lines()) == count, SOON, "all handled")
            channel = connection.default_channel
            until(lambda: channel.queue_declare(unique, passive=True).message_count == 0, SOON)
            for each in processes:
                each.signal(signal.SIGTERM)
            for each in processes:
                until(lambda: each.process.poll() is not None, SOON)  # noqa: B023
                # The last one may not have come to handle signals.
                assert each.process.poll() in (0, -signal.SIGTERM)
            channel.queue_delete(unique)
    finally:
        for each in processes:
            each.end()
    twice = sum(lines().values()) - count
    print(f"{count} ids, each published twice, {kills} kills: {twice} handled twice")
    # At most those whose handler had ended when its process was killed.
    assert twice <= 4 * kills
