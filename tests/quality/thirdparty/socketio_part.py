"""python-socketio: a server, its client, and a process that emits."""

from __future__ import annotations

from collections.abc import Callable

from tests.quality.thirdparty.environments import environment
from tests.quality.thirdparty.parts import CONTRIB, Outcome, Site

REQUIREMENTS = ("gevent", "kombu", "python-socketio[client]")
#: Events that are emitted.
EVENTS = 200
PROGRAM = "tests.quality.thirdparty.socketio_program"
#: What ``KombuManager`` loses when the broker is restarted.
UNHEARD = "events emitted before the server listens again"
EXPLAINED = {
    UNHEARD: "python-socketio listens again after a second, its queue is gone with the broker until"
    " then, and the emitter is back sooner"
}


def run(way: str, site: Site, timeout: float) -> Outcome:
    """Emit events in one process to the client of another one.

    Raises:
        NotInstalled: python-socketio cannot be had.
        TooLong: a process did not come on within *timeout* seconds.
    """
    return _emit("socketio", way, site, timeout, lambda: None)


def run_restart(way: str, site: Site, timeout: float) -> Outcome:
    """Do the same, the broker stopped and started in the middle, while events are emitted.

    Raises:
        NotInstalled: python-socketio cannot be had.
        TooLong: a process did not come on within *timeout* seconds.
    """

    def restart() -> None:
        site.rabbitmq.stop_app()
        site.rabbitmq.start_app()

    return _emit("socketio-restart", way, site, timeout, restart)


def _emit(name: str, way: str, site: Site, timeout: float, at_half: Callable[[], None]) -> Outcome:
    command = [str(environment("socketio", REQUIREMENTS)), "-m", PROGRAM, way]
    url, count = site.rabbitmq.url, str(EVENTS)
    with site.program(f"{name}-server-{way}", [*command, "server", url, count]) as server:
        address = f"http://127.0.0.1:{server.wait_line('port ', timeout)}"
        with site.program(f"{name}-client-{way}", [*command, "client", address, count]) as client:
            client.wait_line("connected", timeout)
            emitting = [*command, "emitter", url, count]
            with site.program(f"{name}-emitter-{way}", emitting) as emitter:
                emitter.wait_line("half", timeout)
                at_half()
                received = int(client.wait_line("received ", timeout))
                is_unheard = way != CONTRIB and EVENTS // 2 <= received < EVENTS
                failed = frozenset({UNHEARD} if is_unheard else ())
                return Outcome(passed=received, count=EVENTS, failed=failed)
