"""What is refused together is told one by one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from greenconn.broker.isolation import isolated


class Broker:
    """Refuses negative numbers, and is lost at 0."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []

    def tell(self, numbers: Sequence[int]) -> int:
        self.sent.append(list(numbers))
        if 0 in numbers:
            raise ConnectionError("lost")
        if min(numbers) < 0:
            raise ValueError(f"{min(numbers)} is refused")
        return sum(numbers)


@pytest.fixture
def broker() -> Broker:
    return Broker()


def ask(broker: Broker, numbers: Sequence[int]) -> list[int | str]:
    """Tell *numbers*; those that are refused by themselves are described."""

    def refused(number: int, exc: Exception) -> int | str:
        return str(exc)

    return isolated(numbers, broker.tell, refused, lambda exc: isinstance(exc, ValueError))


def test_what_is_taken_is_sent_once(broker: Broker) -> None:
    assert ask(broker, [1, 2, 3]) == [6]
    assert broker.sent == [[1, 2, 3]]


def test_a_culprit_harms_no_other(broker: Broker) -> None:
    assert ask(broker, [1, -2, 3]) == [1, "-2 is refused", 3]
    assert broker.sent == [[1, -2, 3], [1], [-2], [3]]


def test_one_that_is_refused_is_not_sent_twice(broker: Broker) -> None:
    assert ask(broker, [-1]) == ["-1 is refused"]
    assert broker.sent == [[-1]]


@pytest.mark.parametrize("numbers", [[1, 0], [-1, 0, 2]])
def test_a_lost_broker_is_nobodys_fault(broker: Broker, numbers: list[int]) -> None:
    with pytest.raises(ConnectionError):
        ask(broker, numbers)
    assert [2] not in broker.sent
