"""A chart of measured figures: a panel for each row of the table, a bar for each library.

Rows in which greenconn is alone have no panel.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final

from benchmarks.table import Report, number, plain

if TYPE_CHECKING:
    from benchmarks.works import Figure

COLUMNS: Final = 2
#: Inches of the whole, and the height of a bar and of the rest of a panel.
WIDTH: Final = 9.0
BAR: Final = 0.21
FRAME: Final = 0.55
#: Characters of a line of a title.
TITLE: Final = 52
#: Readable on a light and on a dark page.
OURS: Final = "#2f9e6e"
OTHERS: Final = "#8492a6"
TEXT: Final = "#7a8699"
STYLE: Final[dict[Any, Any]] = {
    "font.size": 8,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "greenconn",  # the same figures give the same file
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
}


def add_option(parser: argparse.ArgumentParser, drawn: str) -> None:
    """Add ``--chart FILE``, refused where matplotlib is missing: before minutes of measuring, not after.

    Arguments:
        parser: of a program that measures.
        drawn: what is drawn, for the help.
    """
    parser.add_argument("--chart", type=_drawable, metavar="FILE", help=f"draw {drawn} as SVG")


def _drawable(path: str) -> Path:
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise argparse.ArgumentTypeError(
            "matplotlib must be installed to draw: pip install --group bench"
        ) from None
    return Path(path)


def draw(report: Report, path: Path) -> None:
    """Write a chart as SVG.

    The length of a bar is the median; a thin line goes from the lowest to the highest round.  All panels
    begin at 0.

    Arguments:
        report: the figures.
        path: the file to write.

    Raises:
        OSError: the file cannot be written.
        ValueError: no two libraries were measured.
    """
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    panels = list(_panels(report))
    if not panels:
        raise ValueError("nothing to draw: no two libraries did the same work")
    rows = [panels[start : start + COLUMNS] for start in range(0, len(panels), COLUMNS)]
    most = max(len(bars) for _, bars in panels)
    height = FRAME + BAR * most
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, height * len(rows)), layout="constrained")
        axes = canvas.subplots(len(rows), COLUMNS, squeeze=False)
        for row, line in zip(rows, axes, strict=True):
            for place in line[len(row) :]:
                place.set_axis_off()
            for (figure, bars), place in zip(row, line, strict=False):
                _draw_panel(place, figure, bars)
                place.set_ylim(most - 0.5, -0.5)
        canvas.savefig(path, format="svg", transparent=True, metadata={"Date": None})


def _panels(report: Report) -> Iterator[tuple[Figure, list[tuple[str, list[float]]]]]:
    """Yield each row in which libraries can be compared, with the libraries and their rounds."""
    for work in report.works:
        for figure in report.board.works[work].figures:
            bars = [
                (report.board.rivals[rival].title, values)
                for rival in report.rivals
                if (values := report.results.values(work, rival, figure.key))
            ]
            if len(bars) > 1:
                yield figure, bars


def _draw_panel(axes: Any, figure: Figure, bars: list[tuple[str, list[float]]]) -> None:
    medians = [median(values) for _, values in bars]
    places = range(len(bars))
    colours = [OURS if title == "greenconn" else OTHERS for title, _ in bars]
    spread = [
        [middle - min(values) for middle, (_, values) in zip(medians, bars, strict=True)],
        [max(values) - middle for middle, (_, values) in zip(medians, bars, strict=True)],
    ]
    axes.barh(places, medians, height=0.7, color=colours)
    axes.errorbar(medians, places, xerr=spread, fmt="none", ecolor=TEXT, elinewidth=0.7)
    for place, middle, (_, values) in zip(places, medians, bars, strict=True):
        axes.annotate(
            number(middle), (max(values), place), (3, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(places, [title for title, _ in bars])
    unit = figure.unit.replace("us", "\u00b5s")
    title = fill(f"{plain(figure.title)} ({unit})", TITLE)
    axes.set_title(title, fontsize=8, loc="left", color=TEXT)
    axes.set_xlim(0, 1.12 * max(max(values) for _, values in bars))
    axes.set_xticks([])
    axes.tick_params(left=False)
    axes.spines[:].set_visible(False)
