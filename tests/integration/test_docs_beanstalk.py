"""Every code block of the page about beanstalk runs on a server."""

from __future__ import annotations

import re

import pytest

from greenconn.jsoncodec import dumps
from greenconn.transport.beanstalk.options import BeanstalkOptions
from tests.integration.pages import run_blocks
from tests.unit.test_docs import ROOT

pytestmark = pytest.mark.full

PAGE = (ROOT / "docs" / "beanstalk.rst").read_text()


def test_the_code_blocks_run(beanstalk_url: str, patched: bool) -> None:
    run_blocks(PAGE, beanstalk_url, patched)


def test_the_options_have_these_defaults() -> None:
    rows = re.findall(r"^``(\w+)`` +([\w.]+) ", PAGE, re.MULTILINE)
    defaults = BeanstalkOptions()
    assert rows
    assert {name: repr(getattr(defaults, name)) for name, _ in rows} == dict(rows)


def test_as_many_bindings_fit_as_it_says() -> None:
    row = ["customer.order.created", "", "service-of-customers", None, False]
    assert "some\n800 fit into 65,535 bytes" in PAGE
    assert len(dumps({"rows": [row] * 800})) < 65_535
