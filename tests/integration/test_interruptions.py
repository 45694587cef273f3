"""Each public call, interrupted at each of its switches.

``python -m tests.quality.faults.interruptions`` does more.

Short, each switch is tried once; long, in each way and at each turn of the hub while the call waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from tests.quality.faults.interruptions.calls import CALLS
from tests.quality.faults.interruptions.sweep import Sweep
from tests.quality.faults.interruptions.targets import (
    Target,
    memory_target,
    running_target,
    scripted_target,
)

#: What once was not whole when it was interrupted: these are tried at each moment every time.
MENDED = (
    "Connection.ChannelPool.force_close_all",
    "Connection.Pool(preload=...)",
    "Connection.close, with a publisher",
    "defaults.reset",
    "health.check(timeout)",
    "pools.reset",
    "with Consumer",
)

GROUPS = list(dict.fromkeys(call.group for call in CALLS))

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("quiet")]


@pytest.fixture(
    params=[
        "amqp",
        *(
            pytest.param(name, marks=pytest.mark.full)
            for name in ("memory", "sqlite", "redis", "rabbitmq")
        ),
    ]
)
def target(request: pytest.FixtureRequest, long: bool, tmp_path: Path) -> Iterator[Target]:
    """The scripted AMQP peer, the memory broker, SQLite, Redis; and with ``--long`` RabbitMQ, too."""
    if request.param == "amqp":
        making = scripted_target()
    elif request.param == "memory":
        making = memory_target()
    elif request.param == "sqlite":
        making = running_target("sqlite", f"sqlite:///{tmp_path}/broker.db", long)
    elif request.param == "redis":
        making = running_target("redis", request.getfixturevalue("redis_url"), long)
    elif long:
        making = running_target("rabbitmq", request.getfixturevalue("amqp_url"))
    else:
        pytest.skip("runs only with --long")
    with making as made:
        yield made


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.sampled(2)
def test_interrupted_at_each_switch(group: str, target: Target, long: bool) -> None:
    """What must be whole is, and the next hundred operations are right."""
    points = 0
    calls = [call for call in CALLS if call.group == group and call.fits(target)]
    if not calls:
        pytest.skip("its links cannot be cut")
    for call in calls:
        with gevent.Timeout(120, AssertionError(f"{call} over {target} does not end")):
            points += Sweep(call, target, long).run().points
    assert points or target.name == "memory"  # many of its calls never switch


@pytest.mark.full
@pytest.mark.parametrize("name", MENDED)
def test_interrupted_at_each_moment(name: str) -> None:
    """Who is interrupted while something ends hears of it, and it ends all the same."""
    (call,) = (call for call in CALLS if call.name == name)
    with scripted_target() as scripted:
        assert Sweep(call, scripted, True).run().points
