"""Run what others wrote for kombu, on greenconn and on kombu, and print the totals side by side.

Not part of the tests: the programs come from the package index, each into an environment of its own
that is kept.  Ends with 1 when greenconn passes less than kombu does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable

from tests.brokers.keeper import Keeper
from tests.brokers.packages import NoBroker
from tests.brokers.rabbitmq import RabbitMQ
from tests.thirdparty import socketio_part
from tests.thirdparty.environments import NotInstalled

#: By name: takes the library, the broker's URL and seconds; returns what passed, and of how many.
PARTS: dict[str, Callable[[str, str, float], tuple[int, int]]] = {"socketio": socketio_part.run}
LIBRARIES = ("kombu", "greenconn")


def main() -> int:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.thirdparty", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for a process (300)")
    options = parser.parse_args()
    code = 0
    with Keeper() as keeper:
        broker = RabbitMQ(keeper)
        try:
            broker.start()
        except NoBroker as error:
            print(f"no RabbitMQ: {error}")
            return 1
        for name in options.only:
            passed = {each: _run(name, each, broker.url, options.timeout) for each in LIBRARIES}
            code |= passed["greenconn"] < passed["kombu"]
    return code


def _run(name: str, library: str, url: str, timeout: float) -> int:
    """Run one part, print a line about it, and return what passed."""
    try:
        passed, count = PARTS[name](library, url, timeout)
    except NotInstalled as exc:
        print(f"{name}, {library}: not run: {exc}")
        return 0
    except subprocess.TimeoutExpired as exc:
        print(f"{name}, {library}: took longer than {exc.timeout:g} s")
        return 0
    print(f"{name}, {library}: {passed} of {count}", flush=True)
    return passed


if __name__ == "__main__":
    sys.exit(main())
