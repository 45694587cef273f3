"""What is said of a RabbitMQ whose nodes cannot easily be brought into that state."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.cli.doctor import rabbitmq
from greenconn.cli.doctor.finding import Finding
from greenconn.exceptions import ManagementError, OperationalError


class Connection:
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


def found(nodes: Any) -> list[Finding]:
    """Return what is found, but for the management API itself."""
    findings = list(rabbitmq.check_rabbitmq(Connection(nodes)))  # type: ignore[arg-type]
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
    worst = max(found([{"name": "a", **node}]), key=lambda each: each.outcome.value != "ok")
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
    (last,) = found(error)
    assert last.outcome.value == "note"
    assert remedy in last.remedy
