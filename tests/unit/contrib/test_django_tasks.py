"""The backend for Django's tasks, on the broker in memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest

pytest.importorskip("django")

from asgiref.sync import async_to_sync
from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections, transaction
from django.test import override_settings
from django.utils import timezone

import greenconn
from greenconn import App
from greenconn.contrib.outbox import publish_arguments
from greenconn.identity import program_name
from greenconn.testing import MemoryBroker
from tests.unit.contrib.projects import BACKEND, configure_django

try:
    from django.tasks import exceptions, signals, task, task_backends
except ImportError:
    pytest.importorskip("django_tasks")
    from django_tasks import exceptions, signals, task, task_backends

configure_django()

from greenconn.contrib.django import tasks  # noqa: E402 - it needs the settings

SOON = 20.0
RETRY = {"tries": 3, "delay": 0.01, "jitter": False}
calls: list[Any] = []


@task
def add(a: int, b: int = 0) -> int:
    calls.append((a, b))
    return a + b


@task(takes_context=True)
def fail_until(context: Any, attempt: int) -> str:
    """Succeed in one attempt."""
    calls.append(context.attempt)
    if context.attempt < attempt:
        raise LookupError(f"attempt {context.attempt}")
    return "done"


@task
def ask_later(attempt: int, counts: bool) -> str:
    """Ask for a later call until that attempt."""
    calls.append(attempt)
    if len(calls) < attempt:
        raise greenconn.RetryLater(30, counts=counts)
    return "done"


@task
def drop() -> None:
    raise greenconn.Discard("of no use") from LookupError("no such user")


@task
def bury() -> None:
    calls.append("bury")
    raise greenconn.DeadLetter("no retry helps")


@task
def leave() -> None:
    sys.exit(3)


@task
def give_object() -> object:
    return object()


def no_task(*arguments: object) -> None:
    calls.append(arguments)


async def wait_for(seconds: float) -> None:
    calls.append(seconds)


@contextmanager
def settings_of(**options: Any) -> Iterator[Any]:
    """The backend with these options."""
    entry = {"BACKEND": BACKEND, "QUEUES": ["default", "mail"], "OPTIONS": options}
    with override_settings(TASKS={"default": entry}):
        yield task_backends["default"]


@contextmanager
def running(**options: Any) -> Iterator[MemoryBroker]:
    """A worker of the backend with these options."""
    app = App()
    with settings_of(**options):
        tasks.declare_consumers(app)
        with app.testing() as test:
            yield test


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    calls.clear()
    yield
    cache.clear()
    connections.close_all()


def test_a_task_and_its_result() -> None:
    seen: list[tuple[str, str]] = []

    def note(name: str) -> Any:
        def receive(task_result: Any, **given: Any) -> None:
            seen.append((name, str(task_result.status)))

        return receive

    receivers = {name: note(name) for name in ("enqueued", "started", "finished")}
    for name, receiver in receivers.items():
        getattr(signals, f"task_{name}").connect(receiver)
    with settings_of(results="default"), MemoryBroker():
        result = add.using(priority=7, queue_name="mail").enqueue(1, b=2)
        assert (result.status, result.attempts, result.args, result.kwargs) == (
            *("READY", 0),
            *([1], {"b": 2}),
        )
        assert add.get_result(result.id) == result
    with running(results="default") as test:
        result = add.using(priority=7, queue_name="mail").enqueue(1, b=2)
        test.run_until_idle()
        assert not result.is_finished
        result.refresh()
        assert (result.status, result.return_value, calls) == ("SUCCESSFUL", 3, [(1, 2)])
        assert result.attempts == 1
        assert result.worker_ids == [program_name()]
        assert result.enqueued_at <= result.started_at <= result.finished_at
        assert result.started_at == result.last_attempted_at
        assert task_backends["default"].get_result(result.id) == result
        with pytest.raises(exceptions.TaskResultDoesNotExist):
            add.get_result("another")
        with pytest.raises(exceptions.TaskResultMismatch):
            leave.get_result(result.id)
    assert seen == [
        ("enqueued", "READY"),
        ("enqueued", "READY"),
        ("started", "RUNNING"),
        ("finished", "SUCCESSFUL"),
    ]


@pytest.mark.parametrize("hold", ["process", "broker"])
def test_without_a_cache_there_are_no_results(hold: str, caplog: pytest.LogCaptureFixture) -> None:
    with running(retry={**RETRY, "hold": hold}) as test:
        result = fail_until.enqueue(3)
        for _ in range(3):
            test.run_until_idle()
            test.advance(1)
        assert calls == [1, 2, 3]
        assert not task_backends["default"].supports_get_result
        with pytest.raises(NotImplementedError):
            result.refresh()
        with pytest.raises(NotImplementedError):
            fail_until.get_result(result.id)


def test_enqueued_at_the_commit() -> None:
    with running(results="default") as test:
        with transaction.atomic():
            result = add.enqueue(1)
            assert test.count("default") == 0
            with pytest.raises(exceptions.TaskResultDoesNotExist):
                result.refresh()
        test.run_until_idle()
        assert add.get_result(result.id).return_value == 1
        with pytest.raises(KeyError), transaction.atomic():
            add.enqueue(2)
            raise KeyError
        test.run_until_idle()
    assert calls == [(1, 0)]


def test_enqueued_at_once() -> None:
    with running(enqueue="now") as test, transaction.atomic():
        add.enqueue(1)
        test.run_until_idle()
        assert calls == [(1, 0)]


def test_enqueued_by_the_outbox() -> None:
    call_command("migrate", verbosity=0)
    from greenconn.contrib.outbox.django import relay
    from greenconn.contrib.outbox.django.models import OutboxMessage

    OutboxMessage.objects.all().delete()
    with running(enqueue="outbox", results="default") as test:
        with pytest.raises(KeyError), transaction.atomic():
            add.enqueue(1)
            raise KeyError
        with transaction.atomic():
            result = add.using(priority=100).enqueue(2)
        assert [row.message_id for row in OutboxMessage.objects.all()] == [result.id]
        assert add.get_result(result.id).status == "READY"
        # The database is one in the memory of this greenlet.
        [row] = relay()._store.pending(range(32), 2**60, 10)
        arguments = publish_arguments(row.envelope)
        assert arguments["priority"] == 9
        greenconn.publish(body=row.body, **arguments)
        test.run_until_idle()
    assert calls == [(2, 0)]


def test_a_task_that_fails_is_tried_again() -> None:
    with running(results="default", retry=RETRY) as test:
        result = fail_until.enqueue(3)
        test.run_until_idle()
        result.refresh()
        assert (result.status, result.return_value, result.attempts) == ("SUCCESSFUL", "done", 3)
        assert [error.exception_class for error in result.errors] == [LookupError] * 2
        assert result.errors[1].traceback.endswith("LookupError: attempt 2\n")


def test_a_task_that_failed_for_good(caplog: pytest.LogCaptureFixture) -> None:
    finished: list[Any] = []

    def receive(task_result: Any, **given: Any) -> None:
        finished.append((task_result.status, sys.exc_info()[0]))

    signals.task_finished.connect(receive)
    with running(results="default", retry={**RETRY, "tries": 2}, prefix="shop.") as test:
        result = fail_until.using(queue_name="mail").enqueue(9)
        test.run_until_idle()
        result.refresh()
        assert (result.status, result.attempts, len(result.errors)) == ("FAILED", 2, 2)
        assert result.is_finished
        with pytest.raises(ValueError, match="Task failed"):
            assert result.return_value
        [dead] = test.messages("shop.mail.dead")
        assert dead.payload["task"] == f"{__name__}.fail_until"
        assert finished == [("FAILED", LookupError)]
        assert greenconn.dead_letters("shop.mail").replay() == 1
        test.run_until_idle()
        assert finished == [("FAILED", LookupError)] * 2
    assert calls == [1, 2, 3, 4]


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("retry", [None, RETRY], ids=["no-retry", "retry"])
def test_a_task_that_asks_to_be_run_later(retry: Any, counts: bool) -> None:
    finished: list[Any] = []

    def receive(task_result: Any, **given: Any) -> None:
        finished.append(str(task_result.status))

    signals.task_finished.connect(receive)
    with running(results="default", retry=retry) as test:
        result = ask_later.enqueue(3, counts)
        for attempt in (1, 2):
            test.advance(29)
            result.refresh()
            assert (result.status, result.attempts, result.errors) == ("READY", attempt, [])
            assert not result.is_finished
            assert finished == []
            test.advance(1)
        test.run_until_idle()
        result.refresh()
        assert (result.status, result.attempts, result.return_value) == ("SUCCESSFUL", 3, "done")
        assert result.errors == []
    assert finished == ["SUCCESSFUL"]


def test_asking_for_more_attempts_than_there_are(caplog: pytest.LogCaptureFixture) -> None:
    with running(results="default", retry={**RETRY, "tries": 2}) as test:
        result = ask_later.enqueue(9, True)
        test.run_until_idle()
        result.refresh()
        assert (result.status, result.attempts, len(calls)) == ("FAILED", 2, 2)
        assert [error.exception_class for error in result.errors] == [greenconn.RetryLater]
        assert test.count("default.dead") == 1


def test_a_task_that_ends_its_message_itself(caplog: pytest.LogCaptureFixture) -> None:
    with running(results="default", retry=RETRY) as test:
        results = [drop.enqueue(), bury.enqueue()]
        test.run_until_idle()
        for result in results:
            result.refresh()
        dropped, buried = results
        for result, error in ((dropped, greenconn.Discard), (buried, greenconn.DeadLetter)):
            assert (result.status, result.attempts, result.is_finished) == ("FAILED", 1, True)
            assert [each.exception_class for each in result.errors] == [error]
        assert dropped.errors[0].traceback.endswith("Discard: of no use\n")
        assert "LookupError: no such user" in dropped.errors[0].traceback
        assert "Traceback" not in "".join(
            record.exc_text or "" for record in caplog.records if "discarded" in record.message
        )
        [dead] = test.messages("default.dead")
        assert dead.payload["task"] == bury.module_path
        assert greenconn.dead_letters("default").replay() == 1
        test.run_until_idle()
        buried.refresh()
        assert (buried.status, buried.attempts) == ("FAILED", 2)
    assert calls == ["bury", "bury"]


def test_what_is_a_failure_of_a_task_alone(caplog: pytest.LogCaptureFixture) -> None:
    with running(results="default") as test:
        results = [leave.enqueue(), give_object.enqueue(), add.enqueue(1, c=2)]
        test.run_until_idle()
        for result in results:
            result.refresh()
        assert [result.status for result in results] == ["FAILED"] * 3
        found = [result.errors[0].exception_class for result in results]
        assert found == [SystemExit, TypeError, TypeError]
        assert test.count("default.dead") == 3
        add.enqueue(1)
        test.run_until_idle()
    assert calls == [(1, 0)]


def test_a_cache_that_fails(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("no cache")

    with running(results="default") as test:
        monkeypatch.setattr(type(cache._connections["default"]), "set", fail)
        add.enqueue(1)
        test.run_until_idle()
        assert test.count("default.dead") == 0
    assert calls == [(1, 0)]
    assert "the result of task" in caplog.text


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("os.system", "no task 'os.system'"),
        (f"{__name__}.no_task", "a task must be a function with @task"),
        (f"{__name__}.add.func", "no task"),
        ("antigravity.fly", "a module that is loaded or belongs to an application"),
        ("greenconn.contrib.outbox.django.nothing.here", "No module named"),
        ("..", "no task"),
        ("", "no task"),
    ],
)
def test_only_tasks_are_run(path: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    with running(retry=RETRY) as test:
        body = {"id": "1", "task": path, "args": ["echo"], "queue_name": "default"}
        greenconn.publish("default", body)
        test.run_until_idle()
        [dead] = test.messages("default.dead")
        assert reason in dead.headers["x-greenconn-error-text"]
        assert dead.payload == body
    assert calls == []
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "change",
    [
        {"id": "a b"},
        {"id": None},
        {"args": {}},
        {"kwargs": []},
        {"queue_name": 1},
        {"priority": "a"},
    ],
)
def test_a_message_of_another_form(
    change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with running() as test:
        body = {"id": "1", "task": add.module_path, "args": [1], "queue_name": "default"}
        greenconn.publish("default", {**body, **change})
        greenconn.publish("default", body, headers={tasks.WORKERS: {"a": 1}})
        test.run_until_idle()
        assert test.count("default.dead") == 1
    assert calls == [(1, 0)]


def test_a_message_for_a_queue_of_no_backend(caplog: pytest.LogCaptureFixture) -> None:
    with running() as test:
        body = {"id": "1", "task": add.module_path, "args": [1], "queue_name": "other"}
        greenconn.publish("default", body)
        test.run_until_idle()
        [dead] = test.messages("default.dead")
        assert "Queue 'other' is not valid" in dead.headers["x-greenconn-error-text"]


def test_run_after() -> None:
    with running(results="default") as test:
        result = add.using(run_after=timezone.now() + timedelta(minutes=5)).enqueue(1)
        add.using(run_after=timezone.now() - timedelta(minutes=5)).enqueue(2)
        test.advance(290)
        assert calls == [(2, 0)]
        test.advance(20)
        assert calls == [(2, 0), (1, 0)]
        result.refresh()
        assert result.return_value == 1
    with pytest.raises(exceptions.TaskException, match="aware"):
        add.using(run_after=datetime(2031, 1, 1))


def test_priorities() -> None:
    app = App()
    with settings_of(), MemoryBroker() as broker:
        priorities = [0, -100, 100, -50, 99, 12, 1]
        for priority in priorities:
            add.using(priority=priority).enqueue(priority)
        found = {
            message.payload["args"][0]: message.properties["priority"]
            for message in broker.messages("default")
        }
        assert found == {-100: 0, -50: 2, 0: 4, 1: 4, 12: 5, 99: 8, 100: 9}
        tasks.declare_consumers(app)
        app.start()
        broker.run_until_idle()
    assert [a for a, b in calls] == [100, 99, 12, 0, 1, -50, -100]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"enqueu": "now"}, "OPTIONS has no option 'enqueu'; did you mean 'enqueue'?"),
        (
            {"enqueue": "later"},
            "OPTIONS.enqueue must be 'on_commit', 'outbox', 'transaction' or 'now'",
        ),
        ({"enqueue": "transaction"}, "the broker must be PostgreSQL"),
        ({"url": "localhost"}, "OPTIONS.url must be a URL such as 'amqp://localhost//'"),
        (
            {"url": ["amqp://me:secret@one"]},
            "OPTIONS.url must be of type str, or None, got a value of",
        ),
        ({"results": "other"}, "OPTIONS.results must be a name in CACHES, got 'other'"),
        ({"results_expire": 0}, "OPTIONS.results_expire must be a number of seconds above 0"),
        ({"using": "other"}, "OPTIONS.using must be a name in DATABASES, got 'other'"),
        ({"retry": {"tryes": 1}}, "unknown option 'tryes' of Retry"),
        ({"concurrency": 0}, "concurrency must be a positive integer"),
        ({"queue": {"durabel": True}}, "durabel"),
    ],
)
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    with settings_of(**options) as backend, MemoryBroker():
        with pytest.raises(SystemCheckError) as caught:
            call_command("check")
        assert text in str(caught.value)
        assert "secret" not in str(caught.value)
        with pytest.raises(ImproperlyConfigured) as caught:
            backend.declare_consumer(App())
        assert text in str(caught.value)


def test_settings_that_do_not_fit_together() -> None:
    one = {"BACKEND": BACKEND}
    with override_settings(TASKS={"default": one, "other": one}), MemoryBroker():
        [problem] = task_backends["other"].check()
        assert "queue 'default' of the same broker belongs to TASKS['default']" in problem.msg
    with override_settings(TASKS={"default": {**one, "QUEUES": []}}), MemoryBroker():
        [problem] = task_backends["default"].check()
        assert "QUEUES must name at least one queue" in problem.msg
    with settings_of(results="default") as backend, MemoryBroker():
        [problem] = backend.check()
        assert problem.id == "greenconn.tasks.W001"


def test_async_tasks_are_refused() -> None:
    with settings_of(), pytest.raises(exceptions.TaskException, match="without async"):
        task(wait_for)


def test_aenqueue(patched: bool) -> None:
    if patched:
        pytest.skip("loops of asyncio need threads, which a patched process does not have")
    with running(results="default", enqueue="now") as test:
        result = async_to_sync(add.aenqueue)(1, b=1)
        test.run_until_idle()
        async_to_sync(result.arefresh)()
        assert result.return_value == 2


def test_what_is_no_json() -> None:
    with settings_of(), MemoryBroker() as broker:
        with pytest.raises(TypeError, match="Unsupported type"):
            add.enqueue(datetime.now())
        assert broker.count("default") == 0
