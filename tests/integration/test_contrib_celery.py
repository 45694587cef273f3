"""Celery workers with ``-P gevent`` and their clients, over greenconn's transports."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greenconn.connection import Connection
from greenconn.identity import uuid
from tests.integration.processes import Running, run, start

pytest.importorskip("celery")

pytestmark = [pytest.mark.full, pytest.mark.programs, pytest.mark.timeout(180)]

WORKER = [
    *("-W", "ignore", "-m", "celery", "-A", "tests.integration.celery.app:app", "worker"),
    *("-c", "100", "-l", "error", "--without-mingle"),
]

EXPECTED: dict[str, Any] = {
    "results": 5,
    "retries": 2,
    "failures": "ValueError('wrong')",
    "countdown": 2,
    "chords": 20,
    "late_acks": 7,
    "ping_while_tasks_run": [[[{"ok": "pong"}]], True, [0, 1, 2, 3, 4]],
    "revoking": "TaskRevokedError",
    "priorities_and_serializers": [3, 3, 3],
    "events": ["task-received", "task-succeeded"],
}


#: Greenlets that send tasks, short and long.
MANY = {False: "200", True: "5000"}
SEND_SLOW = "from tests.integration.celery.app import slow; slow.delay(0.5, 1)"
#: All at once; each succeeds the third time.
SEND_FLAKY = """
import sys
from tests.integration.celery.app import flaky
sent = [flaky.delay(2) for _ in range(int(sys.argv[1]))]
print([each.get(timeout=100) for each in sent])
"""
SEND_UNLUCKY = "from tests.integration.celery.app import unlucky; unlucky.delay()"


class Worker:
    """A worker that runs."""

    def __init__(self, env: dict[str, str], *options: str, pool: str = "gevent") -> None:
        self.env = env
        self.running: Running = start(*WORKER, "-P", pool, *options, env=env)

    def wait_for(self, text: str) -> None:
        """Wait until it has printed this."""
        while self.running.line() != text:
            pass

    def end(self) -> None:
        """See that it has ended."""
        self.running.end()


@pytest.fixture(scope="module")
def environment(amqp_url: str, redis_url: str) -> Callable[..., dict[str, str]]:
    """Makes what the application reads, each time with a queue of its own."""

    def environment(broker: str = "amqp", **more: str) -> dict[str, str]:
        return {
            "BROKER": amqp_url if broker == "amqp" else redis_url,
            "RESULTS": redis_url,
            "QUEUE": f"greenconn-celery-{uuid()}",
            "TRANSPORT": f"greenconn.contrib.celery:{broker.capitalize()}Transport",
            **more,
        }

    return environment


@pytest.fixture
def work(environment: Callable[..., dict[str, str]]) -> Iterator[Callable[..., Worker]]:
    """Starts workers that are ready."""
    workers: list[Worker] = []

    def work(
        *options: str, env: dict[str, str] | None = None, pool: str = "gevent", **more: str
    ) -> Worker:
        worker = Worker(env or environment(**more), *options, pool=pool)
        workers.append(worker)
        worker.wait_for("ready")
        return worker

    yield work
    for worker in workers:
        worker.end()


@pytest.fixture(scope="module", params=["amqp", "redis"])
def outcomes(
    request: pytest.FixtureRequest, environment: Callable[..., dict[str, str]], long: bool
) -> Iterator[dict[str, Any]]:
    """What became of each step of the client, on each broker in turn."""
    worker = Worker(environment(request.param))
    try:
        worker.wait_for("ready")
        outcome = run("-m", "tests.integration.celery.client", MANY[long], env=worker.env)
        assert outcome.output, outcome.errors
        outcomes = json.loads(outcome.output.splitlines()[-1])
        if any(outcomes[step] != expected for step, expected in EXPECTED.items()):
            print("The client:", outcome.errors, "The worker:", worker.running.stacks(), sep="\n")
        yield outcomes
    finally:
        worker.end()


@pytest.mark.parametrize("step", EXPECTED)
def test_a_worker_and_a_client(step: str, outcomes: dict[str, Any]) -> None:
    assert outcomes[step] == EXPECTED[step]


def test_thousands_of_greenlets_send_tasks(outcomes: dict[str, Any], long: bool) -> None:
    many = int(MANY[long])
    assert outcomes["many_greenlets"] == [many, many + 1]


def test_a_warm_shutdown_lets_tasks_end(work: Callable[..., Worker]) -> None:
    worker = work()
    sent = run("-c", SEND_SLOW, env=worker.env)
    assert sent.code == 0, sent.errors
    worker.wait_for("slow began 1")
    worker.running.signal(signal.SIGTERM)
    worker.wait_for("slow ended 1")
    worker.wait_for("shut down")
    assert worker.running.outcome().code == 0


def test_a_worker_without_greenlets_of_its_own_consumes(work: Callable[..., Worker]) -> None:
    worker = work(pool="solo", broker="redis")
    assert run("-c", SEND_SLOW, env=worker.env).code == 0
    worker.wait_for("slow ended 1")


@pytest.mark.parametrize("broker", ["amqp", "redis"])
def test_a_worker_of_processes(work: Callable[..., Worker], broker: str) -> None:
    """Threads of Celery's answer there for the thread that consumes."""
    worker = work("-c", "2", pool="prefork", broker=broker)
    assert run("-c", SEND_SLOW, env=worker.env).code == 0
    worker.wait_for("slow ended 1")
    worker.running.signal(signal.SIGTERM)
    worker.wait_for("shut down")
    assert worker.running.outcome().code == 0
    with Connection(worker.env["BROKER"]) as connection:
        declared = connection.default_channel.queue_declare(worker.env["QUEUE"], passive=True)
        assert declared.message_count == 0


