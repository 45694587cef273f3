"""Run the tests: in plain processes and in monkey-patched ones, side by side, on own brokers.

Options that are not listed below go to pytest, as do paths.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from types import FrameType
from typing import NoReturn

from tests import nightly
from tests.brokers import newer, older
from tests.brokers.descriptors import raise_limit
from tests.brokers.environment import (
    AMQP_CTL,
    AMQP_URL,
    COUCHDB_URL,
    FULL,
    NEWER_AMQP_URL,
    ONCE,
    REDIS_SERVER,
    REDIS_URL,
    REQUIRE,
    SERVERS,
    are_required,
    is_full,
    is_full_once,
    servers,
)
from tests.brokers.keeper import Keeper, send, wait_for_end
from tests.brokers.packages import NoBroker
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import DATABASES, RedisServer
from tests.shares import (
    NOBODY,
    SHARE,
    UNKNOWN,
    Costs,
    apportion,
    chosen_files,
    chosen_kind,
    depends_on_server,
    divide,
    is_core,
    known_costs,
    note_costs,
    seconds_of,
)

ROOT = Path(__file__).resolve().parent.parent
SUMMARY = "GREENCONN_TEST_SUMMARY"
KINDS = ("passed", "failed", "skipped")
#: Seconds for all tests together; a run that takes longer hangs.
RUN_TIMEOUT = 3600.0
LONG_RUN_TIMEOUT = 4 * 3600.0
#: Seconds that pytest has after Ctrl-C to say what it was doing.
INTERRUPT_TIMEOUT = 10.0
STEP = 0.1
#: Processes of each kind, were they equally busy.  The tests wait at times, so there are more than
#: cores; each takes the processor for its start and for brokers of its own.
PROCESSES = 2
#: Seconds that are worth a process.
WORTH = 60.0
COMMANDS = {
    "plain": ("-m", "pytest"),
    # Programs that a test starts, and functions without a socket, are the same in all; another -m of
    # the user's comes later and wins.
    "patched": ("-m", "gevent.monkey", "--module", "pytest", "-m", "not programs and not pure"),
}
#: Which of the newer servers that speak Redis' protocol the processes of each kind have.
NEWER_REDIS = {"plain": "redis", "patched": "valkey"}
#: Exit code of pytest when all of the chosen paths were for other processes.
NOTHING_TO_RUN = 5


def main() -> int:
    """Run the tests and return the exit code."""
    options, rest = parse(sys.argv[1:])
    if options.nightly:
        return nightly.main(rest)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    raise_limit()
    # The tests start hundreds of programs: each would compile the library anew, and so would the
    # processes that begin at once.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(ROOT / "greenconn", quiet=2)
    if options.servers:
        os.environ[SERVERS] = options.servers
    try:
        with Keeper() as keeper:
            if servers() and not has_servers(keeper):
                return 0
            return Run(options, rest, keeper).code()
    except NoBroker as error:
        print(f"error: a broker is required, and there is none: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def has_servers(keeper: Keeper) -> bool:
    """Say which of the servers that are wanted there are, or why there are none."""
    try:
        if older.is_wanted():
            older.check(keeper.directory)
            versions = {"mongodb": "3.6", "couchdb": "1.6"}
        else:
            versions = newer.versions(keeper.directory)
            newer.find("redis-server", keeper.directory)
    except NoBroker as error:
        print(f"skipped: {servers()} servers cannot be had here: {error}")
        return False
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{servers()} servers: {said}")
    return True


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into our options and pytest's."""
    parser = argparse.ArgumentParser(
        prog="python -m tests", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--plain-only", action="store_true", help="only the plain processes")
    only.add_argument("--patched-only", action="store_true", help="only the patched processes")
    add(
        "--full",
        action="store_true",
        default=is_full(),
        help=f"also what only the nightly run needs; also {FULL}=1, or when files are named",
    )
    add(
        "--full-once",
        action="store_true",
        default=is_full_once(),
        help="the same, but what only the nightly run needs runs in one of the two kinds of "
        f"process, as the seed has it; also {FULL}={ONCE}",
    )
    add(
        "--core",
        action="store_true",
        help="only what may depend on the version of Python or on whether the process is patched",
    )
    add(
        "--servers",
        choices=["newer", "older"],
        help="only what depends on RabbitMQ, Redis or beanstalkd, on newer ones than this system's,"
        " the patched processes with Valkey instead of Redis; or only what depends on MongoDB or"
        " CouchDB, on older ones instead of what stands in for them",
    )
    add(
        "--nightly",
        action="store_true",
        help="what takes too long for each change, all of it or the named steps of "
        + ", ".join(nightly.STEPS),
    )
    add(
        "--long", action="store_true", help="only what has a full size, in that of the requirements"
    )
    add("--seed", type=int, help="the order of the tests; printed by each run")
    add(
        "--processes",
        type=int,
        choices=range(1, DATABASES // len(COMMANDS) - 1),  # there may be one more of them all
        default=PROCESSES,
        help=f"processes of each kind; {PROCESSES}, or fewer for few tests, and more of the busier kind",
    )
    add("--durations", type=int, default=0, help="the slowest tests to show, and the slowest files")
    add("--learn", action="store_true", help="note what each file takes, for later runs")
    add(
        "--require-brokers",
        action="store_true",
        default=are_required(),
        help=f"fail when a broker is missing; also {REQUIRE}=1 or CI=true",
    )
    options, rest = parser.parse_known_args(arguments)
    options.full = options.full or names_files(rest)
    return options, rest


@dataclass(frozen=True)
class Part:
    """What one process runs: a share of the files, in one of the two ways."""

    kind: str
    number: int
    of: int

    @property
    def name(self) -> str:
        """What it is called, in headings and for its virtual host."""
        return self.kind if self.of == 1 else f"{self.kind}-{self.number + 1}"


@dataclass
class Outcome:
    """What a process says at its end."""

    numbers: dict[str, int]
    failures: list[tuple[str, str]]
    skipped: dict[str, int]
    took: Costs
    durations: list[tuple[str, float, float]]


@dataclass
class Side:
    """One of the processes."""

    part: Part
    process: subprocess.Popen[bytes]
    summary: Path
    output: Path | None
    is_shown: bool = False
    #: Seconds after the beginning of the run.
    ended_at: float | None = None

    @property
    def name(self) -> str:
        """What it is called."""
        return self.part.name

    def outcome(self) -> Outcome | None:
        """How its tests ended; None when it did not come to its end."""
        try:
            return Outcome(**json.loads(self.summary.read_text()))
        except (FileNotFoundError, ValueError):
            return None

    def show(self) -> None:
        """Show what it wrote, once."""
        if self.output is not None and not self.is_shown:
            print(f"\n===== {self.name} =====", flush=True)
            sys.stdout.buffer.write(self.output.read_bytes())
            sys.stdout.flush()
        self.is_shown = True


class Run:
    """One run of the tests.

    Raises:
        NoBroker: one is required, and there is none.
    """

    def __init__(self, options: argparse.Namespace, rest: list[str], keeper: Keeper) -> None:
        self._options = options
        self._rest = rest
        self._keeper = keeper
        self._began_at = time.monotonic()
        self._seed = random.randrange(2**32) if options.seed is None else options.seed
        kinds = [kind for kind in COMMANDS if not getattr(options, f"{other_of(kind)}_only")]
        # The patched processes run some of the core in place of the plain ones, or repeat it all.
        is_full = options.full or options.full_once
        has_core_in_both = not is_full and len(kinds) > 1
        self._is_once = has_core_in_both and not options.core and not options.long
        files = {
            kind: self._files(kind, options.core or (has_core_in_both and kind == "patched"))
            for kind in kinds
        }
        costs = {kind: self._known_costs(kind, files[kind]) for kind in kinds}
        seconds = {kind: seconds_of(files[kind], costs[kind]) for kind in kinds}
        processes = apportion(seconds, options.processes)
        parts = [
            part
            for kind in kinds
            for part in self._divide(
                kind, files[kind], costs[kind], min(processes[kind], 1 + int(seconds[kind] / WORTH))
            )
        ]
        self._environments: dict[Part, dict[str, str]] = {part: {} for part in parts}
        self._rabbitmq: RabbitMQ | None = None

    def _files(self, kind: str, is_core_only: bool) -> list[str]:
        """Return the files that the processes of a kind run together."""
        chosen = chosen_files(self._rest)
        if servers() and not names_files(self._rest):
            chosen = [file for file in chosen if depends_on_server(file)]
        if kind == "patched":  # plain ones run what starts programs, of all files
            chosen = [file for file in chosen if not self._is_left_out(kind, file)]
        return [file for file in chosen if is_core(file)] if is_core_only else chosen

    def _is_left_out(self, kind: str, file: str) -> bool:
        """Return whether the processes of the other kind run a file."""
        return self._is_once and is_core(file) and chosen_kind(file, self._seed) != kind

    def _known_costs(self, kind: str, files: list[str]) -> Costs:
        """Return what the files take in processes of a kind."""
        costs = known_costs(noted_as(kind), is_full=True)
        if self._options.full:
            return costs
        short = known_costs(noted_as(kind), is_full=False)
        if not self._options.full_once:
            return short | {file: UNKNOWN for file in files if self._is_left_out(kind, file)}
        # What patched processes leave out runs in full in each plain one.
        others = known_costs(noted_as("patched"), is_full=True) if kind == "plain" else costs
        for file in files:
            if not self._is_full(kind, file):
                least = short.get(file, UNKNOWN)
                costs[file] = max(least, costs.get(file, 0.0) - others.get(file, 0.0))
        return costs

    def _is_full(self, kind: str, file: str) -> bool:
        """Return whether all tests of a file run in processes of a kind."""
        options = self._options
        return options.full or (options.full_once and chosen_kind(file, self._seed) == kind)

    def _divide(self, kind: str, files: list[str], costs: Costs, most: int) -> list[Part]:
        """Write down which of the *kind*'s processes, *most* at most, runs which files."""
        count = min(most, len(files))
        numbers = dict.fromkeys(chosen_files(self._rest), NOBODY) | divide(files, costs, count)
        self._shares(kind).write_text(json.dumps(numbers))
        return [Part(kind, number, count) for number in range(count)]

    def _shares(self, kind: str) -> Path:
        return self._keeper.directory / f"shares-{kind}"

    def code(self) -> int:
        """Run all processes and return the exit code."""
        print(f"seed {self._seed}", flush=True)
        if needs_brokers(self._rest):
            self._offer("RabbitMQ", AMQP_URL, self._begin_rabbitmq)
            self._offer("Redis", REDIS_URL, self._begin_redis)
            self._fetch_pouchdb()
        sides = [self._begin(part) for part in self._environments]
        try:
            is_late = self._wait(sides)
        except KeyboardInterrupt:
            for side in sides:
                send(side.process.pid, signal.SIGINT)
            for side in sides:
                wait_for_end(side.process, INTERRUPT_TIMEOUT)
            self._report(sides)
            raise
        code = self._report(sides) or is_late
        if self._options.learn:
            self._learn(sides)
        return code

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
        vhosts = tuple(part.name for part in self._environments)
        broker = self._rabbitmq = RabbitMQ(self._keeper, vhosts=vhosts)
        broker.begin()
        print(f"RabbitMQ: {broker.server} at port {broker.port}")
        for part, environment in self._environments.items():
            environment[AMQP_URL] = broker.url_of(part.name)
            environment[AMQP_CTL] = str(broker.handle)
            if newer.is_wanted():
                environment[NEWER_AMQP_URL] = environment[AMQP_URL]

    def _begin_redis(self) -> None:
        brokers: dict[str, RedisServer] = {}
        # The first and the last database stay empty.
        for number, (part, environment) in enumerate(self._environments.items(), 1):
            if newer.is_wanted():
                environment[REDIS_SERVER] = NEWER_REDIS[part.kind]
            program = environment.get(REDIS_SERVER, "redis")
            if program not in brokers:
                broker = brokers[program] = RedisServer(self._keeper, program=program)
                broker.start()
                print(f"Redis: {broker.server} at port {broker.port}")
            environment[REDIS_URL] = brokers[program].url_of(number)

    def _fetch_pouchdb(self) -> None:
        """Fetch it, the first time, while other tests run; those that need it wait for it."""
        if not os.environ.get(COUCHDB_URL):
            log = self._keeper.directory / "output-pouchdb"
            self._keeper.run([sys.executable, "-m", "tests.brokers.pouchdb"], output=log, cwd=ROOT)

    def _begin(self, part: Part) -> Side:
        """Start pytest for *part*.

        The first process has the terminal, the others write to files.
        """
        directory = self._keeper.directory
        summary = directory / f"summary-{part.name}"
        is_first = part == next(iter(self._environments))
        output = None if is_first else directory / f"output-{part.name}"
        command = [sys.executable, *COMMANDS[part.kind], f"--randomly-seed={self._seed}"]
        command += ["-o", f"cache_dir={ROOT / '.pytest_cache' / part.name}"]
        if {"--lf", "--last-failed"} & set(self._rest):
            command.append("--last-failed-no-failures=none")  # else it runs all where none failed
        if sys.stdout.isatty():
            command.append("--color=yes")
        if self._options.long:
            command.append("--long")
        if self._options.full:
            command.append("--full")
        elif self._options.full_once:
            command.append("--full-once")
        elif self._is_once:
            command.append("--once")
        environment = {
            **os.environ,
            **self._environments[part],
            "COLUMNS": str(shutil.get_terminal_size((100, 24)).columns),
            REQUIRE: "1" if self._options.require_brokers else "0",
            SUMMARY: str(summary),
            SHARE: f"{part.number}:{self._shares(part.kind)}",
        }
        if is_first:
            print(f"===== {part.name} =====", flush=True)
        process = self._keeper.run(
            [*command, *self._rest], env=environment, output=output, cwd=ROOT
        )
        return Side(part, process, summary, output)

    def _wait(self, sides: list[Side]) -> bool:
        """Wait for all, and show each when it has ended; True when the time was up."""
        end = time.monotonic() + (LONG_RUN_TIMEOUT if self._options.long else RUN_TIMEOUT)
        running = list(sides)
        while running:
            if self._rabbitmq is not None and not self._rabbitmq.is_running:
                self._rabbitmq = None  # those who wait for it see its end, since it was reaped
            for side in running:
                if side.process.poll() is not None:
                    side.ended_at = time.monotonic() - self._began_at
            running = [side for side in running if side.ended_at is None]
            if sides[0] not in running:  # the terminal is free
                for side in sides:
                    if side not in running:
                        side.show()
            if running and time.monotonic() > end:
                for side in running:
                    print(f"{side.name}: no end in time", file=sys.stderr)
                    self._keeper.end(side.process)
                return True
            time.sleep(STEP)
        return False

    def _report(self, sides: list[Side]) -> int:
        """Show what was not shown, the failures and the numbers; returns the exit code."""
        total = dict.fromkeys(KINDS, 0)
        code = 0
        has_run = any(side.process.returncode != NOTHING_TO_RUN for side in sides)
        for side in sides:
            side.show()
        print()
        outcomes = [(side, side.outcome()) for side in sides]
        skipped: Counter[str] = Counter()
        for _, outcome in outcomes:
            skipped.update(outcome.skipped if outcome is not None else {})
        for reason, number in skipped.most_common():
            print(f"skipped {number:>4}: {reason}")
        for side, outcome in outcomes:
            for failure, reason in outcome.failures if outcome is not None else ():
                print(f"FAILED {side.name + ':':<11}{failure}")
                print(indent(reason, " " * 8))
        for side, outcome in outcomes:
            ended = f"exit code {side.process.returncode}"
            if side.ended_at is not None:
                ended += f" after {side.ended_at:.0f} s"
            if side.process.returncode != NOTHING_TO_RUN or not has_run:
                code = code or side.process.returncode or 0
            if outcome is None:
                code = code or 1
                print(f"{side.name + ':':<11}no numbers, {ended}")
                continue
            print(f"{side.name + ':':<11}{in_words(outcome.numbers)} ({ended})")
            for kind in KINDS:
                total[kind] += outcome.numbers[kind]
        self._report_durations(outcomes)
        if not (self._options.full or self._options.full_once):
            print("--full runs what only the nightly run needs, too, and the core in both")
        print(f"seed {self._seed}, {time.monotonic() - self._began_at:.0f} s")
        print(in_words(total), flush=True)
        return code if code >= 0 else 128 - code

    def _report_durations(self, outcomes: list[tuple[Side, Outcome | None]]) -> None:
        """Show the slowest tests and files of all processes."""
        tests = []
        files: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for side, outcome in outcomes:
            for name, took, cpu in outcome.durations if outcome is not None else ():
                tests.append((took, cpu, f"{side.part.kind + ':':<8} {name}"))
                file = files[f"{side.part.kind + ':':<8} {name.partition('::')[0]}"]
                file[0] += took
                file[1] += cpu
        for what, rows in (
            ("tests", tests),
            ("files", [(took, cpu, name) for name, (took, cpu) in files.items()]),
        ):
            if count := self._options.durations:
                print(f"Slowest {what}: seconds, of the processor, name")
                for took, cpu, name in sorted(rows, reverse=True)[:count]:
                    print(f"{took:8.2f} {cpu:8.2f}  {name}")

    def _learn(self, sides: list[Side]) -> None:
        """Note what the files took, for later runs; not those of a kind of which a process died."""
        outcomes: defaultdict[str, list[Outcome | None]] = defaultdict(list)
        for side in sides:
            outcomes[side.part.kind].append(side.outcome())
        for in_full in (True, False):
            costs = {
                # All tests of a file may be left to the full run.
                noted_as(kind): {
                    file: sum(each.took.get(file, 0.0) for each in done if each is not None)
                    for file, number in json.loads(self._shares(kind).read_text()).items()
                    if number != NOBODY
                    and self._is_full(kind, file) is in_full
                    and not self._is_left_out(kind, file)
                }
                for kind, done in outcomes.items()
                if None not in done
            }
            note_costs({kind: each for kind, each in costs.items() if each}, in_full)


def other_of(name: str) -> str:
    """The other kind of process."""
    return "plain" if name == "patched" else "patched"


def noted_as(kind: str) -> str:
    """The name by which the costs of a kind of process are noted."""
    return f"{kind}, newer" if newer.is_wanted() else kind


def in_words(numbers: dict[str, int]) -> str:
    """The numbers as the closing line has them."""
    return ", ".join(f"{numbers[kind]} {kind}" for kind in KINDS)


def names_files(rest: list[str]) -> bool:
    """Return whether the user named a file or a test of one: it runs, whatever needs it."""
    paths = [Path(each.partition("::")[0]) for each in rest if not each.startswith("-")]
    return any(path.suffix == ".py" and (ROOT / path).is_file() for path in paths)


def needs_brokers(rest: list[str]) -> bool:
    """Whether a test outside of tests/unit may run: only those use the shared brokers."""
    paths = [each.partition("::")[0] for each in rest if not each.startswith("-")]
    chosen = [path for path in map(Path, paths) if (ROOT / path).exists()]
    unit = ROOT / "tests" / "unit"
    return not chosen or not all((ROOT / path).resolve().is_relative_to(unit) for path in chosen)


if __name__ == "__main__":
    sys.exit(main())
