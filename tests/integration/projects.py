"""The examples, run as their READMEs say."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess  # gevent's would take the end of every child, the brokers' tools' too
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.fix_wires import until
from tests.integration.gunicorn import Answer, fetch
from tests.integration.processes import HELD_UP, ROOT

EXAMPLES = ROOT / "examples"
#: Seconds that anything here may take.
SOON = 90.0
_COMMANDS = re.compile(r"^Run it\n-+\n.*?::\n\n((?:    [^\n]*\n)+)", re.MULTILINE | re.DOTALL)


def command_of(name: str) -> str:
    """Return the command that starts an example: the last one of the section "Run it"."""
    found = _COMMANDS.search((EXAMPLES / name / "README.rst").read_text())
    assert found is not None, f"no section 'Run it' with commands: {name}"
    return found[1].splitlines()[-1].strip()


class Project:
    """An example that runs in a copy of its folder; :meth:`end` in any case.

    Attributes:
        folder: the copy.
        code: the exit code, after :meth:`stop` or :meth:`wait`.
    """

    def __init__(self, name: str, within: Path, env: dict[str, str]) -> None:
        self.folder = within / name
        shutil.copytree(EXAMPLES / name, self.folder, ignore=shutil.ignore_patterns("__pycache__"))
        self._path = within / f"{name}.log"
        self._log = open(self._path, "wb")  # noqa: SIM115 - closed by end()
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        self._env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PORT": "0", **env}
        self._env["HOME"] = str(within)
        # Unbuffered, one call of print() writes several times, and others in between.
        self._env.pop("PYTHONUNBUFFERED", None)
        self._started: list[subprocess.Popen[bytes]] = []
        self._main = self.start(command_of(name))

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """Run a command as from a shell in its folder."""
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self.folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    @property
    def log(self) -> str:
        """All that its programs have written, without warnings of a busy machine."""
        return HELD_UP.sub("", self._path.read_text())

    def find(self, pattern: str) -> list[str]:
        """Return what matches in the log, or the group of each match."""
        return re.findall(pattern, self.log, re.MULTILINE)

    def wait_for(self, pattern: str, count: int = 1) -> list[str]:
        """Wait for so many matches in the log, and return them.  May switch."""

        def is_over() -> bool:
            return len(self.find(pattern)) >= count or all(
                each.poll() is not None for each in self._started
            )

        until(is_over, SOON, f"{count} times {pattern!r}")
        found = self.find(pattern)
        assert len(found) >= count, f"the programs ended without {count} times {pattern!r}"
        return found

    def processes(self, words: str) -> list[int]:
        """Return the processes whose command line contains *words*, parents first."""
        return [
            pid
            for pid in _of_sessions({each.pid for each in self._started})
            if words in _command_line(pid)
        ]

    def kill(self, pid: int) -> None:
        """End one of its processes without notice.  May switch."""
        os.kill(pid, signal.SIGKILL)
        until(lambda: not _command_line(pid), SOON, "the end of a killed process")

    def request(
        self, port: int | str, path: str, form: dict[str, str] | None = None, *, body: bytes = b""
    ) -> Answer:
        """GET *path*, or POST *form* or *body* to it.  May switch."""
        return fetch(int(port), path, form, body)

    def wait(self, process: subprocess.Popen[bytes] | None = None) -> int:
        """Wait until it, or one command, has ended, and return the code.  May switch."""
        ending = process or self._main
        until(lambda: ending.poll() is not None, SOON, "its end")
        return int(ending.returncode)

    def stop(self) -> None:
        """Send SIGTERM to the command of the README; all must end well.  May switch."""
        self._main.send_signal(signal.SIGTERM)
        assert self.wait() == 0
        assert "Traceback" not in self.log

    def end(self) -> None:
        """See that nothing of it is left."""
        for each in self._started:
            with suppress(ProcessLookupError):
                os.killpg(each.pid, signal.SIGKILL)
            each.wait()
        self._log.close()


@contextmanager
def project(name: str, within: Path, **env: str) -> Iterator[Project]:
    """An example for the time of a ``with``; its log is printed if that fails."""
    running = Project(name, within, env)
    try:
        yield running
    except BaseException:
        print(running.log)
        raise
    finally:
        running.end()


def _of_sessions(leaders: set[int]) -> list[int]:
    pids = sorted(int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit())
    found = []
    for pid in pids:
        with suppress(OSError):
            if os.getsid(pid) in leaders:
                found.append(pid)
    return found


def _command_line(pid: int) -> str:
    """Return the command line, which is empty when the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""
