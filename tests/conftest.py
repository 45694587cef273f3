"""Options and fixtures that every test may use; the subjects have files of their own."""

from __future__ import annotations

import gc
import json
import logging
import os
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from gevent import get_hub, monkey
from hypothesis import HealthCheck, settings

from tests.brokers.environment import servers
from tests.shares import Share, chosen_kind, is_core, is_in_half, sample

pytest_plugins = [
    "tests.fix_brokers",
    "tests.fix_beanstalk",
    "tests.fix_couchdb",
    "tests.fix_leaks",
    "tests.fix_logs",
    "tests.fix_mongodb",
    "tests.fix_pauses",
    "tests.fix_peer",
    "tests.fix_postgresql",
    "tests.fix_redis_nodes",
    "tests.fix_relay",
    "tests.fix_scripted",
    "tests.fix_secrets",
    "tests.fix_sqs",
    "tests.fix_wires",
    "tests.fix_tls",
    "tests.fix_amqp",  # behind those that it builds on
]

#: Seconds for one test with --long, unless the command line or the test says otherwise.
LONG_TIMEOUT = 600.0
#: Where the runner wants the outcomes, as JSON.
SUMMARY = "GREENCONN_TEST_SUMMARY"
#: Characters of the reason of a failure that are said again at the end.
LONGEST_REASON = 1500
#: Of its log, the last ones.
LOG_LINES = 15
#: The servers that each choice of servers has: kinds of brokers, and fixtures of the tests that use one.
SERVED = {
    "newer": frozenset(
        {
            *("amqp", "redis", "redis+cluster", "beanstalk"),
            *("amqp_url", "newer_amqp_url", "rabbitmq", "own_rabbitmq", "managed_rabbitmq"),
            *("rabbitmq_cluster", "tls_rabbitmq"),
            *("redis_url", "own_redis", "redis_with", "sentinel_group", "large_sentinel_group"),
            *("redis_cluster", "own_redis_cluster", "durable_redis_cluster"),
            "beanstalk_servers",
        }
    ),
    "older": frozenset(
        {
            *("mongodb", "mongodb_server", "mongodb_set", "own_mongodb", "mongodb_with"),
            *("couchdb", "couchdb_server", "own_couchdb", "couchdb_with"),
        }
    ),
}
summary = pytest.StashKey["str | None"]()
share = pytest.StashKey["Share | None"]()
#: Seconds that the tests of each file took.
_took: defaultdict[str, float] = defaultdict(float)
#: Each test's node id, its seconds, and those of the processor, with the children that it ended.
_durations: list[tuple[str, float, float]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--long``, ``--full``, ``--full-once`` and ``--once``."""
    parser.addoption(
        "--long", action="store_true", help="run what has a full size, in that of the requirements"
    )
    parser.addoption("--full", action="store_true", help="run also what only the nightly run needs")
    parser.addoption(
        "--full-once",
        action="store_true",
        help="the same where it runs in this kind of process, as the seed has it",
    )
    parser.addoption(
        "--once",
        action="store_true",
        help="leave out of the core what the other kind of process runs, as the seed has it",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Settle what depends on ``--long``."""
    # A noisy machine makes a slow example, not a wrong one.
    quiet = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile("short", max_examples=50, **quiet)  # type: ignore[arg-type]
    settings.register_profile("long", max_examples=1000, **quiet)  # type: ignore[arg-type]
    is_long = config.getoption("--long")
    settings.load_profile("long" if is_long else "short")
    if is_long and config.getoption("timeout", None) is None:
        config.option.timeout = LONG_TIMEOUT
    # So that the search for secrets sees every line that could be logged.  pytest's own option sets
    # it six times a test, and each time the caches of all loggers are cleared.
    logging.getLogger().setLevel(logging.DEBUG)
    if monkey.is_module_patched("os"):
        # gevent does it after the first fork only, and then never learns of a child that has ended
        # by then: who waits for it waits for ever.
        get_hub().loop.install_sigchld()
    config.stash[share] = mine = Share.taken()
    if mine is not None:
        config.pluginmanager.register(_FirstCome(mine))
    config.stash[summary] = os.environ.pop(SUMMARY, None)
    gc.disable()  # until all is collected, of which nothing is garbage


class _FirstCome:
    """Leave out the tests of a file that another process has begun.

    A test is told which one follows, to keep the fixtures that both use: that is settled before.
    """

    def __init__(self, mine: Share) -> None:
        self._mine = mine
        self._begun = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Settle which test is the first one, and which follows it."""
        for number in range(2):
            self._settle(session.items, number)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Settle which test follows the next one."""
        self._begun += 1
        self._settle(item.session.items, self._begun + 1)

    def _settle(self, items: list[pytest.Item], number: int) -> None:
        while len(items) > number and not self._mine.begin(items[number].path):
            del items[number]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even read the files of other processes."""
    mine = config.stash[share]
    if mine is None or collection_path.suffix != ".py" or mine.may_have(collection_path):
        return None
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not this process's, and what is marked ``full`` or ``long`` without that option.

    A test that takes the fixture ``long`` has a short size too, so it runs always.  ``--long`` leaves
    out those that have one size.
    """
    if (mine := config.stash[share]) is not None:  # files that were named are read all the same
        may_have, comes_last = mine.may_have, mine.comes_last
        _select(config, items, lambda item: may_have(item.path))
        items.sort(key=lambda item: comes_last(item.path))
    if served := SERVED.get(servers()):
        _select(config, items, partial(_uses_one_of, served))
    if not config.getoption("--full"):
        _select(config, items, partial(_is_due, config))
        if not config.getoption("--full-once"):
            chosen = _samples(items, config.getoption("randomly_seed"))
            _select(config, items, lambda item: item.nodeid in chosen)
    if config.getoption("--long"):
        _select(config, items, _has_full_size)
        return
    skip = pytest.mark.skip(reason="runs only with --long")
    for item in items:
        if item.get_closest_marker("long") and not _asks_for_size(item):
            item.add_marker(skip)


def _select(
    config: pytest.Config, items: list[pytest.Item], is_wanted: Callable[[pytest.Item], bool]
) -> None:
    """Leave only the tests that are wanted, and report the others as deselected."""
    wanted: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        (wanted if is_wanted(item) else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = wanted


def _asks_for_size(item: pytest.Item) -> bool:
    """Return whether a test has both sizes, and asks which one is wanted."""
    return "long" in getattr(item, "fixturenames", ())


def _has_full_size(item: pytest.Item) -> bool:
    """Return whether a test is larger with ``--long``."""
    is_property = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
    is_long = item.get_closest_marker("long") is not None
    return is_property or is_long or _asks_for_size(item)


def _is_due(config: pytest.Config, item: pytest.Item) -> bool:
    """Return whether a test is to run here without ``--full``."""
    file = item.path.relative_to(config.rootpath).as_posix()
    is_full = item.get_closest_marker("full") is not None
    if is_full and not config.getoption("--full-once"):
        return False
    is_long = bool(config.getoption("--long") and config.getoption("--full-once"))
    if not (is_full or is_long) and not (config.getoption("--once") and is_core(file)):
        return True
    if item.get_closest_marker("programs") or item.get_closest_marker("pure"):
        return True  # it runs in no patched process
    kind = "patched" if monkey.is_module_patched("socket") else "plain"
    if config.getoption("--once") and "own_rabbitmq" in getattr(item, "fixturenames", ()):
        return kind == "plain"  # the start of one takes as long as hundreds of tests
    return chosen_kind(file, config.getoption("randomly_seed")) == kind


def _samples(items: list[pytest.Item], seed: object) -> set[str]:
    """Return the tests that remain when those marked ``sampled`` or ``halved`` run in part."""
    cases: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    chosen = set()
    for item in items:
        marker = item.get_closest_marker("sampled")
        if marker is None:
            if not item.get_closest_marker("halved") or is_in_half(item.nodeid, seed):
                chosen.add(item.nodeid)
        else:
            (count,) = marker.args
            cases[item.nodeid.partition("[")[0], count].append(item.nodeid)
    for (name, count), ids in cases.items():
        chosen.update(sample(ids, count, f"{seed} {name}"))
    return chosen


def _uses_one_of(served: frozenset[str], item: pytest.Item) -> bool:
    """Return whether a test talks to one of these servers."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    kind = params.get("side") or params.get("broker_kind")
    if kind is not None:
        return kind in served
    return not served.isdisjoint(getattr(item, "fixturenames", ()))


def pytest_collection_finish() -> None:
    """Take all that exists now out of the garbage collector's sight.

    It makes the collection and the search for greenlets after each test quick.
    """
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what its file takes."""
    _took[report.location[0]] += report.duration


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Note what the test takes with its fixtures."""
    # Collecting or comparing may have taken long, and a timeout counts from what the loop takes for now.
    get_hub().loop.update_now()
    began_at, cpu = time.monotonic(), cpu_time()
    result = yield
    _durations.append((item.nodeid, time.monotonic() - began_at, cpu_time() - cpu))
    return result


def cpu_time() -> float:
    """Return the processor's seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _reason(report: pytest.TestReport) -> str:
    """Return where and why a test failed, and what was logged last, in a few lines."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = f"{crash.path}:{crash.lineno}: {crash.message}" if crash else str(report.longrepr)
    if len(text) > LONGEST_REASON:
        text = f"{text[:LONGEST_REASON]}..."
    entries = getattr(getattr(report.longrepr, "reprtraceback", None), "reprentries", ())
    places = [each.reprfileloc for each in entries if getattr(each, "reprfileloc", None)]
    called = [f"called at {each.path}:{each.lineno}" for each in reversed(places[:-1])]
    return "\n".join([text, *called, *report.caplog.splitlines()[-LOG_LINES:]])


def _skip_reasons(reports: Sequence[pytest.TestReport]) -> dict[str, int]:
    """Return how many tests were skipped for each reason."""
    reasons: Counter[str] = Counter()
    for report in reports:
        where = report.longrepr
        reason = str(where[2]) if isinstance(where, tuple) else str(where)
        reasons[reason.removeprefix("Skipped: ")] += 1
    return reasons


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Tell the runner the outcomes."""
    path = config.stash[summary]
    if not path:
        return
    stats = terminalreporter.stats
    kinds = {
        "passed": ("passed", "xpassed"),
        "failed": ("failed", "error"),
        "skipped": ("skipped", "xfailed"),
    }
    numbers = {
        kind: sum(len(stats.get(name, ())) for name in names) for kind, names in kinds.items()
    }
    failures = [
        (report.nodeid, _reason(report))
        for name in kinds["failed"]
        for report in stats.get(name, ())
    ]
    outcome = {
        "numbers": numbers,
        "failures": failures,
        "skipped": _skip_reasons(stats.get("skipped", ())),
        "took": _took,
        "durations": _durations,
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(outcome, file)


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the test shall run the full figures of its requirement."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def patched() -> bool:
    """Whether this process is monkey-patched."""
    return bool(monkey.is_module_patched("socket"))


@pytest.fixture
def unique() -> str:
    """A name for queues, exchanges and keys that no other test uses."""
    return f"greenconn-test-{uuid.uuid4().hex[:12]}"
