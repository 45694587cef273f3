"""Tasks of a Django project, run by ``manage.py runconsumers`` over real brokers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from greenconn.connection import Connection
from tests.fix_wires import until
from tests.integration.gunicorn import ROOT, SOON
from tests.integration.processes import Running, run, start

pytest.importorskip("django")
pytest.importorskip("greenconn.contrib.django.tasks", exc_type=ImportError)

pytestmark = [pytest.mark.programs, pytest.mark.halved]

PROJECT = ROOT / "tests" / "integration" / "django_project"
MANAGE = str(PROJECT / "manage.py")
RETRY = {"tries": 2, "delay": 0.01}

ENQUEUE = """
import time
from django.db import transaction
from letters.models import Letter
from letters.tasks import fail, send

with transaction.atomic():
    letters = [Letter.objects.create(text=f"dear {name}") for name in ("ada", "bob", "cleo")]
    results = [
        send.using(priority=priority).enqueue(letter.pk)
        for letter, priority in zip(letters, (-100, 0, 100))
    ]
    results.append(fail.enqueue())
print("enqueued", flush=True)
try:
    with transaction.atomic():
        send.enqueue(letters[0].pk)
        raise KeyError
except KeyError:
    pass
end = time.monotonic() + 60
while not all(result.is_finished for result in results) and time.monotonic() < end:
    time.sleep(0.02)
    for result in results:
        result.refresh()
for result in results:
    error = result.errors[-1].traceback.splitlines()[-1] if result.errors else ""
    print(result.status, result.attempts, result._return_value, error)
sent = sorted(results[:3], key=lambda result: result.started_at)
print(*(result.return_value for result in sent), sep=", ")
print(Letter.objects.filter(is_sent=True).count())
"""


@pytest.fixture
def env(request: pytest.FixtureRequest, unique: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of the project at the broker that a parameter names, whose database is there."""
    kind = getattr(request, "param", "amqp")
    url = f"sqlite:///{tmp_path}/broker.sqlite"
    if kind != "sqlite":
        url = request.getfixturevalue(f"{kind}_url")
    env = {
        "LETTERS_DATABASE": str(tmp_path / "letters.sqlite"),
        "LETTERS_PREFIX": unique,
        "LETTERS_BROKER": url,
        "LETTERS_SETTINGS": "url",
        "LETTERS_TASKS": json.dumps({"retry": RETRY}),
        "PYTHONPATH": f"{ROOT}:{PROJECT}",
    }
    made = run(MANAGE, "migrate", "--verbosity=0", env=env)
    assert (made.code, made.errors) == (0, "")
    yield env
    with Connection(url) as connection:
        for name in ("default", "default.dead", "outbox", "count"):
            connection.default_channel.queue_delete(f"{unique}-{name}")


@contextmanager
def worker(env: dict[str, str]) -> Iterator[Running]:
    """A ``manage.py runconsumers``."""
    program = start(MANAGE, "runconsumers", env=env)
    try:
        yield program
    finally:
        program.end()


@contextmanager
def enqueuing(env: dict[str, str]) -> Iterator[Running]:
    """A program that has enqueued tasks, and waits for their results."""
    program = start(MANAGE, "shell", "--verbosity=0", "-c", ENQUEUE, env=env)
    try:
        assert program.line() == "enqueued"
        yield program
    finally:
        program.end()


def shell(code: str, env: dict[str, str]) -> list[str]:
    """Run code in the project, and return the lines that it prints."""
    outcome = run(MANAGE, "shell", "--verbosity=0", "-c", code, env=env)
    assert outcome.code == 0, outcome.errors
    return outcome.output.splitlines()


@pytest.mark.parametrize(
    "env",
    [
        "amqp",
        *(pytest.param(kind, marks=pytest.mark.full) for kind in ("redis", "sqlite", "postgresql")),
    ],
    indirect=True,
)
def test_the_tasks_of_a_project(env: dict[str, str], unique: str) -> None:
    with enqueuing(env) as client, worker(env) as program:
        assert client.outcome(timeout=SOON).output.splitlines() == [
            "SUCCESSFUL 1 dear ada ",
            "SUCCESSFUL 1 dear bob ",
            "SUCCESSFUL 1 dear cleo ",
            "FAILED 2 None LookupError: no such street",
            "dear cleo, dear bob, dear ada",
            "3",
        ]
        program.signal(signal.SIGTERM)
        outcome = program.outcome(timeout=SOON)
    assert outcome.code == 0, outcome.errors
    with Connection(env["LETTERS_BROKER"]) as connection:
        channel = connection.default_channel
        assert channel.queue_declare(f"{unique}-default.dead", passive=True).message_count == 1


