"""Brokers: the shared ones that the runner started, and private ones that a test may kill.

Without the runner (plain ``pytest``) the process starts private brokers when a test asks for one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import pytest

from tests.brokers.beanstalk import Beanstalkd
from tests.brokers.cluster import RabbitMQCluster
from tests.brokers.couchdb_server import CouchDB
from tests.brokers.descriptors import raise_limit
from tests.brokers.environment import AMQP_CTL, AMQP_URL, NEWER_AMQP_URL, REDIS_URL, are_required
from tests.brokers.keeper import Keeper
from tests.brokers.mongodb_server import MongoDB, MongoStandin
from tests.brokers.moto import MotoServer
from tests.brokers.packages import NoBroker
from tests.brokers.pouchdb import PouchDB
from tests.brokers.rabbitmq import RabbitMQ, RabbitMQHandle
from tests.brokers.redis_cluster import RedisCluster
from tests.brokers.redis_server import RedisServer, SteppedRedis
from tests.brokers.server import Server


class Startable(Protocol):
    """A broker, or several that work together."""

    def start(self) -> None: ...
    def close(self) -> None: ...


Broker = TypeVar("Broker", bound=Startable)
Process = TypeVar("Process", bound=Server)

#: What there is not when a test is skipped.
TITLES: dict[Any, str] = {
    Beanstalkd: "beanstalkd",
    CouchDB: "CouchDB",
    MongoDB: "MongoDB",
    MongoStandin: "stand-in for MongoDB",
    MotoServer: "moto",
    PouchDB: "pouchdb-server",
    RabbitMQ: "RabbitMQ",
    RabbitMQCluster: "RabbitMQ cluster",
    RedisCluster: "Redis Cluster",
    RedisServer: "Redis",
    SteppedRedis: "Redis whose clock can be set",
}


class Brokers:
    """The brokers of this process, each started when it is first asked for."""

    def __init__(self) -> None:
        self._keeper: Keeper | None = None
        self._reasons: dict[Any, str] = {}

    @property
    def keeper(self) -> Keeper:
        """What ends the brokers, made when first needed."""
        if self._keeper is None:
            raise_limit()
            self._keeper = Keeper()
        return self._keeper

    def start(self, kind: Callable[..., Broker], **options: Any) -> Broker:
        """Start a broker; skip the test, with the reason, when there is none."""
        self._skip_again(kind)
        try:
            return self._started(kind, **options)
        except NoBroker as error:
            self._skip(kind, f"no {TITLES[kind]}: {error}")

    def wait_ready(self, handle: RabbitMQHandle) -> None:
        """Wait for the runner's RabbitMQ; skip the test, with the reason, when it failed."""
        self._skip_again(RabbitMQHandle)
        try:
            handle.wait_ready()
        except NoBroker as error:
            self._skip(RabbitMQHandle, f"no RabbitMQ: {error}")

    def _skip_again(self, kind: Any) -> None:
        """Do not try again, for each test, what failed once."""
        if kind in self._reasons:
            self._skip(kind, self._reasons[kind])

    def _skip(self, kind: Any, reason: str) -> NoReturn:
        self._reasons[kind] = reason
        if are_required():
            pytest.fail(reason)
        pytest.skip(reason)

    def _started(self, kind: Callable[..., Broker], **options: Any) -> Broker:
        """Start a broker, a second time if another program was quicker at one of its ports."""
        broker = kind(self.keeper, **options)
        try:
            broker.start()
        except NoBroker:
            broker.close()
            broker = kind(self.keeper, **options)
            broker.start()
        return broker

    @contextmanager
    def needed(self, kind: type, name: str) -> Iterator[None]:
        """Start a broker of another kind within; skip the test, with the reason, when there is none."""
        self._skip_again(kind)
        try:
            yield
        except NoBroker as error:
            self._skip(kind, f"no {name}: {error}")

    def close(self) -> None:
        """End them."""
        if self._keeper is not None:
            self._keeper.close()


class Servers(Generic[Process]):
    """Starts servers of one kind with options of their own, and ends them."""

    def __init__(self, brokers: Brokers, kind: Callable[..., Process]) -> None:
        self._brokers = brokers
        self._kind = kind
        self._servers: list[Process] = []

    def __call__(self, *options: str, **named: Any) -> Process:
        if options:
            named["options"] = options
        self._servers.append(self._brokers.start(self._kind, **named))
        return self._servers[-1]

    def __enter__(self) -> Servers[Process]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End them, whatever they do."""
        for server in self._servers:
            server.kill()
            server.close()


def mended(server: Process) -> Iterator[Process]:
    """Give a test a server that runs, and mend it after the test."""
    if not server.is_running:
        server.start()
    yield server
    server.resume()


RedisFactory = Servers[RedisServer]


@pytest.fixture(scope="session")
def brokers() -> Iterator[Brokers]:
    """The private brokers of this process."""
    brokers = Brokers()
    yield brokers
    brokers.close()


@pytest.fixture(scope="session")
def rabbitmq(brokers: Brokers) -> RabbitMQHandle:
    """The shared RabbitMQ with its ``ctl``; never stop it or raise an alarm in it."""
    handle_file = os.environ.get(AMQP_CTL)
    if handle_file:
        handle = RabbitMQHandle.of(handle_file)
        brokers.wait_ready(handle)
        return handle
    if os.environ.get(AMQP_URL):
        pytest.skip(f"{AMQP_URL} was given without {AMQP_CTL}: rabbitmqctl cannot be used")
    return brokers.start(RabbitMQ)


@pytest.fixture(scope="session")
def newer_amqp_url() -> str:
    """The address of a RabbitMQ 4.3 or later; skips the test where none was given."""
    url = os.environ.get(NEWER_AMQP_URL)
    if not url:
        pytest.skip(f"needs a RabbitMQ 4.3 or later: give its address in {NEWER_AMQP_URL}")
    return url


@pytest.fixture(scope="session")
def amqp_url(request: pytest.FixtureRequest, brokers: Brokers) -> str:
    """The address of a RabbitMQ and a virtual host that is this process's own."""
    url = os.environ.get(AMQP_URL)
    if url and not os.environ.get(AMQP_CTL):
        return url
    handle: RabbitMQHandle = request.getfixturevalue("rabbitmq")
    return url or handle.url


