"""The shares of the processes that run the tests."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests import shares
from tests.shares import (
    CORE,
    NOBODY,
    ONCE,
    OVER_IT,
    SHARE,
    Share,
    apportion,
    chosen_files,
    chosen_kind,
    depends_on_server,
    divide,
    is_core,
    known_costs,
    runs_once,
    seconds_of,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("is_full", [True, False])
def test_each_file_has_one_share_and_all_take_about_as_long(is_full: bool) -> None:
    files = chosen_files([])
    for kind in ("plain", "patched"):
        costs = known_costs(kind, is_full)
        numbers = divide(files, costs, 3)
        assert sorted(numbers) == files
        divided = [[file for file in files if numbers[file] == each] for each in range(3)]
        lengths = [seconds_of(share, costs) for share in divided]
        assert max(lengths) - min(lengths) <= max(costs[file] for file in costs)


def test_what_was_noted_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "costs.json"
    table.write_text('{"plain": {"gone": 9.0}, "patched": {"kept": 3.0}}')
    monkeypatch.setattr(shares, "COSTS", table)
    shares.note_costs({"plain": {"a": 10.04, "b": 5.0, "quick": 0.5}}, is_full=True)
    assert known_costs("plain", is_full=True) == {"a": 10.0, "b": 5.0}
    assert known_costs("patched", is_full=True) == {"kept": 3.0}
    shares.note_costs({"plain": {"a": 0.5, "c": 2.0, "quick": 0.5}}, is_full=False)
    assert known_costs("plain", is_full=True) == {"a": 10.0, "b": 5.0}
    assert known_costs("plain", is_full=False) == {"a": 0.5, "b": 5.0, "c": 2.0}
    assert known_costs("patched", is_full=False) == {"kept": 3.0}


def test_a_run_of_some_files_leaves_what_was_noted_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "costs.json"
    table.write_text('{"plain": {"gone": 9.0, "tests/conftest.py": 3.0, "tests/shares.py": 4.0}}')
    monkeypatch.setattr(shares, "COSTS", table)
    shares.note_costs({"plain": {"tests/shares.py": 0.1, "a": 2.0}}, is_full=True)
    assert known_costs("plain", is_full=True) == {"a": 2.0, "tests/conftest.py": 3.0}


def test_each_file_runs_in_full_in_one_kind_of_process_and_after_some_runs_in_both() -> None:
    for file in chosen_files([]):
        assert {chosen_kind(file, seed) for seed in range(32)} == {"plain", "patched"}
        assert chosen_kind(file, 1) == chosen_kind(file, 1)


def test_each_pattern_of_the_core_names_files() -> None:
    files = chosen_files([])
    for pattern in (*CORE, *ONCE):
        assert any(fnmatch(file, pattern) for file in files), pattern
    assert is_core("tests/unit/wire/test_acks.py")
    assert is_core("tests/integration/test_routing_contract.py")
    assert not is_core("tests/integration/test_benchmarks.py")
    assert runs_once("tests/unit/wire/test_acks.py")
    assert not runs_once("tests/integration/test_routing_contract.py")


def test_what_depends_on_a_server_is_neither_a_unit_nor_a_program_over_it() -> None:
    files = chosen_files([])
    for pattern in OVER_IT:
        assert any(fnmatch(file, pattern) for file in files), pattern
    assert depends_on_server("tests/integration/test_queue_contract.py")
    assert depends_on_server("tests/integration/brokers/test_redis_server.py")
    assert not depends_on_server("tests/integration/test_cli.py")
    assert not depends_on_server("tests/unit/wire/test_acks.py")


def test_it_does_not_depend_on_the_order() -> None:
    files = [f"tests/test_{number}.py" for number in range(20)]
    costs = {file: float(number % 5) for number, file in enumerate(files)}
    assert divide(files, costs, 4) == divide(reversed(files), costs, 4)


@pytest.mark.parametrize(
    ("arguments", "some"),
    [
        ([], {"tests/unit/test_shares.py", "tests/compat/test_settled.py"}),
        (["-x", "tests/unit"], {"tests/unit/test_shares.py", "tests/unit/wire/test_acks.py"}),
        (["tests/unit/test_shares.py::test_x[1]", "-k", "x"], {"tests/unit/test_shares.py"}),
    ],
)
def test_chosen_files(arguments: list[str], some: set[str]) -> None:
    found = chosen_files(arguments)
    assert some <= set(found)
    assert all((ROOT / file).is_file() for file in found)
    if arguments:
        assert all(file.startswith("tests/unit/") for file in found)


def test_the_first_share_has_what_nobody_knew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = tmp_path / "shares"
    numbers.write_text(json.dumps({"tests/a.py": 0, "tests/b.py": 1, "tests/c.py": NOBODY}))
    known = [
        ROOT / "tests/a.py",
        ROOT / "tests/b.py",
        tmp_path / "test_new.py",
        ROOT / "tests/c.py",
    ]
    has = []
    for number in range(2):
        monkeypatch.setenv(SHARE, f"{number}:{numbers}")
        share = Share.taken()
        assert share is not None
        has.append([share.has(file) for file in known])
    assert has == [[True, False, True, False], [False, True, False, False]]
    assert Share.taken() is None  # who is started from here runs what it is told


@pytest.mark.parametrize(
    ("plain", "patched", "wanted"),
    [
        (300.0, 300.0, (3, 3)),
        (400.0, 200.0, (4, 2)),
        (600.0, 1.0, (6, 1)),
        (0.0, 0.0, (1, 1)),
        (350.0, 250.0, (4, 3)),  # three of each would take 117 and 83 seconds, these 88 and 83
    ],
)
def test_the_busier_kind_has_more_processes(
    plain: float, patched: float, wanted: tuple[int, int]
) -> None:
    found = apportion({"plain": plain, "patched": patched}, 3)
    assert (found["plain"], found["patched"]) == wanted


def test_a_kind_alone_has_all() -> None:
    assert apportion({"plain": 700.0}, 3) == {"plain": 3}
