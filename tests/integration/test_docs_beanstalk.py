"""Every code block of the page about beanstalk runs on a server."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from greenconn.jsoncodec import dumps
from greenconn.transport.beanstalk.options import BeanstalkOptions
from tests.unit.test_docs import ROOT, blocks

PAGE = (ROOT / "docs" / "beanstalk.rst").read_text()


def test_the_code_blocks_run(beanstalk_url: str, patched: bool) -> None:
    prefix = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", prefix + blocks(PAGE)],
        capture_output=True,
        text=True,
        timeout=50,
        cwd=ROOT,
        env={**os.environ, "GREENCONN_URL": beanstalk_url},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_options_have_these_defaults() -> None:
    rows = re.findall(r"^``(\w+)`` +([\w.]+) ", PAGE, re.MULTILINE)
    defaults = BeanstalkOptions()
    assert rows
    assert {name: repr(getattr(defaults, name)) for name, _ in rows} == dict(rows)


def test_as_many_bindings_fit_as_it_says() -> None:
    row = ["customer.order.created", "", "service-of-customers", None, False]
    assert "some\n800 fit into 65,535 bytes" in PAGE
    assert len(dumps({"rows": [row] * 800})) < 65_535
