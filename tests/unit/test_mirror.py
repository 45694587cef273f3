"""Modules have test files of their names, and more of them have one each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mirror import LIMIT, files_of, modules, without_tests

pytestmark = pytest.mark.programs


@pytest.mark.parametrize(
    ("module", "file"),
    [
        ("wire/acks.py", "unit/wire/test_acks.py"),
        ("url.py", "unit/test_url.py"),
        ("rpc.py", "integration/test_rpc.py"),
        ("entity/queue.py", "unit/test_entity.py"),
        ("transport/redis/sentinel.py", "integration/test_redis_sentinel.py"),
        ("transport/SQS/transport.py", "integration/test_sqs_transport.py"),
        ("contrib/celery.py", "integration/test_contrib_celery.py"),
        ("session/recovery.py", "integration/test_session_recovery_topology.py"),
    ],
)
def test_names(module: str, file: str) -> None:
    assert Path("tests", file) in files_of(Path("greenconn", module))


def test_a_transport_is_no_single_file() -> None:
    assert files_of(Path("greenconn/transport/redis/none.py")) == []


def test_no_more_modules_are_without() -> None:
    found = without_tests()
    assert len(found) <= LIMIT, [str(path) for path in found]
    assert len(found) < len(modules()) / 2
