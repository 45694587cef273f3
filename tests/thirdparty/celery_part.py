"""Celery: its own integration tests with a gevent pool, RabbitMQ and results in Redis."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from tests.thirdparty.environments import environment, source
from tests.thirdparty.parts import CONTRIB, Outcome, Site

__all__ = ["REQUIREMENTS", "run"]

VERSION: Final = "5.7.0"
REQUIREMENTS = (
    *("gevent", "hiredis", f"celery[auth,pydantic,redis]=={VERSION}"),
    *("pytest", "pytest-celery", "pytest-order", "pytest-rerunfailures", "pytest-subtests"),
    "pytest-timeout",
)
#: Not those of the backends that are not here, of databases, Django, beat, and single subprocesses.
CHOSEN: Final = ("inspect", "group_chains", "security", "tasks", "canvas")
#: Changes of their conftest: the pool, the seconds of a test, and how often one that failed runs again.
CHANGES: Final = (
    ("return 'prefork'", "return 'gevent'"),
    ("timeout(timeout=300)", "timeout(timeout=60)"),
    ("flaky(reruns=5,", "flaky(reruns=1,"),
)


def run(way: str, site: Site, timeout: float) -> Outcome:
    """Run the tests.

    Raises:
        NotInstalled: Celery or its source cannot be had.
        TooLong: they did not end within *timeout* seconds.
    """
    python = environment("celery", REQUIREMENTS)
    folder = site.logs / f"celery-{way}"
    root = _unpack(source(python, f"celery=={VERSION}"), folder)
    report = folder / "report.xml"
    broker = site.rabbitmq.url
    env = {
        "TEST_BROKER": f"greenconn-{broker}" if way == CONTRIB else broker,
        "TEST_BACKEND": site.redis.url_of(0),
        "REDIS_PORT": str(site.redis.port),
        "PATH": os.pathsep.join((str(python.parent), os.environ["PATH"])),
    }
    paths = [str(root / f"t/integration/test_{name}.py") for name in CHOSEN]
    command = [
        *(str(python), "-W", "ignore", "-m", "tests.thirdparty.celery_program", way),
        *(
            "-p",
            "no:cacheprovider",
            "-v",
            f"--rootdir={root}",
            f"--junit-xml={report}",
            "--tb=short",
        ),
        *paths,
    ]
    with site.program(f"celery-{way}", command, env) as program:
        program.wait(timeout)
    return _read(report)


def _unpack(archive: Path, folder: Path) -> Path:
    """Unpack the tests, and return the folder above them."""
    with tarfile.open(archive) as members:
        chosen = [each for each in members.getmembers() if f"celery-{VERSION}/t/" in each.name]
        members.extractall(folder, chosen, filter="data")
    root = folder / f"celery-{VERSION}"
    conftest = root / "t/integration/conftest.py"
    text = conftest.read_text()
    for former, new in CHANGES:
        assert former in text, former
        text = text.replace(former, new)
    conftest.write_text(text)
    (root / "pytest.ini").write_text("[pytest]\npython_classes = test_*\n")
    return root


def _read(report: Path) -> Outcome:
    failed: set[str] = set()
    passed = 0
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("skipped") is not None:
            continue
        if case.find("failure") is not None or case.find("error") is not None:
            module = (case.get("classname") or "").removeprefix("t.integration.")
            failed.add(f"{module}.{case.get('name')}")
        else:
            passed += 1
    return Outcome(passed=passed, count=passed + len(failed), failed=frozenset(failed))
