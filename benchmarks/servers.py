"""The brokers that are measured: what starts one, by its name on the command line."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.boards import (
    COUCHDB,
    MEMORY,
    MONGODB,
    POSTGRESQL,
    RABBITMQ,
    RABBITMQ_LOAD,
    RABBITMQ_TLS,
    REDIS,
    REDIS_CLUSTER,
    SQLITE,
    SQS,
)
from tests.brokers import couchdb_server, mongodb_server
from tests.brokers.beanstalk import Beanstalkd
from tests.brokers.descriptors import raise_limit
from tests.brokers.environment import (
    AMQP_URL,
    BEANSTALK_URL,
    COUCHDB_URL,
    MONGODB_URL,
    POSTGRESQL_URL,
    REDIS_URL,
    SQS_URL,
)
from tests.brokers.keeper import Keeper
from tests.brokers.moto import MotoServer
from tests.brokers.postgresql import PostgresServer
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_cluster import RedisCluster
from tests.brokers.redis_server import RedisServer
from tests.brokers.tls import AUTHORITY, TlsRabbitMQ

#: One that has no table of rivals.
BEANSTALK: Final = "beanstalk"


class _Folder:
    """Stands for a server where a file is all there is."""

    def __init__(self, keeper: Keeper) -> None:
        self._folder = TemporaryDirectory(prefix="greenconn-benchmark-")
        self.url = f"sqlite:///{self._folder.name}/benchmark.db"

    def start(self) -> None:
        """Nothing is to be started."""


class _TlsRabbitMQ(TlsRabbitMQ):
    """A RabbitMQ over TLS; its clients trust the system's authorities and its own."""

    def __init__(self, keeper: Keeper) -> None:
        super().__init__(keeper)
        system = ssl.get_default_verify_paths().cafile
        files = [AUTHORITY, *([Path(system)] if system else [])]
        trusted = self.directory / "authorities.pem"
        trusted.write_text("\n".join(file.read_text() for file in files))
        # For the clients, which are processes of their own.
        os.environ["SSL_CERT_FILE"] = str(trusted)

    @property
    def url(self) -> str:
        """The address of the virtual host ``/``, over TLS."""
        return f"amqps://guest:guest@127.0.0.1:{self.tls_port}/%2F"


#: The server counts its statements.
_COUNTING: Final = ("shared_preload_libraries = 'pg_stat_statements'",)

#: Name -> what is started, and the variable that names the user's own.
SERVERS: Final[Mapping[str, tuple[Callable[[Keeper], Any], str]]] = {
    RABBITMQ.name: (RabbitMQ, AMQP_URL),
    RABBITMQ_LOAD.name: (RabbitMQ, AMQP_URL),
    RABBITMQ_TLS.name: (_TlsRabbitMQ, "GREENCONN_TEST_AMQPS_URL"),
    REDIS.name: (RedisServer, REDIS_URL),
    REDIS_CLUSTER.name: (partial(RedisCluster, replicas=0), "GREENCONN_TEST_REDIS_CLUSTER_URL"),
    MONGODB.name: (mongodb_server.KIND, MONGODB_URL),
    SQLITE.name: (_Folder, "GREENCONN_TEST_SQLITE_URL"),
    COUCHDB.name: (couchdb_server.KIND, COUCHDB_URL),
    SQS.name: (MotoServer, SQS_URL),
    POSTGRESQL.name: (partial(PostgresServer, settings=_COUNTING), POSTGRESQL_URL),
    BEANSTALK: (Beanstalkd, BEANSTALK_URL),
}

#: All that :func:`broker` knows.
BROKERS: Final = tuple(sorted((*SERVERS, MEMORY.name)))


@contextmanager
def broker(name: str, url: str | None = None) -> Iterator[str]:
    """The broker at *url*, or that of the environment, or a private one."""
    if name == MEMORY.name:
        yield "memory://benchmark"
        return
    server, variable = SERVERS[name]
    url = url or os.environ.get(variable)
    if url:
        yield url
        return
    raise_limit()
    with Keeper() as keeper:
        private = server(keeper)
        private.start()
        yield private.url
