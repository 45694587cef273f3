"""oslo.messaging: the unit tests of its rabbit driver, and RPC between two processes."""

from __future__ import annotations

import json
import signal

from tests.quality.thirdparty.environments import environment
from tests.quality.thirdparty.parts import Outcome, Site

#: The tests are part of the package, and need what is behind it.
REQUIREMENTS = ("gevent", "kombu", "oslo.messaging", "oslotest", "testscenarios", "testtools")
#: Calls, and as many casts.
CALLS = 400
#: In these a timeout of 10 ms is the message's expiration, too, which the memory broker obeys.
EXPLAINED = {r"TestSendReceive\..*timeout\)(?<!no_timeout\))": "its message expires after 10 ms"}
PROGRAM = ("-W", "ignore", "-m", "tests.quality.thirdparty.oslo_program")


def run_driver(way: str, site: Site, timeout: float) -> Outcome:
    """Run the unit tests of the driver and of what it builds on.

    Raises:
        NotInstalled: oslo.messaging cannot be had.
        TooLong: they did not end within *timeout* seconds.
    """
    python = str(environment("oslo", REQUIREMENTS))
    command = [python, *PROGRAM, way, "driver", "", "0"]
    with site.program(f"oslo-driver-{way}", command) as program:
        result = json.loads(program.wait_line("result ", timeout))
    failed = frozenset(result["failed"])
    return Outcome(passed=result["count"] - len(failed), count=result["count"], failed=failed)


def run_rpc(way: str, site: Site, timeout: float) -> Outcome:
    """Make calls and casts from one process to another, the broker stopped and started in the middle.

    Raises:
        NotInstalled: oslo.messaging cannot be had.
        TooLong: a process did not come on within *timeout* seconds.
    """
    python = str(environment("oslo", REQUIREMENTS))
    command = [python, *PROGRAM, way]
    arguments = [site.rabbitmq.url, str(CALLS)]
    with (
        site.program(f"oslo-server-{way}", [*command, "server", *arguments]) as server,
        site.program(f"oslo-client-{way}", [*command, "client", *arguments]) as client,
    ):
        server.wait_line("ready", timeout)
        client.wait_line("half", timeout)
        site.rabbitmq.stop_app()
        site.rabbitmq.start_app()
        client.signal(signal.SIGUSR1)
        return Outcome(passed=int(client.wait_line("right ", timeout)), count=2 * CALLS)
