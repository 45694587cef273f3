"""Every code block of the page about MongoDB runs."""

from __future__ import annotations

import pytest

from tests.integration.pages import run_blocks
from tests.unit.test_docs import ROOT, section

pytestmark = pytest.mark.full

PAGE = section((ROOT / "docs" / "other-brokers.rst").read_text(), "MongoDB")


def test_the_code_blocks_run(mongodb_url: str, patched: bool) -> None:
    assert not run_blocks(PAGE, mongodb_url, patched).stderr
