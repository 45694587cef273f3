"""Dramatiq: its own tests of its brokers for RabbitMQ and Redis, over that of greenconn."""

from __future__ import annotations

import os
import re
import shlex
import tarfile
from pathlib import Path
from typing import Final

from tests.quality.thirdparty.environments import environment, source
from tests.quality.thirdparty.parts import CONTRIB, Outcome, Site, TooLong

VERSION: Final = "2.2.1"
REQUIREMENTS = (
    *("amqp", "gevent", "hiredis", f"dramatiq[rabbitmq,redis]=={VERSION}"),
    *("pytest", "pytest-timeout"),
)
FILES: Final = ("test_rabbitmq.py", "test_redis.py")
PROGRAM: Final = "tests.quality.thirdparty.dramatiq_program"
#: Of the tests, which come without it.
COMMON: Final = f"""
import pytest
from {PROGRAM} import CREDENTIALS as RABBITMQ_CREDENTIALS
from {PROGRAM} import PASSWORD as RABBITMQ_PASSWORD
from {PROGRAM} import USERNAME as RABBITMQ_USERNAME
from {PROGRAM} import worker

skip_unless_rabbit_mq = pytest.mark.skipif(False, reason="there is one")
"""
#: In the order in which they are tried.
EXPLAINED: Final = {
    "rabbitmq.*(independent_of_each|with_backoff)": "the delays are declared before the first one",
    "only_registers_ignore_filter": "of the log records of pika",
    "dead_lettered$|cleaned_up|redis_messages_belonging": "reads the keys of Dramatiq's class",
    "redis_requeues_.*_on_shutdown": "reads the keys of Dramatiq's class",
    "unacked_messages_can_be_requeued|join_race": "calls the Lua scripts of Dramatiq's class",
    "redis_consumer_n?ack_can_retry": "replaces the Lua scripts of Dramatiq's class",
}


def run(way: str, site: Site, timeout: float) -> Outcome:
    """Run the tests.

    Raises:
        NotInstalled: Dramatiq or its source cannot be had.
    """
    python = environment("dramatiq", REQUIREMENTS)
    folder = site.logs / f"dramatiq-{way}"
    root = _unpack(source(python, f"dramatiq=={VERSION}"), folder, way, site)
    results = folder / "results"
    env = {
        "DRAMATIQ_TEST_AMQP_URL": site.rabbitmq.url,
        "DRAMATIQ_TEST_REDIS_URL": site.redis.url_of(0),
        "PATH": os.pathsep.join((str(folder), os.environ["PATH"])),
    }
    command = [
        *(str(python), "-W", "ignore", "-m", PROGRAM, way, str(results)),
        *("-p", "no:cacheprovider", "-v", f"--rootdir={root}", "--tb=short", "--timeout=60"),
        *(str(root / name) for name in FILES),
    ]
    with site.program(f"dramatiq-{way}", command, env) as program:
        try:
            program.wait(timeout)
        except TooLong:
            return Outcome.of_results(results, is_whole=False)
    return Outcome.of_results(results)


def _unpack(archive: Path, folder: Path, way: str, site: Site) -> Path:
    """Unpack the tests for the brokers of *site*, and return their folder."""
    root = folder / "dramatiq_tests"
    root.mkdir(parents=True)
    with tarfile.open(archive) as members:
        for name in FILES:
            member = members.extractfile(f"dramatiq-{VERSION}/tests/{name}")
            assert member is not None
            text = member.read().decode()
            for former, new in _changes(way, site):
                text = re.sub(former, new, text)
            (root / name).write_text(text)
    (root / "__init__.py").touch()
    (root / "common.py").write_text(COMMON)
    (root / "pytest.ini").write_text("[pytest]\n")
    tool = folder / "rabbitmqctl"
    variables = (f"{name}={value}" for name, value in site.rabbitmq.environment.items())
    command = ["env", "-i", *variables, str(site.rabbitmq.ctl_program)]
    tool.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    tool.chmod(0o755)
    return root


def _changes(way: str, site: Site) -> list[tuple[str, str]]:
    """Return what is replaced in the tests: the addresses of brokers, and for greenconn the class."""
    amqp, redis = site.rabbitmq.port, site.redis.port
    changes = [
        (r'@127\.0\.0\.1"', f'@127.0.0.1:{amqp}"'),
        (r'host="127\.0\.0\.1", credentials', f'host="127.0.0.1", port={amqp}, credentials'),
        (r'( +)host="127\.0\.0\.1",\n', rf'\1host="127.0.0.1",\n\1port={amqp},\n'),
        (r'redis://127\.0\.0\.1"', f'redis://127.0.0.1:{redis}"'),
        (r"redis\.Redis\(\)", f"redis.Redis(port={redis})"),
    ]
    if way == CONTRIB:
        ours = "from greenconn.contrib.dramatiq import"
        changes += [
            (r"\n    RabbitmqBroker,", ""),
            (r"\n(from dramatiq.common)", rf"\n{ours} RabbitmqBroker\n{ours} RedisBroker\n\1"),
            (r"(MAINTENANCE_SCALE), RedisBroker", r"\1"),
        ]
    return changes
