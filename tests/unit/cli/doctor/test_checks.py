"""What is said of a RabbitMQ or a Redis that cannot easily be brought into that state."""

from __future__ import annotations

from time import time
from typing import Any

import pytest
from redis.exceptions import NoPermissionError

from greenconn.cli.doctor import Finding, check_rabbitmq, check_redis
from greenconn.exceptions import ManagementError, OperationalError


class RabbitMQ:
    """A connection whose management API has the given nodes, or raises."""

    def __init__(self, nodes: Any) -> None:
        self._nodes = nodes

    def get_manager(self) -> Any:
        return self

    def get_overview(self) -> dict[str, str]:
        if isinstance(self._nodes, OperationalError) and not isinstance(
            self._nodes, ManagementError
        ):
            raise self._nodes
        return {"cluster_name": "all"}

    def get_nodes(self) -> Any:
        if isinstance(self._nodes, Exception):
            raise self._nodes
        return self._nodes


def found_of_rabbitmq(nodes: Any) -> list[Finding]:
    """Return what is found, but for the management API itself."""
    findings = list(check_rabbitmq(RabbitMQ(nodes)))  # type: ignore[arg-type]
    return findings[1:] if findings[0].outcome.value == "ok" else findings


@pytest.mark.parametrize(
    ("node", "check", "outcome", "text"),
    [
        ({"running": True}, "node", "ok", "runs, without alarms"),
        ({"running": False}, "node", "failed", "is not running"),
        ({"disk_free_alarm": True}, "alarm", "failed", "disk alarm blocks all publishers"),
        ({"partitions": ["b", "c"]}, "partition", "failed", "does not see b, c"),
        ({"fd_used": 90, "fd_total": 100}, "limits", "warning", "90 of 100 descriptors"),
        ({"mem_used": 9, "mem_limit": "infinity"}, "node", "ok", "runs"),
    ],
)
def test_nodes(node: dict[str, Any], check: str, outcome: str, text: str) -> None:
    worst = max(
        found_of_rabbitmq([{"name": "a", **node}]), key=lambda each: each.outcome.value != "ok"
    )
    assert (worst.check, worst.outcome.value) == (check, outcome)
    assert text in worst.text


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ManagementError(403, "not for you"), "monitoring"),
        (ManagementError(401, "who?"), "password"),
        (OperationalError("nothing answers"), "rabbitmq_management"),
    ],
)
def test_what_cannot_be_asked(error: Exception, remedy: str) -> None:
    (last,) = found_of_rabbitmq(error)
    assert last.outcome.value == "note"
    assert remedy in last.remedy


class Redis:
    """A connection to a server with the given figures, or none that the user may see."""

    def __init__(self, info: dict[str, Any] | None, skew: float = 0.0) -> None:
        self.default_channel = self.client = self
        self._info = info
        self._skew = skew

    def info(self) -> dict[str, Any]:
        if self._info is None:
            raise NoPermissionError("this user has no permissions to run 'info'")
        return self._info

    def config_get(self, name: str) -> dict[str, Any]:
        raise NoPermissionError("this user has no permissions to run 'config|get'")

    def time(self) -> tuple[int, int]:
        now = time() + self._skew
        return int(now), int(now % 1 * 1e6)


def found_of_redis(info: dict[str, Any] | None, skew: float = 0.0) -> dict[str, tuple[str, str]]:
    findings = check_redis(Redis(info, skew))  # type: ignore[arg-type]
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
def test_redis_figures(info: dict[str, Any], check: str, outcome: str, text: str) -> None:
    seen = found_of_redis(info)[check]
    assert (seen[0], text in seen[1]) == (outcome, True)


def test_redis_a_snapshot_that_failed() -> None:
    info = {"rdb_last_bgsave_status": "err", "aof_enabled": 0}
    findings = list(check_redis(Redis(info)))  # type: ignore[arg-type]
    assert "the last snapshot failed" in [each.text for each in findings]


@pytest.mark.parametrize(("skew", "outcome"), [(0.0, "ok"), (60.0, "warning"), (-60.0, "warning")])
def test_redis_clocks(skew: float, outcome: str) -> None:
    seen = found_of_redis({}, skew)["clock"]
    assert seen[0] == outcome
    if skew:
        assert ("before" if skew > 0 else "behind") in seen[1]


def test_redis_a_user_who_may_not_ask() -> None:
    (seen,) = found_of_redis(None).values()
    assert seen[0] == "note"
