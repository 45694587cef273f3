"""The code blocks of a page of the documentation, run as a program."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.unit.test_docs import ROOT, blocks


def run_blocks(page: str, url: str, patched: bool) -> subprocess.CompletedProcess[str]:
    """Run the code blocks of *page*, with the broker of *url*, in a process like this one.

    It fails the test if the program does.
    """
    prefix = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", prefix + blocks(page)],
        capture_output=True,
        text=True,
        timeout=150,
        cwd=ROOT,
        env={**os.environ, "GREENCONN_URL": url},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done
