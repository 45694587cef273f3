"""Objects with fields, written by each serializer."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, Literal

import msgspec
import pydantic
import pydantic.dataclasses
import pytest

from greenconn import jsoncodec, serialization
from greenconn.exceptions import EncodeError
from greenconn.schemas import converter_of

pytestmark = pytest.mark.pure

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


class Size(Enum):
    SMALL = "s"


@dataclass
class Item:
    price: float
    size: Size = Size.SMALL


@dataclass
class Order:
    items: list[Item] = field(default_factory=list)
    by_name: dict[str, Item] = field(default_factory=dict)


class Paid(msgspec.Struct, tag=True, rename="camel"):
    paid_at: datetime
    amount: Decimal
    item: Item


class Line(pydantic.BaseModel):
    price: Decimal
    kind: Literal["goods"] = "goods"
    at: datetime = pydantic.Field(default=MOMENT, alias="moment")


@pydantic.dataclasses.dataclass
class Checked:
    key: uuid.UUID


@dataclass
class All:
    item: Item
    line: Line
    checked: Checked


ORDER = Order([Item(1.5)], {"a": Item(2.5)})
PAID = Paid(MOMENT, Decimal("1.10"), Item(1.5))
OBJECTS = [
    ORDER,
    PAID,
    Line(price=Decimal("1.10"), moment=MOMENT),
    Checked(uuid.UUID(int=7)),
    All(Item(1.5), Line(price=Decimal(1)), Checked(uuid.UUID(int=7))),
]


def sent(value: Any, serializer: str) -> Any:
    """What a consumer decodes."""
    kind, encoding, body = serialization.dumps(value, serializer)
    return serialization.loads(body, kind, encoding, force=True)


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml"])
@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_what_is_published_fits_its_type(value: Any, serializer: str) -> None:
    if serializer == "msgpack":
        pytest.importorskip("msgpack")
    for body in (value, [value]):
        schema = type(value) if body is value else list[type(value)]  # type: ignore[misc]
        convert = converter_of(schema)
        assert convert is not None
        assert convert(sent(body, serializer)) == body


def test_the_text_of_a_dataclass() -> None:
    assert jsoncodec.dumps(Order([Item(1.5)])) == (
        '{"items": [{"price": 1.5, "size": "s"}], "by_name": {}}'
    )


def test_a_library_writes_its_own_objects() -> None:
    assert sent(PAID, "json") == {
        "type": "Paid",
        "paidAt": "2026-01-02T03:04:05Z",
        "amount": "1.10",
        "item": {"price": 1.5, "size": "s"},
    }
    assert sent(Line(price=Decimal("1.10")), "json") == {
        "price": "1.10",
        "kind": "goods",
        "moment": "2026-01-02T03:04:05Z",
    }


class Registered:
    """A type that the program registers."""


@dataclass
class RegisteredToo:
    """A dataclass that the program registers."""

    number: int


class Holder(msgspec.Struct):
    inner: Any


def test_what_the_program_registers_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsoncodec, "_encoders", dict(jsoncodec._encoders))
    jsoncodec.register_type(Registered, None, lambda value: "it")
    jsoncodec.register_type(RegisteredToo, None, lambda value: value.number)
    assert jsoncodec.dumps([Registered(), RegisteredToo(7)]) == '["it", 7]'
    assert jsoncodec.dumps(Holder(Registered())) == '{"inner": "it"}'


@dataclass
class Odd:
    inner: Any


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml"])
@pytest.mark.parametrize("value", [object(), Odd(object()), timedelta(1)])
def test_what_cannot_be_written(value: Any, serializer: str) -> None:
    if serializer == "msgpack":
        pytest.importorskip("msgpack")
    with pytest.raises(EncodeError):
        serialization.dumps(value, serializer)


def test_an_object_that_contains_itself() -> None:
    odd = Odd(None)
    odd.inner = odd
    with pytest.raises(EncodeError, match="RecursionError"):
        serialization.dumps(odd, "json")
