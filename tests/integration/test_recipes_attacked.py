"""The consumers of docs/recipes.rst without retries, under attack: no message is lost.

Their handlers raise, exceed a timeout, are killed, and get bodies that cannot be decoded; their process
is killed, and the broker restarts.  Each message is then handled, or with the dead letters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.socket import wait_read

import greenconn
from greenconn import Connection
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_brokers import RedisFactory
from tests.fix_wires import until
from tests.integration.processes import ROOT, Running, start
from tests.integration.test_docs_recipes import program_with

pytestmark = [pytest.mark.programs]

SOON = 120.0
#: Kinds of messages; each has one whose body cannot be decoded, too.
ATTACKS = ("none", "raise", "hang", "kill", "exit")
NUMBER = 30
#: The queues of the recipes whose consumer settles its messages by itself.
QUEUES = ("orders", "payments", "invoices", "jobs")
#: Goes before a recipe: its handlers are attacked, and have the default options but for a timeout.
ATTACKER = """
import functools, os, signal, sys
import gevent, greenconn
from greenconn.worker import consumer as consumers

ATTACKS = ("none", "raise", "hang", "kill", "exit")

def attacked(handler):
    @functools.wraps(handler)
    def handle(body, message):
        number = message.properties["message_id"]
        attack = ATTACKS[int(number) % len(ATTACKS)]
        if attack == "raise":
            raise ValueError(number)
        if attack == "hang":
            gevent.sleep(1000)
        if attack == "kill" and not message.delivery_info["redelivered"]:
            raise gevent.GreenletExit
        if attack == "exit" and not message.delivery_info["redelivered"]:
            os.kill(os.getpid(), signal.SIGKILL)
        handler(body, message)
        print("done", number, flush=True)
    return handle

checked = consumers.checked_options

def with_defaults(queue, options, further, **rest):
    kept = {**options, "retry": None, "handler": attacked(options["handler"])}
    return checked(queue, kept, {**further, "handler_timeout": 0.5}, **rest)

consumers.checked_options = with_defaults
gevent.signal_handler(signal.SIGTERM, lambda: None)
"""
END = """
if "app" in vars():
    app.start()
print("ready", flush=True)
gevent.sleep(10000)
"""


def program_of(queue: str) -> str:
    """Return the recipe with a queue of that name, up to where it publishes."""
    program = program_with(f'("{queue}"')
    consuming = re.split(r"^(?:app\.start|gevent\.signal_handler)\(", program, flags=re.MULTILINE)[
        0
    ]
    return ATTACKER + consuming + END


class Attacked:
    """A recipe that runs, and is started again when it was killed."""

    def __init__(self, queue: str, url: str, log: Path) -> None:
        self._arguments = ("-c", program_of(queue))
        self._env = {"GREENCONN_URL": url, "PYTHONPATH": str(ROOT)}
        self._log = log
        self.done: set[str] = set()
        self._text = ""
        self._running = self._start()
        self._greenlet = gevent.spawn(self._run)

    def _start(self) -> Running:
        with self._log.open("ab") as log:
            return start(*self._arguments, env=self._env, stderr=log)

    def _run(self) -> None:
        while True:
            wait_read(self._running.output.fileno())
            part = os.read(self._running.output.fileno(), 65536)
            if part:
                self._text += part.decode()
                self.done.update(re.findall(r"^done (\d+)\n", self._text, re.MULTILINE))
            else:
                self._running.end()
                self._running = self._start()

    def end(self) -> None:
        """End it."""
        self._greenlet.kill()
        self._running.end()


@pytest.fixture(params=["amqp", "redis"])
def broker(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A broker that keeps its messages when it is killed."""
    if request.param == "amqp":
        yield request.getfixturevalue("own_rabbitmq")
    else:
        redis_with: RedisFactory = request.getfixturevalue("redis_with")
        yield redis_with("--appendonly", "yes", "--appendfsync", "always")


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.full
def test_a_recipe_loses_nothing(broker: Any, queue: str, tmp_path: Path) -> None:
    url = broker.url + ("?lease=2" if broker.url.startswith("redis") else "")
    log = tmp_path / "log"
    program = Attacked(queue, url, log)
    try:
        with Connection(url) as connection:
            letters = greenconn.dead_letters(queue, connection=connection)

            def publish(numbers: range) -> None:
                for number in numbers:
                    body: Any = {"id": number, "order": 8, "account": number % 3, "step": 2}
                    body["items"] = []
                    properties: dict[str, Any] = {"message_id": str(number)}
                    if number % 11 == 10:
                        body = b"{\xff"
                        properties["content_type"] = "application/json"
                        properties["content_encoding"] = "utf-8"
                    greenconn.publish(
                        queue, body, connection=connection, declare=True, timeout=SOON, **properties
                    )

            def dead() -> set[str]:
                return {letter.message.properties["message_id"] for letter in letters.look(1000)}

            publish(range(NUMBER // 2))
            if isinstance(broker, RabbitMQ):
                broker.evaluate("mnesia:dump_log()")  # or it forgets a new queue
            broker.kill()
            broker.start()
            publish(range(NUMBER // 2, NUMBER))
            expected = {str(number) for number in range(NUMBER)}
            try:
                until(lambda: program.done | dead() >= expected, SOON)
            except AssertionError:
                missing = sorted(expected - program.done - dead(), key=int)
                raise AssertionError(f"{missing} are missing: {log.read_text()[-5000:]}") from None
            undecodable = {each for each in dead() if int(each) % 11 == 10}
            assert undecodable == {each for each in expected if int(each) % 11 == 10}
            assert all(
                each in dead()
                for each in expected
                if ATTACKS[int(each) % len(ATTACKS)] in ("raise", "hang")
            )
    finally:
        program.end()
