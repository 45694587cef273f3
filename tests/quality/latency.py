"""``python -m tests.quality.latency``: the contracts over connections that delay what they carry.

On the loopback interface, what a client sends over one of its connections hardly ever overtakes what it
has sent over another one before.  On a network it does.  So each broker is behind a proxy here, which
delays each part of what it passes on, on each connection by itself.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from gevent import subprocess

from tests.brokers import couchdb_server, mongodb_server
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
from tests.brokers.moto import MotoServer
from tests.brokers.packages import NoBroker
from tests.brokers.postgresql import PostgresServer
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer
from tests.quality.faults.proxy import Proxy

ROOT: Final = Path(__file__).resolve().parents[2]
#: The variable that names each broker to the tests, and what starts one.
BROKERS: Final[dict[str, Callable[[Keeper], Any]]] = {
    AMQP_URL: RabbitMQ,
    REDIS_URL: RedisServer,
    BEANSTALK_URL: lambda keeper: Beanstalkd(keeper, ("-z", str(2**20))),
    POSTGRESQL_URL: PostgresServer,
    MONGODB_URL: mongodb_server.KIND,
    SQS_URL: MotoServer,
    COUCHDB_URL: couchdb_server.KIND,
}
#: Those of broker faults start servers of their own.
SUITES: Final = sorted(
    str(each.relative_to(ROOT))
    for each in (ROOT / "tests" / "integration").glob("test_*_contract.py")
    if each.name != "test_faults_contract.py"
)


def main() -> int:
    """Start the brokers, run the tests, and return the exit code of pytest."""
    parser = argparse.ArgumentParser(prog="python -m tests.quality.latency", description=__doc__)
    parser.add_argument(
        "--milliseconds", type=float, default=5.0, help="the longest delay of a part (5)"
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
            proxy = Proxy(("127.0.0.1", port), "", (0.0, options.milliseconds / 1000))
            proxy.obey({"kind": "delay", "direction": "both", "seconds": math.inf, "seed": 0})
            environment[variable] = broker.url.replace(f":{port}", f":{proxy.port}")
        return int(
            subprocess.call([sys.executable, "-m", "pytest", *rest], env=environment, cwd=ROOT)
        )


if __name__ == "__main__":
    sys.exit(main())
