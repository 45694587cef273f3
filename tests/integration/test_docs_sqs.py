"""Every code block of the page about SQS runs on a server."""

from __future__ import annotations

import pytest

from tests.integration.pages import run_blocks
from tests.unit.test_docs import ROOT

pytestmark = pytest.mark.full

PAGE = (ROOT / "docs" / "sqs.rst").read_text()


def test_the_code_blocks_run(sqs_url: str, patched: bool) -> None:
    run_blocks(PAGE, sqs_url, patched)
