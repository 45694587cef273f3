"""Clients in C and Go, each work in a process of their own."""

from __future__ import annotations

import json
import subprocess
from typing import ClassVar

from benchmarks.clock import Figures
from benchmarks.line import Address
from benchmarks.native import program
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
        return self._run("publish", self.stage.sink(), count)

    def consume(self, count: int) -> Figures:
        """Prefetch 100, each message acknowledged."""
        return self._run("consume", self.stage.source(count), count)

    def _run(self, work: str, queue: str, count: int) -> Figures:
        address = self.address
        login = [address.host, str(address.port), address.user, address.password, address.vhost]
        done = subprocess.run(
            [
                *(str(program(self.name)), work, *login, queue, self.stage.mark, str(count)),
                json.dumps(BODY),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        cpu, wall = map(float, done.stdout.split())
        return {"cpu": cpu, "wall": wall}


class CWorks(_Works):
    """The works of rabbitmq-c."""

    name = "rabbitmq-c"


class GoWorks(_Works):
    """The works of amqp091-go."""

    name = "amqp091-go"
