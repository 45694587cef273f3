"""gunicorn, run as it is in production, and clients that talk to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess  # gevent's would take the end of every child, the brokers' tools' too
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gevent
from gevent import socket
from gevent.pool import Pool

from tests.brokers.ports import free_ports
from tests.fix_wires import until
from tests.integration.processes import HELD_UP

ROOT = Path(__file__).resolve().parents[2]
#: Seconds that anything here may take.
SOON = 40.0
_INFO = re.compile(r"\[[^]]+\] \[\d+\] \[INFO\] ")
#: gunicorn's own: it accepts a connection and closes its listener in the same moment.  gevent's: with
#: ``--preload`` the application is imported before the workers are patched.
_KNOWN = re.compile(
    r"^.*\[ERROR\] Socket error processing request.\n"
    r"Traceback.*\n( .*\n)+OSError: \[Errno 9\] Bad file descriptor\n"
    r"|^.*MonkeyPatchWarning: .*\n  monkey.patch_all\(\)\n"
    rf"|{HELD_UP.pattern}",
    re.MULTILINE,
)
_BOOTED = re.compile(r"Booting worker with pid: (\d+)")


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Server:
    """A gunicorn; :meth:`end` in any case."""

    def __init__(self, *arguments: str, cwd: Path, env: dict[str, str]) -> None:
        (self.port,) = free_ports(1)  # gunicorn binds it later
        self._log = tempfile.NamedTemporaryFile(prefix="gunicorn-", suffix=".log")  # noqa: SIM115
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **env}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gunicorn",
                "--worker-class=gevent",
                "--workers=2",
                f"--bind=127.0.0.1:{self.port}",
                "--no-control-socket",
                *arguments,
            ],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def log(self) -> str:
        """What it has written so far."""
        return Path(self._log.name).read_text()

    @property
    def complaints(self) -> list[str]:
        """What it and its workers have written, save what gunicorn tells of its ways."""
        lines = _KNOWN.sub("", self.log).splitlines()
        return [line for line in lines if line and not _INFO.match(line)]

    @property
    def booted(self) -> list[int]:
        """All workers that were ever started, the oldest first."""
        return [int(pid) for pid in _BOOTED.findall(self.log)]

    def living(self) -> list[int]:
        """The workers that run."""
        return [pid for pid in self.booted if _is_running(pid)]

    def request(self, path: str, form: dict[str, str] | None = None) -> Answer:
        """GET *path*, or POST *form* to it.  May switch.

        Raises:
            OSError: no answer came, or not all of it.
        """
        return fetch(self.port, path, form)

    def knock(self, path: str) -> None:
        """Send a request whose answer does not matter.  May switch."""
        try:
            self.request(path)
        except OSError:
            pass

    def wait_ready(self, path: str = "/health/ready", workers: int = 2) -> None:
        """Wait until *path* answers 200, and as many workers run.  May switch."""

        def is_ready() -> bool:
            assert self.process.poll() is None, self.log
            try:
                return self.request(path).status == 200 and len(self.living()) >= workers
            except OSError:
                return False

        until(is_ready, what="ready")

    def signal(self, number: int, pid: int | None = None) -> None:
        """Send a signal to the arbiter, or to one worker."""
        os.kill(self.process.pid if pid is None else pid, number)

    def wait(self) -> int:
        """Wait for its end, and return its code.  May switch."""
        until(lambda: self.process.poll() is not None, what="the end of gunicorn")
        assert self.process.returncode is not None
        return self.process.returncode

    def stop(self) -> None:
        """End it in good order: it and its workers must have no complaint.  May switch."""
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, self.log
        assert self.complaints == [], self.log

    def end(self) -> None:
        """See that nothing of it is left."""
        if self.process.poll() is None or self.living():
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        self._log.close()


def fetch(port: int, path: str, form: dict[str, str] | None = None, body: bytes = b"") -> Answer:
    """GET *path* of a server on this machine, or POST *form* or *body* to it.  May switch.

    Raises:
        OSError: no answer came, or not all of it.
    """
    body = body if form is None else urlencode(form).encode()
    head = (
        f"{'POST' if form is not None or body else 'GET'} {path} HTTP/1.0\r\nHost: localhost\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with (
        gevent.Timeout(SOON, AssertionError(f"no answer to {path}")),
        socket.create_connection(("127.0.0.1", port)) as sock,
    ):
        sock.sendall(head.encode() + body)
        parts = []
        while part := sock.recv(65536):
            parts.append(part)
    return _answer(b"".join(parts))


@contextmanager
def serving(*arguments: str, env: dict[str, str], cwd: Path = ROOT) -> Iterator[Server]:
    """A gunicorn for the time of a ``with``; its log is printed if that fails."""
    server = Server(*arguments, cwd=cwd, env=env)
    try:
        yield server
    except BaseException:
        print(server.log)
        raise
    finally:
        server.end()


@dataclass
class Load:
    """Clients that send one order after the other, until they are told to stop.

    Attributes:
        taken: the ids that were answered with 200.
        refused: how many others were answered, by status.
        unanswered: requests that a dying server dropped.
        workers: those that answered.
    """

    server: Server
    clients: int
    taken: set[str] = field(default_factory=set)
    refused: dict[int, int] = field(default_factory=dict)
    unanswered: int = 0
    workers: set[int] = field(default_factory=set)
    is_over: bool = False

    def __enter__(self) -> Load:
        self._pool = Pool(self.clients)
        for number in range(self.clients):
            self._pool.spawn(self._run, number)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let each have its last answer.  May switch."""
        self.is_over = True
        self._pool.join(timeout=SOON, raise_error=True)
        assert not len(self._pool), "clients that wait for an answer"

    def wait_more(self, count: int) -> None:
        """Wait until *count* more orders were taken.  May switch."""
        goal = len(self.taken) + count
        until(lambda: len(self.taken) >= goal, what="more answers")

    def _run(self, client: int) -> None:
        number = 0
        while not self.is_over:
            number += 1
            if not self.send(f"{client}-{number}"):
                gevent.sleep(0.05)

    def send(self, id: str) -> bool:
        """Send one order; whether it was taken.  May switch."""
        try:
            answer = self.server.request("/orders", {"id": id, "item": "teapot"})
        except OSError:
            self.unanswered += 1
            return False
        if answer.status != 200:
            self.refused[answer.status] = self.refused.get(answer.status, 0) + 1
            return False
        assert answer.json["price"] == 18
        assert answer.json["id"] == id
        self.taken.add(id)
        self.workers.add(answer.json["worker"])
        return True


def _answer(data: bytes) -> Answer:
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        raise ConnectionResetError("the answer is not whole")
    length = re.search(rb"(?i)^content-length: (\d+)\r?$", head, re.MULTILINE)
    if length is not None and len(body) < int(length[1]):
        raise ConnectionResetError("the answer is not whole")
    return Answer(int(head.split()[1]), body)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
