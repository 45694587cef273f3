"""The shares of the processes that run the tests."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.shares import (
    ANYBODY,
    CORE,
    OVER_IT,
    SHARE,
    Share,
    chosen_files,
    chosen_kind,
    depends_on_server,
    divide,
    is_core,
    is_in_half,
    sample,
)

ROOT = Path(__file__).resolve().parents[2]


def test_each_file_runs_in_full_in_one_kind_of_process_and_after_some_runs_in_both() -> None:
    for file in chosen_files([]):
        assert {chosen_kind(file, seed) for seed in range(32)} == {"plain", "patched"}
        assert chosen_kind(file, 1) == chosen_kind(file, 1)


def test_each_pattern_of_the_core_names_files() -> None:
    files = chosen_files([])
    for pattern in CORE:
        assert any(fnmatch(file, pattern) for file in files), pattern
    assert is_core("tests/unit/wire/test_body.py")
    assert is_core("tests/integration/test_routing_contract.py")
    assert not is_core("tests/integration/test_benchmarks.py")


def test_what_depends_on_a_server_is_neither_a_unit_nor_a_program_over_it() -> None:
    files = chosen_files([])
    for pattern in OVER_IT:
        assert any(fnmatch(file, pattern) for file in files), pattern
    assert depends_on_server("tests/integration/test_queue_contract.py")
    assert depends_on_server("tests/integration/brokers/test_redis_server.py")
    assert not depends_on_server("tests/integration/test_cli.py")
    assert not depends_on_server("tests/unit/wire/test_body.py")


@pytest.mark.parametrize(
    ("arguments", "some"),
    [
        ([], {"tests/unit/test_shares.py", "tests/compat/test_settled.py"}),
        (["-x", "tests/unit"], {"tests/unit/test_shares.py", "tests/unit/wire/test_body.py"}),
        (["tests/unit/test_shares.py::test_x[1]", "-k", "x"], {"tests/unit/test_shares.py"}),
    ],
)
def test_chosen_files(arguments: list[str], some: set[str]) -> None:
    found = chosen_files(arguments)
    assert some <= set(found)
    assert all((ROOT / file).is_file() for file in found)
    if arguments:
        assert all(file.startswith("tests/unit/") for file in found)


def test_each_seed_has_some_cases_and_all_seeds_have_all() -> None:
    cases = [f"case-{number}" for number in range(12)]
    chosen = [sample(cases, 3, str(seed)) for seed in range(40)]
    assert chosen == [sample(reversed(cases), 3, str(seed)) for seed in range(40)]
    assert {len(each) for each in chosen} == {3}
    assert set().union(*chosen) == set(cases)
    assert sorted(sample(cases, 20, "0")) == sorted(cases)


def test_each_seed_has_half_of_the_tests_and_some_seeds_have_all() -> None:
    tests = [f"tests/test_x.py::test_{number}" for number in range(1000)]
    halves = [{each for each in tests if is_in_half(each, seed)} for seed in range(20)]
    assert all(400 < len(half) < 600 for half in halves)
    assert set().union(*halves) == set(tests)


def test_shares_are_even_and_what_is_anybodys_is_begun_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [f"tests/test_{number}.py" for number in range(100)]
    costs = dict.fromkeys(files, 3.0) | {files[0]: 30.0}
    numbers = divide(files, costs, 3)
    assert numbers[files[0]] != ANYBODY
    last = {file for file, number in numbers.items() if number == ANYBODY}
    assert len(last) == 27  # a quarter of 327 seconds
    took = [sum(costs[file] for file in files if numbers[file] == each) for each in range(3)]
    assert max(took) - min(took) <= 3.0

    written = tmp_path / "shares"
    written.write_text(json.dumps(numbers))
    shares = []
    for number in range(3):
        monkeypatch.setenv(SHARE, f"{number}:{written}")
        share = Share.taken()
        assert share is not None
        shares.append(share)
    for file in files:
        mine = [share for share in shares if share.begin(ROOT / file)]
        assert len(mine) == 1
        assert mine[0].begin(ROOT / file)
        assert all(share.may_have(ROOT / file) for share in (shares if file in last else mine))
    assert divide(files, costs, 1) == dict.fromkeys(files, 0)
