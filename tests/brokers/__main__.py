"""Start private brokers in the foreground, print their addresses, and end them at Ctrl-C."""

from __future__ import annotations

import signal
import sys

from tests.brokers.descriptors import raise_limit
from tests.brokers.keeper import Keeper
from tests.brokers.packages import NoBroker
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer


def main() -> int:
    """Print lines for ``eval`` in a shell, then wait for SIGINT or SIGTERM."""
    raise_limit()
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    with Keeper() as keeper:
        try:
            rabbitmq, redis = RabbitMQ(keeper), RedisServer(keeper)
            rabbitmq.begin()
            redis.start()
            rabbitmq.wait_ready()
        except NoBroker as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        print(f"export GREENCONN_TEST_AMQP_URL={rabbitmq.url}")
        print(f"export GREENCONN_TEST_AMQP_CTL={rabbitmq.handle}")
        print(f"export GREENCONN_TEST_REDIS_URL={redis.url}", flush=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        signal.sigwait(signals)
    return 0


if __name__ == "__main__":
    sys.exit(main())
