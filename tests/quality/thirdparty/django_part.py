"""Django: its own tests of its backends for tasks, over that of greenconn."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests import newer_python
from tests.brokers.fetching import NoBroker
from tests.quality.thirdparty.environments import NotInstalled, environment, source
from tests.quality.thirdparty.parts import CONTRIB, Outcome, Site, TooLong

VERSION: Final = "6.0.10"
REQUIREMENTS: Final = (
    *("amqp", "gevent", "hiredis", "msgspec", f"django=={VERSION}"),
    *("pytest", "pytest-timeout"),
)
PROGRAM: Final = "tests.quality.thirdparty.django_program"
EXPLAINED: Final = {
    "Dummy.*refresh_result": "changes the result in the memory of Django's class",
    "Dummy.*test_clear": "drops the results in the memory of Django's class",
    "Dummy.*test_check": "has no QUEUES, and workers consume from these",
    "Immediate.*cannot_pass_run_after": "the broker holds the message until then",
}
#: Backend of Django -> that which stands for it.
BACKENDS: Final = {"dummy.DummyBackend": "Enqueuing", "immediate.ImmediateBackend": "Running"}


def run(way: str, site: Site, timeout: float) -> Outcome:
    """Run the tests.

    Raises:
        NotInstalled: Django 6, its source or a Python for it cannot be had.
    """
    try:
        base = newer_python.find()
    except NoBroker as exc:
        raise NotInstalled(str(exc)) from exc
    python = environment("django", REQUIREMENTS, base)
    folder = site.logs / f"django-{way}"
    root = _unpack(source(python, f"django=={VERSION}"), folder, way)
    results = folder / "results"
    command = [
        *(str(python), "-m", PROGRAM, str(results), str(root.parent), site.rabbitmq.url),
        *("-p", "no:cacheprovider", "-v", f"--rootdir={root.parent}", "--tb=short", "--timeout=60"),
        *(str(path) for path in sorted(root.glob("test_*.py"))),
    ]
    with site.program(f"django-{way}", command) as program:
        try:
            program.wait(timeout)
        except TooLong:
            return Outcome.of_results(results, is_whole=False)
    return Outcome.of_results(results)


def _unpack(archive: Path, folder: Path, way: str) -> Path:
    """Unpack the tests, for greenconn with its backends in place of Django's; return their folder."""
    root = folder / "tests" / "tasks"
    root.mkdir(parents=True)
    (root.parent / "pytest.ini").write_text("[pytest]\n")
    with tarfile.open(archive) as members:
        for member in members.getmembers():
            path = member.name.partition("/")[2]
            if re.fullmatch(r"tests/tasks/\w+\.py", path):
                content = members.extractfile(member)
                assert content is not None
                text = content.read().decode()
                for former, new in _changes() if way == CONTRIB else ():
                    text = text.replace(former, new)
                (root / Path(path).name).write_text(text)
    return root


def _changes() -> Iterator[tuple[str, str]]:
    """Yield what is replaced in the tests: the backends, and tasks that are coroutines."""
    for theirs, ours in BACKENDS.items():
        module, _, name = theirs.partition(".")
        yield f'"django.tasks.backends.{theirs}"', f'"{PROGRAM}.{ours}"'
        former = f"from django.tasks.backends.{module} import {name}"
        yield former, f"from {PROGRAM} import {ours} as {name}"
    yield "[test_tasks.noop_task, test_tasks.noop_task_async]", "[test_tasks.noop_task]"
    for call in ("enqueue", "aenqueue"):
        another = "test_tasks.calculate_meaning_of_life, (), {}"
        yield f"{call}(test_tasks.noop_task_async, (), {{}})", f"{call}({another})"
