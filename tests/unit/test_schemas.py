"""Bodies converted to the types that handlers declare."""

from __future__ import annotations

import sys
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal
from enum import Enum
from functools import partial, wraps
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    NewType,
    TypedDict,
    TypeVar,
    cast,
)

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenconn import serialization
from greenconn.exceptions import DecodeError
from greenconn.importing import MissingExtra
from greenconn.schemas import converter_of, item_of, schema_of

if TYPE_CHECKING:
    from greenconn.message import Message

pytestmark = pytest.mark.pure

T = TypeVar("T")


class Size(Enum):
    SMALL = "s"
    LARGE = "l"


@dataclass
class Item:
    price: float
    size: Size = Size.SMALL


@dataclass
class Order:
    id: int
    items: list[Item] = field(default_factory=list)
    note: str | None = None


class Address(TypedDict):
    to: str
    copies: int


class Paid(msgspec.Struct, tag=True):
    amount: Decimal
    at: datetime


class Refused(msgspec.Struct, tag=True):
    reason: str


class Line(pydantic.BaseModel):
    price: float
    kind: Literal["goods", "work"] = "goods"


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]


TAGGED = Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]


class Invoice(pydantic.BaseModel):
    number: int = pydantic.Field(alias="no")
    lines: list[Line] = []


@dataclass
class Dossier:
    invoice: Invoice


@dataclass
class Box(Generic[T]):
    inside: T


@dataclass
class Keyed:
    by_number: dict[int, str]
    pair: tuple[int, str]
    at: datetime
    key: uuid.UUID
    sum: Decimal
    raw: bytes


class NoSchema:
    def __call__(self, body: Any, message: Any) -> None: ...


def order(body: Order, message: Message) -> None: ...


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


class Shop:
    def on_order(self, body: Order, message: Message) -> None: ...

    @classmethod
    def of_class(cls, body: Order, message: Message) -> None: ...

    @staticmethod
    def of_none(body: Order, message: Message) -> None: ...

    def __call__(self, body: Order, message: Message) -> None: ...


class Handled:
    """A handler that is a class: it is called with body and message."""

    def __init__(self, body: Order, message: Message) -> None: ...


def prefixed(prefix: str, body: Order, message: Message) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [
        order,
        Shop().on_order,
        Shop.of_class,
        Shop.of_none,
        Shop(),
        Handled,
        partial(prefixed, "a"),
        partial(Shop().on_order, message=cast(Any, None)),
        partial(partial(prefixed), "a"),
        decorated(order),
        decorated(Shop().on_order),
        decorated(decorated(partial(prefixed, "a"))),
    ],
)
def test_the_annotation_is_found(handler: Callable[..., Any]) -> None:
    assert schema_of(handler) is Order


def annotated(annotation: Any) -> Callable[..., Any]:
    def handler(body: Any, message: Any) -> None: ...

    handler.__annotations__ = {"body": annotation, "message": "Nowhere"}
    return handler


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        ("Order", Order),
        ("Address", Address),
        ("Paid | Refused", Paid | Refused),
        ("Invoice", Invoice),
        ("list[Item]", list[Item]),
        (list["Item"], list[Item]),
        ("Order | None", Order | None),
        ("Box[int]", Box[int]),
        ("Annotated[Order, 1]", Annotated[Order, 1]),
        ("dict[str, tuple[Item, ...]]", dict[str, tuple[Item, ...]]),
    ],
)
def test_annotations_with_fields_are_schemas(annotation: Any, schema: Any) -> None:
    assert schema_of(annotated(annotation)) == schema


def test_a_new_type_is_a_schema() -> None:
    kind = NewType("kind", Order)
    assert schema_of(annotated(kind)) is kind


@pytest.mark.parametrize(
    "annotation",
    [
        "Any",
        "object",
        "dict",
        "dict[str, Any]",
        "list[int]",
        "str | None",
        "None",
        "Mapping[str, int]",
        "Sequence[int]",  # imported for type checkers only
        "datetime",
        "Size",
        "Callable[..., Any]",
        "Literal['Order']",
        "T",
        Mapping,
        None,
    ],
)
def test_plain_annotations_are_no_schemas(annotation: Any) -> None:
    assert schema_of(annotated(annotation)) is None


