"""The cost of a message by its size, in memory."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import sizes


def test_each_size_has_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sizes, "BYTES", 64 * sizes.LEAST)
    arguments = ["sizes", "--broker", "memory", "--sizes", "64", "1024", "--rounds", "1", "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert sizes.main() == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["size"], row["messages"]) for row in rows] == [(64, 6), (1024, 6)]
    assert all(row["publish"] > 0 and row["consume"] > 0 for row in rows)
