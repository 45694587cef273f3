"""Findings: the results of the checks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

__all__ = ["Finding", "Outcome", "failed", "note", "ok", "warning"]


class Outcome(Enum):
    """The kinds of findings, from good to bad."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: what was looked at, in a word or two.
        text: what was seen.
        remedy: what to do; empty where nothing is to be done.
    """

    check: str
    outcome: Outcome
    text: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as a dict that JSON can hold."""
        return {**asdict(self), "outcome": self.outcome.value}


def ok(check: str, text: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding(check, Outcome.OK, text)


def note(check: str, text: str, remedy: str = "") -> Finding:
    """Return a finding that may be meant so."""
    return Finding(check, Outcome.NOTE, text, remedy)


def warning(check: str, text: str, remedy: str) -> Finding:
    """Return a finding that will cause trouble."""
    return Finding(check, Outcome.WARNING, text, remedy)


def failed(check: str, text: str, remedy: str = "") -> Finding:
    """Return a finding that keeps messages from passing."""
    return Finding(check, Outcome.FAILED, text, remedy)
