"""Programs written for kombu print the same when every ``kombu`` in them says ``greenconn``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.processes import Outcome, run, start

pytest.importorskip("kombu")

pytestmark = [pytest.mark.full, pytest.mark.programs]

FOLDER = Path(__file__).with_name("examples")
PROGRAMS = ["hello", "task_queue", "drain_loop", "pubsub"]
#: kombu's memory transport hands out queues in another order than it was asked to.
UNORDERED = {"pubsub", "task_queue"}


def text_of(program: str, library: str) -> str:
    """A program, for one of the two libraries."""
    return (FOLDER / f"{program}.py").read_text().replace("kombu", library)


def printed(outcome: Outcome, library: str) -> list[str]:
    """What a program printed, with its library's name taken out."""
    assert outcome.code == 0, outcome.errors
    return [line.replace(library, "LIBRARY") for line in outcome.output.splitlines()]


@pytest.mark.parametrize("broker", ["amqp", "memory", "redis"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_it_runs_alike(
    program: str, broker: str, unique: str, request: pytest.FixtureRequest
) -> None:
    if (program, broker) == ("pubsub", "redis"):
        pytest.skip("on Redis a fan-out message is for who listens, and nobody does yet")
    url = "memory://" if broker == "memory" else request.getfixturevalue(f"{broker}_url")
    theirs = printed(run("-c", text_of(program, "kombu"), url, f"{unique}.theirs"), "kombu")
    ours = printed(run("-c", text_of(program, "greenconn"), url, f"{unique}.ours"), "greenconn")
    if program in UNORDERED:
        theirs.sort()
        ours.sort()
    assert ours == theirs
    assert len(ours) > 2


@pytest.mark.parametrize("server", ["kombu", "greenconn"])
@pytest.mark.parametrize("client", ["kombu", "greenconn"])
def test_calls_and_replies(server: str, client: str, amqp_url: str, unique: str) -> None:
    running = start("-c", text_of("rpc_server", server), amqp_url, unique, "3")
    try:
        assert running.line() == "ready"
        outcome = run("-c", text_of("rpc_client", client), amqp_url, unique, "7", "0", "20")
        assert outcome.code == 0, outcome.errors
        assert outcome.output.splitlines() == ["fib 7 13", "fib 0 0", "fib 20 6765"]
        served = running.outcome()
        assert served.code == 0, served.errors
        assert served.output.splitlines() == ["served"]
    finally:
        running.end()
