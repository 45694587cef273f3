"""Pictures of the command line for the documentation: ``python docs/screenshots.py [URL]``.

Each command runs in a terminal of its own, which is emulated; what it shows becomes an SVG file in
``docs/static/screens``.  URL is a RabbitMQ, for the commands that show more there; without it they are
left out.
"""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from time import monotonic
from typing import Any, Final

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

HERE: Final = Path(__file__).resolve().parent
TARGET: Final = HERE / "static" / "screens"
COLUMNS: Final = 80
LINES: Final = 40
#: Names of pyte -> those of rich.
COLORS: Final = {"brown": "yellow", "brightblack": "bright_black"}


@dataclass(frozen=True)
class Shot:
    """A command and when to look at it.

    Attributes:
        after: seconds until the picture is taken; None: at the end of the command.
        setup: commands that run before, not shown.
        beside: commands that run meanwhile, not shown.
        shown: the command as it is shown; None: up to its URL.
    """

    name: str
    command: str
    after: float | None = None
    setup: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    shown: str | None = None


def main() -> int:
    """Make all pictures; return the exit code."""
    broker = sys.argv[1] if len(sys.argv) > 1 else None
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for shot in shots(broker):
            print(shot.name, flush=True)
            for command in shot.setup:
                subprocess.run(
                    command, shell=True, check=True, cwd=folder, stdout=subprocess.DEVNULL
                )
            (TARGET / f"{shot.name}.svg").write_text(picture(shot, folder), encoding="utf-8")
    return 0


def shots(broker: str | None) -> list[Shot]:
    """Return what is shown; *broker* is the URL of a RabbitMQ, if there is one."""
    file = "sqlite:///mail.db"
    found = [
        Shot("demo", "greenconn demo --chaos", after=9.0),
        Shot("bench", "greenconn bench -u memory://"),
        Shot(
            "peek",
            f"greenconn peek mail -u {file} --count 1",
            setup=(
                f"""greenconn publish mail '{{"to": "ada@example.org"}}' --json --declare -u {file}""",
            ),
        ),
    ]
    if broker is not None:
        more = f"-u '{broker}'"
        shop = (("shop.mail", 300), ("shop.orders", 1200), ("shop.audit", 20))
        found += [
            Shot("doctor", f"greenconn doctor '{broker}'", shown="greenconn doctor amqp://..."),
            Shot(
                "top",
                f"greenconn top 'shop.*' -i 1 {more}",
                after=10.0,
                setup=tuple(
                    f"seq {count} | greenconn publish {name} --declare {more}"
                    for name, count in shop
                ),
                beside=(
                    f"while true; do seq 90 | greenconn publish shop.audit {more}; done >/dev/null",
                    f"greenconn consume shop.audit {more} >/dev/null",
                    f"while true; do greenconn consume shop.orders -n 60 {more}; done >/dev/null",
                ),
                shown="greenconn top 'shop.*'",
            ),
        ]
    return found


def picture(shot: Shot, folder: str) -> str:
    """Run a command in a terminal, and return what it shows as SVG."""
    others = [
        subprocess.Popen(each, shell=True, cwd=folder, start_new_session=True)
        for each in shot.beside
    ]
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.environ.update(TERM="xterm-256color", COLUMNS=str(COLUMNS), LINES=str(LINES))
        os.execvp("sh", ["sh", "-c", f"exec {shot.command}"])
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    end = monotonic() + (120.0 if shot.after is None else shot.after)
    while (left := end - monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            try:
                stream.feed(os.read(terminal, 65536))
            except OSError:
                break  # it has ended
    shown = text_of(screen)
    for other in others:
        os.killpg(other.pid, signal.SIGTERM)
        other.wait()
    os.kill(process, signal.SIGINT)
    os.waitpid(process, 0)
    os.close(terminal)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "bold green"), shot.shown or shot.command.split(" -u ")[0]))
    console.print(shown)
    return console.export_svg(title="greenconn")


def text_of(screen: pyte.Screen) -> Text:
    """Return what a terminal shows, without the empty lines below."""
    lines: list[Text] = []
    for number in range(screen.lines):
        row = screen.buffer[number]
        line = Text()
        for column in range(screen.columns):
            line.append(row[column].data, style_of(row[column]))
        line.rstrip()
        lines.append(line)
    while lines and not lines[-1].plain:
        lines.pop()
    return Text("\n").join(lines)


def style_of(cell: Any) -> Style:
    """Return the style of one character of the terminal."""
    color, background = (
        None if each == "default" else COLORS.get(each, each) for each in (cell.fg, cell.bg)
    )
    return Style(color=_hex(color), bgcolor=_hex(background), bold=cell.bold, reverse=cell.reverse)


def _hex(color: str | None) -> str | None:
    is_number = (
        color is not None and len(color) == 6 and all(c in "0123456789abcdef" for c in color)
    )
    return f"#{color}" if is_number else color


if __name__ == "__main__":
    sys.exit(main())
