"""After a fork the child begins anew, and the parent does not notice."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.integration.forking import SCENARIOS

pytestmark = pytest.mark.full

HOWS = ("os", "gevent", "multiprocessing")
TIMEOUT = 150.0


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_fork(scenario: str, amqp_url: str, unique: str, patched: bool, long: bool) -> None:
    """In the short size each scenario forks in one way, in the long one in all."""
    number = list(SCENARIOS).index(scenario)
    hows = HOWS if long else HOWS[number % 3 :][:1]
    for how in hows:
        run = [sys.executable, "-W", "error", "-m"]
        if patched:
            run += ["gevent.monkey", "--module"]
        run += ["tests.integration.forking", scenario, how, amqp_url, f"{unique}-{how}"]
        # On a busy machine gevent 26.9 misses the end of one watched child in twenty.
        environment = {**os.environ, "GEVENT_NOWAITPID": "1"}
        done = subprocess.run(run, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
        assert done.returncode == 0, f"{how}:\n{done.stdout}{done.stderr}"
        assert done.stdout == "done\n", f"{how}:\n{done.stdout}{done.stderr}"
        assert done.stderr == "", f"{how}:\n{done.stderr}"
