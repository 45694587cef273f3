"""Every code block of the page about CouchDB runs on a server."""

from __future__ import annotations

import pytest

from tests.integration.pages import run_blocks
from tests.unit.test_docs import ROOT, section

pytestmark = pytest.mark.full

PAGE = section((ROOT / "docs" / "other-brokers.rst").read_text(), "CouchDB")


def test_the_code_blocks_run(couchdb_url: str, patched: bool) -> None:
    run_blocks(PAGE, couchdb_url, patched)
