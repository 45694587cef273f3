"""The results of pytest's tests in another process, in a file."""

from __future__ import annotations

import pytest


class Results:
    """A plug-in that writes down each result at once, as the run may be ended early."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "w", buffering=1)  # noqa: SIM115 - as long as the process

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a line for a step of a test: that it failed, or that the test itself passed."""
        if report.failed or (report.passed and report.when == "call"):
            self._file.write(f"{report.outcome} {report.nodeid}\n")