@pytest.mark.parametrize("broker", ["amqp", "redis"])
def test_tasks_that_retry_in_processes(
    work: Callable[..., Worker], broker: str, long: bool
) -> None:
    """Each is acknowledged by a thread of Celery's, and sent twice more by a process of its pool."""
    worker = work("-c", "2", pool="prefork", broker=broker)
    tasks = 200 if long else 10
    outcome = run("-c", SEND_FLAKY, str(tasks), env=worker.env)
    assert outcome.output == f"{[2] * tasks}\n", outcome.errors


def test_what_a_killed_worker_had_not_acknowledged_is_done_by_another(
    work: Callable[..., Worker],
) -> None:
    worker = work()
    assert run("-c", SEND_UNLUCKY, env=worker.env).code == 0
    worker.wait_for("unlucky began")
    worker.running.signal(signal.SIGKILL)
    other = work(env=worker.env)
    other.wait_for("unlucky ended")


def test_a_worker_without_what_it_needs_not(work: Callable[..., Worker]) -> None:
    worker = work("--without-heartbeat", "--without-gossip", SCHEME="greenconn-amqp")
    assert run("-c", SEND_SLOW, env=worker.env).code == 0
    worker.wait_for("slow ended 1")


def test_quorum_queues(work: Callable[..., Worker]) -> None:
    worker = work(QUORUM="1")
    assert run("-c", SEND_SLOW, env=worker.env).code == 0
    worker.wait_for("slow ended 1")


def test_a_process_that_is_not_patched_may_send_and_wait(work: Callable[..., Worker]) -> None:
    worker = work()
    program = (
        "from tests.integration.celery.app import add\nprint(add.delay(20, 3).get(timeout=30))"
    )
    outcome = run("-c", program, env=worker.env)
    assert outcome.output == "23\n", outcome.errors


def test_connections_to_redis_that_were_killed(work: Callable[..., Worker]) -> None:
    """The first task of the client is sent all the same, and the worker's remote control comes back."""
    worker = work(broker="redis")
    process = str(worker.running.pid)
    outcome = run("-m", "tests.integration.celery.killed", process, env=worker.env)
    assert outcome.output, outcome.errors
    pong = [[{"ok": "pong"}]]
    assert json.loads(outcome.output.splitlines()[-1]) == [pong, 5, pong]
