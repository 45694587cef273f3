"""The example of a program for kombu: its steps share a queue, and nothing is lost."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_wires import until
from tests.integration.projects import EXAMPLES, SOON, project
from tests.unit.test_docs import ROOT

pytest.importorskip("kombu")

pytestmark = [pytest.mark.programs, pytest.mark.timeout(600)]

FOLDER = EXAMPLES / "moved_from_kombu"
IMAGE = r"^[a-z ]+: thumbnail of (.*)\.png$"


def test_only_imports_differ(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "moving.rst").read_text()
    command = re.search(r"^    (grep -rlE(?:.*\\\n)*.*)$", page, re.MULTILINE)
    assert command is not None
    shutil.copytree(FOLDER / "before", tmp_path / "src")
    subprocess.run(["bash", "-c", command[1]], cwd=tmp_path, check=True, timeout=60)
    for path in sorted((FOLDER / "imports_changed").glob("*.py")):
        moved = (tmp_path / "src" / path.name).read_text()
        moved = moved.replace('"before: ', '"imports changed: ').replace(
            '"before-', '"imports-changed-'
        )
        assert path.read_text() == moved


@pytest.mark.full
def test_a_mixed_fleet(own_rabbitmq: RabbitMQ, unique: str, tmp_path: Path) -> None:
    """The worker of the second step is killed in its work."""
    url = own_rabbitmq.add_vhost(unique)
    with project("moved_from_kombu", tmp_path, GREENCONN_URL=url) as running:
        running.wait_for("^imports changed: ")
        (worker,) = running.processes("imports_changed/worker.py")
        running.kill(worker)
        running.wait_for("^published 90 images$")
        steps = ("before", "imports-changed", "rewritten")
        published = {f"{step}-{number}" for step in steps for number in range(30)}
        until(lambda: {*running.find(IMAGE)} == published, SOON, "all images")
        # At most what the killed one had not acknowledged comes twice.
        assert len(running.find(IMAGE)) <= 90 + 10

        # The rewritten one is left, and handles what a publisher with kombu sends.
        (worker,) = running.processes("before/worker.py")
        os.kill(worker, signal.SIGTERM)
        until(lambda: not running.processes("before/worker.py"), SOON, "the end of a worker")
        before = len(running.find("^rewritten: thumbnail of before-"))
        running.start("python before/publish.py")
        running.wait_for("^rewritten: thumbnail of before-", before + 30)
        running.stop()
    own_rabbitmq.delete_vhost(unique)
