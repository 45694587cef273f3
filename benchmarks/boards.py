"""The brokers on which something is measured, each with its works and rivals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from benchmarks import rivals, works
from benchmarks.redis import rivals as redis_rivals
from benchmarks.redis import works as redis_works
from benchmarks.stores import rivals as store_rivals
from benchmarks.stores import works as store_works


@dataclass(frozen=True, kw_only=True)
class Board:
    """One table."""

    name: str  #: on the command line
    #: The module that has its ``Stage``.
    stage: str
    works: Mapping[str, works.Work]
    rivals: Mapping[str, rivals.Rival]


def _some(*names: str) -> dict[str, rivals.Rival]:
    """Return those of RabbitMQ's rivals."""
    return {name: rivals.RIVALS[name] for name in names}


RABBITMQ: Final = Board(
    name="rabbitmq",
    stage="benchmarks.stage",
    works=works.WORKS,
    rivals=rivals.RIVALS,
)
RABBITMQ_TLS: Final = Board(
    name="rabbitmq-tls",
    stage="benchmarks.stage",
    works=works.TLS_WORKS,
    rivals=_some("greenconn", "kombu", "pika", "amqpstorm", "aio-pika", "raw"),
)
RABBITMQ_LOAD: Final = Board(
    name="rabbitmq-load",
    stage="benchmarks.stage",
    works=works.LOAD_WORKS,
    rivals=_some("greenconn", "kombu", "pika", "aio-pika", "rabbitmq-c", "amqp091-go"),
)
REDIS: Final = Board(
    name="redis",
    stage="benchmarks.redis.stage",
    works=redis_works.WORKS,
    rivals=redis_rivals.RIVALS,
)
REDIS_CLUSTER: Final = Board(
    name="redis-cluster",
    stage="benchmarks.redis.cluster_stage",
    works={name: redis_works.WORKS[name] for name in ("publish", "publish_many", "consume")},
    rivals={"greenconn": redis_rivals.RIVALS["greenconn"]},
)
MEMORY: Final = Board(
    name="memory",
    stage="benchmarks.stores.memory",
    works=store_works.MEMORY_WORKS,
    rivals=store_rivals.MEMORY,
)
MONGODB: Final = Board(
    name="mongodb",
    stage="benchmarks.stores.mongodb",
    works=store_works.WORKS,
    rivals=store_rivals.MONGODB,
)
SQLITE: Final = Board(
    name="sqlite",
    stage="benchmarks.stores.sqlite",
    works=store_works.TABLE_WORKS,
    rivals=store_rivals.SQLITE,
)
POSTGRESQL: Final = Board(
    name="postgresql",
    stage="benchmarks.stores.postgresql",
    works=store_works.POSTGRESQL_WORKS,
    rivals=store_rivals.POSTGRESQL,
)
COUCHDB: Final = Board(
    name="couchdb",
    stage="benchmarks.stores.couchdb",
    works=store_works.WORKS,
    rivals=store_rivals.COUCHDB,
)
SQS: Final = Board(
    name="sqs",
    stage="benchmarks.stores.sqs",
    works=store_works.WORKS,
    rivals=store_rivals.SQS,
)
BOARDS: Final = {
    board.name: board
    for board in (
        *(RABBITMQ, RABBITMQ_TLS, RABBITMQ_LOAD, REDIS, REDIS_CLUSTER),
        *(MEMORY, MONGODB, COUCHDB, SQLITE, SQS, POSTGRESQL),
    )
}
