"""``greenconn asyncapi``: the document is one by AsyncAPI's own schema.

``asyncapi-3.0.0.json.gz`` is that schema, as the package ``@asyncapi/specs`` 6.11.1 has it, under the
Apache License 2.0.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pydantic
import pytest

import greenconn
from greenconn import Broadcast, Exchange, Queue, binding
from greenconn.cli import main
from greenconn.cli.asyncapi import describe

SCHEMA = Path(__file__).with_name("asyncapi-3.0.0.json.gz")


@dataclass
class Item:
    """A part of an order."""

    name: str
    price: float


@dataclass
class Order:
    """What one buys."""

    id: int
    items: list[Item]


class Total(TypedDict):
    """A reply."""

    sum: float


class Model(pydantic.BaseModel):
    """A model of pydantic."""

    number: int
    inner: list[Item]


@pytest.fixture
def app() -> greenconn.App:
    app = greenconn.App("amqps://user:s3cret@broker:5671/shop")
    shop = Exchange("orders", "topic")

    @app.consumer(Queue("orders", shop, "order/new"))
    def ship(order: Order, message: Any) -> None:
        """Ship an order.

        It is not in the summary.
        """

    @app.consumer("batches", batch_size=10)
    def ship_many(orders: list[Order], messages: Any) -> None: ...

    @app.consumer([Queue("a b", bindings=[binding(shop, "x")]), "a/b"])
    def count(body: Model, message: Any) -> None: ...

    @app.consumer(Broadcast("invalidate"))
    def forget(key: str, message: Any) -> None: ...

    @app.consumer("given", schema=list[Item])
    def given(body: Any, message: Any) -> None: ...

    @app.rpc("total")
    def total(order: Order) -> Total:
        return {"sum": 1.0}

    @app.every(60)
    def tick() -> None: ...

    return app


@pytest.fixture
def document(app: greenconn.App) -> Any:
    return json.loads(json.dumps(describe(app, "Shop", "1.2.3")))


def references(part: Any) -> Iterator[str]:
    """All references in a part of the document."""
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from references(each)


def target(document: Any, reference: str) -> Any:
    for name in reference.removeprefix("#/").split("/"):
        document = document[name]
    return document


def test_it_is_valid(document: Any) -> None:
    validator = pytest.importorskip("jsonschema").Draft7Validator
    is_valid = validator(json.loads(gzip.decompress(SCHEMA.read_bytes()))).is_valid
    assert is_valid(document)
    assert not is_valid({**document, "info": {}})


def test_structure(document: Any) -> None:
    assert document["asyncapi"] == "3.0.0"
    assert document["info"] == {"title": "Shop", "version": "1.2.3"}
    assert document["servers"] == {"default": {"host": "broker:5671", "protocol": "amqps"}}
    for name in ("channels", "operations"):
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+", key) for key in document[name])
    for channel in document["channels"].values():
        if "bindings" in channel:
            bindings = channel["bindings"]["amqp"]
            assert bindings["is"] in ("queue", "routingKey")
            assert bindings["queue" if bindings["is"] == "queue" else "exchange"]["name"]
    for operation in document["operations"].values():
        assert operation["action"] == "receive"
        channel = operation["channel"]["$ref"]
        assert all(
            each["$ref"].startswith(f"{channel}/messages/") for each in operation["messages"]
        )
    for reference in references(document):
        assert target(document, reference) is not None
    assert "s3cret" not in json.dumps(document)


def test_operations_and_channels(document: Any) -> None:
    operations = document["operations"]
    assert set(operations) == {
        *("ship.orders", "ship_many.batches", "count.a_b", "count.a_b_2"),
        *("forget.invalidate", "given.given", "total.total"),
    }
    assert operations["ship.orders"]["summary"] == "Ship an order."
    channels = {each["address"]: each for each in document["channels"].values()}
    assert {*channels} == {
        *("orders", "order/new", "batches", "a b", "x", "a/b", "invalidate", "given", "total", None)
    }
    assert channels["order/new"]["bindings"]["amqp"]["exchange"]["type"] == "topic"
    assert channels["invalidate"]["bindings"]["amqp"]["exchange"]["type"] == "fanout"
    reply = operations["total.total"]["reply"]
    assert target(document, reply["channel"]["$ref"])["address"] is None
    message = target(document, target(document, reply["messages"][0]["$ref"])["$ref"])
    assert message["payload"] == {"$ref": "#/components/schemas/Total"}


def test_schemas(document: Any) -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator

    def is_valid(operation: str, body: Any) -> bool:
        message = document["operations"][operation]["messages"][0]["$ref"]
        payload = target(document, target(document, message)["$ref"])["payload"]
        schema = {**payload, "components": document["components"]}
        return bool(validator(schema).is_valid(body))

    item = {"name": "tea", "price": 2.5}
    for operation in ("ship.orders", "ship_many.batches", "total.total"):
        assert is_valid(operation, {"id": 1, "items": [item]})
        assert not is_valid(operation, {"id": 1, "items": ["tea"]})
    assert is_valid("count.a_b", {"number": 1, "inner": [item]})
    assert not is_valid("count.a_b", {"number": "one", "inner": []})
    assert is_valid("given.given", [item])
    assert not is_valid("given.given", item)


def test_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "told_tasks.py").write_text(
        "import greenconn\napp = greenconn.App()\n"
        "@app.consumer('mail')\ndef send(body, message): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["asyncapi", "told_tasks:app", "--version", "7"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["info"] == {"title": "told_tasks:app", "version": "7"}
    assert "servers" not in document
    assert main(["asyncapi", "no_such_tasks"]) == 2
    assert "no_such_tasks" in capsys.readouterr().err
