"""What an application sends to Sentry."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("sentry_sdk")

from tests.integration.processes import ROOT, run

pytestmark = [pytest.mark.programs]

PROGRAM = str(ROOT / "tests" / "integration" / "sentry_apps" / "program.py")


@pytest.mark.parametrize("kind", ["plain", "patched"])
@pytest.mark.sampled(1)
def test_messages_and_failures(kind: str, unique: str) -> None:
    outcome = run(PROGRAM, unique, kind, env={"SENTRY_TEST_PASSWORD": "pass-word"})
    assert outcome.code == 0, outcome.errors
    items: list[dict[str, Any]] = [json.loads(line) for line in outcome.output.splitlines()]
    transactions = {
        each["transaction"]: each for each in items if each.get("type") == "transaction"
    }
    assert set(transactions) >= {"/order", "orders", "add"}
    errors = [each for each in items if "exception" in each]
    assert len(errors) == 1
    (failure,) = errors[0]["exception"]["values"]
    assert (failure["type"], failure["value"]) == ("LookupError", "there is no such order")

    # One trace from the request over the handler to what that publishes.
    request = transactions["/order"]["contexts"]["trace"]
    (span,) = transactions["/order"]["spans"]
    assert (span["op"], span["description"]) == ("queue.publish", "orders")
    of_order = [each for each in items if each.get("transaction") == "orders" and "spans" in each]
    (shipped,) = [each for each in of_order if each["spans"]]
    trace = shipped["contexts"]["trace"]
    assert trace["op"] == "queue.process"
    assert trace["trace_id"] == request["trace_id"]
    assert trace["parent_span_id"] == span["span_id"]
    assert [each["description"] for each in shipped["spans"]] == ["mail"]

    # What is said of a message, and what is not.
    details = errors[0]["contexts"]["message"]
    assert details["messaging.message.id"] == "m2"
    assert details["messaging.destination.name"] == "orders"
    assert errors[0]["transaction"] == "orders"
    failed, _ = [each for each in of_order if not each["spans"]]
    assert failed["contexts"]["trace"]["status"] == "internal_error"
    assert "pass-word" not in outcome.output
    assert "ada:**@" in details["messaging.broker"]
