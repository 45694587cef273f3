"""Programs that tests run in an interpreter of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def printed(
    *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 150, cwd: Any = ROOT
) -> str:
    """Run Python with *arguments*, and return what it prints.  It must end with 0."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
