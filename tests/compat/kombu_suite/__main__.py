"""Run kombu's own unit tests on greenconn, and tell what is not as the list of known failures says."""

from __future__ import annotations

import sys

from tests.compat.kombu_suite.running import known_failures, run_suite
from tests.compat.kombu_suite.source import SDIST, NoSource


def main() -> int:
    """Run them and return the exit code: 1 if a test fails that is not known to."""
    try:
        outcome = run_suite()
    except NoSource as exc:
        print(f"{exc}; name the archive in {SDIST}", file=sys.stderr)
        return 2
    known = known_failures()
    print(outcome)
    new = sorted(outcome.failed.keys() - known.keys())
    for name in new:
        print(f"fails, and is not known to: {name}: {outcome.failed[name]}")
    for name in sorted(known.keys() & outcome.passed):
        print(f"passes now, take it from the list: {name}")
    for name in sorted(known.keys() - outcome.passed - outcome.failed.keys()):
        print(f"is not among the tests, take it from the list: {name}")
    return 1 if new else 0


sys.exit(main())
