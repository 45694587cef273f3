"""The shares of the processes that run the tests together: whole files, by what each is known to take.

The same files in the same number of shares are always divided in the same way, whatever the seed, but
for the last ones: each is run by the process that comes to it first, so that all end at the same time.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from zlib import crc32

ROOT = Path(__file__).resolve().parent.parent
#: Seconds that the tests of a file take in each kind of process, as ``--learn`` noted them.
COSTS = Path(__file__).with_name("costs.json")
#: Names the share of a process: the number, a colon, and the file with everybody's.
SHARE = "GREENCONN_TEST_SHARE"
#: The share of a file that no process runs.
NOBODY = -1
#: The share of a file that the process runs which comes to it first.
ANYBODY = -2
#: Which part of all seconds such files take together, and the most that each may take.
LAST_PART = 0.25
LONGEST_LAST = 5.0
#: What may depend on the version of Python and on whether the process is patched: everything without
#: a broker, and with one the contracts that all transports keep, and the ways in which a program
#: publishes and consumes.
CORE = (
    "tests/unit/*",
    "tests/integration/test_*_contract.py",
    *(
        f"tests/integration/test_{name}.py"
        for name in (
            "amqp_tls",
            "connection_amqp",
            "messaging",
            "publishing",
            "rpc",
            "spawn_consumer",
        )
    ),
)
#: What may depend on the version of a server...
SERVED = ("tests/integration/*",)
#: ... but for programs over whatever is below them: it is tested by itself.
OVER_IT = tuple(
    f"tests/integration/test_{name}.py"
    for name in (
        *("benchmarks", "celery_*", "cli", "contrib_*", "django", "example*", "gunicorn"),
        *("commands", "other_threads", "outbox", "patching"),
    )
)
#: What follows the kind of process where the costs are those of a run that was not full.
SHORT = ", short"
#: Seconds for a file that is not noted: new, or too quick to be.
UNKNOWN = 1.0
#: The least that is noted.
LEAST = 1.0
#: One process more is worth it where at most this part of the longest time is left.
GAIN = 0.85

#: By how many seconds a process must be busier before another one has such a server of its own too,
#: for what the files whose tests use it have in their text.  ``side`` is each transport in turn.
#: RabbitMQ takes ten seconds of a core to start: all that need one are kept in one process.
SERVERS = {
    re.compile(r"\bown_rabbitmq"): 300.0,
    re.compile(r"\bmanaged_rabbitmq"): 300.0,
    re.compile(r"\b(side|couchdb)"): 8.0,
    re.compile(r"\b(side|sqs)"): 6.0,
    re.compile(r"\b(side|mongodb)"): 5.0,
    re.compile(r"\b(side|postgresql)"): 8.0,
}

#: Files with their seconds, or with the number of their share, as paths from the root.
Costs = dict[str, float]
Numbers = dict[str, int]
Pattern = re.Pattern[str]


def chosen_files(arguments: Iterable[str]) -> list[str]:
    """The test files below the paths among pytest's *arguments*; without any, all."""
    names = [each.partition("::")[0] for each in arguments if not each.startswith("-")]
    paths = [ROOT / name for name in names if (ROOT / name).exists()] or [ROOT / "tests"]
    found = {
        file.resolve().relative_to(ROOT).as_posix()
        for path in paths
        for file in ([path] if path.is_file() else path.rglob("test_*.py"))
        if file.resolve().is_relative_to(ROOT)
    }
    return sorted(found)


def is_core(file: str) -> bool:
    """Return whether a file, as a path from the root, is part of the core."""
    return any(fnmatch(file, pattern) for pattern in CORE)


def depends_on_server(file: str) -> bool:
    """Return whether a file, as a path from the root, may have tests of what a server does."""
    return any(fnmatch(file, pattern) for pattern in SERVED) and not any(
        fnmatch(file, pattern) for pattern in OVER_IT
    )


def chosen_kind(file: str, seed: int) -> str:
    """Return which kind of process runs what only one of the two is to run of a file."""
    return ("plain", "patched")[crc32(f"{seed} {file}".encode()) % 2]


def sample(cases: Iterable[str], count: int, seed: str) -> list[str]:
    """Return *count* of the cases of a test at most, the same ones in whatever order they come."""
    known = sorted(cases)
    return random.Random(seed).sample(known, min(count, len(known)))


def is_in_half(test: str, seed: object) -> bool:
    """Return whether a run has a test of which every other run, on average, has none."""
    return crc32(f"{seed} {test}".encode()) % 2 == 0


def known_costs(kind: str, is_full: bool) -> Costs:
    """Return what the files take in a *kind* of process, in full or without what is left to that."""
    costs: dict[str, Costs] = json.loads(COSTS.read_text())
    return costs.get(kind, {}) | ({} if is_full else costs.get(f"{kind}{SHORT}", {}))


