"""python-socketio: a server, its client, and a process that emits, over ``KombuManager``."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

from tests.thirdparty.environments import environment

__all__ = ["REQUIREMENTS", "run"]

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ("gevent", "kombu", "python-socketio[client]")
#: Events that are emitted.
EVENTS = 200
PROGRAM = "tests.thirdparty.socketio_program"


def run(library: str, url: str, timeout: float) -> tuple[int, int]:
    """Emit events in one process to the client of another one.

    Arguments:
        library: ``greenconn`` or ``kombu``.
        timeout: seconds for each process.

    Returns:
        how many events the client received, and of how many.

    Raises:
        NotInstalled: python-socketio cannot be had.
        subprocess.TimeoutExpired: a process took too long.
    """
    python = str(environment("socketio", REQUIREMENTS))
    with ExitStack() as stack:

        def start(role: str, address: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [python, "-m", PROGRAM, library, role, address, str(EVENTS)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        server = start("server", url)
        assert server.stdout is not None
        client = start("client", f"http://127.0.0.1:{server.stdout.readline().strip()}")
        assert client.stdout is not None
        if client.stdout.readline() != "connected\n":
            return 0, EVENTS
        start("emitter", url).wait(timeout)
        output, _ = client.communicate(timeout=timeout)
        return int(output or 0), EVENTS
