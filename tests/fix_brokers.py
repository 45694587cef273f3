"""Brokers: the shared ones that the runner started, and private ones that a test may kill.

Without the runner (plain ``pytest``) the process starts private brokers when a test asks for one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import pytest

from tests.brokers.cluster import RabbitMQCluster
from tests.brokers.descriptors import raise_limit
from tests.brokers.environment import AMQP_CTL, AMQP_URL, NEWER_AMQP_URL, REDIS_URL, are_required
from tests.brokers.keeper import Keeper
from tests.brokers.moto import MotoServer
from tests.brokers.packages import NoBroker
from tests.brokers.pouchdb import PouchDB
from tests.brokers.rabbitmq import RabbitMQ, RabbitMQHandle
from tests.brokers.redis_cluster import RedisCluster
from tests.brokers.redis_server import RedisServer, SteppedRedis

Broker = TypeVar(
    "Broker",
    PouchDB,
    RabbitMQ,
    RabbitMQCluster,
    RedisCluster,
    RedisServer,
    SteppedRedis,
    MotoServer,
)


class Brokers:
    """The brokers of this process, each started when it is first asked for."""

    def __init__(self) -> None:
        self._keeper: Keeper | None = None
        self._reasons: dict[type, str] = {}

    @property
    def keeper(self) -> Keeper:
        """What ends the brokers, made when first needed."""
        if self._keeper is None:
            raise_limit()
            self._keeper = Keeper()
        return self._keeper

    def rabbitmq(self, **options: Any) -> RabbitMQ:
        """Start a RabbitMQ; skip the test, with the reason, when there is none."""
        self._skip_again(RabbitMQ)
        try:
            return self._started(RabbitMQ, **options)
        except NoBroker as error:
            self._skip(RabbitMQ, f"no RabbitMQ: {error}")

    def rabbitmq_cluster(self) -> RabbitMQCluster:
        """Start a RabbitMQ cluster; skip the test, with the reason, when there is none."""
        self._skip_again(RabbitMQCluster)
        try:
            return self._started(RabbitMQCluster)
        except NoBroker as error:
            self._skip(RabbitMQCluster, f"no RabbitMQ cluster: {error}")

    def redis(self, options: tuple[str, ...] = ()) -> RedisServer:
        """Start a Redis; skip the test, with the reason, when there is none."""
        self._skip_again(RedisServer)
        try:
            return self._started(RedisServer, options=options)
        except NoBroker as error:
            self._skip(RedisServer, f"no Redis: {error}")

    def redis_cluster(self, **options: Any) -> RedisCluster:
        """Start a Redis Cluster; skip the test, with the reason, when there is none."""
        self._skip_again(RedisCluster)
        try:
            return self._started(RedisCluster, **options)
        except NoBroker as error:
            self._skip(RedisCluster, f"no Redis Cluster: {error}")

    def stepped_redis(self) -> SteppedRedis:
        """Start a Redis whose clock can be set; skip the test, with the reason, when there is none."""
        self._skip_again(SteppedRedis)
        try:
            return self._started(SteppedRedis)
        except NoBroker as error:
            self._skip(SteppedRedis, f"no Redis whose clock can be set: {error}")

    def pouchdb(self, **options: Any) -> PouchDB:
        """Start a pouchdb-server; skip the test, with the reason, when there is none."""
        self._skip_again(PouchDB)
        try:
            return self._started(PouchDB, **options)
        except NoBroker as error:
            self._skip(PouchDB, f"no pouchdb-server: {error}")

    def moto(self) -> MotoServer:
        """Start a moto server; skip the test, with the reason, when there is none."""
        self._skip_again(MotoServer)
        try:
            return self._started(MotoServer)
        except NoBroker as error:
            self._skip(MotoServer, f"no moto: {error}")

    def _started(self, kind: type[Broker], **options: Any) -> Broker:
        """Start a broker, a second time if another program was quicker at one of its ports."""
        broker = kind(self.keeper, **options)
        try:
            broker.start()
        except NoBroker:
            broker.close()
            broker = kind(self.keeper, **options)
            broker.start()
        return broker

    def wait_ready(self, handle: RabbitMQHandle) -> None:
        """Wait for the runner's RabbitMQ; skip the test, with the reason, when it failed."""
        self._skip_again(RabbitMQHandle)
        try:
            handle.wait_ready()
        except NoBroker as error:
            self._skip(RabbitMQHandle, f"no RabbitMQ: {error}")

    @contextmanager
    def needed(self, kind: type, name: str) -> Iterator[None]:
        """Start a broker of another kind within; skip the test, with the reason, when there is none."""
        self._skip_again(kind)
        try:
            yield
        except NoBroker as error:
            self._skip(kind, f"no {name}: {error}")

    def _skip_again(self, kind: type) -> None:
        """Do not try again, for each test, what failed once."""
        if kind in self._reasons:
            self._skip(kind, self._reasons[kind])

    def _skip(self, kind: type, reason: str) -> NoReturn:
        self._reasons[kind] = reason
        if are_required():
            pytest.fail(reason)
        pytest.skip(reason)

    def close(self) -> None:
        """End them."""
        if self._keeper is not None:
            self._keeper.close()


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
    return brokers.rabbitmq()


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
    return os.environ.get(REDIS_URL) or brokers.redis().url


@pytest.fixture(scope="session")
def redis_cluster(brokers: Brokers) -> RedisCluster:
    """A Redis Cluster of this process, without replicas; never end a node."""
    return brokers.redis_cluster(replicas=0)


@pytest.fixture(scope="session")
def redis_cluster_url(redis_cluster: RedisCluster) -> str:
    """The address of that cluster."""
    return redis_cluster.url


@pytest.fixture(scope="module")
def own_redis_cluster_processes(brokers: Brokers) -> Iterator[RedisCluster]:
    """The processes behind :func:`own_redis_cluster`."""
    cluster = brokers.redis_cluster()
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
    broker = brokers.rabbitmq()
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
    cluster = brokers.rabbitmq_cluster()
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
    broker = brokers.rabbitmq(
        is_managed=True, settings={"collect_statistics_interval": 250, **policies}
    )
    yield broker
    broker.kill()  # its HTTP server takes seconds to stop in order
    broker.close()


@pytest.fixture(scope="session")
def own_redis_process(brokers: Brokers) -> Iterator[RedisServer]:
    """The process behind :func:`own_redis`."""
    broker = brokers.redis()
    yield broker
    broker.close()


@pytest.fixture
def own_redis(own_redis_process: RedisServer) -> Iterator[RedisServer]:
    """A Redis that the test may stop, kill or freeze; mended after the test."""
    broker = own_redis_process
    if not broker.is_running:
        broker.start()
    yield broker
    broker.resume()


class RedisFactory:
    """Starts Redis servers with options of their own: ``redis_with("--appendonly", "yes")``."""

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers
        self._servers: list[RedisServer] = []

    def __call__(self, *options: str) -> RedisServer:
        server = self._brokers.redis(options)
        self._servers.append(server)
        return server

    def close(self) -> None:
        """End them, whatever they do."""
        for server in self._servers:
            server.kill()
            server.close()


@pytest.fixture
def redis_with(brokers: Brokers) -> Iterator[RedisFactory]:
    """Start a Redis of the test's own with ``redis_with(option...)``; ended after the test."""
    factory = RedisFactory(brokers)
    yield factory
    factory.close()


@pytest.fixture
def stepped_redis(brokers: Brokers) -> Iterator[SteppedRedis]:
    """A Redis of the test's own whose clock can be set."""
    broker = brokers.stepped_redis()
    yield broker
    broker.kill()
    broker.close()
