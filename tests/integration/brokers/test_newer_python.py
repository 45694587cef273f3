"""The Python of a later Debian runs here like any other."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import newer_python
from tests.brokers.fetching import NoBroker

pytestmark = [pytest.mark.full, pytest.mark.programs]


def test_environments_are_made_with_it(tmp_path: Path) -> None:
    try:
        interpreter = newer_python.find()
    except NoBroker as error:
        pytest.skip(str(error))
    subprocess.run([interpreter, "-m", "venv", "--without-pip", tmp_path], check=True, timeout=100)
    program = "import os, ssl, sys; print(sys.version_info[1], sys.prefix, flush=True)"
    program += "; os.system('ls -d /')"  # which has this system's libraries
    made = subprocess.run(
        [tmp_path / "bin/python", "-c", program],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert made.stdout.split("\n")[:2] == [f"{newer_python.MINOR} {tmp_path}", "/"]
