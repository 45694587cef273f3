"""Every benchmark runs; the figures of so few messages mean nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.rivals import RIVALS
from benchmarks.works import WORKS
from tests.brokers.redis_server import RedisServer
from tests.integration.processes import Outcome, run

#: Measured always; the others with ``--long``.
ALWAYS = ("greenconn", "kombu")


def benchmarks(url: str, *arguments: str) -> Outcome:
    """Run ``python -m benchmarks`` with few messages."""
    return run(
        "-m", "benchmarks", "--url", url, "--rounds", "1", "--count", "20", *arguments, timeout=500
    )


@pytest.fixture(scope="module")
def outcome(amqp_url: str, long: bool) -> Outcome:
    """What all works of the rivals gave."""
    rivals = RIVALS if long else ALWAYS
    return benchmarks(amqp_url, "--json", *(f"--rival={rival}" for rival in rivals))


@pytest.mark.timeout(600)
def test_nothing_fails(outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.errors
    assert json.loads(outcome.output)["failures"] == {}


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rival", RIVALS)
def test_each_work_is_measured(rival: str, outcome: Outcome, long: bool) -> None:
    if RIVALS[rival].version is None:
        pytest.skip(f"{rival} is not installed")
    if rival not in ALWAYS and not long:
        pytest.skip("runs only with --long")
    figures: dict[str, Any] = json.loads(outcome.output)["figures"]
    for name, work in WORKS.items():
        if name in RIVALS[rival].cannot:
            assert rival not in figures.get(name, {})
            continue
        (measured,) = figures[name][rival]
        keys = {figure.key for figure in work.figures}
        if rival == "raw":
            keys &= {"cpu", "p50"}  # it has no consumers in memory
        assert keys <= measured.keys(), name
        assert all(value >= 0 for value in measured.values()), name


def test_the_table_is_printed(amqp_url: str) -> None:
    outcome = benchmarks(amqp_url, "--work=connect", "--rival=greenconn", "--budget")
    assert outcome.code == 0, outcome.errors
    assert "connect and close" in outcome.output
    assert "greenconn" in outcome.errors  # the machine and the versions


def test_the_profile_names_modules(amqp_url: str) -> None:
    outcome = benchmarks(amqp_url, "--profile=import")
    assert outcome.code == 0, outcome.errors
    assert "greenconn" in outcome.output


@pytest.mark.timeout(200)
def test_the_works_on_redis_run(own_redis: RedisServer, long: bool) -> None:
    count = "20000" if long else "2000"
    outcome = run(
        "-m", "benchmarks.on_redis", "--url", own_redis.url, "--rounds", "1", "--count", count,
        timeout=190,
    )  # fmt: skip
    assert outcome.code == 0
    assert outcome.errors == ""
    assert "at most" in outcome.output
