"""Run kombu's own tests on greenconn, and tell what is not as the list of known failures says.

Its integration tests run, too, on a RabbitMQ and a Redis that are started for them.
"""

from __future__ import annotations

import sys
from urllib.parse import urlsplit

from tests.brokers.keeper import Keeper
from tests.brokers.packages import NoBroker
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer
from tests.compat.kombu_suite.running import known_failures, run_suite
from tests.compat.kombu_suite.source import SDIST, NoSource


def main() -> int:
    """Run them and return the exit code: 1 if a test fails that is not known to."""
    known = known_failures()
    with Keeper() as keeper:
        try:
            servers = _servers(keeper)
        except NoBroker as exc:
            print(f"the integration tests are left out, there is no broker: {exc}")
            servers = None
            known = {
                name: why for name, why in known.items() if not name.startswith("integration.")
            }
        try:
            outcome = run_suite(servers)
        except NoSource as exc:
            print(f"{exc}; name the archive in {SDIST}", file=sys.stderr)
            return 2
    print(outcome)
    new = sorted(outcome.failed.keys() - known.keys())
    for name in new:
        print(f"fails, and is not known to: {name}: {outcome.failed[name]}")
    for name in sorted(known.keys() & outcome.passed):
        print(f"passes now, take it from the list: {name}")
    for name in sorted(known.keys() - outcome.passed - outcome.failed.keys()):
        print(f"is not among the tests, take it from the list: {name}")
    return 1 if new else 0


def _servers(keeper: Keeper) -> dict[str, str]:
    """Start the brokers, and return where they are, in the variables of kombu's tests."""
    rabbitmq, redis = RabbitMQ(keeper), RedisServer(keeper)
    rabbitmq.start()
    redis.start()
    amqp, store = urlsplit(rabbitmq.url), urlsplit(redis.url)
    return {
        "RABBITMQ_HOST": str(amqp.hostname),
        "RABBITMQ_5672_TCP": str(amqp.port),
        "REDIS_HOST": str(store.hostname),
        "REDIS_6379_TCP": str(store.port),
    }


sys.exit(main())
