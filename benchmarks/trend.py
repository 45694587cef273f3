"""``python -m benchmarks.trend``: the cost of a message beside that of an earlier revision.

Both are measured in turn, five rounds, each on a broker of its own.  A ratio above 1 is a message that
costs more CPU time now.  ``--history`` appends the ratios to a file, a line a run, and ``--chart`` draws
all runs of that file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.boards import BOARDS, Board
from benchmarks.chart import OTHERS, OURS, STYLE, TEXT, add_option
from benchmarks.runner import run
from benchmarks.servers import broker
from benchmarks.table import plain

ROOT: Final = Path(__file__).resolve().parent.parent
#: What is measured, by board.
WORKS: Final[Mapping[str, Sequence[str]]] = {
    "rabbitmq": ("publish", "confirmed_shared", "consume", "spawned", "rpc_shared"),
    "redis": ("publish", "consume", "queues"),
    "sqlite": ("publish", "consume"),
    "postgresql": ("publish", "consume"),
}
#: What is compared with where there is no release yet.
AGE: Final = "7 days ago"
#: Panels beside each other, and the inches of one.
COLUMNS: Final = 3
PANEL: Final = (3.0, 1.6)


class Row(NamedTuple):
    """The ratio of a work, of each round."""

    board: str
    work: str
    ratios: list[float]

    @property
    def title(self) -> str:
        """What is measured, for people."""
        return f"{self.board}: {plain(BOARDS[self.board].works[self.work].figures[0].title)}"


def main() -> int:
    """Measure what the command line names."""
    options = _arguments()
    console = Console(stderr=True)
    try:
        against = options.against or _earlier()
        with _source(against) as source:
            rows = list(_measured(source, options, console))
        revision = _git("rev-parse", "--short", against).decode().strip()
    except subprocess.CalledProcessError as exc:
        print(f"error: {exc.stderr.decode().strip() or exc}", file=sys.stderr)
        return 2
    if not rows:
        print(f"error: nothing that is measured runs at {revision}", file=sys.stderr)
        return 1
    _print(rows, revision)
    if options.history is not None:
        _append(options.history, rows, revision)
        if options.chart is not None:
            draw(_read(options.history), options.chart)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trend",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--against", metavar="REVISION", help=f"of git: the last release, else that of {AGE}")
    add("--broker", choices=WORKS, action="append", help="only on this one; may be repeated")
    add("--rounds", type=int, default=5, help="how often each is measured (5)")
    add("--count", type=int, default=10_000, help="messages of a measurement (10,000)")
    add("--history", type=Path, metavar="FILE", help="append the ratios to this file")
    add_option(parser, "the history")
    options = parser.parse_args()
    if options.chart is not None and options.history is None:
        parser.error("--chart must be given with --history")
    return options


# -- the two revisions


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout


def _earlier() -> str:
    """Return the last release, else the last revision that is older than :data:`AGE`."""
    try:
        return _git("describe", "--tags", "--abbrev=0", "HEAD^").decode().strip()
    except subprocess.CalledProcessError:
        found = _git("rev-list", "-1", f"--before={AGE}", "HEAD").decode().strip()
        return found or _git("rev-list", "--max-parents=0", "HEAD").decode().split()[0]


@contextmanager
def _source(revision: str) -> Iterator[Path]:
    """Yield a folder that has the package as it was."""
    with TemporaryDirectory(prefix="greenconn-benchmark-") as folder:
        packed = _git("archive", revision, "greenconn")
        with tarfile.open(fileobj=BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder)


# -- measuring


def _measured(source: Path, options: argparse.Namespace, console: Console) -> Iterator[Row]:
    names = options.broker or list(WORKS)
    total = sum(len(WORKS[name]) for name in names) * options.rounds
    with Progress(console=console) as progress:
        task = progress.add_task("", total=total)
        for name in names:
            board = BOARDS[name]
            ratios: dict[str, list[float]] = {work: [] for work in WORKS[name]}
            with broker(board.name) as before, broker(board.name) as now:
                for _ in range(options.rounds):
                    for work in ratios:
                        progress.update(task, advance=1, description=f"{name}, {work}")
                        ratio = _ratio(board, work, options.count, {source: before, None: now})
                        if isinstance(ratio, str):
                            console.print(f"{name}, {work}: {ratio}", markup=False, soft_wrap=True)
                        else:
                            ratios[work].append(ratio)
            yield from (Row(name, work, found) for work, found in ratios.items() if found)


def _ratio(board: Board, work: str, count: int, places: Mapping[Path | None, str]) -> float | str:
    """Return the cost of a message now to that of before, or why there is none.

    Arguments:
        places: the folder of the package of before, and None for that of now; each with its broker.
    """
    key = board.works[work].figures[0].key
    costs: list[float] = []
    for source, url in places.items():
        figures = run(board, "greenconn", work, count, url, source)
        if isinstance(figures, str):
            lines = [line for line in figures.splitlines() if line[:1].isalpha()]
            return (lines or [figures])[-1]
        costs.append(figures[key])
    before, now = costs
    return now / before


# -- showing


def _print(rows: Sequence[Row], against: str) -> None:
    table = Table(title=f"CPU time a message, to that of {against}")
    table.add_column("work")
    table.add_column("median (lowest to highest)", justify="right")
    for row in rows:
        low, high = min(row.ratios), max(row.ratios)
        table.add_row(row.title, f"{median(row.ratios):.2f} ({low:.2f} to {high:.2f})")
    Console().print(table)


def _append(history: Path, rows: Sequence[Row], against: str) -> None:
    line = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "revision": _git("rev-parse", "--short", "HEAD").decode().strip(),
        "against": against,
        "ratios": {f"{row.board} {row.work}": row.ratios for row in rows},
    }
    history.parent.mkdir(parents=True, exist_ok=True)
    with history.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _read(history: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in history.read_text().splitlines() if line.strip()]


def draw(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a chart as SVG: a panel for each work, a point for each run, its spread as a line.

    Arguments:
        runs: the lines of a history, oldest first.
        path: the file to write.

    Raises:
        OSError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    works = list(dict.fromkeys(work for each in runs for work in each["ratios"]))
    lines = -(-len(works) // COLUMNS)
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(PANEL[0] * COLUMNS, PANEL[1] * lines), layout="constrained")
        axes = canvas.subplots(lines, COLUMNS, squeeze=False).flat
        for work, place in zip(works, axes, strict=False):
            points = [
                (n, each["ratios"][work]) for n, each in enumerate(runs) if work in each["ratios"]
            ]
            numbers = [number for number, _ in points]
            place.axhline(1.0, color=OTHERS, linewidth=0.7)
            place.vlines(
                numbers,
                [min(r) for _, r in points],
                [max(r) for _, r in points],
                color=TEXT,
                lw=0.7,
            )
            place.plot(numbers, [median(r) for _, r in points], color=OURS, marker=".", lw=1)
            place.set_title(work, fontsize=8, loc="left", color=TEXT)
            place.set_xticks([0, len(runs) - 1], [runs[0]["date"], runs[-1]["date"]])
            place.set_ylim(bottom=0)
            place.spines[:].set_visible(False)
        for place in list(axes)[len(works) :]:
            place.set_axis_off()
        canvas.savefig(path, format="svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
