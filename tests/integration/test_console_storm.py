"""Buttons of the console while workers and the broker are killed: no message is lost, none is stuck."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL

import gevent
import pytest

import greenconn
from greenconn import Connection
from greenconn.contrib.console import Console
from greenconn.exceptions import NotFound
from tests.brokers.rabbitmq import RabbitMQ
from tests.console_client import Client
from tests.fix_wires import until
from tests.integration.processes import Running, start

pytestmark = [pytest.mark.full, pytest.mark.programs, pytest.mark.timeout(600)]

LONG = 120.0
MESSAGES, ROUNDS, WORKERS, PREFETCH = 600, 30, 2, 10
#: Fails until a file is there; then it writes down what it has handled, a line each.
WORKER = f"""
import os, sys
import gevent
from greenconn import App

url, queue, mended, paid = sys.argv[1:]
app = App(url)
log = os.open(paid, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@app.consumer(queue, concurrency={PREFETCH}, prefetch_count={PREFETCH})
def pay(body, message):
    if not os.path.exists(mended):
        raise LookupError("no account")
    os.write(log, f"{{body}}\\n".encode())


app.start()
gevent.wait()
"""


class Storm:
    """Workers, a console and a broker that are all in trouble.

    Arguments:
        url: of the broker.
        queue: whose messages fail.
        folder: for what the workers write.
        broker: is killed, too; None: there is none to kill.
    """

    def __init__(self, url: str, queue: str, folder: Path, broker: RabbitMQ | None) -> None:
        self.queue, self.dead = queue, f"{queue}.dead"
        self.mended, self.paid = folder / "mended", folder / "paid"
        self._arguments = ("-c", WORKER, url, queue, str(self.mended), str(self.paid))
        self._broker = broker
        self.connection = Connection(url)
        self.console = Console(url, authorize=lambda environ, action: True)
        self.client = Client(self.console, REMOTE_USER="ada")
        self.workers = [self._worker() for _ in range(WORKERS)]
        #: The dead letters of the one error, as the forms name them.
        self._group = {"name": self.dead, "queue": queue, "error": "builtins.LookupError"}
        self._group["reason"] = "failed"
        self.kills: Counter[str] = Counter()
        self.buttons: Counter[str] = Counter()

    def _worker(self) -> Running:
        return start(*self._arguments, stdout=DEVNULL, stderr=DEVNULL)

    def waiting(self, queue: str) -> int | None:
        """Return the number of ready messages; None: the broker does not answer now."""
        try:
            with self.connection.channel() as channel:
                return int(channel.queue_declare(queue, passive=True).message_count)
        except NotFound:
            return 0
        except self.connection.connection_errors:
            return None

    def press_retry_all(self, rate: str = "") -> None:
        """Retry all messages of the error."""
        answer = self.client.post("retry", **self._group, all="1", rate=rate)
        self.buttons[f"retry all: {answer.status}"] += 1

    def press_retry_chosen(self) -> None:
        """Retry the first three messages on the page."""
        page = self.client.get("dead/letters", name=self.dead)
        keys = [attrs["value"] for _, attrs in page.elements if attrs.get("name") == "key"]
        if keys:
            answer = self.client.post("retry", **self._group, key=keys[:3])
            self.buttons[f"retry chosen: {answer.status}"] += 1

    def kill_worker(self) -> None:
        """Kill a worker, and start another one."""
        n = random.randrange(WORKERS)
        self.workers[n].end()
        self.workers[n] = self._worker()
        self.kills["worker"] += 1

    def settle_broker(self) -> None:
        """Have what was declared on the broker's disk."""
        if self._broker is not None:
            self._broker.settle()

    def kill_broker(self) -> None:
        """Kill the broker, and start it again."""
        if self._broker is not None:
            self._broker.kill()
            self._broker.start()
            self.kills["broker"] += 1

    def handled(self) -> Counter[int]:
        """Return how often each message was handled."""
        lines = self.paid.read_text().splitlines() if self.paid.exists() else []
        return Counter(map(int, lines))

    def is_over(self) -> bool:
        """Return whether all is handled and nothing is left, and press on if it is not."""
        if self.waiting(self.dead):
            self.press_retry_all()
        gevent.sleep(0.2)
        has_all = len(self.handled()) == MESSAGES
        return has_all and self.waiting(self.queue) == 0 == self.waiting(self.dead)

    def close(self) -> None:
        """End all, and delete the queues."""
        for each in self.workers:
            each.end()
        self.console.close()
        with self.connection.channel() as channel:
            for name in (self.queue, self.dead):
                channel.queue_delete(name)
        self.connection.close()


@pytest.fixture(params=["amqp", "redis", "sqlite", "postgresql"])
def storm(request: pytest.FixtureRequest, unique: str, tmp_path: Path) -> Iterator[Storm]:
    """A storm on each broker in turn; RabbitMQ is killed, too."""
    broker = request.getfixturevalue("own_rabbitmq") if request.param == "amqp" else None
    url = broker.url if broker else str(request.getfixturevalue(f"{request.param}_url"))
    storm = Storm(url, f"{unique}-orders", tmp_path, broker)
    yield storm
    storm.close()


def test_buttons_lose_no_message(storm: Storm) -> None:
    greenconn.publish_many(storm.queue, range(MESSAGES), connection=storm.connection, declare=True)
    until(lambda: storm.waiting(storm.dead) == MESSAGES, LONG, "all letters")
    storm.settle_broker()
    acts = [
        *([storm.press_retry_all] * 4),
        *([storm.press_retry_chosen] * 4),
        *([lambda: storm.press_retry_all("300")] * 4),
        *([storm.kill_worker] * 6),
        storm.kill_broker,
    ]
    for n in range(ROUNDS):
        if n == ROUNDS // 2:
            storm.mended.touch()
        random.choice(acts)()
        gevent.sleep(random.random() / 2)
    storm.kill_broker()
    until(storm.is_over, LONG, f"the end of it: {storm.kills}, {storm.buttons}")
    counts = storm.handled()
    again = sum(counts.values()) - MESSAGES
    print("handled again", again, dict(storm.kills), dict(storm.buttons))
    assert counts.keys() == set(range(MESSAGES))
    # A message is handled again where its acknowledgement is lost, that of a copy included; a broker
    # that is killed has not written those of the last moment.
    lost = PREFETCH * WORKERS * storm.kills["worker"] + MESSAGES * storm.kills["broker"]
    assert again <= lost
