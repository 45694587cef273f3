"""Django's tasks framework on greenconn: ``django.tasks`` of Django 6, or the package ``django-tasks``.

::

    INSTALLED_APPS = ["greenconn.contrib.django", ...]
    BROKER_URL = "amqp://guest:guest@localhost//"
    TASKS = {"default": {"BACKEND": "greenconn.contrib.django.tasks.Backend"}}

A task that is enqueued in a transaction is published after its commit.  ``manage.py runconsumers`` runs
the tasks of all backends, in greenlets.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from functools import cached_property, partial
from importlib import import_module
from inspect import iscoroutinefunction
from traceback import format_exception
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

import msgspec
from django.apps import apps
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.core.checks import Error, Warning
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.utils import timezone
from django.utils.module_loading import autodiscover_modules
from gevent import Timeout

from greenconn.checks import Seconds, check_seconds, check_type, did_you_mean, invalid
from greenconn.connection import Connection
from greenconn.defaults import publishing_connection
from greenconn.entity import Queue
from greenconn.exceptions import error_text
from greenconn.identity import program_name, uuid
from greenconn.message import Message
from greenconn.options import Retry
from greenconn.publishing import publish
from greenconn.service.app import App
from greenconn.session.broker import check_is_url
from greenconn.worker.consumer import check_consumer
from greenconn.worker.failures import DeadLetter, Discard, RetryLater

try:
    from django.tasks import (
        Task,
        TaskContext,
        TaskResult,
        TaskResultStatus,
        exceptions,
        task_backends,
    )
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.base import TaskError
    from django.tasks.signals import task_enqueued, task_finished, task_started
    from django.utils.json import normalize_json
except ImportError:
    try:
        from django_tasks import (
            TaskContext,
            TaskResult,
            TaskResultStatus,
            exceptions,
            task_backends,
        )
        from django_tasks.backends.base import BaseTaskBackend
        from django_tasks.base import Task, TaskError
        from django_tasks.signals import task_enqueued, task_finished, task_started
        from django_tasks.utils import normalize_json
    except ImportError as exc:
        raise ImportError(
            "greenconn.contrib.django.tasks requires Django 6, or django-tasks: pip install "
            "django-tasks"
        ) from exc

if TYPE_CHECKING:
    from greenconn.publishing.publisher import PublishArguments

__all__ = ["Backend", "declare_consumers"]

logger = logging.getLogger("greenconn.contrib.django")

ENQUEUE: Final = ("on_commit", "outbox", "transaction", "now")
#: Options of a backend that are those of its consumer; see :func:`greenconn.spawn_consumer`.
OF_CONSUMER: Final = frozenset(
    {
        "blocking_threshold",
        "concurrency",
        "dead_letter",
        "handler_timeout",
        "prefetch_count",
        "retry",
    }
)
OUTBOX: Final = "greenconn.contrib.outbox.django"
#: The highest priority of a message.
MAX_PRIORITY: Final = 9
#: The header with the workers whose attempts failed.
WORKERS: Final = "x-django-workers"
#: Workers that are read from that header at most, as any publisher can write it.
MOST_WORKERS: Final = 1000
#: Prefix of the keys of results in the cache.
KEY: Final = "greenconn.task."
#: Failures of a task.  One that calls ``sys.exit()`` must not end the worker, which would get it again.
FAILURES: Final = (Exception, Timeout, SystemExit)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskOptions:
    """The ``OPTIONS`` of a backend in ``TASKS``."""

    function_name: ClassVar[str] = "OPTIONS"
    #: It may have a password in it.
    hidden: ClassVar[tuple[str, ...]] = ("url",)

    url: str | None = None
    """URL of the broker.  None uses the default connection, that is, the broker of ``BROKER_URL`` and
    the other settings of :mod:`greenconn.contrib.django`."""

    enqueue: Literal["on_commit", "outbox", "transaction", "now"] = "on_commit"
    """``'on_commit'``: publish after the commit of the transaction in which the task is enqueued;
    without a transaction, at once.  ``'outbox'``: write the message into the outbox
    (:mod:`greenconn.contrib.outbox.django`) in the transaction; a relay publishes it.
    ``'transaction'``: with a broker in PostgreSQL, store the message in the transaction itself.
    ``'now'``: publish at once, in a transaction, too."""

    using: str = DEFAULT_DB_ALIAS
    """Alias of the database of that transaction."""

    results: str | None = None
    """Alias of the cache that keeps the results.  None keeps none: the backend then does not support
    ``get_result`` and ``refresh``."""

    results_expire: Seconds = timedelta(days=1)
    """Seconds for which a result is kept after it has last changed."""

    prefix: str = ""
    """Prefix of the names of the queues at the broker."""

    queue: Mapping[str, Any] | None = None
    """Arguments of :class:`greenconn.Queue` with which the queues are declared.  None is
    ``{"max_priority": 9}``, and nothing on Redis and SQS."""

    consumer: Mapping[str, Any] = field(default_factory=dict)
    """Options of :func:`greenconn.spawn_consumer`, which stand beside the others in ``OPTIONS``:
    ``concurrency``, ``retry``, ``dead_letter``, ``handler_timeout``, ``prefetch_count`` and
    ``blocking_threshold``."""

    def __post_init__(self) -> None:
        check_type(self, str, "url", "results", optional=True)
        check_type(self, str, "using", "prefix")
        check_type(self, Mapping, "queue", optional=True)
        check_seconds(self, "results_expire", above_zero=True, optional=False)
        if self.enqueue not in ENQUEUE:
            raise invalid(
                self, "enqueue", ", ".join(map(repr, ENQUEUE[:-1])) + f" or {ENQUEUE[-1]!r}"
            )
        if self.url is not None:
            Connection(self.url)  # made to be checked; it never opens
            check_is_url("OPTIONS.url", self.url)
        Queue("checked", **(self.queue or {}))
        check_consumer("checked", lambda body, message: None, self.consumer, "OPTIONS")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TaskOptions:
        """Return the options of a backend.

        Raises:
            TypeError, ValueError, KeyError: an option is unknown, or its value is invalid.
        """
        own = {each.name for each in fields(cls)} - {"consumer"}
        for name in given:
            if name not in own | OF_CONSUMER:
                raise ValueError(
                    f"OPTIONS has no option {name!r}; {did_you_mean(name, own | OF_CONSUMER)}"
                )
        consumer = {name: value for name, value in given.items() if name in OF_CONSUMER}
        rest = {name: value for name, value in given.items() if name in own}
        return cls(consumer=consumer, **rest)

    def is_last(self, exc: BaseException, attempt: int) -> bool:
        """Return whether a task is not run again after it has raised *exc*.

        Arguments:
            attempt: number of the attempt, from 1 on; those that do not count are left out.
        """
        retry = Retry.of(self.consumer.get("retry"))
        if isinstance(exc, (DeadLetter, Discard)):
            return True
        if isinstance(exc, RetryLater):
            return exc.counts and retry is not None and attempt >= retry.tries
        return retry is None or attempt >= retry.tries


class TaskRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A task as its message has it, and with its result as the cache has it.

    Raises:
        ValueError: there is no such task.
    """

    id: Annotated[str, msgspec.Meta(pattern=r"^[\w-]{1,64}$")]
    task: str
    """Path of the function that is the task, with its module."""

    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    queue_name: str
    priority: int = 0
    run_after: datetime | None = None
    enqueued_at: datetime | None = None
    status: str = "READY"
    started_at: datetime | None = None
    last_attempted_at: datetime | None = None
    finished_at: datetime | None = None
    errors: list[dict[str, str]] = []
    """The fields of each ``TaskError``."""

    worker_ids: list[str] = []
    return_value: Any = None

    def __post_init__(self) -> None:
        find_task(self.task)


