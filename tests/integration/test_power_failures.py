"""Power failures; ``python -m tests.quality.power`` also shows what is lost by default elsewhere."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.brokers import newer, older
from tests.integration.processes import run
from tests.quality.power import MODULE, NOT_HERE


def check(name: str, messages: int) -> None:
    """Assert that a broker has all that it has confirmed when the power fails under load."""
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        pytest.skip(
            "only root can mount a file system, and mkfs.ext4 must be installed to make one"
        )
    outcome = run("-m", MODULE, name, "--messages", str(messages))
    if outcome.code == NOT_HERE:
        pytest.skip(f"no file system in a file can be mounted here: {outcome.errors}")
    assert outcome.code == 0, outcome
    found = json.loads(outcome.output)
    assert found["confirmed"] >= messages
    assert found["lost"] == 0, found


def test_sqlite() -> None:
    check("sqlite", 500)


@pytest.mark.full
@pytest.mark.parametrize(
    ("broker_kind", "name"),
    [
        *(("amqp", "classic"), ("amqp", "quorum"), ("redis", "redis"), ("beanstalk", "beanstalk")),
        *(("postgresql", "postgresql"), ("mongodb", "mongodb"), ("couchdb", "couchdb")),
    ],
)
def test_servers(broker_kind: str, name: str) -> None:
    if broker_kind in ("mongodb", "couchdb") and not older.is_wanted():
        pytest.skip("what stands in for it keeps no promises about its disk")
    if name == "classic" and newer.is_wanted():
        pytest.skip("classic queues of RabbitMQ 4 confirm what is not on the disk yet")
    check(name, 3000)
