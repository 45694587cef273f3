"""python-socketio: a server, its client, and a process that emits, over ``KombuManager``."""

from __future__ import annotations

from tests.thirdparty.environments import environment
from tests.thirdparty.parts import Outcome, Site

__all__ = ["REQUIREMENTS", "run"]

REQUIREMENTS = ("gevent", "kombu", "python-socketio[client]")
#: Events that are emitted.
EVENTS = 200
PROGRAM = "tests.thirdparty.socketio_program"


def run(way: str, site: Site, timeout: float) -> Outcome:
    """Emit events in one process to the client of another one.

    Raises:
        NotInstalled: python-socketio cannot be had.
        TooLong: a process did not come on within *timeout* seconds.
    """
    command = [str(environment("socketio", REQUIREMENTS)), "-m", PROGRAM, way]
    url, count = site.rabbitmq.url, str(EVENTS)
    with site.program(f"socketio-server-{way}", [*command, "server", url, count]) as server:
        address = f"http://127.0.0.1:{server.wait_line('port ', timeout)}"
        with site.program(f"socketio-client-{way}", [*command, "client", address, count]) as client:
            client.wait_line("connected", timeout)
            with site.program(f"socketio-emitter-{way}", [*command, "emitter", url, count]):
                return Outcome(passed=int(client.wait_line("received ", timeout)), count=EVENTS)