@pytest.mark.full
def test_workers_that_are_killed_and_stopped(env: dict[str, str], tmp_path: Path) -> None:
    enqueue = f"from letters.tasks import wait; print(wait.enqueue({str(tmp_path)!r}).id)"
    [id] = shell(enqueue, env)
    with worker(env) as program:
        first, second = tmp_path / "begun-1", tmp_path / "begun-2"
        until(first.exists, what="the first attempt")
        os.kill(int(first.read_text()), signal.SIGKILL)
        until(second.exists, what="the second attempt")  # in a process that the manager has started
        program.signal(signal.SIGTERM)
        (tmp_path / "go").touch()
        outcome = program.outcome(timeout=SOON)
    assert outcome.code == 0, outcome.errors
    check = f"""
from letters.tasks import wait
result = wait.get_result({id!r})
print(result.status, result.attempts, result.return_value, len(set(result.worker_ids)))
"""
    assert shell(check, env) == ["SUCCESSFUL 2 2 2"]


@pytest.mark.full
def test_wrong_options_are_refused_at_the_start(env: dict[str, str]) -> None:
    outcome = run(MANAGE, "runconsumers", env={**env, "LETTERS_TASKS": '{"concurency": 4}'})
    assert outcome.code == 1
    assert "(greenconn.tasks.E001)" in outcome.errors
    assert "OPTIONS has no option 'concurency'; did you mean 'concurrency'?" in outcome.errors


@pytest.mark.full
def test_a_queue_that_the_broker_refuses(env: dict[str, str]) -> None:
    shell("from letters.tasks import fail; fail.enqueue()", env)
    other = {"queue": {"max_priority": 3}}
    outcome = run(MANAGE, "runconsumers", env={**env, "LETTERS_TASKS": json.dumps(other)})
    assert outcome.code != 0
    assert "x-max-priority" in outcome.errors


#: Enqueues and runs tasks in transactions of a database that has the broker in it.
TRANSACTION = """
import sys
import gevent.monkey
gevent.monkey.patch_all()
from urllib.parse import urlsplit

import django
from django.conf import settings

broker, database = sys.argv[1:]
place = urlsplit(database)
settings.configure(
    DATABASES={"default": {
        "ENGINE": "django.db.backends.postgresql", "NAME": place.path[1:], "USER": place.username,
        "PASSWORD": place.password or "", "HOST": place.hostname, "PORT": place.port,
    }},
    CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    TASKS={"default": {
        "BACKEND": "greenconn.contrib.django.tasks.Backend",
        "OPTIONS": {"url": broker, "enqueue": "transaction", "results": "default"},
    }},
)
django.setup()

from django.db import transaction
from gevent.event import Event
import greenconn
from greenconn.contrib.django.tasks import declare_consumers
try:
    from django.tasks import task
except ImportError:
    from django_tasks import task

handled = Event()

@task
def note(number):
    print("runs", number)
    handled.set()

app = greenconn.App()
declare_consumers(app)
app.start()
try:
    note.enqueue(0)
except ValueError as exc:
    print(exc)
try:
    with transaction.atomic():
        note.enqueue(1)
        raise KeyError
except KeyError:
    pass
with transaction.atomic():
    result = note.enqueue(2)
    print("commits")
assert handled.wait(60)
assert app.stop(60)
print(note.get_result(result.id).status)
"""


def test_enqueued_in_the_transaction(postgresql_url: str, postgresql_server: str) -> None:
    outcome = run("-c", TRANSACTION, postgresql_url, postgresql_server)
    assert outcome.code == 0, outcome.errors
    refused, *rest = outcome.output.splitlines()
    assert "publish within django.db.transaction.atomic()" in refused
    assert rest == ["commits", "runs 2", "SUCCESSFUL"]