#: Those fields of a record that a result has, too.
_SAME: Final = (
    *("id", "args", "kwargs", "enqueued_at", "started_at", "last_attempted_at", "finished_at"),
    "worker_ids",
)


def find_task(path: str) -> Any:
    """Return the task at *path*.

    Its module is one that is loaded, or one of an installed application, which is imported.

    Raises:
        ValueError: there is none.
    """
    module_name, _, name = path.rpartition(".")
    module = sys.modules.get(module_name)
    # No other module is imported for a message: it would run what any publisher chooses.
    is_dotted = re.fullmatch(r"\w+(\.\w+)*", module_name) is not None
    if module is None and is_dotted and apps.get_containing_app_config(path) is not None:
        try:
            module = import_module(module_name)
        except ImportError as exc:
            raise ValueError(f"no task {path!r:.200}: {error_text(exc)}") from exc
    found = getattr(module, name, None)
    if not isinstance(found, Task):
        raise ValueError(
            f"no task {path!r:.200}: a task must be a function with @task, in a module that is loaded "
            f"or belongs to an application of INSTALLED_APPS"
        )
    return found


class Backend(BaseTaskBackend):
    """The backend for ``TASKS``; its ``OPTIONS`` are those of :class:`TaskOptions`.

    Each queue of ``QUEUES`` is a queue of the broker, whose name is ``OPTIONS["prefix"]`` and that of
    the queue.  A message is JSON: the id, the path of the task, its arguments, queue and priority.

    Priorities from -100 to 100 are mapped to those of messages, 0 to 9, in their order: -100 is 0, 0 is
    4, 100 is 9.  (On Redis, where the lowest number is served first, 0 to 9 are 9 to 0.)

    Arguments:
        alias: its name in ``TASKS``.
        params: its entry there.
    """

    supports_defer = True
    #: An event loop in the thread of the handlers would have Django refuse the database to all of them.
    supports_async_task = False

    @cached_property
    def _task_options(self) -> TaskOptions:
        try:
            return TaskOptions.of(self.options)
        except (TypeError, ValueError, KeyError) as exc:
            raise ImproperlyConfigured(f"TASKS[{self.alias!r}]: {error_text(exc)}") from exc

    @property
    def supports_get_result(self) -> bool:
        """Whether there is a cache for results."""
        return self._task_options.results is not None

    @property
    def supports_priority(self) -> bool:
        """Whether the broker has priorities."""
        try:
            return self._driver != "sqs"
        except ImproperlyConfigured:
            return True  # a module with tasks can be imported, so that check() says what is wrong

    @property
    def _driver(self) -> str:
        connection = publishing_connection(self._task_options.url)
        return str(connection.get_transport_cls().driver_type)

    def validate_task(self, task: Any) -> None:
        """Check whether this backend can run a task.

        Raises:
            InvalidTask: it cannot.
        """
        if iscoroutinefunction(task.func):
            raise _INVALID_TASK(
                "Backend does not support async Tasks. Workers run on gevent, not on asyncio: write the "
                f"task {task.func.__qualname__} as a function without async."
            )
        super().validate_task(task)

    # -- enqueuing

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Enqueue a task, as ``OPTIONS["enqueue"]`` says.  May switch.

        Returns:
            Its result, whose status is ``READY``.

        Raises:
            InvalidTask: this backend cannot run it.
            OperationalError: as :func:`greenconn.publish`.
            TypeError: an argument of the task cannot be JSON.
        """
        self.validate_task(task)
        options = self._task_options
        result = self._result_of(
            TaskRecord(
                id=uuid(),
                task=task.module_path,
                args=normalize_json(args),
                kwargs=normalize_json(kwargs),
                queue_name=task.queue_name,
                priority=task.priority,
                run_after=task.run_after,
                enqueued_at=timezone.now(),
            ),
            task,
        )
        if options.enqueue == "now":
            self._publish(result)
            self._note_enqueued(result)
            return result
        if options.enqueue == "outbox":
            from greenconn.contrib.outbox.django import publish as write

            target, body, arguments = self._message(result)
            write(target, body, using=options.using, **arguments)
        elif options.enqueue == "transaction":
            self._publish(result, options.using)
        else:
            transaction.on_commit(partial(self._publish, result), using=options.using)
        transaction.on_commit(partial(self._note_enqueued, result), using=options.using)
        return result

    def _publish(self, result: Any, transaction: str | None = None) -> None:
        target, body, arguments = self._message(result)
        url = self._task_options.url
        publish(target, body, connection=url, transaction=transaction, **arguments)

    def _message(self, result: Any) -> tuple[Queue, dict[str, Any], PublishArguments]:
        """Return the target, the body and the options of the message of a task."""
        task = result.task
        arguments: PublishArguments = {"message_id": result.id, "serializer": "json"}
        if self.supports_priority:
            priority = (task.priority + 100) * MAX_PRIORITY // 200
            arguments["priority"] = MAX_PRIORITY - priority if self._driver == "redis" else priority
        if task.run_after is not None:
            delay = (task.run_after - timezone.now()).total_seconds()
            arguments["delay"] = max(delay, 0.0)
        return self._queue(task.queue_name), msgspec.to_builtins(_record_of(result)), arguments

    def _queue(self, name: str) -> Queue:
        options = self._task_options
        arguments = options.queue
        if arguments is None:
            # Redis has priorities for each queue.
            is_needed = self._driver not in ("redis", "sqs")
            arguments = {"max_priority": MAX_PRIORITY} if is_needed else {}
        return Queue(f"{options.prefix}{name}", **arguments)

    def _note_enqueued(self, result: Any) -> None:
        options, delay = self._task_options, timedelta()
        if result.task.run_after is not None:
            delay = max(result.task.run_after - result.enqueued_at, delay)
        if options.results is not None:
            with _logged(result):
                # Unless a worker has begun with it already.
                caches[options.results].add(
                    f"{KEY}{result.id}",
                    msgspec.to_builtins(_record_of(result)),
                    self._expiry + delay.total_seconds(),
                )
        task_enqueued.send_robust(type(self), task_result=result)

    # -- results

    def get_result(self, result_id: str) -> Any:
        """Return the result of a task.  May switch.

        Raises:
            NotImplementedError: ``OPTIONS["results"]`` names no cache.
            TaskResultDoesNotExist: there is none, or it has expired.
        """
        if self._task_options.results is None:
            return super().get_result(result_id)
        found = caches[self._task_options.results].get(f"{KEY}{result_id}")
        try:
            return self._result_of(msgspec.convert(found, TaskRecord))
        except msgspec.ValidationError as exc:
            raise exceptions.TaskResultDoesNotExist(result_id) from exc

    @property
    def _expiry(self) -> float:
        seconds: Any = self._task_options.results_expire  # it has become a number
        return float(seconds)

    def _store(self, result: Any) -> None:
        """Store a result.  An error is logged: the task itself need not fail for that."""
        options = self._task_options
        if options.results is not None:
            with _logged(result):
                record = msgspec.to_builtins(_record_of(result))
                caches[options.results].set(f"{KEY}{result.id}", record, self._expiry)

    def _result_of(self, record: TaskRecord, task: Any = None) -> Any:
        if task is None:
            task = find_task(record.task).using(
                backend=self.alias,
                queue_name=record.queue_name,
                priority=record.priority,
                run_after=record.run_after,
            )
        result = TaskResult(
            task=task,
            backend=self.alias,
            status=TaskResultStatus(record.status),
            errors=[TaskError(**each) for each in record.errors],
            **{name: getattr(record, name) for name in _SAME},
        )
        _set(result, _return_value=record.return_value)
        return result

    # -- running

    def declare_consumer(self, app: App) -> None:
        """Have *app* run the tasks of this backend.

        Raises:
            ImproperlyConfigured: an option is invalid.
        """
        for problem in self._problems():
            raise ImproperlyConfigured(problem)
        options = self._task_options
        declare = app.consumer(
            [self._queue(name) for name in sorted(self.queues)],
            schema=TaskRecord,
            name=f"tasks of {self.alias!r}",
            connection=options.url,
            **options.consumer,
        )
        declare(self.run)

    def run(self, record: TaskRecord, message: Message) -> None:
        """Run the task of a message and keep its result.  May switch.

        Raises:
            Exception: what the task raises.
        """
        failed = _failed_workers(message)
        result = self._begin(record, failed)
        task = result.task
        context = [TaskContext(task_result=result)] if task.takes_context else []
        try:
            value = normalize_json(task.call(*context, *result.args, **result.kwargs))
        except FAILURES as exc:
            is_last = self._task_options.is_last(exc, len(failed) + 1)
            # The broker may hold a copy until the next attempt.  A dead letter that is replayed has all.
            if is_last:
                message.headers[WORKERS] = []
            elif not isinstance(exc, RetryLater) or exc.counts:
                message.headers[WORKERS] = [*failed, program_name()]
            self._fail(result, exc, is_last=is_last)
            if isinstance(exc, SystemExit):
                raise RuntimeError(f"task {task.module_path} called sys.exit({exc})") from exc
            raise
        _set(result, _return_value=value)
        self._end(result, TaskResultStatus.SUCCESSFUL)

    def _begin(self, record: TaskRecord, failed: list[str]) -> Any:
        """Return the result of a task that is run now, with its former attempts as far as known."""
        result = self._result_of(record)
        if self._task_options.results is not None:
            with _logged(result):
                result = self._known(result)
        now = timezone.now()
        _set(
            result,
            status=TaskResultStatus.RUNNING,
            started_at=result.started_at or now,
            last_attempted_at=now,
            finished_at=None,
            worker_ids=[*(result.worker_ids or failed), program_name()],
        )
        self._store(result)
        task_started.send_robust(type(self), task_result=result)
        return result

    def _known(self, result: Any) -> Any:
        try:
            return self.get_result(result.id)
        except exceptions.TaskResultDoesNotExist:
            return result

    def _fail(self, result: Any, exc: BaseException, *, is_last: bool) -> None:
        if is_last or not isinstance(exc, RetryLater):
            kind = type(exc)
            error = TaskError(
                exception_class_path=f"{kind.__module__}.{kind.__qualname__}",
                traceback="".join(format_exception(exc)),
            )
            result.errors.append(error)
        if is_last:
            self._end(result, TaskResultStatus.FAILED)
        else:
            _set(result, status=TaskResultStatus.READY)
            self._store(result)

    def _end(self, result: Any, status: Any) -> None:
        _set(result, status=status, finished_at=timezone.now())
        self._store(result)
        task_finished.send_robust(type(self), task_result=result)

    # -- checks

    def check(self, **kwargs: Any) -> list[Any]:
        """Return what is wrong in ``TASKS``, for Django's system checks."""
        found: list[Any] = [*super().check(**kwargs)]
        found += [Error(problem, id="greenconn.tasks.E001") for problem in self._problems()]
        if not found and isinstance(self._cache, LocMemCache):
            found.append(
                Warning(
                    f"TASKS[{self.alias!r}]: OPTIONS.results names a cache in the memory of this "
                    f"process, where the results of other processes are not seen.",
                    hint="Name a cache of CACHES that processes share.",
                    id="greenconn.tasks.W001",
                )
            )
        return found

    @property
    def _cache(self) -> object:
        name = self._task_options.results
        return None if name is None else caches[name]

    def _problems(self) -> Iterator[str]:
        where = f"TASKS[{self.alias!r}]"
        try:
            options = self._task_options
            driver = self._driver
        except ImproperlyConfigured as exc:
            yield str(exc)
            return
        except ImportError as exc:  # of an extra that is not installed
            yield f"{where}: {exc}"
            return
        if not self.queues:
            yield f"{where}: QUEUES must name at least one queue, as workers consume from these"
        if options.results is not None and options.results not in caches:
            yield f"{where}: OPTIONS.results must be a name in CACHES, got {options.results!r}"
        if options.using not in connections:
            yield f"{where}: OPTIONS.using must be a name in DATABASES, got {options.using!r}"
        if options.enqueue == "outbox" and not apps.is_installed(OUTBOX):
            yield f"{where}: {OUTBOX!r} must be in INSTALLED_APPS with OPTIONS.enqueue='outbox'"
        if options.enqueue == "transaction" and driver != "postgresql":
            yield (
                f"{where}: the broker must be PostgreSQL with OPTIONS.enqueue='transaction', got "
                f"{driver}: use 'outbox'"
            )
        for alias in task_backends:
            if alias == self.alias:
                break
            other = task_backends[alias]
            if isinstance(other, Backend) and (shared := other._names() & self._names()):
                yield (
                    f"{where}: queue {min(shared)[1]!r} of the same broker belongs to TASKS[{alias!r}]: "
                    f"set OPTIONS.prefix"
                )

    def _names(self) -> set[tuple[str | None, str]]:
        """Return the URL and the name of each queue."""
        try:
            options = self._task_options
        except ImproperlyConfigured:
            return set()
        return {(options.url, f"{options.prefix}{name}") for name in self.queues}


