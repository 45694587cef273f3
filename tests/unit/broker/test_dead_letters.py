"""What is noted in a dead letter, and where it goes."""

from __future__ import annotations

from copy import deepcopy
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from msgspec.structs import replace

from greenconn.broker.queues import DeadLetterTarget, Declaration, QueuePolicy
from greenconn.broker.settlements import (
    carbon_copies,
    dead_letter,
    dead_letter_entries,
    is_cycle,
    visible_headers,
)
from greenconn.exceptions import NotFound
from tests.unit.broker.fake_settler import Held, Link


def envelope(headers: dict[str, Any] | None = None, **properties: Any) -> dict[str, Any]:
    return {
        "body": "text",
        "headers": headers,
        "properties": {
            "delivery_info": {"exchange": "in", "routing_key": "key"},
            "delivery_tag": "1",
            **properties,
        },
    }


@pytest.mark.parametrize(
    ("policy", "otherwise", "target"),
    [
        (QueuePolicy(dead_letter_exchange="x"), None, ("x", None)),
        (QueuePolicy(dead_letter_exchange="x", dead_letter_routing_key="k"), "d", ("x", "k")),
        (QueuePolicy(dead_letter_exchange=""), "d", ("", None)),
        (QueuePolicy(), "d", ("", "d")),
        (QueuePolicy(), "q", None),  # it would come back for ever
        (QueuePolicy(), None, None),
    ],
)
def test_where_they_go(
    policy: QueuePolicy, otherwise: str | None, target: tuple[str, str | None] | None
) -> None:
    assert policy.dead_letter_target("q", otherwise) == (target and DeadLetterTarget(*target))


def test_a_first_death() -> None:
    stored = envelope({"own": 1, "x-delivery-count": 3, "redelivered": True}, expiration="500")
    kept = deepcopy(stored)
    letter = dead_letter(stored, "q", "x", None, "expired")
    assert stored == kept
    (death,) = letter["headers"].pop("x-death")
    assert datetime.now(timezone.utc) - death.pop("time") < timedelta(minutes=1)
    assert death == {
        "count": 1,
        "reason": "expired",
        "queue": "q",
        "exchange": "in",
        "routing-keys": ["key"],
        "original-expiration": "500",
    }
    assert letter["headers"] == {
        "own": 1,
        "x-first-death-reason": "expired",
        "x-first-death-queue": "q",
        "x-first-death-exchange": "in",
    }
    assert letter["properties"] == {
        "delivery_info": {"exchange": "x", "routing_key": "key"},
        "delivery_tag": "1",
    }
    assert letter["body"] == "text"


def test_further_deaths() -> None:
    letter: Any = envelope()
    for queue, reason in [("a", "rejected"), ("b", "expired"), ("a", "rejected"), ("a", "maxlen")]:
        letter = dead_letter(letter, queue, "", queue, reason)
    headers = letter["headers"]
    assert [(each["queue"], each["reason"], each["count"]) for each in headers["x-death"]] == [
        ("a", "maxlen", 1),
        ("a", "rejected", 2),
        ("b", "expired", 1),
    ]
    assert "original-expiration" not in headers["x-death"][0]
    assert headers["x-first-death-reason"] == "rejected"
    assert headers["x-first-death-exchange"] == "in"


def test_copies_keep_their_keys_with_the_messages_own() -> None:
    stored = envelope({"CC": ["one", 2, "three"], "BCC": "text"})
    letter = dead_letter(stored, "q", "x", None, "rejected")
    assert letter["headers"]["CC"] == ["one", "three"]
    assert letter["headers"]["BCC"] == []
    assert letter["headers"]["x-death"][0]["routing-keys"] == ["key", "one", "three"]
    other = dead_letter(stored, "q", "x", "other", "rejected")
    assert "CC" not in other["headers"]
    assert other["headers"]["x-death"][0]["routing-keys"] == ["key", "one", "three"]
    assert other["properties"]["delivery_info"]["routing_key"] == "other"


@pytest.mark.parametrize(
    "part",
    [
        {"headers": 5},
        {"headers": [1]},
        {"headers": {"CC": 5, "BCC": [[], 1]}},
        {"headers": {"x-death": 5, "x-first-death-queue": []}},
        {"info": 5},
        {"info": []},
        {"info": None},
        {"info": {"exchange": 5, "routing_key": []}},
        {"info": {"exchange": [], "routing_key": "\ud800"}},
        {"priority": [], "expiration": float("nan"), "correlation_id": {}},
    ],
    ids=str,
)
def test_an_envelope_with_a_malformed_part(part: dict[str, Any]) -> None:
    stored = envelope()
    stored["headers"] = part.pop("headers", {"own": 1})
    stored["properties"]["delivery_info"] = part.pop(
        "info", {"exchange": "in", "routing_key": "key"}
    )
    stored["properties"].update(part)
    letter = dead_letter(stored, "q", "x", None, "rejected")
    assert letter["body"] == "text"
    key = letter["properties"]["delivery_info"]["routing_key"]
    assert letter["properties"]["delivery_info"] == {"exchange": "x", "routing_key": key}
    (death,) = letter["headers"]["x-death"]
    assert (death["exchange"], key, death["routing-keys"]) in [
        ("in", "key", ["key"]),
        ("", "q", ["q"]),
    ]
    assert letter["properties"].get("correlation_id") == part.get("correlation_id")


