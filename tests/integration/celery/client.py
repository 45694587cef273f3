"""What a gevent program does with a Celery worker: prints what became of each step, as JSON."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
from celery import chord
from celery.exceptions import TaskRevokedError
from gevent.event import Event
from gevent.util import print_run_info

from tests.integration.celery.app import add, app, fail, flaky, slow, total

WITHIN = 40.0
#: Seconds that all steps have together: fewer than who started this waits.
ALL_WITHIN = 110.0


def results() -> Any:
    return add.delay(2, 3).get(timeout=WITHIN)


def many_greenlets() -> Any:
    """All over the connections of one pool."""
    sent = []
    for begin in range(0, MANY, 100):
        numbers = range(begin, begin + 100)
        sent += [gevent.spawn(add.apply_async, (n, 1), ignore_result=True) for n in numbers]
        # RabbitMQ ends a login after ten seconds; thousands in one turn may compute for as long.
        gevent.sleep(0)
    gevent.joinall(sent, raise_error=True)
    last = add.delay(MANY, 1)
    return len(sent), last.get(timeout=WITHIN)


def retries() -> Any:
    return flaky.delay(2).get(timeout=WITHIN)


def failures() -> Any:
    return repr(fail.delay().get(timeout=WITHIN, propagate=False))


def countdown() -> Any:
    return add.apply_async((1, 1), countdown=0.5).get(timeout=WITHIN)


def chords() -> Any:
    return chord(add.s(n, n) for n in range(5))(total.s()).get(timeout=WITHIN)


def late_acks() -> Any:
    return slow.delay(0.05, 7).get(timeout=WITHIN)


def ping_while_tasks_run() -> Any:
    running = [slow.delay(3.0, n) for n in range(5)]
    add.delay(1, 1).get(timeout=WITHIN)  # sent after them, so they have begun
    pong = app.control.ping(timeout=30, limit=1)
    active = app.control.inspect(timeout=30, limit=1).active() or {"": []}
    done = [each.get(timeout=WITHIN) for each in running]
    return [list(each.values()) for each in pong], len(next(iter(active.values()))) > 0, done


def revoking() -> Any:
    task = add.apply_async((1, 1), countdown=2)
    app.control.revoke(task.id)
    try:
        task.get(timeout=WITHIN)
    except TaskRevokedError as exc:
        return type(exc).__name__


def priorities_and_serializers() -> Any:
    kinds = [("json", None), ("json", "gzip"), ("json", "bzip2")]
    tasks = [add.apply_async((1, 2), serializer=s, compression=c, priority=3) for s, c in kinds]
    return [each.get(timeout=WITHIN) for each in tasks]


def events() -> Any:
    """The worker's events, seen by a receiver of Celery's."""
    wanted = {"task-received", "task-succeeded"}
    seen: set[str] = set()
    complete = Event()

    def note(event: dict[str, Any]) -> None:
        seen.add(event["type"])
        if seen >= wanted:  # the receiver may have begun between the two
            complete.set()

    def capture() -> None:
        with app.connection() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": note})
            receiver.capture(limit=None, timeout=None, wakeup=True)

    capturing = gevent.spawn(capture)
    while not complete.is_set():
        add.delay(1, 1).get(timeout=WITHIN)
    capturing.kill()
    return sorted(seen & wanted)


STEPS: list[Callable[[], Any]] = [
    *(results, many_greenlets, retries, failures, countdown, chords, late_acks),
    *(ping_while_tasks_run, revoking, priorities_and_serializers, events),
]

MANY = int(sys.argv[1])
outcomes: dict[str, Any] = {}
end = monotonic() + ALL_WITHIN
for step in STEPS:
    try:
        with gevent.Timeout(max(0, end - monotonic())):
            outcomes[step.__name__] = step()
    except (Exception, gevent.Timeout) as exc:
        outcomes[step.__name__] = f"{type(exc).__name__}: {exc}"
        print_run_info(file=sys.stderr)
print(json.dumps(outcomes))
