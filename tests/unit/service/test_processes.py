"""The manager of processes: it runs in a process of its own, which it blocks."""

from __future__ import annotations

from pathlib import Path

import pytest

from greenconn.service.processes import parse_address
from tests.integration.processes import run

pytestmark = [pytest.mark.programs]

MANAGER = """
import logging, sys
from greenconn.service.processes import ProcessManager
logging.basicConfig(level="INFO", format="%(message)s")
print(ProcessManager([sys.executable, "-c", sys.argv[1]], int(sys.argv[2])).run())
assert "gevent" not in sys.modules
"""
#: The shell is gone when the second process is started first, and there again afterwards.
WITHOUT_SHELL = """
import logging, os, sys
from greenconn.service import processes
shell, program = sys.argv[1:]

class Manager(processes.ProcessManager):
    def _start_missing(self):
        super()._start_missing()
        if not os.path.exists(shell):
            os.rename(shell + ".away", shell)

class Process(processes._Process):
    def __init__(self, index, command, listener):
        super().__init__(index, command, listener)
        if index == 0:
            os.rename(shell, shell + ".away")

processes._Process = Process
processes.KILL_MARGIN = 0.0
logging.basicConfig(level="INFO", format="%(message)s")
print(Manager([shell, "-c", program], 2, graceful_timeout=0.0).run())
"""
#: It looks at its processes only when all of them have ended.
TOGETHER = """
import logging, os, sys
from greenconn.service.processes import ProcessManager

class Manager(ProcessManager):
    def _wait(self):
        for process in self._serving.values():
            os.waitid(os.P_PID, process.child.pid, os.WEXITED | os.WNOWAIT)
        super()._wait()

logging.basicConfig(level="INFO", format="%(message)s")
print(Manager([sys.executable, "-c", sys.argv[1]], 3).run())
"""


def test_processes_that_cannot_start_at_the_same_time() -> None:
    outcome = run("-c", TOGETHER, "raise SystemExit(3)", timeout=20)
    assert outcome.code == 0, outcome.errors
    assert outcome.output == "3\n"
    assert outcome.errors.count("could not start the application: stopping") == 1


def test_an_application_that_cannot_start_ends_all() -> None:
    program = (
        "import os, signal, sys, time\n"
        "signal.pthread_sigmask(signal.SIG_SETMASK, ())\n"
        "time.sleep(99) if os.environ['GREENCONN_PROCESS'] == '0' else sys.exit(3)\n"
    )
    outcome = run("-c", MANAGER, program, "2")
    assert outcome.output == "3\n"
    assert "could not start the application: stopping" in outcome.errors


def test_what_asks_for_a_reload_is_started_again_at_once(tmp_path: Path) -> None:
    log = tmp_path / "lives"
    program = (
        "import sys\n"
        f"with open({str(log)!r}, 'a+') as log:\n"
        "    log.write('x')\n"
        "    count = log.tell()\n"
        "sys.exit(4 if count < 4 else 3)\n"
    )
    outcome = run("-c", MANAGER, program, "1")
    assert outcome.output == "3\n"
    assert log.read_text() == "xxxx"
    assert "another is started" not in outcome.errors


def test_what_ends_soon_is_started_again_later_and_later(tmp_path: Path) -> None:
    log = tmp_path / "lives"
    program = (
        "import sys\n"
        f"with open({str(log)!r}, 'a+') as log:\n"
        "    log.write('x')\n"
        "    count = log.tell()\n"
        "sys.exit(count if count < 3 else 3)\n"
    )
    outcome = run("-c", MANAGER, program, "1")
    assert outcome.output == "3\n"
    assert "exited with 1; another is started in 1 s" in outcome.errors
    assert "exited with 2; another is started in 2 s" in outcome.errors


def test_a_process_that_cannot_be_started_is_tried_later_and_spares_the_others(
    tmp_path: Path,
) -> None:
    shell = tmp_path / "sh"
    shell.symlink_to("/bin/sh")
    program = "[ $GREENCONN_PROCESS = 0 ] || exit 3; exec sleep 99"
    outcome = run("-c", WITHOUT_SHELL, str(shell), program)
    assert outcome.output == "3\n"
    assert "process 1 cannot be started, tried again in 1 s" in outcome.errors
    assert outcome.errors.count("was started") == 2


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8080", ("0.0.0.0", 8080)),
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "host", "host:", "1.5", "host:65536", "-1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="address must be a port, or host:port, got"):
        parse_address(text)