def test_functions_that_say_nothing_have_no_schema() -> None:
    assert schema_of(lambda body, message: None) is None
    assert schema_of(lambda *both: None) is None
    assert schema_of(lambda: None) is None
    assert schema_of(NoSchema()) is None
    assert schema_of(print) is None
    assert schema_of(dict) is None


def test_a_local_class_is_found_where_the_handler_uses_it() -> None:
    @dataclass
    class Local:
        id: int

    def handler(body: Local, message: Any) -> None:
        assert isinstance(body, Local)

    assert schema_of(handler) is Local


def test_an_annotation_that_is_nowhere_is_an_error() -> None:
    with pytest.raises(
        TypeError, match=r"got 'Nowhere' \(name 'Nowhere' is not defined\).*schema="
    ):
        schema_of(annotated("Nowhere"))


def test_items() -> None:
    assert item_of(list[Order]) is Order
    assert item_of(Order) is None
    assert item_of(dict[str, Order]) is None


def converted(schema: Any, body: Any) -> Any:
    convert = converter_of(schema)
    assert convert is not None
    return convert(body)


@pytest.mark.parametrize(
    ("schema", "body", "expected"),
    [
        (Order, {"id": 1}, Order(1)),
        (
            Order,
            {"id": 1, "items": [{"price": 2, "size": "l"}], "further": 1},
            Order(1, [Item(2.0, Size.LARGE)]),
        ),
        (Address, {"to": "ada", "copies": 2}, {"to": "ada", "copies": 2}),
        (list[Item], [{"price": 1.5}], [Item(1.5)]),
        (Order | None, None, None),
        (Box[int], {"inside": 1}, Box(1)),
        (Paid | Refused, {"type": "Refused", "reason": "no"}, Refused("no")),
        (Line, {"price": "1.5"}, Line(price=1.5)),
        (list[Line], [{"price": 1}], [Line(price=1)]),
        (Invoice | Order, {"no": 1}, Invoice(no=1)),
        (Dossier, {"invoice": {"no": 1}}, Dossier(Invoice(no=1))),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (Annotated[int, msgspec.Meta(gt=0)], 1, 1),
    ],
)
def test_conversion(schema: Any, body: Any, expected: Any) -> None:
    assert converted(schema, body) == expected


MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
KEY = uuid.UUID(int=7)


@pytest.mark.parametrize(
    "body",
    [
        Keyed(
            {1: "a"}, (1, "b"), MOMENT, KEY, Decimal("1.10"), b"\xff"
        ),  # as this library writes it
        {  # as others do
            "by_number": {"1": "a"},
            "pair": [1, "b"],
            "at": "2026-01-02T03:04:05Z",
            "key": str(KEY),
            "sum": "1.10",
            "raw": "/w==",
        },
    ],
)
def test_types_that_json_lacks(body: Any) -> None:
    kind, encoding, text = serialization.dumps(body, "json")
    found = converted(Keyed, serialization.loads(text, kind, encoding))
    assert found == Keyed({1: "a"}, (1, "b"), MOMENT, KEY, Decimal("1.10"), b"\xff")


@pytest.mark.parametrize(
    ("schema", "body", "text"),
    [
        (
            Order,
            {"id": 1, "items": [{"price": "secret"}]},
            "the body does not fit Order: Expected `float`, got `str` - at `$.items[0].price`",
        ),
        (Order, {}, "the body does not fit Order: Object missing required field `id`"),
        (Order, "secret", "the body does not fit Order: Expected `object`, got `str`"),
        (
            Order,
            {"id": 1, "items": [{"price": 1, "size": "secret"}]},
            "the body does not fit Order: Invalid enum value - at `$.items[0].size`",
        ),
        (Size, "secret\n - at `$`", "the body does not fit Size: Invalid enum value"),
        (
            Paid | Refused,
            {"type": "secret"},
            f"the body does not fit {Paid | Refused}: Invalid value - at `$.type`",
        ),
        (
            Invoice,
            {"no": 1, "lines": [{"price": "secret"}]},
            "the body does not fit Invoice: Input should be a valid number, unable to parse string as "
            "a number - at `$.lines[0].price`",
        ),
        (
            TAGGED,
            {"kind": "secret"},
            f"the body does not fit {TAGGED}: Input has an unknown tag - at `$`",
        ),
    ],
)
def test_a_body_that_does_not_fit(schema: Any, body: Any, text: str) -> None:
    with pytest.raises(DecodeError) as caught:
        converted(schema, body)
    assert str(caught.value) == text
    assert "secret" not in str(caught.value)


