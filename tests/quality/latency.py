"""``python -m tests.quality.latency``: the contracts over connections that each have a latency.

On the loopback interface, what a client sends over one of its connections hardly ever overtakes what it
has sent over another one before.  On a network it does.  So each broker is behind a relay here, which
gives each connection a latency of its own, and changes it now and then.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

import gevent
from gevent import socket, subprocess
from gevent.queue import Queue
from gevent.server import StreamServer

from tests.brokers.beanstalk import Beanstalkd
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
from tests.brokers.mongodb_server import MongoStandin
from tests.brokers.moto import MotoServer
from tests.brokers.packages import NoBroker
from tests.brokers.postgresql import PostgresServer
from tests.brokers.pouchdb import PouchDB
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer

ROOT: Final = Path(__file__).resolve().parents[2]
#: The variable that names each broker to the tests, and what starts one.
BROKERS: Final[dict[str, Callable[[Keeper], Any]]] = {
    AMQP_URL: RabbitMQ,
    REDIS_URL: RedisServer,
    BEANSTALK_URL: lambda keeper: Beanstalkd(keeper, ("-z", str(2**20))),
    POSTGRESQL_URL: PostgresServer,
    MONGODB_URL: MongoStandin,
    SQS_URL: MotoServer,
    COUCHDB_URL: PouchDB,
}
#: Those of broker faults start servers of their own.
SUITES: Final = sorted(
    str(each.relative_to(ROOT))
    for each in (ROOT / "tests" / "integration").glob("test_*_contract.py")
    if each.name != "test_faults_contract.py"
)
#: The part of what is passed on before which the latency changes.
CHANGES: Final = 0.1


class Relay:
    """Passes connections on to a port of this machine.

    Arguments:
        port: of the broker.
        longest: seconds that what is passed on may take.
    """

    def __init__(self, port: int, longest: float) -> None:
        self._port = port
        self._longest = longest
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        port = self._server.server_port
        assert port is not None
        return port

    def close(self) -> None:
        """Listen no more, and end the connections."""
        self._server.stop(timeout=0.1)

    def _serve(self, client: socket.socket, address: object) -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as broker:
            for each in (client, broker):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            gevent.joinall(
                [gevent.spawn(self._copy, client, broker), gevent.spawn(self._copy, broker, client)]
            )

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        """Pass on what comes from one end, in its order."""
        parts: Queue[tuple[float, bytes]] = Queue()
        writer = gevent.spawn(_write, parts, target)
        latency = random.uniform(0.0, self._longest)
        part = b"first"
        while part:
            try:
                part = source.recv(1 << 16)
            except OSError:
                part = b""
            if random.random() < CHANGES:
                latency = random.uniform(0.0, self._longest)
            parts.put((monotonic() + latency, part))
        writer.join()


def _write(parts: Queue[tuple[float, bytes]], target: socket.socket) -> None:
    with suppress(OSError):
        for due, part in iter(parts.get, None):
            gevent.sleep(max(0.0, due - monotonic()))
            if not part:
                target.shutdown(socket.SHUT_WR)
                return
            target.sendall(part)


def main() -> int:
    """Start the brokers, run the tests, and return the exit code of pytest."""
    parser = argparse.ArgumentParser(prog="python -m tests.quality.latency", description=__doc__)
    parser.add_argument(
        "--milliseconds", type=float, default=5.0, help="the longest latency of a connection (5)"
    )
    options, rest = parser.parse_known_args()
    if not any((ROOT / each.partition("::")[0]).exists() for each in rest):
        rest += SUITES
    environment = dict(os.environ)
    with ExitStack() as stack:
        keeper = stack.enter_context(Keeper())
        for variable, kind in BROKERS.items():
            try:
                broker = kind(keeper)
                broker.start()
            except NoBroker as error:
                print(f"{variable}: none, so its tests are not run: {error}", flush=True)
                continue
            stack.callback(broker.close)
            port = urlsplit(broker.url).port
            assert port is not None
            relay = Relay(port, options.milliseconds / 1000)
            stack.callback(relay.close)
            environment[variable] = broker.url.replace(f":{port}", f":{relay.port}")
        return int(
            subprocess.call([sys.executable, "-m", "pytest", *rest], env=environment, cwd=ROOT)
        )


if __name__ == "__main__":
    sys.exit(main())
