"""Every code block of the page about beanstalk runs on a server."""

from __future__ import annotations

import pytest

from tests.integration.pages import run_blocks
from tests.unit.test_docs import ROOT, section

pytestmark = pytest.mark.full

PAGE = section((ROOT / "docs" / "other-brokers.rst").read_text(), "beanstalkd")


def test_the_code_blocks_run(beanstalk_url: str, patched: bool) -> None:
    run_blocks(PAGE, beanstalk_url, patched)
