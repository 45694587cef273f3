"""Each check for things left behind finds what is planted for it, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.loops import IS_DEFAULT

FOLDER = Path(__file__).resolve().parent
PLANTED = "planted_leaks.py"

#: The planted test and what the message must name.
LEFT = {
    "test_leaves_greenlet": r"greenlet <Greenlet \"planted\".*planted_leaks.py",
    "test_leaves_disabled_logging": "disabled logging",
    "test_leaves_raw_greenlet": "greenlet <.*planted_leaks.py",
    "test_leaves_socket": r"socket \d+ from \('0.0.0.0', 0\), not connected",
    "test_leaves_connected_sockets": r"socket \d+ from '' to ''(?s:.*)socket \d+ from",
    "test_leaves_forgotten_socket": "ResourceWarning: unclosed <socket object, fd=",
    "test_leaves_socket_in_a_cycle": "ResourceWarning: unclosed",
    "test_leaves_error_in_greenlet": r"error in the hub: LookupError: planted \(in <Greenlet",
    # gevent's other loops are in Python, and raise the error through it.
    "test_leaves_error_in_timer": r"error in the hub: LookupError: planted \(in <.*timer"
    if IS_DEFAULT
    else "LookupError: planted",
    "test_leaves_error_in_peer": "error in the hub: LookupError: planted.*peer",
    "test_leaves_error_in_log": r"error in the log: .*planted.*: LookupError\('planted'\)",
    "test_leaves_error_in_del": "LookupError: planted",
    "test_leaves_error_in_del_of_a_cycle": "LookupError: planted",
    "test_leaves_thread": "thread 'planted'|greenlet <",
    "test_leaves_nameless_thread": "a thread without name",
    "test_leaves_nothing_but_is_stuck": "Timeout",
    "test_leaves_nothing_but_is_stuck_beside_a_busy_greenlet": "Timeout",
    "test_fails_and_leaves_socket": "LookupError: planted",
    "test_leaves_a_connection_to_a_peer_that_waits": r"socket \d+ from \('127.0.0.1', \d+\)",
}
CLEAN = [
    *("test_ends_a_greenlet_soon", "test_kills_a_greenlet", "test_sees_an_error"),
    *("test_clears_an_error", "test_looks_into_the_log", "test_uses_the_thread_pool"),
    *("test_closes_a_socket", "test_joins_a_thread", "test_uses_a_peer"),
]


@pytest.fixture(scope="module")
def outcomes(patched: bool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What pytest says of each planted test, from a process like this one."""
    report = tmp_path_factory.mktemp("planted") / "report.xml"
    program = ["-m", "gevent.monkey", "--module", "pytest"] if patched else ["-m", "pytest"]
    options = [f"--junit-xml={report}", "-p", "no:cacheprovider", "-q"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GREENCONN_TEST_")}
    environment["GREENCONN_TEST_SETTLE"] = "1"
    done = subprocess.run(
        [sys.executable, *program, *options, str(FOLDER / PLANTED)],
        cwd=FOLDER.parent.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return {
        case.attrib["name"]: [
            f"{child.attrib.get('message', '')}\n{child.text}"
            for child in case
            if child.tag in ("error", "failure")
        ]
        for case in ElementTree.parse(report).getroot().iter("testcase")
    }


def test_every_planted_test_is_expected(outcomes: dict[str, list[str]]) -> None:
    assert set(outcomes) == {*LEFT, *CLEAN}


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.sampled(6)
def test_what_is_left_is_named_once(outcomes: dict[str, list[str]], name: str) -> None:
    (text,) = outcomes[name]
    assert re.search(LEFT[name], text), text


@pytest.mark.parametrize("name", CLEAN)
def test_what_ends_in_order_is_no_leak(outcomes: dict[str, list[str]], name: str) -> None:
    assert outcomes[name] == []
