"""The example of a chat: what is said to one worker comes to the clients of the other, once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.brokers.rabbitmq import RabbitMQ
from tests.integration.processes import Running, start
from tests.integration.projects import project

pytest.importorskip("socketio")
pytest.importorskip("gunicorn")

pytestmark = [pytest.mark.full, pytest.mark.programs, pytest.mark.timeout(600)]


class Client:
    """A client in a process."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self.worker = self.wait_for("worker")

    def wait_for(self, word: str) -> str:
        """Return the rest of the next line, which must begin so.  May switch."""
        line = self._running.line()
        assert line.startswith(f"{word} "), line
        return line.removeprefix(f"{word} ")

    def say(self, text: str) -> None:
        """Say a line, which comes to the client itself, too.  May switch."""
        self._running.input.write(f"{text}\n".encode())
        self._running.input.flush()
        assert {self._running.line(), self._running.line()} == {f"said {text}", "sent True"}


@contextmanager
def connected(port: str) -> Iterator[Client]:
    running = start(os.path.join(os.path.dirname(__file__), "chat_client.py"), port)
    try:
        yield Client(running)
    finally:
        running.end()


def test_lines_come_to_the_clients_of_both_workers(
    own_rabbitmq: RabbitMQ, unique: str, tmp_path: Path
) -> None:
    url = own_rabbitmq.add_vhost(unique)
    with project("socketio_chat", tmp_path, GREENCONN_URL=url) as chat, ExitStack() as stack:
        (port,) = chat.wait_for(r"Listening at: http://[0-9.]+:(\d+)")
        first = stack.enter_context(connected(port))
        # Stopped, it accepts no client.
        os.kill(int(first.worker), signal.SIGSTOP)
        other = stack.enter_context(connected(port))
        os.kill(int(first.worker), signal.SIGCONT)
        assert other.worker != first.worker

        first.say("hello")
        assert other.wait_for("said") == "hello"
        own_rabbitmq.close_connections("a test")
        first.say("again")
        assert other.wait_for("said") == "again"
        assert chat.wait(chat.start("python announce.py 'closing at six'")) == 0
        assert first.wait_for("said") == other.wait_for("said") == "closing at six"

        chat.kill(int(other.worker))
        assert other.wait_for("worker") != other.worker
        first.say("you are back")
        assert other.wait_for("said") == "you are back"
        chat.stop()
    own_rabbitmq.delete_vhost(unique)
