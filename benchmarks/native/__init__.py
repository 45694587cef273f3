"""Clients in C and Go: programs that are built when the benchmarks start."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: The variable that names the folder of the programs.
FOLDER: Final = "GREENCONN_BENCHMARK_PROGRAMS"
#: Where Debian has the packages of Go.
GO_PACKAGES: Final = "/usr/share/gocode"
SOURCES: Final = Path(__file__).parent


class CannotBuild(Exception):
    """A program cannot be built here."""


@dataclass(frozen=True)
class Native:
    """One client.

    Arguments:
        compiler: its program.
        needs: packages of Debian.
        command: the command that builds it as a file.
    """

    compiler: str
    needs: str
    command: Callable[[Path], list[str]]

    def build(self, folder: Path, name: str) -> None:
        """Build it in *folder* as *name*.

        Raises:
            CannotBuild: the compiler or the library is missing.
        """
        if shutil.which(self.compiler) is None:
            raise CannotBuild(f"there is no {self.compiler} (Debian: {self.needs})")
        packages = os.pathsep.join(filter(None, (os.environ.get("GOPATH"), GO_PACKAGES)))
        go = {"GO111MODULE": "off", "GOPATH": packages, "GOCACHE": str(folder / "cache")}
        done = subprocess.run(
            self.command(folder / name),
            env={**os.environ, **go},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if not line.startswith("#")]
            raise CannotBuild(f"{lines[0] if lines else 'no reason'} (Debian: {self.needs})")


def _c(target: Path) -> list[str]:
    return ["cc", "-O2", "-o", str(target), str(SOURCES / "client.c"), "-lrabbitmq"]


def _go(target: Path) -> list[str]:
    return ["go", "build", "-o", str(target), str(SOURCES / "client.go")]


NATIVE: Final = {
    "rabbitmq-c": Native("cc", "gcc, librabbitmq-dev", _c),
    "amqp091-go": Native("go", "golang-go, golang-github-rabbitmq-amqp091-go-dev", _go),
}


def program(name: str) -> Path:
    """Return the program of a client that was built."""
    return Path(os.environ[FOLDER], name)
