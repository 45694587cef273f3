"""Checks of a RabbitMQ, by its management API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from greenconn.cli.doctor.finding import Finding, failed, note, ok, warning
from greenconn.cli.errors import error_text
from greenconn.connection import Connection
from greenconn.exceptions import ManagementError, OperationalError

__all__ = ["check_rabbitmq"]

#: Part of a limit from which on it is close.
CLOSE: Final = 0.8
#: HTTP status of what the user may not see.
FORBIDDEN: Final = 403
#: Alarms of a node -> what to do; the broker takes no messages while one is raised.
ALARMS: Final = {
    "mem_alarm": ("memory", "consume, add memory, or raise vm_memory_high_watermark"),
    "disk_free_alarm": ("disk", "free some of its disk, or consume"),
}


def check_rabbitmq(connection: Connection) -> Iterator[Finding]:
    """Check nodes and alarms.  May switch."""
    manager = connection.get_manager()
    try:
        overview = manager.get_overview()
        yield ok("management", f"cluster {overview.get('cluster_name', '?')} answers")
        nodes = manager.get_nodes()
    except ManagementError as exc:
        if exc.code != FORBIDDEN:
            yield note("management", error_text(exc)[0], "check its user and password")
            return
        yield note(
            "management",
            "this user may not see the nodes: alarms and limits were not checked",
            "give it the tag 'monitoring'",
        )
        return
    except OperationalError as exc:
        yield note(
            "management",
            f"no answer ({error_text(exc.__cause__ or exc)[0]}): alarms, nodes and queues were not "
            f"checked",
            "enable the plugin rabbitmq_management, or name its port with ?manager_port=",
        )
        return
    for node in nodes:
        yield from _check_node(node)


def _check_node(node: Mapping[str, Any]) -> Iterator[Finding]:
    name = str(node.get("name", "?"))
    if not node.get("running", True):
        yield failed("node", f"{name} is not running", "start it: queues without it may not answer")
        return
    alarms = [each for each in ALARMS if node.get(each)]
    for each in alarms:
        what, remedy = ALARMS[each]
        yield failed("alarm", f"{name}: its {what} alarm blocks all publishers", remedy)
    if node.get("partitions"):
        others = ", ".join(node["partitions"])
        yield failed("partition", f"{name} does not see {others}", "join the nodes again")
    if not alarms:
        yield ok("node", f"{name} runs, without alarms")
    for used, limit, what in (
        ("mem_used", "mem_limit", "bytes of memory"),
        ("fd_used", "fd_total", "descriptors"),
        ("proc_used", "proc_total", "Erlang processes"),
    ):
        have, most = node.get(used) or 0, node.get(limit) or 0
        if isinstance(most, int) and most and have > CLOSE * most:
            text = f"{name} uses {have:,} of {most:,} {what}"
            yield warning("limits", text, "raise the limit, or lessen the load")
