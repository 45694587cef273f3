"""Clients in C and Go, each work in a process of their own."""

from __future__ import annotations

import json
import subprocess
from typing import Any, ClassVar

from benchmarks.clock import Figures
from benchmarks.line import Address
from benchmarks.native import program
from benchmarks.rivals.load import under_load
from benchmarks.stage import BODY, Stage


class _Works:
    """The works of a program, which prints what it took."""

    name: ClassVar[str]

    def __init__(self, url: str, stage: Stage) -> None:
        self.stage = stage
        self.address = Address.of(url)

    def close(self) -> None:
        """Nothing: each work has ended its connection."""

    def publish(self, count: int) -> Figures:
        """One after the other."""
        return self._run("publish", self.stage.sink(), count)[0]

    def consume(self, count: int) -> Figures:
        """Prefetch 100, each message acknowledged."""
        return self._run("consume", self.stage.source(count), count)[0]

    def loaded_publish(self, count: int) -> Figures:
        """Each caller waits for its confirm."""
        sink = self.stage.sink()

        def run(count: int, rate: float) -> tuple[list[float], float]:
            figures, took = self._run("confirmed", sink, count, rate)
            return took, figures["wall"] * count / 1e6

        return under_load(run, count)

    def loaded_delivery(self, count: int) -> Figures:
        """A consumer that gets a stream."""

        def run(count: int, rate: float) -> tuple[list[float], float]:
            (source,) = self.stage.sources(1)
            sender = self.stage.peer("stream", str(count), source, str(rate))
            figures, took = self._run("listen", source, count, sender=sender)
            return took, figures["wall"] * count / 1e6

        return under_load(run, count)

    def _run(
        self, work: str, queue: str, count: int, rate: float = 0.0, sender: Any = None
    ) -> tuple[Figures, list[float]]:
        """Run the program; a *sender* begins when it consumes.  Returns figures and latencies."""
        address = self.address
        login = [address.host, str(address.port), address.user, address.password, address.vhost]
        with subprocess.Popen(
            [
                *(str(program(self.name)), work, *login, queue, self.stage.mark, str(count)),
                *(json.dumps(BODY), str(rate)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            assert running.stdout is not None
            if sender is not None and running.stdout.readline():
                self.stage.go(sender)
            written, errors = running.communicate()
        if running.returncode:
            raise RuntimeError(errors.strip())
        first, *took = written.splitlines()
        cpu, wall = map(float, first.split())
        return {"cpu": cpu, "wall": wall}, [float(each) for each in took]


class CWorks(_Works):
    """The works of rabbitmq-c."""

    name = "rabbitmq-c"


class GoWorks(_Works):
    """The works of amqp091-go."""

    name = "amqp091-go"
