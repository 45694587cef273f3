"""The audit of what greenconn needs: what it says, and when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.programs

AUDIT = Path(__file__).resolve().parents[2] / ".ci" / "audit"
KNOWN = {"id": "PYSEC-2026-1", "fix_versions": ["99.0"]}

#: What stands for pip-audit: it reports *answer* for each package that it is given.
FAKE = """
import json, sys
answer = json.loads({answer!r})
lines = open(sys.argv[sys.argv.index("--requirement") + 1]).read().split()
names = [line.split("==") for line in lines]
print(json.dumps({{"dependencies": [{{"name": n, "version": v, **answer}} for n, v in names]}}))
"""


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ({"vulns": []}, 0, "packages audited\n"),
        ({"vulns": [KNOWN]}, 1, "PYSEC-2026-1, mended in 99.0"),
        ({"skip_reason": "not found"}, 0, "0 of"),
    ],
)
def test_what_it_says(tmp_path: Path, answer: dict[str, Any], code: int, said: str) -> None:
    (tmp_path / "pip_audit.py").write_text(FAKE.format(answer=json.dumps(answer)))
    done = audit(tmp_path)
    assert said in done.stdout
    assert done.returncode == code


def test_a_service_that_is_away_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "pip_audit.py").write_text("raise SystemExit('no network')")
    done = audit(tmp_path)
    assert done.stdout == "no audit: no network\n"
    assert done.returncode == 0


def test_it_looks_at_what_is_needed_in_turn(tmp_path: Path) -> None:
    (tmp_path / "pip_audit.py").write_text(FAKE.format(answer=json.dumps({"vulns": [KNOWN]})))
    names = {line.split()[0] for line in audit(tmp_path).stdout.splitlines()[1:]}
    assert {"amqp", "vine", "gevent", "zope.event", "click"} <= names
    assert not names & {"greenconn", "pytest", "ruff", "celery"}


def audit(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(AUDIT)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=150,
    )