def test_few_of_many_errors_are_named() -> None:
    body = {"no": 1, "lines": [{"price": "secret"}] * 100}
    with pytest.raises(DecodeError) as caught:
        converted(Invoice, body)
    assert str(caught.value).count("valid number") == 3


def test_a_report_has_an_end() -> None:
    with pytest.raises(DecodeError) as caught:
        converted(dict[str, Line], {"k" * 10_000: {"price": "secret"}})
    assert len(str(caught.value)) < 600


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "items", "price", "size", "no", "lines", "type", "at", "é"]),
            inner,
        )
    ),
    max_leaves=10,
)


@given(body=JSON)
def test_any_body_fits_or_is_an_error_of_this_library(body: Any) -> None:
    for convert in CONVERTERS:
        with suppress(DecodeError):
            convert(body)


@dataclass
class Checked:
    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("number must not be negative")
        if self.number == 0:
            raise LookupError("secret")


def test_checks_of_the_class() -> None:
    with pytest.raises(DecodeError, match="Checked: number must not be negative"):
        converted(Checked, {"number": -1})
    with pytest.raises(DecodeError, match=r"Checked: LookupError$"):
        converted(Checked, {"number": 0})


CONVERTERS = [
    convert
    for schema in (Order, Address, Paid | Refused, Keyed, Invoice, Invoice | Order, TAGGED)
    if (convert := converter_of(schema)) is not None
]


class Tree(msgspec.Struct):
    left: Tree | None = None


def test_a_type_may_contain_itself() -> None:
    assert schema_of(annotated("Tree")) is Tree
    assert converted(Tree, {"left": {}}) == Tree(Tree())


def test_bodies_stay_as_they_are() -> None:
    assert converter_of(object) is None
    assert converter_of(Any) is None


@pytest.mark.parametrize("schema", [Order | Item, "Order", 7, lambda body: body])
def test_schemas_that_cannot_be_used(schema: Any) -> None:
    with pytest.raises(TypeError, match="schema must be a type that bodies can be converted to"):
        converter_of(schema)


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(MissingExtra, match=r"pip install 'greenconn\[pydantic\]'") as raised:
        converter_of(Invoice)
    assert raised.value.__suppress_context__, "a traceback through the import system says no more"


def elsewhere(text: str) -> Any:
    """A module without ``from __future__ import annotations``."""
    module = types.ModuleType("elsewhere")
    sys.modules["elsewhere"] = module
    exec(compile(text, "elsewhere", "exec", dont_inherit=True), module.__dict__)
    return module


@pytest.fixture(autouse=True)
def no_modules() -> Iterator[None]:
    yield
    sys.modules.pop("elsewhere", None)


def test_annotations_are_read_where_the_function_is_defined() -> None:
    module = elsewhere("class Order: ...\ndef handler(body: 'Order', message): ...")
    assert schema_of(module.handler) is None
    module = elsewhere(
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Order:\n"
        "    id: int\n"
        "def handler(body: Order, message: 'Nowhere'): ..."
    )
    assert schema_of(module.handler) is module.Order


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are evaluated at once")
def test_annotations_that_are_evaluated_late() -> None:
    module = elsewhere(
        "from dataclasses import dataclass\n"
        "def handler(body: Order, message: Nowhere): ...\n"
        "def lost(body: Nowhere, message): ...\n"
        "@dataclass\n"
        "class Order:\n"
        "    id: int\n"
    )
    assert schema_of(module.handler) is module.Order
    with pytest.raises(TypeError, match="must be known where the handler is defined"):
        schema_of(module.lost)
