"""The proxy's process, as seen from the one that has it do things."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gevent
from gevent import socket

from tests.brokers.keeper import wait_for_end
from tests.quality.faults.kinds import Fault

ROOT = Path(__file__).resolve().parents[3]
#: Seconds for an answer of the proxy.
TIMEOUT = 30.0


class ProxyProcess:
    """A running proxy before a broker's *port*.  It ends with :meth:`close`, or with this process.

    Arguments:
        protocol: ``amqp``, ``redis``, or another one, in which nothing can be spoiled.

    Attributes:
        port: where clients connect to.
    """

    def __init__(self, port: int, protocol: str) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            program = [sys.executable, "-m", "tests.quality.faults.proxy"]
            self._process = subprocess.Popen(
                [*program, str(theirs.fileno()), "127.0.0.1", str(port), protocol],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._lines = self._control.makefile("rb")
        self.port = self._answer()

    def _answer(self) -> int:
        with gevent.Timeout(TIMEOUT, AssertionError("the proxy does not answer")):
            return int(self._lines.readline())

    def _order(self, **order: Any) -> int:
        self._control.sendall(json.dumps(order).encode() + b"\n")
        return self._answer()

    def inject(self, fault: Fault) -> int:
        """Have a fault begin; how many connections it hit.  May switch."""
        return self._order(
            kind=fault.kind.value,
            direction=fault.direction.value,
            seconds=fault.seconds,
            seed=fault.seed,
        )

    def heal(self) -> int:
        """End what lasts; how many connections there are.  May switch."""
        return self._order(kind="heal")

    def close(self) -> None:
        """End it.  May switch."""
        self._lines.close()
        self._control.close()
        if not wait_for_end(self._process, TIMEOUT):
            self._process.kill()
        self._process.wait()

    def __enter__(self) -> ProxyProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
