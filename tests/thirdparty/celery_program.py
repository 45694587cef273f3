"""pytest for Celery's integration tests, in a process that is patched for gevent.

``celery_program.py WAY RESULTS ARGUMENTS``: each test that passed or failed is a line in the file
RESULTS; the other arguments are pytest's.
"""

from __future__ import annotations

import sys

from gevent import monkey

monkey.patch_all()

WAY, RESULTS = sys.argv[1:3]

if WAY == "install_as_kombu":
    from greenconn.compat import install_as_kombu

    install_as_kombu()
elif WAY == "contrib":
    import greenconn.contrib.celery  # noqa: F401 - gives kombu the schemes

import pytest  # noqa: E402 - what it imports is chosen above


class Results:
    """Writes down each result at once, as the run may be ended early."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "w", buffering=1)  # noqa: SIM115 - as long as the process

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a line for a step of a test: that it failed, or that the test itself passed."""
        if report.failed or (report.passed and report.when == "call"):
            self._file.write(f"{report.outcome} {report.nodeid}\n")


if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[3:], plugins=[Results(RESULTS)]))
