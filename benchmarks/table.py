"""The table, for people, for documents and for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median

from rich.table import Table

from benchmarks.boards import RABBITMQ, Board
from benchmarks.runner import Results
from benchmarks.works import Figure

TITLE = (
    "client CPU time a message unless said otherwise: median of {rounds} rounds (lowest to highest)"
)


@dataclass(frozen=True)
class Report:
    """What was measured.

    Arguments:
        results: the figures.
        works, rivals: in the order of the table.
        rounds: how often each was measured.
        budget: whether to show what greenconn may cost.
        board: the table that it is of.
    """

    results: Results
    works: list[str]
    rivals: list[str]
    rounds: int
    budget: bool = False
    board: Board = RABBITMQ
    #: It was measured on; empty: on this one, now.
    machine: str = ""

    @classmethod
    def read(cls, text: str, board: Board) -> Report:
        """Return the report that :meth:`json` returned as *text*.

        Raises:
            ValueError: it is of another board, or no report.
        """
        try:
            read = json.loads(text)
            figures, failures = read["figures"], read["failures"]
            results = Results(
                {
                    (work, rival): rounds
                    for work in figures
                    for rival, rounds in figures[work].items()
                },
                {(work, rival): why for work in failures for rival, why in failures[work].items()},
            )
            machine = str(read["machine"])
        except (KeyError, TypeError, AttributeError, ValueError) as exc:
            raise ValueError(f"these are not figures that --json printed: {exc!r}") from None
        pairs = [*results.figures, *results.failures]
        for work, rival in pairs:
            if work not in board.works or rival not in board.rivals:
                raise ValueError(
                    f"figures of {work!r} by {rival!r} are not of {board.name}: give --broker"
                )
        works = [work for work in board.works if any(work == pair[0] for pair in pairs)]
        rivals = [rival for rival in board.rivals if any(rival == pair[1] for pair in pairs)]
        rounds = max((len(each) for each in results.figures.values()), default=0)
        return cls(results, works, rivals, rounds, board=board, machine=machine)

    def text(self) -> Table:
        """The table for a terminal."""
        table = Table(title=TITLE.format(rounds=self.rounds))
        for number, heading in enumerate(self._headings()):
            table.add_column(heading, justify="right" if number else "left")
        for row in self._rows():
            table.add_row(*map(plain, row))
        return table

    def rst(self) -> str:
        """The table for a document."""
        rows = [self._headings(), *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        ruler = "  ".join("=" * width for width in widths)
        lines = [_joined(row, widths) for row in rows]
        return "\n".join([ruler, lines[0], ruler, *lines[1:], ruler])

    def json(self) -> str:
        """All figures of all rounds."""
        figures: dict[str, dict[str, list[dict[str, float]]]] = {}
        for (work, rival), rounds in self.results.figures.items():
            figures.setdefault(work, {})[rival] = rounds
        failures: dict[str, dict[str, str]] = {}
        for (work, rival), reason in self.results.failures.items():
            failures.setdefault(work, {})[rival] = reason
        report = {"machine": self._machine(), "figures": figures, "failures": failures}
        return json.dumps(report, indent=2)

    def notes(self) -> Iterator[str]:
        """What was measured on, and why cells are empty."""
        yield self._machine()
        for work in self.works:
            reasons: dict[str, list[str]] = {}
            for rival in self.rivals:
                reason = self.board.rivals[rival].cannot.get(work)
                failure = self.results.failures.get((work, rival))
                if failure is not None:
                    reason = f"failed: {failure.splitlines()[-1]}"
                if reason:
                    reasons.setdefault(reason, []).append(self.board.rivals[rival].title)
            for reason, titles in reasons.items():
                yield f"{plain(self.board.works[work].figures[0].title)}: {', '.join(titles)}: {reason}"

    def _headings(self) -> list[str]:
        headings = ["work", "unit", *(self.board.rivals[rival].title for rival in self.rivals)]
        return [*headings, "budget"] if self.budget else headings

    def _rows(self) -> Iterator[list[str]]:
        for work in self.works:
            for figure in self.board.works[work].figures:
                cells = [self._cell(work, rival, figure) for rival in self.rivals]
                row = [figure.title, figure.unit, *cells]
                yield [*row, self._budget(work, figure)] if self.budget else row

    def _cell(self, work: str, rival: str, figure: Figure) -> str:
        values = self.results.values(work, rival, figure.key)
        if not values:
            return "failed" if (work, rival) in self.results.failures else "--"
        middle = number(median(values))
        if len(values) == 1:
            return middle
        return f"{middle} ({number(min(values))} to {number(max(values))})"

    def _budget(self, work: str, figure: Figure) -> str:
        if figure.budget is None:
            return ""
        medians = {
            rival: median(values)
            for rival in self.rivals
            if (values := self.results.values(work, rival, figure.key))
        }
        limit, ours = figure.budget.limit(medians), medians.get("greenconn")
        if limit is None or ours is None:
            return str(figure.budget)
        return f"{number(limit)} ({'met' if ours <= limit else f'over by {number(ours - limit)}'})"

    def _machine(self) -> str:
        """Where it was measured."""
        if self.machine:
            return self.machine
        python = f"{platform.python_implementation()} {platform.python_version()}"
        gevent = f"gevent {version('gevent')}"
        rivals = [
            f"{each.distribution} {each.version}"
            for each in self.board.rivals.values()
            if each.version
        ]
        load = f"load {os.getloadavg()[0]:.1f}"
        return ", ".join([f"{os.cpu_count()} CPUs", load, python, gevent, *rivals])


def plain(markup: str) -> str:
    """Without the marks of reStructuredText."""
    return markup.replace("``", "")


def number(value: float) -> str:
    """Three digits or so."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _joined(row: list[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
