"""Units of time (kombu.utils.time)."""

from __future__ import annotations

__all__ = ["maybe_s_to_ms"]


def maybe_s_to_ms(v: float | None) -> int | None:
    """Return seconds as whole milliseconds, and None as it is."""
    return None if v is None else int(float(v) * 1000.0)