def note_costs(costs: Mapping[str, Costs], is_full: bool) -> None:
    """Note what the files of a run took in each kind of process; others keep what was noted."""
    noted: dict[str, Costs] = json.loads(COSTS.read_text())
    for kind, files in costs.items():
        # Of a run that was not full: also what took less than in one that was.
        in_full = {} if is_full else noted.get(kind, {})
        name = kind if is_full else f"{kind}{SHORT}"
        others = {
            file: took
            for file, took in noted.get(name, {}).items()
            if file not in files and (ROOT / file).exists()
        }
        learned = {
            file: round(took, 1) for file, took in files.items() if took >= LEAST or file in in_full
        }
        noted[name] = dict(sorted((others | learned).items()))
    COSTS.write_text(json.dumps(noted, indent=1) + "\n")


def divide(files: Iterable[str], costs: Costs, count: int) -> Numbers:
    """Give each file the number of one of *count* shares: what needs servers first, then the dearest.

    It is the emptiest share, or one whose process has the servers that the file's tests need.  The
    dearest of the short files that need none are anybody's.
    """
    took, started = [0.0] * count, [frozenset[Pattern]()] * count
    by_cost = sorted(files, key=lambda file: (-costs.get(file, UNKNOWN), file))
    numbers: Numbers = dict.fromkeys(_last(by_cost, costs) if count > 1 else (), ANYBODY)
    for file in sorted(by_cost, key=lambda file: -sum(SERVERS[each] for each in servers_of(file))):
        if file in numbers:
            continue
        needed, cost = servers_of(file), costs.get(file, UNKNOWN)
        with_it = [
            seconds + cost + sum(SERVERS[each] for each in needed - there)
            for seconds, there in zip(took, started, strict=True)
        ]
        number = numbers[file] = with_it.index(min(with_it))
        took[number], started[number] = took[number] + cost, started[number] | needed
    return numbers


def _last(by_cost: list[str], costs: Costs) -> Iterator[str]:
    """Choose the files that are anybody's."""
    left = LAST_PART * seconds_of(by_cost, costs)
    for file in by_cost:
        cost = costs.get(file, UNKNOWN)
        if cost <= min(LONGEST_LAST, left) and not servers_of(file):
            left -= cost
            yield file


@cache
def servers_of(file: str) -> frozenset[Pattern]:
    """Return which servers of their own process the tests of a file use."""
    path = ROOT / file
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return frozenset(each for each in SERVERS if each.search(text))


def apportion(seconds: Mapping[str, float], each: int) -> dict[str, int]:
    """Give each kind its part of *each* times as many processes, or of one more, by what its files take.

    One more where the busiest is then done much sooner: a process of one kind cannot run the other's.
    """
    total = max(sum(seconds.values()), 1.0)

    def parts(count: int) -> dict[str, int]:
        return {kind: max(1, round(count * took / total)) for kind, took in seconds.items()}

    def longest(counts: dict[str, int]) -> float:
        return max(took / counts[kind] for kind, took in seconds.items())

    count = each * len(seconds)
    few, more = parts(count), parts(count + 1)
    is_worth_it = len(seconds) > 1 and sum(more.values()) == count + 1
    return more if is_worth_it and longest(more) < GAIN * longest(few) else few


def seconds_of(files: Iterable[str], costs: Costs) -> float:
    """Seconds for all *files*."""
    return sum(costs.get(file, UNKNOWN) for file in files)


@dataclass(frozen=True)
class Share:
    """What one process runs.  Files of which nobody knew are the first one's.

    The processes whose shares are in one file tell each other in a folder beside it what they have
    begun of what is anybody's.
    """

    number: int
    numbers: Numbers
    begun: Path
    _is_mine: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def taken(cls) -> Share | None:
        """That of this process, which those that it starts do not inherit; None: it runs all."""
        number, _, name = os.environ.pop(SHARE, "").partition(":")
        if not name:
            return None
        path = Path(name)
        begun = path.with_name(f"{path.name}-begun")
        begun.mkdir(exist_ok=True)
        return cls(int(number), json.loads(path.read_text()), begun)

    def may_have(self, path: Path) -> bool:
        """Return whether a file belongs to it, or to anybody."""
        return self.numbers.get(_named(path), 0) in (self.number, ANYBODY)

    def comes_last(self, path: Path) -> bool:
        """Return whether a file is anybody's."""
        return self.numbers.get(_named(path), 0) == ANYBODY

    def begin(self, path: Path) -> bool:
        """Return whether this process runs a file: it is its own, or no other one has begun it."""
        name = _named(path)
        if name not in self._is_mine:
            self._is_mine[name] = (
                self._is_first(name) if self.comes_last(path) else self.may_have(path)
            )
        return self._is_mine[name]

    def _is_first(self, name: str) -> bool:
        try:
            (self.begun / name.replace("/", ":")).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def _named(path: Path) -> str:
    """Return a file's path from the root."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
