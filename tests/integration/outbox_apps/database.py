"""How the programs of these tests connect to their database."""

from __future__ import annotations

from typing import Any


def connect_arguments(url: str) -> dict[str, Any]:
    """Return arguments of the driver: on a busy machine a file is locked for longer than 5 s."""
    return {"timeout": 60} if url.startswith("sqlite:") else {}
