"""Every code block of the page about SQS runs on a server, and its options have these defaults."""

from __future__ import annotations

import re

import pytest

from greenconn.transport.SQS.options import HYPHENATED, SQSOptions
from tests.integration.pages import run_blocks
from tests.unit.test_docs import ROOT

pytestmark = pytest.mark.full

PAGE = (ROOT / "docs" / "sqs.rst").read_text()


def test_the_code_blocks_run(sqs_url: str, patched: bool) -> None:
    run_blocks(PAGE, sqs_url, patched)


def test_the_options_have_these_defaults() -> None:
    rows = re.findall(r"^``([\w-]+)`` +(None|True|``\"\"``|\d+)(?: |$)", PAGE, re.MULTILINE)
    documented = {HYPHENATED.get(name, name): value.strip("`") for name, value in rows}
    assert len(documented) > 15
    documented.pop("max_message_size")  # in MiB
    defaults = SQSOptions()
    found = {name: getattr(defaults, name) for name in documented}
    assert {
        name: float(documented[name]) if documented[name].isdigit() else documented[name]
        for name in documented
    } == {
        name: float(value) if type(value) in (int, float) else '""' if value == "" else str(value)
        for name, value in found.items()
    }
