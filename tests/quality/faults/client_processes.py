"""The processes of a storm that publish and consume, and are killed."""

from __future__ import annotations

import json
import pickle
import random
import signal
import subprocess
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
from gevent import monkey
from gevent.event import Event
from gevent.fileobject import FileObject

from tests.brokers.keeper import send, wait_for_end
from tests.quality.faults.client_process import Orders
from tests.quality.faults.ledger import Ledger
from tests.quality.faults.targets.base import Role, Target
from tests.quality.faults.workload import END_TIMEOUT, assigned

ROOT = Path(__file__).resolve().parents[3]
#: Seconds for a start, which imports all.
START_TIMEOUT = 60.0
#: Publishers of each, and messages a second.
PUBLISHERS, RATE = 4, 20.0


class ClientProcess:
    """One process."""

    def __init__(self, client: str, target: Target, ledger: Ledger, seed: int) -> None:
        self._ledger = ledger
        places = [place for place in target.places() if place.role is Role.KEPT]
        self._streams = [ledger.stream(place.queue.name) for place in assigned(places, PUBLISHERS)]
        orders = Orders(
            client=client,
            name=target.name,
            transport=target.transport,
            url=target.url,
            options=target.options,
            heartbeat=target.heartbeat,
            places=places,
            streams=[stream.number for stream in self._streams],
            rate=min(RATE, target.rate / 4),
            seed=seed,
        )
        how = ("-m", "gevent.monkey", "--module") if monkey.is_module_patched("socket") else ("-m",)
        self._process = subprocess.Popen(
            [sys.executable, *how, "tests.quality.faults.client_process"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input = self._process.stdin
        self._input.write(pickle.dumps(orders))
        self._output = self._process.stdout
        self._said: dict[str, Event] = {"ready": Event(), "quiet": Event(), "ended": Event()}
        self.troubles: deque[str] = deque(maxlen=10)
        self._reading: gevent.Greenlet[..., None] = gevent.spawn(self._read)

    def wait(self, what: str, timeout: float) -> str | None:
        """Wait until it says *what*; the trouble if it does not.  May switch."""
        either: list[Any] = [self._said[what], self._reading]
        gevent.wait(either, timeout, count=1)
        if self._said[what].is_set():
            return None
        has_ended = self._reading.ready()
        return f"a process {'ended' if has_ended else f'is after {timeout:g} s'} and not {what}"

    def _read(self) -> None:
        """Write all that it says into the ledger, until it has ended."""
        with FileObject(self._output.fileno(), "rb", closefd=False) as lines:
            for line in lines:
                if line.endswith(b"\n"):  # else it was killed in its midst
                    what, *rest = json.loads(line)
                    getattr(self, f"_{what}", self._say(what))(*rest)

    def _say(self, what: str) -> Any:
        return lambda: self._said[what].set()

    def _begun(self, stream: int, number: int) -> None:
        self._ledger.streams[stream].reach(number)

    def _published(self, stream: int, number: int) -> None:
        self._ledger.published(self._ledger.streams[stream], number)

    def _failed(self, stream: int, number: int, error: str) -> None:
        self._ledger.failed(self._ledger.streams[stream], number, error)

    def _handled(self, queue: str, key: tuple[int, int] | None, is_redelivered: bool) -> None:
        self._ledger.handle_key(queue, key, is_redelivered)

    def _trouble(self, text: str) -> None:
        self.troubles.append(text)

    def kill(self) -> None:
        """SIGKILL; what it said before that is in the ledger afterwards.  May switch."""
        send(self._process.pid, signal.SIGKILL)
        self.reap()

    def suspend(self, seconds: float) -> None:
        """SIGSTOP for a while.  May switch."""
        send(self._process.pid, signal.SIGSTOP)
        try:
            gevent.sleep(seconds)
        finally:
            send(self._process.pid, signal.SIGCONT)

    def reap(self) -> None:
        """Wait for its end.  May switch."""
        if not wait_for_end(self._process, START_TIMEOUT):
            self.troubles.append("a process does not end")
            send(self._process.pid, signal.SIGKILL)
        self._reading.join()
        self._input.close()
        self._output.close()
        self._process.wait()

    def order(self) -> None:
        """Go on to the next step: no more publishing, then the end."""
        with suppress(BrokenPipeError):  # it has ended, which is told
            self._input.write(b"\n")


class ClientProcesses:
    """All of them.

    Arguments:
        count: how many.
    """

    def __init__(self, client: str, target: Target, ledger: Ledger, seed: int, count: int) -> None:
        self._client, self._target, self._ledger = client, target, ledger
        self._chance = random.Random(f"client_processes {seed}")
        self._all = [self._new() for _ in range(count)]

    def _new(self) -> ClientProcess:
        seed = self._chance.getrandbits(32)
        return ClientProcess(self._client, self._target, self._ledger, seed)

    def begin(self) -> None:
        """Wait until all are at work.  May switch."""
        for each in self._all:
            trouble = each.wait("ready", START_TIMEOUT)
            assert trouble is None, trouble

    def kill(self, chance: random.Random) -> None:
        """One is killed, and another one comes in its place.  May switch."""
        which = chance.randrange(len(self._all))
        self._all[which].kill()
        self._all[which] = self._new()

    def suspend(self, chance: random.Random, seconds: float) -> None:
        """One is stopped for a while, and goes on.  May switch."""
        chance.choice(self._all).suspend(seconds)

    def stop_publishing(self) -> list[str]:
        """Have the publishers end; returns what hangs.  May switch."""
        for each in self._all:
            each.wait("ready", START_TIMEOUT)
            each.order()
        return [text for each in self._all if (text := each.wait("quiet", END_TIMEOUT))]

    def end(self) -> list[str]:
        """End all in good order; returns what went wrong.  May switch."""
        found: list[str] = []
        for each in self._all:
            each.order()
            trouble = each.wait("ended", END_TIMEOUT)
            if trouble is not None:
                each.kill()
            else:
                each.reap()
            found += [*each.troubles, *([trouble] if trouble else [])]
        self._all = []
        return found

    def close(self) -> None:
        """Kill those that are left.  May switch."""
        for each in self._all:
            each.kill()
