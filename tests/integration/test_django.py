"""A Django project under gunicorn's gevent workers, with the broker from its settings."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.pool import Pool

import greenconn
from greenconn.connection import Connection
from tests.fix_wires import until
from tests.integration.gunicorn import ROOT, SOON, serving
from tests.integration.processes import run, start

pytest.importorskip("gunicorn")
pytest.importorskip("django")

pytestmark = [pytest.mark.full, pytest.mark.programs]

PROJECT = ROOT / "tests" / "integration" / "django_project"
LETTERS = 30


@pytest.fixture
def env(amqp_url: str, unique: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of the project, whose database is there."""
    env = {
        "LETTERS_DATABASE": str(tmp_path / "letters.sqlite"),
        "LETTERS_PREFIX": unique,
        "LETTERS_BROKER": amqp_url,
        "LETTERS_SETTINGS": "parts",
        "PYTHONPATH": f"{ROOT}:{PROJECT}",
    }
    made = run(str(PROJECT / "manage.py"), "migrate", "--verbosity=0", env=env)
    assert (made.code, made.errors) == (0, "")
    yield env
    with Connection(amqp_url) as connection:
        for name in ("outbox", "count", "carrot"):
            connection.default_channel.queue_delete(f"{unique}-{name}")
        for name in ("carrot", "kombu"):
            connection.default_channel.exchange_delete(f"{unique}-{name}")


@pytest.mark.parametrize("settings", ["parts", "url"])
def test_a_project(env: dict[str, str], settings: str, amqp_url: str) -> None:
    env["LETTERS_SETTINGS"] = settings
    arguments = ("-c", "gunicorn.conf.py", "wsgi:application")
    with serving(*arguments, cwd=PROJECT, env=env) as server:
        server.wait_ready()

        def post(text: str) -> Any:
            return server.request("/letters", {"text": text})

        answers = Pool(10).map(post, [f"letter {number:02}" for number in range(LETTERS)])
        assert [each.status for each in answers] == [200] * LETTERS
        assert max(each.json["letters"] for each in answers) == LETTERS
        # One that is rolled back is never published: else it would come again and again.
        assert post("a mistake").status == 400
        all_sent = [f"letter {number:02}" for number in range(LETTERS)]
        until(lambda: server.request("/letters").json["sent"] == all_sent, what="all sent")

        broker = Connection(amqp_url)
        fetched = gevent.spawn(server.request, "/carrot?text=hello").get(timeout=SOON)
        assert fetched.json == {"text": "hello", "host": broker.host}
        fetched = server.request("/kombu?text=hello")
        assert fetched.json["text"] == "hello"
        address = broker.as_uri().partition("://")[2]  # the password is masked in both
        assert fetched.json["url"].endswith(f"://{address}")

        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert server.complaints == [], server.log


@pytest.mark.parametrize("arguments", [(), ("--no-patch", "--processes=2", "--stalled-after=600")])
def test_its_consumers_run_by_themselves(
    env: dict[str, str], arguments: tuple[str, ...], unique: str, amqp_url: str
) -> None:
    manage = str(PROJECT / "manage.py")
    code = "from letters.models import Letter; print(Letter.objects.create(text='dear ada').pk)"
    made = run(manage, "shell", "--verbosity=0", "-c", code, env=env)
    assert made.code == 0, made.errors
    body = {"id": int(made.output)}
    # Its own directory is found, wherever it is started.
    program = start(manage, "runconsumers", *arguments, env={**env, "PYTHONPATH": str(ROOT)})
    try:
        with Connection(amqp_url) as connection:
            greenconn.Queue(f"{unique}-count")(connection).declare()  # as its server does
            call = greenconn.rpc.call
            assert call(f"{unique}-count", "dear", connection=connection, timeout=SOON) == 1
            greenconn.publish(greenconn.Queue(f"{unique}-outbox"), body, connection=connection)
            channel = connection.default_channel
            until(
                lambda: channel.queue_declare(f"{unique}-outbox", passive=True).message_count == 0,
                what="taken",
            )
        program.signal(signal.SIGTERM)
        outcome = program.outcome(timeout=SOON)
    finally:
        program.end()
    assert outcome.code == 0, outcome.errors
    code = "from letters.models import Letter; print(Letter.objects.get().is_sent)"
    seen = run(manage, "shell", "--verbosity=0", "-c", code, env=env)
    assert seen.output.strip() == "True", outcome.errors


def test_wrong_options_of_runconsumers(env: dict[str, str]) -> None:
    outcome = run(str(PROJECT / "manage.py"), "runconsumers", "--health=nonsense", env=env)
    assert outcome.code == 2
    assert "--health: invalid parse_address value: 'nonsense'" in outcome.errors
