"""``greenconn rpc`` and ``greenconn bench`` in processes of their own, before real brokers."""

from __future__ import annotations

import json
import signal
from typing import Any

import gevent
import pytest

from greenconn import Connection, Queue
from greenconn.service.rpc import spawn_server
from tests.integration.processes import run, start

pytestmark = pytest.mark.programs

SOON = 60.0
INTERRUPTED = 130


@pytest.fixture(params=["amqp", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """The address of a broker."""
    address: str = request.getfixturevalue(f"{request.param}_url")
    return address


def add(numbers: Any) -> Any:
    """Return the sum of a list."""
    return sum(numbers)


@pytest.mark.sampled(1)
def test_rpc_calls_a_server(url: str, unique: str) -> None:
    with Connection(url) as connection:
        consumer = spawn_server(Queue(unique, auto_delete=True), add, connection=connection)
        assert consumer.wait_ready(SOON)
        arguments = ("-m", "greenconn", "rpc", unique, "[1, 2]", '"x"', "--json", "-u", url)
        outcome = run(*arguments)
        text = run("-m", "greenconn", "rpc", unique, "--json", "-u", url, input=b"[4, 5]\n[6]\n")
        assert consumer.stop(SOON)
        connection.default_channel.queue_delete(unique)
    good, bad = map(json.loads, outcome.output.splitlines())
    assert (outcome.code, outcome.errors) == (1, "")
    assert (good["reply"], good["error"]) == (3, None)
    assert bad["error"].startswith("TypeError")
    assert [json.loads(line)["reply"] for line in text.output.splitlines()] == [9, 6]
    assert text.code == 0


@pytest.mark.sampled(1)
def test_bench_measures(url: str) -> None:
    arguments = ("--messages", "500", "--rate", "500", "--consumers", "2", "--json", "-u", url)
    outcome = run("-m", "greenconn", "bench", *arguments)
    assert (outcome.code, outcome.errors) == (0, "")
    parts = [json.loads(line) for line in outcome.output.splitlines()]
    assert [(each["part"], each["messages"]) for each in parts] == [
        ("publish", 500),
        ("consume", 500),
        ("latency", 500),
    ]
    assert all(each["rate"] > 0 for each in parts)
    assert parts[0]["p50_ms"] <= parts[0]["p99_ms"] <= parts[0]["max_ms"]


def test_ctrl_c_ends_bench_and_its_queue(redis_url: str) -> None:
    running = start("-m", "greenconn", "bench", "--messages", "100000000", "-u", redis_url)
    try:
        with Connection(redis_url) as connection, connection.channel() as channel:

            def queues() -> list[str]:
                return [each for each in channel.list_queues() if "greenconn-bench" in each]

            with gevent.Timeout(SOON):
                while not queues() or not channel.queue_declare(queues()[0], passive=True)[1]:
                    gevent.sleep(0.01)
            running.signal(signal.SIGINT)
            outcome = running.outcome()
            assert queues() == []
    finally:
        running.end()
    assert (outcome.code, outcome.errors) == (INTERRUPTED, "greenconn: interrupted\n")
