"""A power failure, on a file system whose disk is copied at that moment."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.integration.power_failures import MODULE, NOT_HERE
from tests.integration.processes import run


def test_confirmed_messages_survive(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        pytest.skip(
            "only root can mount a file system, and mkfs.ext4 must be installed to make one"
        )
    outcome = run("-m", MODULE, str(tmp_path), "FULL", "1000")
    if outcome.code == NOT_HERE:
        pytest.skip(f"no file system in a file can be mounted here: {outcome.errors}")
    assert outcome.code == 0, outcome
    found = json.loads(outcome.output)
    assert found["confirmed"] >= 1000
    assert found["lost"] == 0, found
