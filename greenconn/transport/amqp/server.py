"""The version of a RabbitMQ, which some of what it does depends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["rabbitmq_version"]


def rabbitmq_version(properties: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return major and minor version of a RabbitMQ; None if it is another broker or does not say.

    Arguments:
        properties: those that the server sent when the connection was opened.
    """
    if properties.get("product") != "RabbitMQ":
        return None
    parts = str(properties.get("version") or "").split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return None