@pytest.fixture(scope="session")
def redis_url(brokers: Brokers) -> str:
    """The address of a Redis and a database that is this process's own."""
    return os.environ.get(REDIS_URL) or brokers.start(RedisServer).url


@pytest.fixture(scope="session")
def redis_cluster(brokers: Brokers) -> RedisCluster:
    """A Redis Cluster of this process, without replicas; never end a node."""
    return brokers.start(RedisCluster, replicas=0)


@pytest.fixture(scope="session")
def redis_cluster_url(redis_cluster: RedisCluster) -> str:
    """The address of that cluster."""
    return redis_cluster.url


@pytest.fixture(scope="module")
def own_redis_cluster_processes(brokers: Brokers) -> Iterator[RedisCluster]:
    """The processes behind :func:`own_redis_cluster`."""
    cluster = brokers.start(RedisCluster)
    yield cluster
    cluster.close()


@pytest.fixture
def own_redis_cluster(own_redis_cluster_processes: RedisCluster) -> Iterator[RedisCluster]:
    """A Redis Cluster whose nodes the test may kill, freeze or reshard; mended after the test."""
    yield own_redis_cluster_processes
    own_redis_cluster_processes.mend()


@pytest.fixture(scope="session")
def own_rabbitmq_process(brokers: Brokers) -> Iterator[RabbitMQ]:
    """The process behind :func:`own_rabbitmq`."""
    broker = brokers.start(RabbitMQ)
    yield broker
    broker.close()


@pytest.fixture
def own_rabbitmq(own_rabbitmq_process: RabbitMQ) -> Iterator[RabbitMQ]:
    """A RabbitMQ that the test may stop, kill, freeze or alarm; mended after the test."""
    broker = own_rabbitmq_process
    if not broker.is_running:
        broker.start()
    yield broker
    broker.mend()


@pytest.fixture(scope="module")
def rabbitmq_cluster_processes(brokers: Brokers) -> Iterator[RabbitMQCluster]:
    """The processes behind :func:`rabbitmq_cluster`, which need the memory of three."""
    cluster = brokers.start(RabbitMQCluster)
    yield cluster
    cluster.close()


@pytest.fixture
def rabbitmq_cluster(rabbitmq_cluster_processes: RabbitMQCluster) -> Iterator[RabbitMQCluster]:
    """A RabbitMQ cluster whose nodes the test may stop, kill or freeze; mended after the test."""
    yield rabbitmq_cluster_processes
    rabbitmq_cluster_processes.mend()


@pytest.fixture(scope="session")
def managed_rabbitmq(brokers: Brokers) -> Iterator[RabbitMQ]:
    """A RabbitMQ with the management plugin and quick statistics; never stop it."""
    policies = {
        f"management.sample_retention_policies.{kind}.minute": 1
        for kind in ("global", "basic", "detailed")
    }
    broker = brokers.start(
        RabbitMQ, is_managed=True, settings={"collect_statistics_interval": 250, **policies}
    )
    yield broker
    broker.kill()  # its HTTP server takes seconds to stop in order
    broker.close()


@pytest.fixture(scope="session")
def own_redis_process(brokers: Brokers) -> Iterator[RedisServer]:
    """The process behind :func:`own_redis`."""
    broker = brokers.start(RedisServer)
    yield broker
    broker.close()


@pytest.fixture
def own_redis(own_redis_process: RedisServer) -> Iterator[RedisServer]:
    """A Redis that the test may stop, kill or freeze; mended after the test."""
    yield from mended(own_redis_process)


@pytest.fixture
def redis_with(brokers: Brokers) -> Iterator[RedisFactory]:
    """Start a Redis of the test's own with ``redis_with(option...)``; ended after the test."""
    with Servers(brokers, RedisServer) as servers:
        yield servers


@pytest.fixture
def stepped_redis(brokers: Brokers) -> Iterator[SteppedRedis]:
    """A Redis of the test's own whose clock can be set."""
    broker = brokers.start(SteppedRedis)
    yield broker
    broker.kill()
    broker.close()