@pytest.mark.parametrize("count", [2**70, -5, 10**4000, True])
def test_a_forged_number_of_deaths(count: int) -> None:
    deaths = [{"queue": "q", "reason": "rejected", "count": count}]
    letter = dead_letter(envelope({"x-death": deaths}), "q", "x", None, "rejected")
    assert 1 <= letter["headers"]["x-death"][0]["count"] <= 2**53 + 1


@pytest.mark.parametrize("keys", ["text", 5, {"a": 1}, ["a", 5], ["\ud800"], [["a"]], True])
@pytest.mark.parametrize("name", ["CC", "BCC"])
def test_copies_that_are_no_list_of_keys(name: str, keys: Any) -> None:
    with pytest.raises(ValueError, match=f"header {name} must be a list of routing keys, got "):
        carbon_copies({name: keys}, "CC", "BCC")


def test_copies_are_distinguished_by_headers() -> None:
    headers = {"CC": ["a"], "BCC": ["b", "c"], "other": ["d"]}
    assert carbon_copies(headers, "CC", "BCC") == ["a", "b", "c"]
    assert carbon_copies({"CC": None}, "CC", "BCC") == []
    assert visible_headers(headers) == {"CC": ["a"], "other": ["d"]}
    assert visible_headers({"CC": None}) == {"CC": None}


@pytest.mark.parametrize(
    ("deaths", "is_one"),
    [
        ([], False),
        ([("p", "expired")], False),
        ([("q", "expired")], True),
        ([("p", "maxlen"), ("q", "expired")], True),
        ([("p", "rejected"), ("q", "expired")], False),
        ([("q", "rejected")], False),
    ],
)
def test_a_cycle_has_no_reject_on_its_way(deaths: list[tuple[str, str]], is_one: bool) -> None:
    assert is_cycle("q", [{"queue": q, "reason": reason} for q, reason in deaths]) is is_one


def foreign_message() -> Any:
    """Return a message whose envelope nobody can read."""
    held: Any = Held("a", is_readable=False)
    return held


@pytest.mark.parametrize("reason", ["expired", "maxlen", "delivery_limit", "rejected"])
def test_a_message_that_would_circle_for_ever_is_dropped(reason: str) -> None:
    link: Any = Link()
    link.route = lambda: ["q", "dead"]
    found = dead_letter_entries(link, Held("a"), reason)
    assert [each.queue for each in found] == (["q", "dead"] if reason == "rejected" else ["dead"])


def test_what_nobody_can_read_goes_where_its_broker_keeps_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link: Any = Link()
    asked: list[tuple[str, Any]] = []

    def routes(exchange: str, routing_key: str, headers: Any) -> list[str]:
        asked.append((routing_key, headers))
        return ["dead"]

    monkeypatch.setattr(link, "routes", routes)
    (entry,) = dead_letter_entries(link, foreign_message(), "expired")
    assert (entry.queue, entry.envelope) == ("dead", {})
    assert asked == [("q", {})]  # with the name of its queue, as no key is known
    arguments = {"x-dead-letter-exchange": "dlx", "x-dead-letter-routing-key": "key"}
    link.directory.declaration = lambda name: Declaration(arguments=arguments)
    dead_letter_entries(link, foreign_message(), "expired")
    assert asked[1:] == [("key", {})]
    held: Any = Held("a")
    held._claimed = replace(held.claimed, stored={"properties": [], "body": "e30="})
    assert dead_letter_entries(link, held, "expired")[0].envelope == {}
    link.settler.unreadable = {"body": "raw", "properties": {}}
    (entry,) = dead_letter_entries(link, foreign_message(), "rejected")
    assert entry.envelope["body"] == "raw"
    assert entry.envelope["headers"]["x-first-death-queue"] == "q"


def test_the_log_tells_of_an_exchange_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    link: Any = Link()

    def route() -> list[str]:
        raise NotFound("no exchange 'dlx'")

    link.route = route
    assert dead_letter_entries(link, Held("a"), "rejected") == ()
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("greenconn.broker", "ERROR")
    assert record.getMessage() == (
        "fake://: dead letters of queue 'q' are dropped: exchange 'dlx' does not exist"
    )
