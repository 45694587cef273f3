"""The commands of ``manage.py``; ``runconsumers`` is in ``test_django``."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("django")

import greenconn
from greenconn import Connection, Queue
from tests.fix_wires import until
from tests.integration.processes import ROOT, run, start

pytestmark = [pytest.mark.full, pytest.mark.programs]

SOON = 120.0
PROJECT = ROOT / "tests" / "integration" / "django_project"


def test_the_command_of_a_django_project(amqp_url: str, unique: str, tmp_path: Path) -> None:
    manage = str(PROJECT / "manage.py")
    env = {
        "LETTERS_DATABASE": str(tmp_path / "letters.sqlite"),
        "LETTERS_PREFIX": unique,
        "LETTERS_BROKER": amqp_url,
        "LETTERS_SETTINGS": "url",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, PROJECT))),
    }
    made = run(manage, "migrate", "--verbosity=0", env=env)
    assert (made.code, made.errors) == (0, "")
    code = (
        "from greenconn.contrib.outbox.django import publish; from greenconn import Queue\n"
        f"for n in range(50): publish(Queue('{unique}'), n, key='a')\n"
    )
    options = ("--poll-interval=0.1", "--lease=2", "--processes=2")
    relay = start(manage, "relayoutbox", *options, env=env)
    try:
        made = run(manage, "shell", "--verbosity=0", "-c", code, env=env)
        assert (made.code, made.errors) == (0, "")
        received: list[int] = []
        with Connection(amqp_url) as connection:
            consumer = greenconn.spawn_consumer(
                Queue(unique), lambda body, message: received.append(body), connection=connection
            )
            until(lambda: len(received) >= 50, SOON)
            relay.signal(signal.SIGTERM)
            outcome = relay.outcome(timeout=SOON)
            assert consumer.stop(SOON)
            connection.default_channel.queue_delete(unique)
    finally:
        relay.end()
    assert outcome.code == 0, outcome.errors
    # At least once: a relay that was held up for its lease is followed by the other process.
    assert list(dict.fromkeys(received)) == list(range(50))
