"""Every test that the pages of promises and of security name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.programs

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/promises.rst", "docs/security.rst")
TEXTS = {page: (ROOT / page).read_text() for page in PAGES}
NAMED = sorted(set(re.findall(r"``(tests/\S+)::(\w+)``", "".join(TEXTS.values()))))


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_the_test_exists(path: str, name: str) -> None:
    assert f"\ndef {name}(" in (ROOT / path).read_text()


def test_each_promise_has_one() -> None:
    text = TEXTS["docs/promises.rst"].partition("Fault tests\n")[0]
    promises = re.split(r"^\*\*", text, flags=re.MULTILINE)[1:]
    assert promises
    for promise in promises:
        assert "::test_" in promise, promise
