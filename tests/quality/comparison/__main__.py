"""``python -m tests.quality.comparison``: mistakes of clients, measured on greenconn and on kombu.

Each case runs in a monkey-patched process of its own, with the same lines for both clients.  Ends with 1
when greenconn does not do as it should.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.brokers.environment import AMQP_URL, REDIS_URL
from tests.brokers.keeper import Keeper
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer
from tests.quality.comparison.cases import CASES, Urls, measure

PATCHED = (sys.executable, "-m", "gevent.monkey", "--module", "tests.quality.comparison")
#: Seconds for one case.
LIMIT = 120.0


def main() -> int:
    """Run the cases that the command line names."""
    options = arguments()
    if options.here:
        name, client, *urls = options.here
        print(json.dumps(measure(name, client, Urls(*urls))))
        return 0
    console = Console()
    table = Table("", "greenconn", "kombu")
    is_right = True
    with ExitStack() as stack:
        urls = brokers(stack)
        for name in options.cases or CASES:
            known = CASES[name]
            ours, theirs = (run(name, client, urls) for client in ("greenconn", "kombu"))
            is_right = is_right and known.is_right(ours)
            table.add_row(known.title, shown(ours), shown(theirs))
            Console(stderr=True).print(f"{name}: {ours} {theirs}", markup=False)
    console.print(table)
    return 0 if is_right else 1


def brokers(stack: ExitStack) -> Urls:
    """The brokers of the environment, or some of our own."""
    if AMQP_URL in os.environ and REDIS_URL in os.environ:
        return Urls(os.environ[AMQP_URL], os.environ[REDIS_URL])
    keeper = stack.enter_context(Keeper())
    rabbitmq, redis = RabbitMQ(keeper), RedisServer(keeper)
    rabbitmq.start()
    redis.start()
    return Urls(rabbitmq.url, redis.url)


def run(name: str, client: str, urls: Urls) -> dict[str, Any]:
    """Run one case with one client, in a process of its own."""
    done = subprocess.run(
        [*PATCHED, "--here", name, client, *urls],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise RuntimeError(f"{name} with {client}: {done.stderr[-3000:]}") from None
    return found


def shown(found: dict[str, Any]) -> str:
    """What was measured, for the table."""
    return ", ".join(f"{name} {value}" for name, value in found.items())


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.quality.comparison",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--here", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.cases:
        if name not in CASES:
            parser.error(f"no case {name!r}: there are {', '.join(CASES)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
