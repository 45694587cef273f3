"""pytest for the tests of Django's backends for tasks.

``django_program.py RESULTS FOLDER URL ARGUMENTS``: each test that passed or failed is a line in the file
RESULTS; FOLDER is for the cache, and URL the broker; the other arguments are pytest's.  The tests import
the backends of this module in place of Django's.
"""

from __future__ import annotations

import os
import sys
from typing import Any, ClassVar

import pytest

if __name__ == "__main__":
    import django
    from django.conf import settings
    from django.test.utils import setup_test_environment

    results, folder, url = sys.argv[1:4]
    os.environ["DJANGO_TEST_AMQP_URL"] = url
    settings.configure(
        CACHES={
            "default": {
                "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
                "LOCATION": f"{folder}/cache",
            }
        },
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        USE_TZ=True,
    )
    django.setup()
    setup_test_environment()

from gevent.event import AsyncResult

import greenconn
from greenconn.contrib.django.tasks import Backend, TaskOptions, TaskRecord
from greenconn.identity import uuid
from tests.quality.thirdparty.results import Results

SOON = 30.0


class _Backend(Backend):
    """The backend, whose options the tests do not give, with queues of its own."""

    results_in: ClassVar[str | None] = None

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        # The tests of Django allow no database, not even a look whether there is a transaction.
        self.__dict__["_task_options"] = TaskOptions(
            url=os.environ["DJANGO_TEST_AMQP_URL"],
            enqueue="now",
            results=self.results_in,
            prefix=f"{uuid()}.",
            queue={"expires": 120.0, "max_priority": 9},
        )


class Enqueuing(_Backend):
    """For Django's ``DummyBackend``, which runs nothing.

    Attributes:
        results: those of all tasks that were enqueued.
    """

    results_in = "default"

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self.results: list[Any] = []

    def _note_enqueued(self, result: Any) -> None:
        self.results.append(result)
        super()._note_enqueued(result)

    def clear(self) -> None:
        """Forget all."""
        self.results.clear()


class Running(_Backend):
    """For Django's ``ImmediateBackend``: a task is run by a consumer, and enqueuing waits for that."""

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Enqueue a task and return its result when it has ended.  May switch."""
        result = super().enqueue(task, args, kwargs)
        self._ended: AsyncResult[Any] = AsyncResult()
        consumer = greenconn.spawn_consumer(
            self._queue(task.queue_name),
            self.run,
            schema=TaskRecord,
            connection=self._task_options.url,
        )
        try:
            ended: Any = self._ended.get(timeout=SOON)
            assert ended.id == result.id
            return ended
        finally:
            consumer.stop(SOON)

    def _end(self, result: Any, status: Any) -> None:
        super()._end(result, status)
        self._ended.set(result)


if __name__ == "__main__":
    # The tests import it by its name, with the settings that are there now.
    sys.exit(pytest.main(sys.argv[4:], plugins=[Results(results)]))
