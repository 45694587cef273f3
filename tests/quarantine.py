"""The quarantine: tests that are known to be flaky, each with the reason.

They run, and their failures are reported at the end, but do not fail the run.  The list may only shrink:
mend the race, take the test out, and lower ``LIMIT``.
"""

from __future__ import annotations

from typing import Final

import pytest

__all__ = ["LIMIT", "PREFIX", "QUARANTINED", "quarantine"]

#: Node ids of tests, with or without parameters, and why each is here.
QUARANTINED: Final[dict[str, str]] = {}
#: The largest number of entries.  Never raise it.
LIMIT: Final = 0
#: Beginning of the reason that a report of a quarantined test has.
PREFIX: Final = "quarantined: "


def quarantine(items: list[pytest.Item]) -> None:
    """Mark those of *items* that are in the list."""
    for item in items:
        name = item.nodeid
        reason = QUARANTINED.get(name) or QUARANTINED.get(name.partition("[")[0])
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=PREFIX + reason, strict=False))
