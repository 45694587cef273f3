"""Short storms of faults; ``python -m tests.quality.faults`` runs for as long as one likes."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from tests.brokers.environment import are_required
from tests.brokers.packages import NoBroker
from tests.brokers.rabbitmq import RabbitMQ
from tests.integration.processes import run
from tests.quality.faults.client import Greenconn
from tests.quality.faults.kinds import OF_PROCESSES, PROXIED, Kind
from tests.quality.faults.storm import Outcome, Plan, Storm
from tests.quality.faults.targets.amqp import AmqpTarget
from tests.quality.faults.targets.registry import CLUSTERS, STEADY, TARGETS

#: Seconds of a storm: with ``--long``, and without.
LONG, SHORT = 120.0, 2.0
#: What a RabbitMQ, or a new process of ours, takes longer for than a short storm is.
SLOW = frozenset(
    {
        Kind.HALF_OPEN,
        Kind.KILL,
        Kind.RESTART,
        Kind.MEMORY_ALARM,
        Kind.DISK_ALARM,
        Kind.REVOKE,
        *OF_PROCESSES,
    }
)

pytestmark = [
    pytest.mark.timeout(600),
    # The most that a workload on a broken line produces, which would bury what is looked for.
    pytest.mark.usefixtures("quiet"),
]


def outcome_of(broker: str, plan: Plan) -> Outcome:
    """What comes of a run; skips the test where the broker is not to be had."""
    try:
        with TARGETS[broker]() as target:
            return Storm(plan, target, Greenconn, print).run()
    except NoBroker as error:
        if are_required():
            raise
        pytest.skip(str(error))


def check(outcome: Outcome) -> None:
    """The ledger balances."""
    assert outcome.is_good, json.dumps(outcome.as_dict(), indent=1)


def short_plan(seed: int, kinds: frozenset[Kind], **changes: int) -> Plan:
    """A storm of seconds."""
    parts = {"greenlets": 40, "rate": 200, **changes}
    return Plan(seed=seed, seconds=SHORT, kinds=kinds, longest=0.3, **parts)


@pytest.mark.parametrize("broker", ["redis", "memory"])
def test_the_ledger_balances_after_a_storm(broker: str, patched: bool) -> None:
    kinds = frozenset(Kind) - OF_PROCESSES
    outcome = outcome_of(broker, short_plan(1 + patched, kinds))
    check(outcome)
    assert outcome.faults


@pytest.mark.full
@pytest.mark.parametrize("broker", ["rabbitmq-tls", "redis-tls"])
def test_the_ledger_balances_after_a_storm_on_a_line_that_is_encrypted(
    broker: str, patched: bool
) -> None:
    outcome = outcome_of(broker, short_plan(1 + patched, PROXIED - SLOW))
    check(outcome)
    assert outcome.faults


@pytest.mark.full
def test_the_ledger_balances_after_a_storm_on_rabbitmq(
    own_rabbitmq: RabbitMQ, patched: bool
) -> None:
    with closing(AmqpTarget("rabbitmq", own_rabbitmq, ("classic", "quorum"))) as target:
        plan = short_plan(1 + patched, frozenset(Kind) - SLOW)
        check(Storm(plan, target, Greenconn, print).run())


@pytest.mark.full
@pytest.mark.parametrize("broker", CLUSTERS)
def test_a_node_of_a_cluster_restarts_and_freezes(broker: str, patched: bool) -> None:
    kinds = frozenset({Kind.RESTART, Kind.PAUSE, Kind.INTERRUPT})
    # The third fault ends it; a busy machine takes long until a node is there again.
    plan = Plan(
        seed=1 + patched, seconds=300.0, count=3, greenlets=40, rate=100, kinds=kinds, longest=1.0
    )
    outcome = outcome_of(broker, plan)
    check(outcome)
    assert {Kind.RESTART, Kind.PAUSE} <= outcome.faults.keys()


@pytest.mark.full
def test_the_links_of_quorum_queues_flap(own_rabbitmq: RabbitMQ, patched: bool) -> None:
    with closing(AmqpTarget("rabbitmq", own_rabbitmq, ("quorum",))) as target:
        outcome = Storm(
            short_plan(3 + patched, frozenset({Kind.FLAP}), processes=0), target, Greenconn, print
        ).run()
    check(outcome)
    assert Kind.FLAP in outcome.faults


@pytest.mark.full
@pytest.mark.parametrize("kinds", [{Kind.KILL_CLIENT}, {Kind.PAUSE, Kind.DELETE, Kind.INTERRUPT}])
def test_processes_that_share_a_file_are_killed(kinds: set[Kind], patched: bool) -> None:
    outcome = outcome_of("sqlite", short_plan(6 + patched, frozenset(kinds), processes=1))
    check(outcome)
    assert outcome.faults


@pytest.mark.long
@pytest.mark.parametrize("broker", ["sqlite", "redis", "mongodb"])
def test_processes_are_suspended_beyond_their_lease(broker: str) -> None:
    kinds = frozenset({Kind.SUSPEND_CLIENT, Kind.INTERRUPT})
    plan = Plan(seed=1, seconds=30.0, greenlets=20, rate=100, kinds=kinds)
    outcome = outcome_of(broker, plan)
    check(outcome)
    assert Kind.SUSPEND_CLIENT in outcome.faults


@pytest.mark.long
def test_beanstalkd_drains() -> None:
    kinds = frozenset({Kind.DRAIN_MODE})
    plan = Plan(seed=1, seconds=30.0, greenlets=20, rate=100, kinds=kinds)
    outcome = outcome_of("beanstalk", plan)
    check(outcome)
    assert Kind.DRAIN_MODE in outcome.faults


@pytest.mark.long
@pytest.mark.parametrize("broker", [*STEADY, *CLUSTERS])
def test_the_ledger_balances_after_minutes_of_storm(broker: str, patched: bool) -> None:
    kinds = frozenset(Kind)
    outcome = outcome_of(
        broker, Plan(seed=1 + patched, seconds=LONG, greenlets=100, rate=300, kinds=kinds)
    )
    check(outcome)
    assert outcome.faults


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(PROXIED, key=str))
def test_each_fault_of_the_line_by_itself(
    own_rabbitmq: RabbitMQ, kind: Kind, patched: bool
) -> None:
    with closing(AmqpTarget("rabbitmq", own_rabbitmq, ("classic", "quorum"))) as target:
        plan = Plan(seed=1, seconds=15.0, greenlets=20, rate=200, kinds=frozenset({kind}))
        outcome = Storm(plan, target, Greenconn, print).run()
    check(outcome)
    assert list(outcome.faults) == [kind.value]


@pytest.mark.long
@pytest.mark.parametrize("broker", ["memory", "redis"])
def test_order_is_kept_where_nothing_goes_wrong(broker: str, long: bool) -> None:
    plan = Plan(seed=1, seconds=20.0 if long else 0.5, greenlets=10, rate=500, kinds=frozenset())
    check_calm(outcome_of(broker, plan))


@pytest.mark.long
@pytest.mark.parametrize("broker", sorted(set(STEADY) - {"memory", "redis"}))
def test_order_is_kept_everywhere(broker: str) -> None:
    plan = Plan(seed=1, seconds=20.0, greenlets=10, rate=300, kinds=frozenset())
    check_calm(outcome_of(broker, plan))


def check_calm(outcome: Outcome) -> None:
    """Nothing was handled twice, nothing raised, all was handled, acks or not."""
    check(outcome)
    assert outcome.again == outcome.unconfirmed == outcome.dropped == 0
    assert outcome.handled == outcome.sent


@pytest.mark.full
@pytest.mark.parametrize(("broker", "greenlets"), [("memory", 1), ("redis", 1000)])
def test_workloads_of_all_sizes(broker: str, greenlets: int) -> None:
    kinds = frozenset({Kind.CUT, Kind.RESET, Kind.DELETE, Kind.INTERRUPT})
    check(outcome_of(broker, short_plan(3, kinds, greenlets=greenlets)))


@pytest.mark.long
@pytest.mark.parametrize("broker", STEADY)
@pytest.mark.parametrize("greenlets", [1, 1000])
def test_workloads_of_all_sizes_for_minutes(broker: str, greenlets: int) -> None:
    kinds = frozenset(Kind)
    check(
        outcome_of(broker, Plan(seed=3, seconds=60.0, greenlets=greenlets, rate=200, kinds=kinds))
    )


@pytest.mark.full
def test_the_command_prints_the_seed_and_a_table(patched: bool) -> None:
    how = ("-m", "gevent.monkey", "--module") if patched else ("-m",)
    short = ("--seconds", "0.5", "--greenlets", "5", "--seed", "42")
    done = run(*how, "tests.quality.faults", "--broker", "memory", "--verbose", *short)
    assert done.code == 0, done.errors
    assert "--seed 42" in done.errors
    for text in ("messages sent", "lost", "leaked", "longest recovery", "publishes that raised"):
        assert text in done.output
