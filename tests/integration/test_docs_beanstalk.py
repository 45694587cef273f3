"""Every code block of the page about beanstalk runs on a server."""

from __future__ import annotations

import pytest

from greenconn.jsoncodec import dumps
from tests.integration.pages import run_blocks
from tests.unit.test_docs import ROOT

pytestmark = pytest.mark.full

PAGE = (ROOT / "docs" / "beanstalk.rst").read_text()


def test_the_code_blocks_run(beanstalk_url: str, patched: bool) -> None:
    run_blocks(PAGE, beanstalk_url, patched)


def test_as_many_bindings_fit_as_it_says() -> None:
    row = ["customer.order.created", "", "service-of-customers", None, False]
    assert "some 800 fit into 65,535 bytes" in " ".join(PAGE.split())
    assert len(dumps({"rows": [row] * 800})) < 65_535
