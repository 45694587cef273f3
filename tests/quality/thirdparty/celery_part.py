"""Celery: its own integration tests with a gevent pool, RabbitMQ and results in Redis."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Final

from tests.quality.thirdparty.environments import environment, source
from tests.quality.thirdparty.parts import CONTRIB, Outcome, Site, TooLong

VERSION: Final = "5.7.0"
REQUIREMENTS = (
    *("gevent", "hiredis", f"celery[auth,pydantic,redis]=={VERSION}"),
    *("pytest", "pytest-celery", "pytest-order", "pytest-rerunfailures", "pytest-subtests"),
    "pytest-timeout",
)
#: Not those of other backends, beat and subprocesses, nor those of tasks: with a gevent pool they hang
#: on kombu, too.
CHOSEN: Final = ("inspect", "group_chains", "security", "canvas")
#: Of the names of tests.
PREFIX: Final = "t/integration/"
#: Changes: the pool, the seconds of a test, and how often one that failed runs again.
CHANGES: Final = (
    ("return 'prefork'", "return 'gevent'"),
    ("timeout(timeout=300)", "timeout(timeout=60)"),
    ("flaky(reruns=5,", "flaky(reruns=1,"),
)


def run(way: str, site: Site, timeout: float) -> Outcome:
    """Run the tests; what did not come to its end within *timeout* seconds is not counted.

    Raises:
        NotInstalled: Celery or its source cannot be had.
    """
    python = environment("celery", REQUIREMENTS)
    folder = site.logs / f"celery-{way}"
    root = _unpack(source(python, f"celery=={VERSION}"), folder)
    results = folder / "results"
    broker = site.rabbitmq.url
    env = {
        "TEST_BROKER": f"greenconn-{broker}" if way == CONTRIB else broker,
        "TEST_BACKEND": site.redis.url_of(0),
        "REDIS_PORT": str(site.redis.port),
        "PATH": os.pathsep.join((str(python.parent), os.environ["PATH"])),
    }
    paths = [str(root / f"t/integration/test_{name}.py") for name in CHOSEN]
    command = [
        *(
            str(python),
            "-W",
            "ignore",
            "-m",
            "tests.quality.thirdparty.celery_program",
            way,
            str(results),
        ),
        *("-p", "no:cacheprovider", "-v", f"--rootdir={root}", "--tb=short", *paths),
    ]
    with site.program(f"celery-{way}", command, env) as program:
        try:
            program.wait(timeout)
        except TooLong:
            return Outcome.of_results(results, PREFIX, is_whole=False)
    return Outcome.of_results(results, PREFIX)


def _unpack(archive: Path, folder: Path) -> Path:
    """Unpack the tests, and return the folder above them."""
    with tarfile.open(archive) as members:
        chosen = [each for each in members.getmembers() if f"celery-{VERSION}/t/" in each.name]
        members.extractall(folder, chosen, filter="data")
    root = folder / f"celery-{VERSION}"
    for path in (root / "t/integration").glob("*.py"):
        text = path.read_text()
        for former, new in CHANGES:
            text = text.replace(former, new)
        path.write_text(text)
    (root / "pytest.ini").write_text("[pytest]\npython_classes = test_*\n")
    return root
