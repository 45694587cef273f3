"""A short run of the torture; ``python -m tests.torture`` runs for as long as one likes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from tests.brokers.environment import are_required
from tests.brokers.packages import NoBroker
from tests.integration.processes import run
from tests.torture.client import Greenconn
from tests.torture.faults import Kind
from tests.torture.storm import Outcome, Plan, Storm
from tests.torture.worlds import WORLDS, world_of

#: Seconds of a storm: with ``--long``, and without.
LONG, SHORT = 120.0, 3.0
#: They take a RabbitMQ longer than a short storm is.
SLOW = frozenset({Kind.KILL, Kind.RESTART, Kind.ALARM})

pytestmark = [
    pytest.mark.timeout(600),
    # The most that a crowd on a broken line produces, which would bury what is looked for.
    pytest.mark.usefixtures("quiet"),
]


@pytest.fixture
def quiet() -> Iterator[None]:
    """The library says nothing: what goes wrong does so on purpose."""
    logger = logging.getLogger("greenconn")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


def outcome_of(broker: str, plan: Plan) -> Outcome:
    """What comes of a run; skips the test where the broker is not to be had."""
    try:
        with world_of(broker) as world:
            return Storm(plan, world, Greenconn, print).run()
    except NoBroker as error:
        if are_required():
            raise
        pytest.skip(str(error))


@pytest.mark.long
@pytest.mark.parametrize("broker", WORLDS)
def test_the_ledger_balances_after_a_storm(broker: str, long: bool, patched: bool) -> None:
    kinds = frozenset(Kind) if long or broker != "amqp" else frozenset(Kind) - SLOW
    plan = Plan(
        seed=1 + patched, seconds=LONG if long else SHORT, greenlets=40, rate=200, kinds=kinds
    )
    outcome = outcome_of(broker, plan)
    assert outcome.is_good, json.dumps(outcome.as_dict(), indent=1)
    assert outcome.faults


@pytest.mark.long
@pytest.mark.parametrize("broker", ["memory", "redis"])
def test_order_is_kept_where_nothing_goes_wrong(broker: str, long: bool) -> None:
    plan = Plan(seed=1, seconds=20.0 if long else 1.0, greenlets=10, rate=500, kinds=frozenset())
    outcome = outcome_of(broker, plan)
    assert outcome.is_good, json.dumps(outcome.as_dict(), indent=1)
    assert outcome.redelivered == outcome.repeated == outcome.doubtful == 0
    assert outcome.handled == outcome.sent


@pytest.mark.long
def test_order_is_kept_on_a_rabbitmq_of_its_own() -> None:
    plan = Plan(seed=1, seconds=20.0, greenlets=10, rate=500, kinds=frozenset())
    outcome = outcome_of("amqp", plan)
    assert outcome.is_good, json.dumps(outcome.as_dict(), indent=1)
    assert outcome.handled == outcome.sent


@pytest.mark.long
@pytest.mark.parametrize(("broker", "greenlets"), [("memory", 1), ("redis", 1000)])
def test_crowds_of_all_sizes(broker: str, greenlets: int, long: bool) -> None:
    plan = Plan(
        seed=3,
        seconds=60.0 if long else 1.5,
        greenlets=greenlets,
        rate=200,
        kinds=frozenset({Kind.CUT, Kind.RESET, Kind.DELETE, Kind.INTERRUPT}),
    )
    outcome = outcome_of(broker, plan)
    assert outcome.is_good, json.dumps(outcome.as_dict(), indent=1)


def test_the_command_prints_the_seed_and_a_table(patched: bool) -> None:
    how = ("-m", "gevent.monkey", "--module") if patched else ("-m",)
    short = ("--seconds", "2", "--greenlets", "5", "--seed", "42")
    done = run(*how, "tests.torture", "--broker", "memory", *short)
    assert done.code == 0, done.errors
    assert "--seed 42" in done.errors
    for text in ("messages sent", "lost", "descriptors leaked", "longest recovery"):
        assert text in done.output
