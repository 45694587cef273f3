"""``greenconn bench`` over brokers without a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from greenconn import Connection, Queue
from greenconn.cli.bench import Benchmark, BenchmarkPlan
from tests.unit.cli.conftest import Command

PLAN = BenchmarkPlan(messages=200, rate=1000.0)


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """An open connection to a memory broker of the test's own."""
    with Connection(url) as connection:
        connection.connect()
        yield connection


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_the_parts_of_a_run(command: Command, kind: str, url: str, tmp_path: Path) -> None:
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path}/broker.db"
    ended = command(
        "bench", "--messages", "200", "--rate", "1000", "--consumers", "2", "--json", "-u", url
    )
    assert (ended.code, ended.errors) == (0, "")
    parts = [json.loads(line) for line in ended.output.splitlines()]
    assert [each["part"] for each in parts] == ["publish", "consume", "latency"]
    for each in parts:
        assert each["messages"] == 200
        assert each["rate"] > 0
        if each["part"] != "consume":
            assert 0 < each["p50_ms"] <= each["p90_ms"] <= each["p99_ms"] <= each["max_ms"]
    assert command("queues", "list", "--json", "-u", url).output == ""


def test_the_report(command: Command, url: str) -> None:
    ended = command("bench", "--messages", "100", "--rate", "1000", "-u", url)
    assert (ended.code, ended.errors) == (0, "")
    head, publish, consume, latency = ended.output.split("\n\n")
    assert "100 messages of 256 bytes, 10 publishers, 1 consumer" in head
    assert publish.startswith("publish: published, each confirmed\n  100 messages in ")
    assert "p99" in publish
    assert "p99" not in consume
    assert " ms  " in latency.splitlines()[3]
    assert "\x1b" not in ended.output
    assert max(map(len, ended.output.splitlines()[1:])) <= 80


def test_the_queue_goes_when_a_run_is_killed(connection: Connection) -> None:
    def run() -> None:
        with closing(Benchmark(PLAN, connection).run()) as parts:
            next(parts)
            began.set()
            gevent.sleep(3600)

    began = Event()
    running = gevent.spawn(run)
    assert began.wait(60)
    with connection.channel() as channel:
        assert len(channel.list_queues()) == 1
        running.kill()
        assert channel.list_queues() == []


def test_messages_that_do_not_come(connection: Connection) -> None:
    plan = BenchmarkPlan(messages=20, timeout=0.2)
    with closing(Benchmark(plan, connection).run()) as parts:
        next(parts)
        with connection.channel() as channel:
            [name] = channel.list_queues()
            Queue(name)(channel).purge()
        with pytest.raises(TimeoutError, match=r"0 of 20 messages came, and none for 0\.2 s"):
            next(parts)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--messages", "0"], "--messages"),
        (["--size", "-1"], "--size"),
        (["--rate", "0"], "--rate"),
        (["-u", "memroy://"], "Did you mean memory://?"),
        (["extra"], "extra"),
    ],
)
def test_wrong_usage(command: Command, arguments: list[str], text: str) -> None:
    ended = command("bench", *arguments)
    assert ended.code == 2
    assert text in ended.complaint
