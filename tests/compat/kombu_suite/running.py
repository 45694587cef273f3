"""A run of kombu's own unit tests on greenconn, and what is known to fail in it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from tests.compat.kombu_suite.source import adapted

#: Names of tests that fail, below a line with the reason.
KNOWN: Final = Path(__file__).with_name("known_failures.txt")
ROOT: Final = Path(__file__).parents[3]
#: Seconds for all of them, and for one.
RUN_TIMEOUT: Final = 600.0
TEST_TIMEOUT: Final = 30


@dataclass(frozen=True)
class Outcome:
    """What became of the tests.

    Arguments:
        passed: names of tests.
        failed: names of tests, each with the first line of its error.
        skipped: how many were skipped.
    """

    passed: frozenset[str]
    failed: Mapping[str, str]
    skipped: int

    def __str__(self) -> str:
        total = len(self.passed) + len(self.failed)
        return f"{len(self.passed)} of {total} passed, {self.skipped} skipped"


def run_suite(servers: Mapping[str, str] | None = None) -> Outcome:
    """Run kombu's tests on greenconn.

    Arguments:
        servers: where the brokers of its integration tests are, in its variables; None: without them.

    Raises:
        NoSource: kombu's source distribution cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="greenconn-kombu-") as folder:
        paths = adapted(Path(folder), with_brokers=servers is not None)
        root = Path(folder) / paths[0].relative_to(folder).parts[0]
        report = Path(folder) / "report.xml"
        subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "-p",
                    "no:randomly",
                    "-p",
                    "no:cacheprovider",
                ),
                *("--continue-on-collection-errors", f"--timeout={TEST_TIMEOUT}", "--tb=line"),
                *("--rootdir", str(root), f"--junit-xml={report}", *map(str, paths)),
            ],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(servers or {})},
            capture_output=True,
            timeout=RUN_TIMEOUT,
        )
        return _read(report)


def _read(report: Path) -> Outcome:
    passed: set[str] = set()
    failed: dict[str, str] = {}
    skipped = 0
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = _name(case.get("classname") or "", case.get("name") or "")
        problem = case.find("failure")
        problem = case.find("error") if problem is None else problem
        if problem is not None:
            failed[name] = (problem.get("message") or "").partition("\n")[0]
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed.add(name)
    return Outcome(frozenset(passed - failed.keys()), failed, skipped)


def _name(classname: str, name: str) -> str:
    """Return ``module::Class::test``, or the module where it could not be imported."""
    parts = [each for each in (*classname.split("."), name) if each]
    if "." in name and not classname:
        parts = name.split(".")
    return ".".join(parts).removeprefix("t.").removeprefix("unit.")


def known_failures() -> dict[str, str]:
    """Return the names of tests that are known to fail, each with the reason."""
    known: dict[str, str] = {}
    reason = ""
    for line in KNOWN.read_text("utf-8").splitlines():
        if line.startswith("# "):
            reason = line.removeprefix("# ")
        elif line.strip():
            known[line.strip()] = reason
    return known
