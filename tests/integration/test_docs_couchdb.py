"""Every code block of the page about CouchDB runs on a server."""

from __future__ import annotations

import re

import pytest

from greenconn.transport.couchdb.options import CouchOptions
from tests.integration.pages import run_blocks
from tests.unit.test_docs import ROOT

pytestmark = pytest.mark.full

PAGE = (ROOT / "docs" / "couchdb.rst").read_text()


def test_the_code_blocks_run(couchdb_url: str, patched: bool) -> None:
    run_blocks(PAGE, couchdb_url, patched)


def test_the_options_have_these_defaults() -> None:
    rows = re.findall(r"^``(\w+)`` +([\w.]+) ", PAGE, re.MULTILINE)
    defaults = CouchOptions()
    assert rows
    assert {name: repr(getattr(defaults, name)) for name, _ in rows} == dict(rows)
