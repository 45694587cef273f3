"""A power failure: ``python -m tests.integration.power_failures FOLDER SYNCHRONOUS MESSAGES``.

Processes publish into a SQLite file and consume from it.  The file is on a file system in an image,
which only this process and its children see.  A copy of the image is what a disk has when the power
fails: it lacks all that the system has not written yet.  Prints what the file in the copy lacks.

Needs root and loop devices; exits with NOT_HERE otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from itertools import count
from pathlib import Path

import gevent

import greenconn

MODULE = "tests.integration.power_failures"
#: The exit code where images cannot be mounted.
NOT_HERE = 77
PUBLISHERS = 2
#: Greenlets of each.
GREENLETS = 3


def say(number: int) -> None:
    """Report a message that was confirmed, or that will be acknowledged.  Complete, or not at all."""
    os.write(1, b"%d\n" % number)


def publish(url: str, first: int) -> None:
    """Publish without end."""
    numbers = count(first, PUBLISHERS)
    app = greenconn.App(url)

    def run() -> None:
        while True:
            app.publish("q", number := next(numbers), declare=True)
            say(number)

    gevent.joinall([gevent.spawn(run) for _ in range(GREENLETS)], raise_error=True)


def consume(url: str) -> None:
    """Handle without end, fewer than are published."""

    def handle(body: int, message: greenconn.Message) -> None:
        gevent.sleep(0.01)
        say(body)

    greenconn.spawn_consumer("q", handle, connection=greenconn.Connection(url), prefetch_count=10)
    gevent.wait()


def mounted(image: Path, folder: Path) -> Path:
    """Mount an image; exit where that cannot be done."""
    folder.mkdir()
    # Its journal is written when a program asks for it, and not while the image is copied.
    command: list[str | Path] = ["mount", "-o", "loop,noatime,commit=600", image, folder]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        sys.exit(NOT_HERE)
    return folder


def lines(file: Path) -> set[int]:
    """Return the numbers that were reported in a file."""
    return set(map(int, file.read_text().split()))


def left(folder: Path) -> set[int]:
    """Return the numbers that a file still has."""
    # Those that consumers held come back when their leases end: they are not waited for.
    with closing(sqlite3.connect(folder / "file.db")) as file:
        return {int(body) for (body,) in file.execute("SELECT body FROM messages")}


def main(folder: Path, synchronous: str, messages: int) -> None:
    """Run it, and print the outcome."""
    image, copy = folder / "disk", folder / "copy"
    with open(image, "wb") as file:
        file.truncate(256 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    url = f"sqlite:///{mounted(image, folder / 'mounted')}/file.db?synchronous={synchronous}"
    started: list[tuple[subprocess.Popen[bytes], Path]] = []
    try:
        roles = [("publish", url, str(first)) for first in range(PUBLISHERS)] + [("consume", url)]
        for role in roles:
            said = folder / f"said-{len(started)}"
            with open(said, "wb") as output:
                command = [sys.executable, "-m", MODULE, *role]
                started.append((subprocess.Popen(command, stdout=output), said))
        while sum(len(said.read_bytes().split()) for _, said in started[:PUBLISHERS]) < messages:
            gevent.sleep(0.02)  # they run in other processes
        for process, _ in started:
            process.send_signal(signal.SIGSTOP)
        confirmed = lines(started[0][1]) | lines(started[1][1])
        handled = lines(started[2][1])
        shutil.copy(image, copy)
    finally:
        for process, _ in started:
            process.kill()
            process.wait()
    lost = confirmed - handled - left(mounted(copy, folder / "after"))
    print(json.dumps({"confirmed": len(confirmed), "handled": len(handled), "lost": len(lost)}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["publish", url, first]:
            publish(url, int(first))
        case ["consume", url]:
            consume(url)
        case ["apart", folder, synchronous, messages]:
            main(Path(folder), synchronous, int(messages))
        case arguments:
            apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
            if subprocess.run([*apart, "true"], check=False).returncode:
                sys.exit(NOT_HERE)
            os.execvp(apart[0], [*apart, sys.executable, "-m", MODULE, "apart", *arguments])
