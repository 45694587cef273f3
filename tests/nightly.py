"""The checks that take too long for each change, one after the other.

``python -m tests --nightly`` runs them; names of steps after it choose some.  Each step writes its
output to a file, and the table at the end has the seconds and counts of each.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
#: Where the output of each step goes.
LOGS: Final = ROOT / "build" / "nightly"
PYTHON: Final = sys.executable
#: Name and command of each step.
STEPS: Final[dict[str, tuple[str, ...]]] = {
    # One process more of each kind: what only this run has waits more than it computes.
    "full": (PYTHON, "-m", "tests", "--full-once", "--processes", "4"),
    "newer-servers": (PYTHON, "-m", "tests", "--servers", "newer"),
    # The oldest pymongo: later ones do not talk to such a MongoDB.
    "older-servers": (
        *(".ci/on-python", "oldest", "--lower-bounds"),
        *("--servers", "older", "--full-once"),
    ),
    "newest-python": (".ci/on-python", "newest", "--core", "--patched-only"),
    "oldest-packages": (".ci/on-python", "oldest", "--lower-bounds", "--core", "--plain-only"),
    # gevent plans to make it the default one.
    "other-loop": (
        *("env", "GEVENT_LOOP=libev-cffi"),
        *(PYTHON, "-m", "tests", "--core", "--plain-only"),
    ),
    "kombu-suite": (PYTHON, "-m", "tests.compat.kombu_suite"),
    "docs": (".ci/docs",),
    "instructions": (PYTHON, "-m", "benchmarks.instructions", "--check"),
    "trend": (
        *(PYTHON, "-m", "benchmarks.trend"),
        *("--history", "build/nightly/trend.jsonl", "--chart", "build/nightly/trend.svg"),
    ),
    "thirdparty": (PYTHON, "-m", "tests.quality.thirdparty"),
    "latency": (PYTHON, "-m", "tests.quality.latency", "--full"),
    # One process of each kind: in full size a test loads the machine by itself.
    "long": (PYTHON, "-m", "tests", "--long", "--full-once", "--processes", "1"),
}
#: Closing line of a run of the tests.
_COUNTS: Final = re.compile(r"^(?:\w+: +)?(\d+ passed, \d+ failed.*)$", re.MULTILINE)


def main(chosen: list[str]) -> int:
    """Run the chosen steps, all if none is named, and return the exit code: 1 if one of them failed."""
    for name in chosen:
        if name not in STEPS:
            print(f"error: no step {name!r}; known: {', '.join(STEPS)}", file=sys.stderr)
            return 2
    LOGS.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in chosen or STEPS:
        log = LOGS / f"{name}.log"
        print(f"{name}: {' '.join(STEPS[name])} > {log.relative_to(ROOT)}", flush=True)
        began_at = time.monotonic()
        with log.open("wb") as output:
            code = subprocess.run(
                STEPS[name],
                cwd=ROOT,
                env={**os.environ, "GREENCONN_TEST_REQUIRE_BROKERS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            ).returncode
        rows.append((name, code, time.monotonic() - began_at, _summary(log)))
    print(f"\n{'step':<17}{'result':<9}{'seconds':>8}  counts")
    for name, code, seconds, summary in rows:
        print(f"{name:<17}{'passed' if code == 0 else 'FAILED':<9}{seconds:>8.0f}  {summary}")
    return int(any(code for _, code, _, _ in rows))


def _summary(log: Path) -> str:
    """Return the counts of a step, or its last line."""
    text = log.read_text(errors="replace")
    counts = _COUNTS.findall(text)
    return counts[-1] if counts else (text.strip().splitlines() or [""])[-1][:100]
