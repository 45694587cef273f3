from __future__ import annotations

import copy
import pickle
from typing import ClassVar

import pytest

from greenconn.checks import Event, Record


class Place(Record):
    hidden = frozenset({"word"})
    limit: ClassVar[int] = 3

    name: str = "here"
    size: int = 1
    word: str | None = None

    def __post_init__(self) -> None:
        if self.size > self.limit:
            raise ValueError(f"{self.size} is too large")


class Larger(Place):
    limit = 10
    colour: str = "red"
    name: str = "there"


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(TypeError, match=r"Place\(\) has no option '(colour|width)'; "):
        Place(width=1, size=1, colour="red")  # type: ignore[call-arg]


def test_arguments_are_keywords() -> None:
    with pytest.raises(TypeError):
        Place("here")  # type: ignore[call-arg]


def test_nothing_changes() -> None:
    place = Place()
    with pytest.raises(AttributeError, match=r"Place\.size cannot be changed"):
        place.size = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match=r"Place\.size cannot be deleted"):
        del place.size
    assert place == Place()


def test_replace_makes_another_which_is_checked() -> None:
    place = Place(name="a")
    assert place.replace(size=2) == Place(name="a", size=2)
    assert place == Place(name="a")
    with pytest.raises(ValueError, match="4 is too large"):
        place.replace(size=4)
    with pytest.raises(TypeError, match="no option 'colour'"):
        place.replace(colour="red")


def test_equal_values_of_one_class_are_equal() -> None:
    assert Place(size=1) == Place()
    assert hash(Place(size=1)) == hash(Place())
    assert Place(word="a") != Place(word="b")
    assert Place() != Larger(name="here")
    assert Place() != "here"


def test_what_is_hidden_is_not_shown() -> None:
    assert repr(Place(word="sesame")) == "Place(name='here', size=1)"


def test_copies_and_pickles_are_equal() -> None:
    place = Place(name="a", word="b")
    assert copy.copy(place) == copy.deepcopy(place) == place
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(place, protocol)) == place


class Arrival(Event):
    place: Place
    count: int

    @property
    def name(self) -> str:
        return self.place.name


@pytest.mark.parametrize(
    ("args", "values"),
    [
        ((), {}),
        ((1,), {}),
        ((1, 2, 3), {}),
        ((1,), {"place": 2}),
        ((1, 2), {"count": 2}),
        ((1, 2), {"colour": 3}),
        ((1,), {"colour": 3}),
    ],
)
def test_an_event_takes_nothing_but_its_fields(
    args: tuple[int, ...], values: dict[str, int]
) -> None:
    with pytest.raises(TypeError, match="Arrival takes one value for each of: place, count"):
        Arrival(*args, **values)  # type: ignore[arg-type]


def test_events_are_equal_to_themselves_only_and_cannot_be_changed() -> None:
    event = Arrival(Place(), 1)
    assert event != Arrival(event.place, 1)
    assert {event: 1}[event] == 1
    with pytest.raises(AttributeError, match=r"Arrival\.count cannot be changed"):
        event.count = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match=r"Arrival\.count cannot be deleted"):
        del event.count
