"""Every code block of the page about RabbitMQ runs on one."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.brokers.rabbitmq import RabbitMQ
from tests.unit.test_docs import ROOT, blocks


def test_the_code_blocks_run(managed_rabbitmq: RabbitMQ, patched: bool) -> None:
    program = blocks((ROOT / "docs" / "rabbitmq.rst").read_text())
    prefix = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    url = f"{managed_rabbitmq.url}?manager_port={managed_rabbitmq.http_port}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", prefix + program],
        capture_output=True,
        text=True,
        timeout=50,
        cwd=ROOT,
        env={**os.environ, "GREENCONN_URL": url},
        check=False,
    )
    assert done.returncode == 0, done.stderr
