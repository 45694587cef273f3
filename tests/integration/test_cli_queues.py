"""``greenconn queues`` and ``greenconn top`` in processes of their own, before real brokers."""

from __future__ import annotations

import json
import os
import pty
import signal
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.socket import wait_read

from greenconn import Connection
from tests.brokers.rabbitmq import RabbitMQ
from tests.integration.processes import Outcome, Running, run, start

pytestmark = [pytest.mark.programs, pytest.mark.halved]

SOON = 60.0
INTERRUPTED = 130


def greenconn(*arguments: str) -> Outcome:
    """Run a command to its end."""
    return run("-m", "greenconn", *arguments)


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """The objects that a command printed, a line each."""
    assert outcome.code == 0, outcome.errors
    return [json.loads(line) for line in outcome.output.splitlines()]


@pytest.fixture
def queue(amqp_url: str, unique: str) -> Iterator[str]:
    """A queue of RabbitMQ with two messages; deleted after the test."""
    assert greenconn("publish", unique, "a", "b", "--declare", "-u", amqp_url).code == 0
    yield unique
    with Connection(amqp_url) as connection:
        connection.default_channel.queue_delete(unique)


def test_rabbitmq_without_the_management_api(amqp_url: str, queue: str) -> None:
    # Nothing listens there.
    url = f"{amqp_url}?manager_port=1"
    (found,) = rows(greenconn("queues", "list", queue, "--json", "-u", url))
    assert found == {
        "queue": queue,
        "kind": None,
        "durable": None,
        "ready": 2,
        "unacked": None,
        "consumers": 0,
    }
    outcome = greenconn("queues", "list", "-u", url)
    assert outcome.code == 1
    assert "rabbitmq_management" in outcome.errors
    assert "or name the queues" in outcome.errors
    assert "guest:guest" not in outcome.errors
    (look,) = rows(greenconn("top", queue, "--json", "-n", "1", "-u", url))
    assert (look["ready"], look["in_rate"]) == (2, None)


def test_rabbitmq_with_the_management_api(managed_rabbitmq: RabbitMQ, unique: str) -> None:
    url = f"{managed_rabbitmq.url}?manager_port={managed_rabbitmq.http_port}"
    assert greenconn("queues", "declare", unique, "--type", "quorum", "-u", url).code == 0
    try:
        assert greenconn("publish", unique, "a", "b", "c", "-u", url).code == 0
        (found,) = rows(greenconn("queues", "list", unique, "--json", "-u", url))
        assert (found["kind"], found["durable"]) == ("quorum", True)
        assert (found["ready"], found["consumers"]) == (3, 0)
        listed = rows(greenconn("queues", "list", "--json", "-u", url))
        assert unique in [each["queue"] for each in listed]
        with Connection(url) as connection, connection.channel() as channel:
            channel.basic_get(unique)
            with gevent.Timeout(SOON):  # its statistics come late
                while not _is_held(url, unique):
                    pass
    finally:
        assert greenconn("queues", "delete", unique, "--yes", "-u", url).code == 0


def _is_held(url: str, queue: str) -> bool:
    """Return whether one message of the queue is unacknowledged, in what ``top`` prints."""
    (look,) = rows(greenconn("top", queue, "--json", "-n", "1", "-u", url))
    return bool(look["unacked"] == 1 and look["ready"] == 2 and look["out_rate"] is not None)


def in_terminal(*arguments: str, columns: int) -> tuple[Running, int]:
    """Start a command in a terminal; return it with our end of that."""
    ours, its = pty.openpty()
    os.set_blocking(ours, False)
    env = {"COLUMNS": str(columns), "LINES": "24", "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    program = start("-m", "greenconn", *arguments, stdout=its, stderr=its, env=env)
    os.close(its)
    return program, ours


def read_until(descriptor: int, text: bytes) -> bytes:
    """Read from a terminal until *text* was written, or nobody writes any more."""
    seen = b""
    with gevent.Timeout(SOON):
        while text not in seen:
            wait_read(descriptor)
            try:
                data = os.read(descriptor, 65536)
            except OSError:  # nobody has its other end any more
                break
            seen += data
    return seen


@pytest.mark.parametrize("columns", [80, 120])
def test_top_in_a_terminal(amqp_url: str, queue: str, columns: int) -> None:
    url = f"{amqp_url}?manager_port=1"
    program, terminal = in_terminal("top", queue, "-i", "0.1", "-u", url, columns=columns)
    try:
        seen = read_until(terminal, "██".encode())
        program.signal(signal.SIGINT)
        seen += read_until(terminal, b"interrupted")
        assert program.process.wait(timeout=SOON) == INTERRUPTED
    finally:
        program.end()
        os.close(terminal)
    for text in ("1 queue, 2 ready", "READY", "CONSUMERS", "LAG", queue):
        assert text.encode() in seen
    assert b"guest:guest" not in seen
    assert seen.count(b"\x1b[?25l") == seen.count(b"\x1b[?25h") == 1  # the cursor is back


def test_ctrl_c_ends_top_in_a_pipe(amqp_url: str, queue: str) -> None:
    url = f"{amqp_url}?manager_port=1"
    program = start("-m", "greenconn", "top", queue, "--json", "-i", "0.1", "-u", url)
    try:
        read_until(program.output.fileno(), b"}\n")
        program.signal(signal.SIGINT)
        outcome = program.outcome()
    finally:
        program.end()
    assert (outcome.code, outcome.errors) == (INTERRUPTED, "greenconn: interrupted\n")


@pytest.mark.full
def test_top_goes_on_when_the_broker_is_back(own_rabbitmq: RabbitMQ, unique: str) -> None:
    url = f"{own_rabbitmq.url}?manager_port=1"
    assert greenconn("queues", "declare", unique, "-u", url).code == 0
    program = start("-m", "greenconn", "top", unique, "--json", "-i", "0.1", "-u", url)
    try:
        read_until(program.output.fileno(), b"}\n")
        own_rabbitmq.stop()
        own_rabbitmq.start()
        assert greenconn("publish", unique, "x", "-u", url).code == 0
        assert b'"ready": 1' in read_until(program.output.fileno(), b'"ready": 1')
        program.signal(signal.SIGINT)
        outcome = program.outcome()
    finally:
        program.end()
    assert outcome.code == INTERRUPTED
    assert "connection lost, reconnecting" in outcome.errors
    assert "guest:guest" not in outcome.errors
