"""Every code block of the page about RabbitMQ runs on one."""

from __future__ import annotations

import pytest

from tests.brokers.rabbitmq import RabbitMQ
from tests.integration.pages import run_blocks
from tests.unit.test_docs import ROOT

pytestmark = pytest.mark.full

PAGE = (ROOT / "docs" / "rabbitmq.rst").read_text()


def test_the_code_blocks_run(managed_rabbitmq: RabbitMQ, patched: bool) -> None:
    url = f"{managed_rabbitmq.url}?manager_port={managed_rabbitmq.http_port}"
    run_blocks(PAGE, url, patched)
