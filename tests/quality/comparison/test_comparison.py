"""What other clients were seen to do wrong is right here; with ``--long`` kombu is measured beside."""

from __future__ import annotations

import pytest

from tests.quality.comparison.__main__ import run
from tests.quality.comparison.cases import CASES, Urls

pytestmark = [pytest.mark.full, pytest.mark.programs]


@pytest.mark.parametrize("name", CASES)
def test_mistake(name: str, amqp_url: str, redis_url: str, long: bool) -> None:
    urls = Urls(amqp_url, redis_url)
    found = run(name, "greenconn", urls)
    assert CASES[name].is_right(found), found
    if long:
        print(f"{CASES[name].title}: {run(name, 'kombu', urls)}")
