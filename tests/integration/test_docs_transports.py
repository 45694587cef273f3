"""The table of the page about transports says what the contract tests find."""

from __future__ import annotations

import re
import textwrap
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from greenconn.broker.entities import KNOWN, ArgumentOf
from greenconn.transport import TRANSPORT_ALIASES, resolve_transport, virtual
from tests.integration.capabilities import EVERYWHERE, KINDS, NO_SERVER, UNTESTED, Can, Kind
from tests.unit.test_docs import ROOT

PAGE = (ROOT / "docs" / "transports.rst").read_text()
#: Columns of the page.
WIDTH = 112
CONTRACTS = sorted((ROOT / "tests" / "integration").glob("test_*_contract.py"))


def cell(kind: Kind, can: Can) -> str:
    """What the table says of one capability of one transport."""
    why = kind.lacks.get(can)
    if why is None:
        return "yes"
    return "--" if why == NO_SERVER else "untested" if why.startswith(UNTESTED) else "no"


def everywhere() -> str:
    """What all can, as the page has to have it."""
    return textwrap.fill(f"All transports have: {'; '.join(EVERYWHERE)}.", WIDTH)


def table() -> str:
    """The table of what only some can, as the page has to have it."""
    titles = [kind.title for kind in KINDS.values()]
    rows = [[can.value, *(cell(kind, can) for kind in KINDS.values())] for can in Can]
    return rendered(["feature", *titles], rows)


def rendered(head: list[str], rows: list[list[str]]) -> str:
    """A table of docutils."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)

    def text(cells: list[str]) -> str:
        return "  ".join(map(str.ljust, cells, widths)).rstrip()

    return "\n".join([rule, text(head), rule, *map(text, rows), rule, ""])


def reasons() -> str:
    """Why some lack a feature, as the page has to have it."""
    found: dict[tuple[Can, str], list[str]] = {}
    for can in Can:
        for kind in KINDS.values():
            why = kind.lacks.get(can, NO_SERVER)
            if why != NO_SERVER:
                found.setdefault((can, why), []).append(kind.title)
    lines = []
    for can, group in groupby(found, lambda each: each[0]):
        texts = [f"{why} ({', '.join(found[can, why])})" for _, why in group]
        lines.append(
            textwrap.fill(f"- {can.value}: {'; '.join(texts)}", WIDTH, subsequent_indent="  ")
        )
    return "\n".join(lines) + "\n"


def argument_table() -> str:
    """The table of arguments as the page has to have it."""
    channels = {kind.title: channel_of(name) for name, kind in KINDS.items()}
    channels["virtual"] = virtual.Channel
    rows = []
    for kind in ArgumentOf:
        for name in KNOWN[kind]:
            cells = [argument_cell(each, kind, name) for each in channels.values()]
            if "yes" in cells:
                rows.append([f"{KIND_NAMES[kind]} ``{name}``", *cells])
    return rendered(["argument", *channels], rows)


#: What an argument is of, in the table.
KIND_NAMES = {
    ArgumentOf.QUEUE: "queue",
    ArgumentOf.EXCHANGE: "exchange",
    ArgumentOf.CONSUMER: "consumer",
    ArgumentOf.MESSAGE: "message",
}


def channel_of(name: str) -> Any:
    """The channel class of a kind of transport; None: the broker reads the arguments."""
    if name == "amqp":
        return None
    return resolve_transport("SQS" if name == "sqs" else name).Channel


def argument_cell(channel: Any, kind: ArgumentOf, name: str) -> str:
    """What the table says of one argument of one transport."""
    if channel is None:
        return "broker"
    return "yes" if name in channel.supported_arguments.of(kind) else "--"


def test_the_table_of_arguments_is_true() -> None:
    assert argument_table() in PAGE, f"docs/transports.rst must have:\n{argument_table()}"


@pytest.mark.parametrize("name", [each for each in KINDS if each != "amqp"])
def test_only_known_arguments_are_implemented(name: str) -> None:
    supported = channel_of(name).supported_arguments
    for kind in ArgumentOf:
        assert supported.of(kind) <= set(KNOWN[kind])


def test_the_table_is_true() -> None:
    assert everywhere() in PAGE, f"docs/transports.rst must have:\n{everywhere()}"
    assert table() in PAGE, f"docs/transports.rst must have:\n{table()}"
    assert reasons() in PAGE, f"docs/transports.rst must have:\n{reasons()}"


def contracts_in(path: Path) -> dict[str, str]:
    """The tests of a file: name -> decorators."""
    found = re.findall(r"^((?:@.*\n(?:    .*\n|\)\n)*)*)def (test_\w+)\(", path.read_text(), re.M)
    return {name: decorators for decorators, name in found}


@pytest.mark.parametrize("what", list(EVERYWHERE))
def test_what_all_can_is_shown_by_tests_without_conditions(what: str) -> None:
    tests = {name: text for path in CONTRACTS for name, text in contracts_in(path).items()}
    assert EVERYWHERE[what]
    for name in EVERYWHERE[what]:
        assert "needs(" not in tests[name], name


@pytest.mark.parametrize("can", list(Can))
def test_each_capability_has_a_test(can: Can) -> None:
    assert any(f"Can.{can.name}" in path.read_text() for path in CONTRACTS)


def test_each_transport_is_in_the_table() -> None:
    ours = {
        str(path).removeprefix("greenconn.transport.").split(":")[0].split(".")[0].lower()
        for path in TRANSPORT_ALIASES.values()
    }
    assert ours == {name.partition("+")[0] for name in KINDS}
