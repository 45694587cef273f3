"""Runs the measurements, each in a process of its own, rivals in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.boards import (
    COUCHDB,
    MONGODB,
    POSTGRESQL,
    RABBITMQ,
    RABBITMQ_LOAD,
    REDIS,
    REDIS_CLUSTER,
    SQLITE,
    SQS,
    Board,
)
from benchmarks.clock import Figures
from tests.brokers import couchdb_server, mongodb_server
from tests.brokers.descriptors import raise_limit
from tests.brokers.environment import (
    AMQP_URL,
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

TIMEOUT = 300


class _Folder:
    """Stands for a server where a file is all there is."""

    def __init__(self, keeper: Keeper) -> None:
        self._folder = TemporaryDirectory(prefix="greenconn-benchmark-")
        self.url = f"sqlite:///{self._folder.name}/benchmark.db"

    def start(self) -> None:
        """Nothing is to be started."""


#: The server counts its statements.
_COUNTING: Final = ("shared_preload_libraries = 'pg_stat_statements'",)

#: Board -> what is started for it, and the variable that names the user's own.
_SERVERS: Final[Mapping[str, tuple[Callable[[Keeper], Any], str]]] = {
    RABBITMQ.name: (RabbitMQ, AMQP_URL),
    RABBITMQ_LOAD.name: (RabbitMQ, AMQP_URL),
    REDIS.name: (RedisServer, REDIS_URL),
    REDIS_CLUSTER.name: (partial(RedisCluster, replicas=0), "GREENCONN_TEST_REDIS_CLUSTER_URL"),
    MONGODB.name: (mongodb_server.KIND, MONGODB_URL),
    SQLITE.name: (_Folder, "GREENCONN_TEST_SQLITE_URL"),
    COUCHDB.name: (couchdb_server.KIND, COUCHDB_URL),
    SQS.name: (MotoServer, SQS_URL),
    POSTGRESQL.name: (partial(PostgresServer, settings=_COUNTING), POSTGRESQL_URL),
}


@dataclass
class Results:
    """Figures by work and rival, one a round, and what went wrong."""

    figures: dict[tuple[str, str], list[Figures]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def values(self, work: str, rival: str, key: str) -> list[float]:
        """One figure, of all rounds."""
        rounds = self.figures.get((work, rival), [])
        return [figures[key] for figures in rounds if key in figures]


@contextmanager
def broker(board: Board, url: str | None) -> Iterator[str]:
    """The broker at *url*, or that of the environment, or a private one."""
    server, variable = _SERVERS[board.name]
    url = url or os.environ.get(variable)
    if url:
        yield url
        return
    raise_limit()
    with Keeper() as keeper:
        private = server(keeper)
        private.start()
        yield private.url


def measured(
    results: Results,
    board: Board,
    pairs: list[tuple[str, str]],
    *,
    rounds: int,
    messages: int,
    url: str,
) -> Iterator[tuple[str, str]]:
    """Measure each pair of work and rival once a round; yields each before it is measured.

    A pair that failed is not tried again.
    """
    for _ in range(rounds):
        for work, rival in pairs:
            yield work, rival
            if (work, rival) in results.failures:
                continue
            done = run(board, rival, work, messages, url)
            if isinstance(done, str):
                results.failures[work, rival] = done
            else:
                results.figures.setdefault((work, rival), []).append(done)


def profiled(board: Board, work: str, rival: str, *, messages: int, url: str) -> int:
    """Print where the time goes; returns the exit code."""
    return subprocess.run(
        [*_command(board, rival, work, messages, url), "--profile"], check=False
    ).returncode


#: Measures with the package of another folder.
_ELSEWHERE: Final = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("benchmarks.measure", run_name="__main__", alter_sys=True)
"""


def _command(
    board: Board, rival: str, work: str, messages: int, url: str, source: Path | None = None
) -> list[str]:
    messages //= board.rivals[rival].sleeps.get(work, 1)
    count = str(board.works[work].count(messages))
    how = ["-m", "benchmarks.measure"] if source is None else ["-c", _ELSEWHERE, str(source)]
    return [sys.executable, *how, board.name, rival, work, count, url]


def run(
    board: Board, rival: str, work: str, messages: int, url: str, source: Path | None = None
) -> Figures | str:
    """Return the figures, or why there are none.

    Arguments:
        source: the folder that has the package ``greenconn`` to measure; None: this one.
    """
    try:
        done = subprocess.run(
            _command(board, rival, work, messages, url, source),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not done within {TIMEOUT} s"
    if done.returncode:
        return done.stderr.strip() or f"exit code {done.returncode}"
    figures: Figures = json.loads(done.stdout)
    return figures