def declare_consumers(app: App) -> None:
    """Have *app* run the tasks of each :class:`Backend` in ``TASKS``.

    The modules ``tasks`` of the project's applications are imported.  ``manage.py runconsumers`` does so
    with :data:`greenconn.contrib.django.app`.

    Raises:
        ImproperlyConfigured: ``TASKS`` is wrong.
    """
    backends = [task_backends[alias] for alias in task_backends]
    own = [backend for backend in backends if isinstance(backend, Backend)]
    if own:
        autodiscover_modules("tasks")
    for backend in own:
        backend.declare_consumer(app)


def _record_of(result: Any) -> TaskRecord:
    task = result.task
    return TaskRecord(
        task=task.module_path,
        queue_name=task.queue_name,
        priority=task.priority,
        run_after=task.run_after,
        status=str(result.status),
        errors=[asdict(each) for each in result.errors],
        return_value=result._return_value,
        **{name: getattr(result, name) for name in _SAME},
    )


def _set(result: Any, **values: Any) -> None:
    """Change a result, which is frozen for programs."""
    for name, value in values.items():
        object.__setattr__(result, name, value)


def _failed_workers(message: Message) -> list[str]:
    given = message.headers.get(WORKERS)
    return [str(each) for each in given[:MOST_WORKERS]] if isinstance(given, list) else []


@contextmanager
def _logged(result: Any) -> Iterator[None]:
    try:
        yield
    except Exception:
        logger.exception(
            "the result of task %s (%s) cannot be read or stored",
            result.task.module_path,
            result.id,
        )


#: Its name in Django, and in django-tasks.
_INVALID_TASK: Final[type[Exception]] = (
    getattr(exceptions, "InvalidTask", None) or exceptions.InvalidTaskError
)
