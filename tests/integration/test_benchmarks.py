"""Every benchmark runs; the figures of so few messages mean nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.boards import BOARDS, RABBITMQ, Board
from benchmarks.trend import ROOT
from tests.fix_postgresql import PostgresServers
from tests.integration.processes import Outcome, run

pytestmark = [pytest.mark.full, pytest.mark.programs]

#: Measured always; the others with ``--long``.  (kombu needs a minute for a thousand Redis queues.)
ALWAYS = {
    "rabbitmq": ("greenconn", "kombu"),
    "rabbitmq-load": ("greenconn",),
    "redis": ("greenconn",),
    "redis-cluster": ("greenconn",),
    "mongodb": ("greenconn",),
    "sqlite": ("greenconn",),
    "couchdb": ("greenconn",),
    "postgresql": ("greenconn",),
}
#: Not even then: kombu looks at each queue of PostgreSQL once a second.
NEVER = {("postgresql", "kombu")}
#: The fixtures that give the addresses of the brokers.
URLS = {
    "rabbitmq": "amqp_url",
    "rabbitmq-load": "amqp_url",
    "redis": "redis_url",
    "redis-cluster": "redis_cluster_url",
    "mongodb": "mongodb_server",
    "sqlite": "sqlite_module_url",
    "couchdb": "couchdb_server",
    "sqs": "sqs_url",
    "postgresql": "counting_postgresql_url",
}
PAIRS = [
    (board.name, rival)
    for board in BOARDS.values()
    for rival in board.rivals
    if (board.name, rival) not in NEVER
]


def benchmarks(board: Board, url: str, *arguments: str) -> Outcome:
    """Run ``python -m benchmarks`` with few messages."""
    chosen = ("--broker", board.name, "--url", url)
    return run(
        "-m", "benchmarks", *chosen, "--rounds", "1", "--count", "20", *arguments, timeout=500
    )


@pytest.fixture(scope="module")
def sqlite_module_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a file."""
    return f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/benchmark.db"


@pytest.fixture(scope="module")
def counting_postgresql_url(postgresql_servers: PostgresServers) -> str:
    """The address of a server that counts its statements."""
    return postgresql_servers("shared_preload_libraries = 'pg_stat_statements'").url


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """What all works of the rivals gave, each table when it is first asked for."""
    return {}


@pytest.fixture
def outcome(
    request: pytest.FixtureRequest, broker: str, outcomes: dict[str, Outcome], long: bool
) -> Outcome:
    """What all works of the rivals gave on *broker*."""
    if broker not in ALWAYS and not long:
        pytest.skip("runs only with --long")
    if broker not in outcomes:
        board = BOARDS[broker]
        rivals = [each for name, each in PAIRS if name == broker] if long else ALWAYS[broker]
        url = request.getfixturevalue(URLS[broker])
        outcomes[broker] = benchmarks(
            board, url, "--json", *(f"--rival={rival}" for rival in rivals)
        )
    return outcomes[broker]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("broker", BOARDS)
def test_nothing_fails(outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.errors
    assert json.loads(outcome.output)["failures"] == {}


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("broker", "rival"), PAIRS)
def test_each_work_is_measured(broker: str, rival: str, outcome: Outcome, long: bool) -> None:
    board = BOARDS[broker]
    if board.rivals[rival].version is None:
        pytest.skip(f"{rival} is not installed")
    if rival not in ALWAYS.get(broker, ()) and not long:
        pytest.skip("runs only with --long")
    if f"{rival} is skipped" in outcome.errors:
        pytest.skip(f"{rival} cannot be built")
    figures: dict[str, Any] = json.loads(outcome.output)["figures"]
    for name, work in board.works.items():
        if name in board.rivals[rival].cannot:
            assert rival not in figures.get(name, {})
            continue
        (measured,) = figures[name][rival]
        keys = {figure.key for figure in work.figures}
        if rival == "raw":
            keys -= {"memory", "p99"}  # it has no consumers in memory, and waits for no pool
        assert keys <= measured.keys(), name
        assert all(value >= 0 for value in measured.values()), name


def test_clients_in_other_languages_are_measured_or_skipped(amqp_url: str) -> None:
    rivals = ("rabbitmq-c", "amqp091-go")
    outcome = benchmarks(
        RABBITMQ, amqp_url, "--json", "--work=consume", *(f"--rival={rival}" for rival in rivals)
    )
    assert outcome.code == 0, outcome.errors
    figures = json.loads(outcome.output)["figures"].get("consume", {})
    for rival in rivals:
        assert (rival in figures) != (f"{rival} is skipped: " in outcome.errors)


@pytest.mark.parametrize("name", ["rabbitmq", "sqlite", "postgresql"])
def test_the_benchmark_of_processes_runs(name: str, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue(URLS[name])
    done = run(
        *("-m", "benchmarks.processes", "--broker", name, "--url", url, "--json"),
        *("--processes", "2", "--messages", "100"),
    )
    assert done.code == 0, done.errors
    assert [sum(row["shares"]) for row in json.loads(done.output)] == [100, 100, 100]


@pytest.mark.parametrize("name", ["rabbitmq", "redis", "postgresql", "sqlite"])
def test_the_benchmark_of_many_consumers_runs(name: str, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue(URLS[name])
    done = run(
        *("-m", "benchmarks.scale", "--broker", name, "--url", url),
        *("--consumers", "20", "--messages", "100", "--queues", "10", "--connections", "2"),
        *("--idle", "0.1"),
    )
    assert done.code == 0, done.errors
    figures = json.loads(done.output)
    assert figures["consumers"] == 20
    assert figures["client_kib"] > 0


def test_the_benchmark_of_bloat_runs(postgresql_database: str) -> None:
    done = run(
        *("-m", "benchmarks.bloat", "--url", postgresql_database),
        *("--rate", "100", "--seconds", "2", "--interval", "0.5"),
    )
    assert done.code == 0, done.errors
    rows = [json.loads(line) for line in done.errors.splitlines()]
    assert len(done.output.splitlines()) == 1 + len(rows)
    assert 0 < rows[-1]["consumed"] <= 200  # as many as were published in time
    assert rows[-1]["waiting"] == 0
    assert rows[-1]["table_kib"] > 0


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no earlier revision")
def test_the_trend_is_measured_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")  # of the group for benchmarks
    history, chart = tmp_path / "trend.jsonl", tmp_path / "trend.svg"
    for _ in range(2):
        done = run(
            *("-m", "benchmarks.trend", "--against", "HEAD", "--broker", "sqlite"),
            *("--rounds", "1", "--count", "200"),
            *("--history", str(history), "--chart", str(chart)),
        )
        assert done.code == 0, done.errors
    first, second = map(json.loads, history.read_text().splitlines())
    assert first.keys() == second.keys()
    assert first["ratios"].keys() == {"sqlite publish", "sqlite consume"}
    assert "sqlite publish" in chart.read_text()


def test_a_revision_that_does_not_exist_is_an_error() -> None:
    done = run("-m", "benchmarks.trend", "--against", "nonsense")
    assert done.code == 2
    assert "nonsense" in done.errors
