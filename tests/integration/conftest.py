"""The fixtures of the tests that need a broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from greenconn import Connection
from greenconn.transport import memory
from greenconn.transport.amqp.link import AmqpLink
from tests.brokers.redis_cluster import RedisCluster
from tests.brokers.redis_server import RedisServer
from tests.fix_amqp import AmqpPeer, BrokerEnd
from tests.fix_brokers import Brokers, RedisFactory
from tests.integration.capabilities import EVERYWHERE, EXAMPLES, HOOKED, KINDS, Kind
from tests.integration.contract import Side
from tests.integration.processes import ROOT
from tests.integration.redis_clients import Control, control

#: The tests behind the table of what all can.
_SHOWN = {name for names in EVERYWHERE.values() for name in names}
_SLOW = {name for name, kind in KINDS.items() if kind.is_slow}
#: Run each test; those of the others, which share their code, are chosen by the seed.
_ALWAYS = {"amqp", "memory", "redis", "sqlite"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what is no test of the table in part: over slow stand-ins only in full, elsewhere half."""
    for item in items:
        if not isinstance(item, pytest.Function) or item.originalname in _SHOWN:
            continue
        names = getattr(item, "callspec", None) and item.callspec.params
        name = names and (names.get("side") or names.get("broker_kind"))
        if name and name not in _ALWAYS:
            item.add_marker(pytest.mark.full if name in _SLOW else pytest.mark.halved)


@pytest.fixture(params=list(KINDS))
def broker_kind(request: pytest.FixtureRequest) -> Kind:
    """Each transport in turn, as far as it can what the test needs."""
    return able(KINDS[request.param], request)


def able(kind: Kind, request: pytest.FixtureRequest) -> Kind:
    """Return *kind* if it can what the test needs; else the test is skipped."""
    for capability, tests in kind.otherwise.items():
        if request.node.originalname in tests:
            pytest.skip(f"{kind.title} lacks {capability}, by kombu's design")
    for marker in request.node.iter_markers("needs"):
        for capability in marker.args:
            if capability in kind.lacks:
                pytest.skip(f"{kind.title} lacks {capability.value!r}: {kind.lacks[capability]}")
    return kind


@pytest.fixture
def kind_url(request: pytest.FixtureRequest, broker_kind: Kind, unique: str) -> Iterator[str]:
    """The address of a broker of that kind."""
    if broker_kind.url is not None:
        yield request.getfixturevalue(broker_kind.url)
        return
    yield f"memory:///{unique}"
    memory.reset(unique)


@pytest.fixture(params=[*KINDS, *EXAMPLES, *HOOKED])
def side(request: pytest.FixtureRequest, unique: str) -> Iterator[Side]:
    """Each channel in turn, below the connection: the transports, and those over kombu's hooks."""
    kind = able({**KINDS, **EXAMPLES, **HOOKED}[request.param], request)
    made = kind.side(request.getfixturevalue(kind.url) if kind.url else "", unique)
    try:
        yield made
    finally:
        made.close()
        if request.param == "memory":
            memory.reset(unique)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The address of a file of the test's own."""
    return f"sqlite:///{tmp_path}/broker.db"


@pytest.fixture(params=["amqp", "redis", "sqlite"])
def connection(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A connection to a server of AMQP, to one of the stores, and to a file, in turn."""
    with Connection(request.getfixturevalue(f"{request.param}_url")) as connection:
        yield connection


@pytest.fixture
def folder_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a folder of the test's own."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "own_store"))
    return f"files://{tmp_path}/broker"


@pytest.fixture
def durable_redis(redis_with: RedisFactory) -> RedisServer:
    """A Redis of the test's own that has everything again when it is back."""
    return redis_with("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def durable_redis_cluster(brokers: Brokers) -> Iterator[RedisCluster]:
    """A Redis Cluster of the test's own that has everything again when it is back."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    cluster = brokers.start(RedisCluster, replicas=0, options=options)
    yield cluster
    cluster.close()


@pytest.fixture
def at_server(own_redis: RedisServer) -> Iterator[Control]:
    """A control of a Redis that is empty, before and after."""
    with control(own_redis.url) as at_server:
        at_server("FLUSHALL")
        yield at_server
        at_server("FLUSHALL")


@pytest.fixture
def link(scripted_link: AmqpLink) -> AmqpLink:
    """A link to a scripted AMQP server."""
    return scripted_link


@pytest.fixture
def end(amqp_peer: AmqpPeer, link: AmqpLink) -> BrokerEnd:
    """The server's end of ``link``."""
    return amqp_peer.end
