"""Checks of the values that options are given."""

from __future__ import annotations

import math

__all__ = ["check_callable", "check_count", "check_seconds", "check_type", "is_number", "shown"]


def is_number(value: object) -> bool:
    """Whether *value* is a finite number, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_seconds(options: object, *names: str, optional: bool = True) -> None:
    """Each is a number of seconds from 0 up, or (if *optional*) None."""
    for name in names:
        value = getattr(options, name)
        if (value is None and optional) or (is_number(value) and value >= 0):
            continue
        raise ValueError(
            f"{shown(options, name, value)}: it is a number of seconds from 0 up"
            + (", or None" if optional else "")
        )


def check_count(
    options: object, *names: str, least: int = 0, most: int | None = None, optional: bool = True
) -> None:
    """Each is a whole number from *least* to *most*, or (if *optional*) None."""
    for name in names:
        value = getattr(options, name)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if (value is None and optional) or (
            is_whole and value >= least and (most is None or value <= most)
        ):
            continue
        raise ValueError(
            f"{shown(options, name, value)}: it is a whole number from {least}"
            + (" up" if most is None else f" to {most}")
            + (", or None" if optional else "")
        )


def check_type(options: object, kind: type, *names: str, optional: bool = False) -> None:
    """Each is of type *kind* (0 and 1 are booleans too), or (if *optional*) None."""
    for name in names:
        value = getattr(options, name)
        is_flag = kind is bool and value in (0, 1)
        if not isinstance(value, kind) and not is_flag and not (value is None and optional):
            raise ValueError(f"{shown(options, name, value)}: it is of type {kind.__name__}")


def check_callable(options: object, *names: str) -> None:
    """Each is a callable, or None."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not callable(value):
            raise ValueError(f"{shown(options, name, value)}: it is a callable, or None")


def shown(options: object, name: str, value: object) -> str:
    """Name an option and its value, for a message: by the function that takes it, or by its class."""
    return f"{getattr(options, 'given_to', type(options).__name__)}.{name} is {value!r}"
