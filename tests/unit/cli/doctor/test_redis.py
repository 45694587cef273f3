"""What is said of a Redis that cannot easily be brought into that state."""

from __future__ import annotations

from time import time
from typing import Any

import pytest
from redis.exceptions import NoPermissionError

from greenconn.cli.doctor import redis


class Connection:
    """A connection to a server with the given figures, or none that the user may see."""

    def __init__(self, info: dict[str, Any] | None, skew: float = 0.0) -> None:
        self.default_channel = self.client = self
        self._info = info
        self._skew = skew

    def info(self) -> dict[str, Any]:
        if self._info is None:
            raise NoPermissionError("this user has no permissions to run 'info'")
        return self._info

    def time(self) -> tuple[int, int]:
        now = time() + self._skew
        return int(now), int(now % 1 * 1e6)


def found(info: dict[str, Any] | None, skew: float = 0.0) -> dict[str, tuple[str, str]]:
    findings = redis.check_redis(Connection(info, skew))  # type: ignore[arg-type]
    return {each.check: (each.outcome.value, each.text) for each in findings}


@pytest.mark.parametrize(
    ("info", "check", "outcome", "text"),
    [
        ({"aof_enabled": 1}, "persistence", "ok", "survives its restart"),
        ({"aof_enabled": 0}, "persistence", "note", "loses"),
        ({"role": "slave"}, "role", "failed", "replica"),
        ({"role": "master", "connected_slaves": 2}, "role", "ok", "2 replicas"),
        ({"maxmemory": 10, "used_memory": 9}, "memory", "warning", "9 of 10"),
        ({"maxmemory": 10, "used_memory": 1}, "memory", "ok", "1 of 10"),
        ({"valkey_version": "9.1", "redis_version": "7.2"}, "server", "ok", "Valkey 9.1"),
    ],
)
def test_figures(info: dict[str, Any], check: str, outcome: str, text: str) -> None:
    seen = found(info)[check]
    assert (seen[0], text in seen[1]) == (outcome, True)


def test_a_snapshot_that_failed() -> None:
    info = {"rdb_last_bgsave_status": "err", "aof_enabled": 0}
    findings = list(redis.check_redis(Connection(info)))  # type: ignore[arg-type]
    assert "the last snapshot failed" in [each.text for each in findings]


@pytest.mark.parametrize(("skew", "outcome"), [(0.0, "ok"), (60.0, "warning"), (-60.0, "warning")])
def test_clocks(skew: float, outcome: str) -> None:
    seen = found({}, skew)["clock"]
    assert seen[0] == outcome
    if skew:
        assert ("before" if skew > 0 else "behind") in seen[1]


def test_a_user_who_may_not_ask() -> None:
    (seen,) = found(None).values()
    assert seen[0] == "note"
