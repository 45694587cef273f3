"""Run the tests: in a plain process and in a monkey-patched one, side by side, on own brokers.

Options that are not listed below go to pytest, as do paths.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.brokers.descriptors import raise_limit
from tests.brokers.environment import (
    AMQP_CTL,
    AMQP_URL,
    COUCHDB_URL,
    REDIS_URL,
    REQUIRE,
    are_required,
)
from tests.brokers.keeper import Keeper, send, wait_for_end
from tests.brokers.packages import NoBroker
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer

ROOT = Path(__file__).resolve().parent.parent
SUMMARY = "GREENCONN_TEST_SUMMARY"
KINDS = ("passed", "failed", "skipped")
#: Seconds for all tests together; a run that takes longer hangs.
RUN_TIMEOUT = 3600.0
LONG_RUN_TIMEOUT = 4 * 3600.0
#: Seconds that pytest has after Ctrl-C to say what it was doing.
INTERRUPT_TIMEOUT = 10.0
STEP = 0.1
COMMANDS = {
    "plain": ("-m", "pytest"),
    # Programs that a test starts are the same in both; another -m of the user's comes later and wins.
    "patched": ("-m", "gevent.monkey", "--module", "pytest", "-m", "not programs"),
}
#: What pytest returns when all tests of the chosen paths were for the other process.
NOTHING_TO_RUN = 5


def main() -> int:
    """Run the tests and return the exit code."""
    options, rest = parse(sys.argv[1:])
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    raise_limit()
    try:
        with Keeper() as keeper:
            return Run(options, rest, keeper).code()
    except NoBroker as error:
        print(f"error: a broker is required, and there is none: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into our options and pytest's."""
    parser = argparse.ArgumentParser(
        prog="python -m tests", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--plain-only", action="store_true", help="only the plain process")
    only.add_argument("--patched-only", action="store_true", help="only the patched process")
    add("--long", action="store_true", help="the full sizes of the requirements")
    add("--seed", type=int, help="the order of the tests; printed by each run")
    add(
        "--require-brokers",
        action="store_true",
        default=are_required(),
        help=f"fail when a broker is missing; also {REQUIRE}=1 or CI=true",
    )
    return parser.parse_known_args(arguments)


@dataclass
class Side:
    """One of the two processes."""

    name: str
    process: subprocess.Popen[bytes]
    summary: Path
    output: Path | None

    def numbers(self) -> dict[str, int] | None:
        """How many tests passed, failed and were skipped; None when it did not come to its end."""
        try:
            numbers: dict[str, int] = json.loads(self.summary.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return numbers


class Run:
    """One run of the tests.

    Raises:
        NoBroker: one is required, and there is none.
    """

    def __init__(self, options: argparse.Namespace, rest: list[str], keeper: Keeper) -> None:
        self._options = options
        self._rest = rest
        self._keeper = keeper
        self._seed = random.randrange(2**32) if options.seed is None else options.seed
        names = [name for name in COMMANDS if not getattr(options, f"{other_of(name)}_only")]
        self._environments: dict[str, dict[str, str]] = {name: {} for name in names}
        self._rabbitmq: RabbitMQ | None = None

    def code(self) -> int:
        """Run both processes and return the exit code."""
        print(f"seed {self._seed}", flush=True)
        if needs_brokers(self._rest):
            self._offer("RabbitMQ", AMQP_URL, self._begin_rabbitmq)
            self._offer("Redis", REDIS_URL, self._begin_redis)
            self._fetch_pouchdb()
        sides = [self._begin(name) for name in self._environments]
        try:
            is_late = self._wait(sides)
        except KeyboardInterrupt:
            for side in sides:
                send(side.process.pid, signal.SIGINT)
            for side in sides:
                wait_for_end(side.process, INTERRUPT_TIMEOUT)
            self._report(sides)
            raise
        return self._report(sides) or is_late

    def _offer(self, name: str, variable: str, begin: Callable[[], None]) -> None:
        """Give the tests a broker: the user's, or one of their own."""
        if os.environ.get(variable):
            print(f"{name}: the one of {variable}")
            return
        try:
            begin()
        except NoBroker as error:
            if self._options.require_brokers:
                raise
            print(f"{name}: none, so the tests that need it are skipped: {error}")
        sys.stdout.flush()

    def _begin_rabbitmq(self) -> None:
        """Start RabbitMQ; the tests that need it wait until it is ready, the others do not."""
        broker = self._rabbitmq = RabbitMQ(self._keeper, vhosts=tuple(self._environments))
        broker.begin()
        print(f"RabbitMQ: {broker.server} at port {broker.port}")
        for name, environment in self._environments.items():
            environment[AMQP_URL] = broker.url_of(name)
            environment[AMQP_CTL] = str(broker.handle)

    def _begin_redis(self) -> None:
        broker = RedisServer(self._keeper)
        broker.start()
        print(f"Redis: {broker.server} at port {broker.port}")
        for number, environment in enumerate(self._environments.values(), 1):
            environment[REDIS_URL] = broker.url_of(number)

    def _fetch_pouchdb(self) -> None:
        """Fetch it, the first time, while other tests run; those that need it wait for it."""
        if not os.environ.get(COUCHDB_URL):
            log = self._keeper.directory / "output-pouchdb"
            self._keeper.run([sys.executable, "-m", "tests.brokers.pouchdb"], output=log, cwd=ROOT)

    def _begin(self, name: str) -> Side:
        """Start pytest.  The first process has the terminal, the second one writes to a file."""
        directory = self._keeper.directory
        summary = directory / f"summary-{name}"
        is_first = name == next(iter(self._environments))
        output = None if is_first else directory / f"output-{name}"
        command = [sys.executable, *COMMANDS[name], f"--randomly-seed={self._seed}"]
        command += ["-o", f"cache_dir={ROOT / '.pytest_cache' / name}"]
        if sys.stdout.isatty():
            command.append("--color=yes")
        if self._options.long:
            command.append("--long")
        environment = {
            **os.environ,
            **self._environments[name],
            "COLUMNS": str(shutil.get_terminal_size((100, 24)).columns),
            REQUIRE: "1" if self._options.require_brokers else "0",
            SUMMARY: str(summary),
        }
        if is_first:
            print(f"===== {name} =====", flush=True)
        process = self._keeper.run(
            [*command, *self._rest], env=environment, output=output, cwd=ROOT
        )
        return Side(name, process, summary, output)

    def _wait(self, sides: list[Side]) -> bool:
        """Wait for both; True when the time was up."""
        end = time.monotonic() + (LONG_RUN_TIMEOUT if self._options.long else RUN_TIMEOUT)
        running = list(sides)
        while running:
            if self._rabbitmq is not None and not self._rabbitmq.is_running:
                self._rabbitmq = None  # those who wait for it see its end, since it was reaped
            running = [side for side in running if side.process.poll() is None]
            if running and time.monotonic() > end:
                for side in running:
                    print(f"{side.name}: no end in time", file=sys.stderr)
                    self._keeper.end(side.process)
                return True
            time.sleep(STEP)
        return False

    def _report(self, sides: list[Side]) -> int:
        """Show the second process's output and the numbers; returns the exit code."""
        total = dict.fromkeys(KINDS, 0)
        code = 0
        has_run = any(side.process.returncode != NOTHING_TO_RUN for side in sides)
        for side in sides:
            if side.output is not None:
                print(f"\n===== {side.name} =====", flush=True)
                sys.stdout.buffer.write(side.output.read_bytes())
        print()
        for side in sides:
            numbers = side.numbers()
            ended = f"exit code {side.process.returncode}"
            if side.process.returncode != NOTHING_TO_RUN or not has_run:
                code = code or side.process.returncode or 0
            if numbers is None:
                code = code or 1
                print(f"{side.name + ':':<9}no numbers, {ended}")
                continue
            print(f"{side.name + ':':<9}{in_words(numbers)} ({ended})")
            for kind in KINDS:
                total[kind] += numbers[kind]
        print(f"seed {self._seed}")
        print(in_words(total), flush=True)
        return code if code >= 0 else 128 - code


def other_of(name: str) -> str:
    """The name of the other process."""
    return "plain" if name == "patched" else "patched"


def in_words(numbers: dict[str, int]) -> str:
    """The numbers as the closing line has them."""
    return ", ".join(f"{numbers[kind]} {kind}" for kind in KINDS)


def needs_brokers(rest: list[str]) -> bool:
    """Whether a test outside of tests/unit may run: only those use the shared brokers."""
    paths = [each.partition("::")[0] for each in rest if not each.startswith("-")]
    chosen = [path for path in map(Path, paths) if (ROOT / path).exists()]
    unit = ROOT / "tests" / "unit"
    return not chosen or not all((ROOT / path).resolve().is_relative_to(unit) for path in chosen)


if __name__ == "__main__":
    sys.exit(main())
