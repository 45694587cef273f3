"""Every code block of the page about MongoDB runs."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.unit.test_docs import ROOT, blocks

PAGE = (ROOT / "docs" / "mongodb.rst").read_text()


def test_the_code_blocks_run(mongodb_url: str, patched: bool) -> None:
    prefix = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", prefix + blocks(PAGE)],
        capture_output=True,
        text=True,
        timeout=50,
        cwd=ROOT,
        env={**os.environ, "GREENCONN_URL": mongodb_url},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
