"""A stand-in for AWS' SQS, SNS and STS: moto's server in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

from gevent import sleep

from tests.brokers.keeper import Keeper, send
from tests.brokers.packages import NoBroker
from tests.brokers.ports import free_ports

__all__ = ["MotoServer"]

START_TIMEOUT = 60.0
STEP = 0.02
#: What it signs with is not checked.
ACCESS_KEY, SECRET_KEY = "AKIATESTING", "no-secret-at-all"
#: Serves over connections that are kept, as AWS does; moto's own server closes each after one answer.
#: At each request moto asks the clock twice for every message in the queue, so it gets a quick one.
PROGRAM = """
from gevent import monkey
monkey.patch_all()
import socket, sys, time
from gevent.pywsgi import WSGIServer
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.sqs import models

slow = models.unix_time_millis
models.unix_time_millis = lambda at=None: time.time() * 1000 if at is None else slow(at)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=512)
listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
WSGIServer(listener, DomainDispatcherApplication(create_backend_app), log=None).serve_forever()
"""


class MotoServer:
    """A moto server that this process owns; what it knows is in its memory only.

    Arguments:
        keeper: ends it, whatever becomes of this process.

    Raises:
        NoBroker: moto's server is not installed.
    """

    def __init__(self, keeper: Keeper) -> None:
        if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
            raise NoBroker("moto[server] is not installed")
        self._keeper = keeper
        (self.port,) = free_ports(1)
        self.directory = keeper.directory / f"moto-{self.port}"
        self.directory.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The address of its SQS."""
        return f"sqs://{ACCESS_KEY}:{SECRET_KEY}@127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, empty, and wait until it answers.  May switch.

        Raises:
            NoBroker: it did not start.
        """
        command = [sys.executable, "-c", PROGRAM, str(self.port)]
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }
        self._process = self._keeper.run(command, env=environment, output=self.directory / "output")
        end = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if not self.is_running or time.monotonic() >= end:
                log = self.directory / "output"
                said = log.read_text(errors="replace")[-1000:] if log.exists() else "nothing"
                raise NoBroker(f"moto's server did not start: {said}")
            sleep(STEP)

    def _answers(self) -> bool:
        # A number, no name, and nothing listening is told at once: this does not block the hub.
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """End it at once (SIGKILL).  May switch."""
        if self._process is not None:
            self._keeper.end(self._process, grace=0)
            self._process = None

    def pause(self) -> None:
        """Freeze it (SIGSTOP): its connections stay open and silent."""
        assert self._process is not None
        send(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        if self._process is not None:
            send(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop it for good.  May switch."""
        self.resume()
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
