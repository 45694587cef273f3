"""Runs of programs that others wrote: the ways, their processes, and what they showed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gevent import sleep

from tests.brokers.keeper import Keeper, send, wait_for_end
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer

ROOT = Path(__file__).resolve().parents[3]
STEP = 0.05

#: The ways to run a program: on kombu, on its own library, on greenconn in kombu's stead, by a module of
#: ``greenconn.contrib``.
KOMBU, OWN, AS_KOMBU, CONTRIB = "kombu", "own", "install_as_kombu", "contrib"


class TooLong(Exception):
    """A program did not come to an end, or to a point, within its time."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a run.

    Arguments:
        passed: how many of *count* were as they should be.
        failed: the names of the others, where they have some.
        is_whole: whether the run came to its end.
    """

    passed: int
    count: int
    failed: frozenset[str] = frozenset()
    is_whole: bool = True

    @classmethod
    def of_results(cls, results: Path, prefix: str = "", *, is_whole: bool = True) -> Outcome:
        """Return what the tests showed; one that passed, and failed as it was cleared away, has failed.

        Arguments:
            results: what :class:`tests.quality.thirdparty.results.Results` has written.
            prefix: what is removed from the names of tests.
            is_whole: whether the run came to its end.
        """
        names: dict[str, set[str]] = {"passed": set(), "failed": set()}
        for line in results.read_text().splitlines():
            outcome, _, name = line.partition(" ")
            names[outcome].add(name.removeprefix(prefix))
        failed = frozenset(names["failed"])
        passed = len(names["passed"] - failed)
        return cls(passed=passed, count=passed + len(failed), failed=failed, is_whole=is_whole)

    def __str__(self) -> str:
        return f"{self.passed} of {self.count}" + ("" if self.is_whole else ", no end")


class Program:
    """A process of a run, which the keeper ends at the latest."""

    def __init__(
        self, keeper: Keeper, command: Sequence[str], log: Path, env: Mapping[str, str]
    ) -> None:
        self._keeper = keeper
        self.log = log
        self._read = log.stat().st_size if log.exists() else 0
        self.process = keeper.run(command, env=env, output=log, cwd=ROOT)

    def output(self) -> str:
        """Return all that the process has written."""
        return self.log.read_bytes()[self._read :].decode(errors="replace")

    def wait_line(self, start: str, timeout: float) -> str:
        """Wait until the process has written a line that begins with *start*, and return the rest of it.

        Raises:
            TooLong: it ended without, or did not within *timeout* seconds.
        """
        end = time.monotonic() + timeout
        while True:
            has_ended = self.process.poll() is not None
            for line in self.output().splitlines(keepends=True):
                if line.startswith(start) and line.endswith("\n"):
                    return line.removeprefix(start).strip()
            if has_ended:
                raise TooLong(f"{self.log}: ended with {self.process.returncode} before {start!r}")
            if time.monotonic() >= end:
                raise TooLong(f"{self.log}: no {start!r} within {timeout:g} s")
            sleep(STEP)

    def signal(self, number: int) -> None:
        """Send a signal to the process and to those that it started."""
        send(self.process.pid, number)

    def wait(self, timeout: float) -> int:
        """Wait for the end of the process and return its exit code.

        Raises:
            TooLong: it did not end within *timeout* seconds.
        """
        if not wait_for_end(self.process, timeout):
            raise TooLong(f"{self.log}: runs for longer than {timeout:g} s")
        return int(self.process.returncode)


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where programs run: the brokers, and a folder for what the processes write."""

    keeper: Keeper
    rabbitmq: RabbitMQ
    redis: RedisServer
    logs: Path

    @contextmanager
    def program(
        self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None
    ) -> Iterator[Program]:
        """A process, which is ended at the end.

        Arguments:
            name: of its log.
            env: added to the environment.
        """
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            **(env or {}),
        }
        program = Program(self.keeper, command, self.logs / f"{name}.log", environment)
        try:
            yield program
        finally:
            self.keeper.end(program.process)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing to run.

    Arguments:
        run: takes the way, the site and the seconds for each process.
        ways: those in which it runs.
        timeout: seconds for each of its processes.
        explained: reasons for what fails with greenconn alone, by a regular expression for the name.
    """

    run: Callable[[str, Site, float], Outcome]
    ways: Sequence[str] = (KOMBU, AS_KOMBU)
    timeout: float = 300.0
    explained: Mapping[str, str] = field(default_factory=dict)

    def reason(self, name: str) -> str:
        """Return the reason why *name* fails; empty if it has none."""
        return next((text for each, text in self.explained.items() if re.search(each, name)), "")
