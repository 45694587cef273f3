"""The counts of instructions: paths that run, and limits."""

from __future__ import annotations

import json

import pytest

from benchmarks import instructions


def test_a_path_above_its_tolerance_is_named() -> None:
    limits = {"fast": 1000, "redis: deliver, handle, ack": 1000, "gone": 1}
    found = {"fast": 1020, "redis: deliver, handle, ack": 1080, "new": 5}
    assert instructions.exceeding(found, limits) == []
    found = {"fast": 1021, "redis: deliver, handle, ack": 1081, "new": 5}
    assert instructions.exceeding(found, limits) == ["fast", "redis: deliver, handle, ack"]


def test_the_limits_are_of_the_paths() -> None:
    for limits in json.loads(instructions.LIMITS.read_text()).values():
        assert set(limits) == set(instructions.PATHS)


def test_each_path_runs_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "COUNT", instructions.CALLERS)
    monkeypatch.setattr(instructions, "TURNS", 1)
    instructions.run_paths(dict.fromkeys(("memory", "amqp", "redis", "sqlite"), "memory://"))
