"""Every code block of the page about CouchDB runs on a server."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from greenconn.transport.couchdb.options import CouchOptions
from tests.unit.test_docs import ROOT, blocks

PAGE = (ROOT / "docs" / "couchdb.rst").read_text()


def test_the_code_blocks_run(couchdb_url: str, patched: bool) -> None:
    prefix = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", prefix + blocks(PAGE)],
        capture_output=True,
        text=True,
        timeout=50,
        cwd=ROOT,
        env={**os.environ, "GREENCONN_URL": couchdb_url},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_options_have_these_defaults() -> None:
    rows = re.findall(r"^``(\w+)`` +([\w.]+) ", PAGE, re.MULTILINE)
    defaults = CouchOptions()
    assert rows
    assert {name: repr(getattr(defaults, name)) for name, _ in rows} == dict(rows)
