"""Every code block about MongoDB, CouchDB, beanstalkd and SQS runs, each section on its server."""

from __future__ import annotations

import pytest

from tests.integration.pages import run_blocks
from tests.unit.test_docs import ROOT, section

pytestmark = pytest.mark.full

PAGE = (ROOT / "docs" / "other-brokers.rst").read_text()


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        *(("MongoDB", "mongodb"), ("CouchDB", "couchdb"), ("beanstalkd", "beanstalk")),
        ("Amazon SQS", "sqs"),
    ],
)
def test_the_code_blocks_run(
    request: pytest.FixtureRequest, title: str, kind: str, patched: bool
) -> None:
    text = section(PAGE, title)
    if kind != "sqs":
        text = section(PAGE, "What the three servers share") + text
    done = run_blocks(text, request.getfixturevalue(f"{kind}_url"), patched)
    assert kind != "mongodb" or not done.stderr
