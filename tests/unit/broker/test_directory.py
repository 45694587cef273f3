"""The queues that several processes share: what a link asks for, remembers, declares and deletes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from greenconn.broker import queues as module
from greenconn.broker.errors import Method, refused
from greenconn.broker.exchanges import Binding, BrokerState
from greenconn.broker.port import Entry
from greenconn.broker.queues import (
    UNDECLARED,
    Declaration,
    Directory,
    KnownQueues,
    QueueStore,
    Rules,
    StoredQueues,
    new_owner,
    note_lost,
)
from greenconn.exceptions import AccessRefused, NotFound, PreconditionFailed, ResourceLocked
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import FakeBroker, FakeStore
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to, publish

ARGUMENTS = {
    "x-message-ttl": 1500,
    "x-max-priority": 9,
    "x-delivery-limit": 4,
    "x-single-active-consumer": True,
}

DURABLE = Declaration(durable=True)

ONE = Declaration(durable=True)
OTHER = Declaration(auto_delete=True)
RULES = Rules(1.0, None, None, False)


class Queues(QueueStore):
    """The queues of a broker that has what somebody else declared a moment ago.

    Attributes:
        calls: what it was asked to do.
        fails: declaring a queue is interrupted, though it may have been made.
        is_believed: what is known is not asked for again.
        queues: queue -> how it was declared.
    """

    def __init__(self, known: KnownQueues, quicker: Declaration | None = None) -> None:
        self.known = known
        self.quicker = quicker
        self.queues: dict[str, Declaration] = {}
        self.calls: list[str] = []
        self.fails = False
        self.is_believed = False

    def check_name(self, name: str, method: Method) -> None:
        if name == "reserved":
            raise refused("queue name 'reserved' is reserved", method)

    def find(self, name: str) -> Declaration | None:
        self.calls.append(f"find {name}")
        declared = self.queues.get(name)
        if declared is not None:
            self.known.remember(name, declared)
        return declared

    def is_current(self, name: str) -> bool:
        return self.is_believed

    def make(self, name: str, declared: Declaration) -> Declaration:
        self.calls.append(f"make {name}")
        if self.fails:
            raise TimeoutError("nobody answered")
        self.queues[name] = kept = self.quicker or declared
        self.known.remember(name, kept)
        return kept

    def counts(self, name: str) -> tuple[int, int]:
        raise NotImplementedError

    def touch(self, name: str) -> None:
        self.calls.append(f"touch {name}")

    def purge(self, name: str) -> int:
        raise NotImplementedError

    def drop(self, name: str) -> int:
        self.calls.append(f"drop {name}")
        self.queues.pop(name, None)
        return 3


class QueueDirectory(Directory):
    """A directory over such queues.

    Attributes:
        queues: in the broker.
    """

    def __init__(self, quicker: Declaration | None = None) -> None:
        known = KnownQueues()
        self.queues = Queues(known, quicker)
        link: Any = SimpleNamespace(client=None, owner="us")
        super().__init__(link, self.queues, known)


def test_no_name_asks_for_the_queue_that_was_declared_last(connect: Opener) -> None:
    channel = channel_to(connect)
    with pytest.raises(NotFound):
        channel.queue_declare("", passive=True)
    channel = channel_to(connect)
    channel.queue_declare("q")
    assert channel.queue_declare("", passive=True).queue == "q"


def test_exclusive_queue_is_deleted_with_its_link() -> None:
    directory = QueueDirectory()
    directory.declare("q", Declaration(owner="us"))
    directory.declare("p", Declaration())
    directory.close()
    assert list(directory.queues.queues) == ["p"]
    directory.close()
    assert directory.queues.calls.count("drop q") == 1


def test_exclusive_queue_that_may_have_been_made_is_deleted_with_its_link() -> None:
    directory = QueueDirectory()
    directory.queues.fails = True
    with pytest.raises(TimeoutError):
        directory.declare("q", Declaration(owner="us"))
    directory.close()
    assert directory.queues.calls[-1] == "drop q"


def test_exclusive_queue_that_ended_is_not_deleted_with_its_link() -> None:
    directory = QueueDirectory()
    for name in ("p", "q"):
        directory.declare(name, Declaration(owner="us"))
    directory.ended("p")
    assert directory.drop("q") == 3
    directory.queues.calls.clear()
    directory.close()
    assert not directory.queues.calls


def test_broker_that_deletes_exclusive_queues_itself_is_not_asked_to() -> None:
    directory = QueueDirectory()
    directory.queues.ends_exclusive = True  # type: ignore[misc]
    directory.declare("q", Declaration(owner="us"))
    directory.close()
    assert list(directory.queues.queues) == ["q"]


@pytest.mark.parametrize("owner", [None, "them"])
def test_queue_that_another_link_declared_first_is_left_to_it(owner: str | None) -> None:
    directory = QueueDirectory(Declaration(owner=owner))
    with pytest.raises(ResourceLocked):
        directory.declare("q", Declaration(owner="us"))
    directory.close()
    assert list(directory.queues.queues) == ["q"]


def test_what_is_believed_is_not_asked_for() -> None:
    directory = QueueDirectory()
    directory.declare("q", Declaration())
    directory.queues.calls.clear()
    directory.declare_passively("q")
    assert directory.queues.calls == ["find q", "touch q"]
    directory.queues.is_believed = True
    directory.queues.calls.clear()
    directory.check("q", Method.BASIC_CONSUME)
    directory.declare("q", Declaration())
    assert directory.queues.calls == ["touch q"]
    directory.forget("q")
    directory.check("q", Method.BASIC_CONSUME)
    assert directory.queues.calls == ["touch q", "find q"]


def test_what_was_read_last_is_kept_until_the_queue_has_ended() -> None:
    directory = QueueDirectory()
    declared = Declaration(auto_delete=True, arguments={"x-delivery-limit": 2})
    directory.declare("q", declared)
    directory.forget("q")
    assert (directory.last("q"), directory.delivery_limit("q")) == (declared, 2)
    assert "q" not in directory.declared
    directory.ended("q")
    assert (directory.last("q"), directory.delivery_limit("q")) == (UNDECLARED, None)


def test_queue_of_which_nothing_was_known_is_declared_once() -> None:
    directory = QueueDirectory()
    directory.queues.queues["q"] = UNDECLARED  # it has messages of a program that declares nothing
    directory.check("q", Method.BASIC_CONSUME)
    directory.queues.is_believed = True
    for _ in range(2):
        directory.declare("q", Declaration())
    assert directory.queues.calls.count("make q") == 1
    directory.queues.queues["q"] = UNDECLARED
    directory.find("q")
    directory.declare("q", Declaration())
    assert directory.queues.calls.count("make q") == 2


def test_reserved_name_is_refused_before_anything_is_asked() -> None:
    directory = QueueDirectory()
    for ask in (
        lambda: directory.check("reserved", Method.BASIC_CONSUME),
        lambda: directory.declare("reserved", Declaration()),
        lambda: directory.drop("reserved"),
    ):
        with pytest.raises(AccessRefused):
            ask()
    assert not directory.queues.calls


@pytest.fixture
def directory(connect: Opener) -> Directory:
    """The queues as one link knows them, whose messages may be delivered seven times."""
    return connect(delivery_limit=7).directory


def asked(fake_broker: FakeBroker) -> int:
    """Return how often the store was asked for a queue since the last time."""
    count = fake_broker.count("find_queue")
    fake_broker.calls.clear()
    return count


def test_a_queue_that_is_there_is_asked_for_once(
    directory: Directory, fake_broker: FakeBroker
) -> None:
    fake_broker.queues["q"] = declared = Declaration(durable=True)
    assert "q" not in directory.declared
    assert directory.declaration("q") == declared
    assert directory.declaration("q") == declared
    assert directory.is_there("q")
    assert asked(fake_broker) == 1
    assert directory.find("q") == declared
    assert asked(fake_broker) == 1
    directory.forget("q")
    assert directory.is_there("q")
    assert asked(fake_broker) == 1


def test_a_queue_that_is_not_there_is_asked_for_each_time(
    directory: Directory, fake_broker: FakeBroker
) -> None:
    assert directory.declaration("q") is UNDECLARED
    assert not directory.is_there("q")
    assert directory.find("q") is None
    assert directory.rules("q") == Rules(None, None, 7, False)
    assert "q" not in directory.declared
    assert asked(fake_broker) == 4
    with pytest.raises(NotFound):
        directory.check("q", Method.BASIC_CONSUME)


def test_rules_are_those_of_the_declaration(directory: Directory, fake_broker: FakeBroker) -> None:
    fake_broker.queues["q"] = Declaration(arguments=ARGUMENTS)
    fake_broker.queues["p"] = Declaration()
    assert (directory.delivery_limit("q"), directory.is_single_active("q")) == (7, False)
    assert directory.rules("q") == Rules(1.5, 9, 4, True)
    assert directory.rules("p") == Rules(None, None, 7, False)
    assert "q" in directory.declared
    assert (directory.delivery_limit("q"), directory.is_single_active("q")) == (4, True)
    assert (directory.delivery_limit("p"), directory.is_single_active("p")) == (7, False)
    assert directory.rules("q").max_priority == 9
    assert asked(fake_broker) == 2


def test_a_queue_that_was_declared_anew_has_new_rules(
    directory: Directory, fake_broker: FakeBroker
) -> None:
    fake_broker.queues["q"] = Declaration(arguments=ARGUMENTS)
    assert directory.rules("q").message_ttl == 1.5
    directory.find("q")
    assert "q" in directory.declared
    fake_broker.queues["q"] = Declaration()
    directory.find("q")
    assert directory.rules("q").message_ttl is None
    del fake_broker.queues["q"]
    directory.find("q")
    assert "q" not in directory.declared


def test_what_is_known_is_bounded(
    directory: Directory, fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_KNOWN", 2)
    for name in ("a", "b"):
        fake_broker.queues[name] = Declaration()
        directory.rules(name)
    assert ("a" in directory.declared, "b" in directory.declared) == (True, True)
    fake_broker.queues["c"] = Declaration()
    directory.rules("c")
    known = [name in directory.declared for name in ("a", "b", "c")]
    assert known == [False, False, True]
    asked(fake_broker)
    directory.declaration("c")
    directory.declaration("a")
    assert asked(fake_broker) == 1


def test_declaring_makes_a_queue_and_knows_it(
    directory: Directory, fake_broker: FakeBroker
) -> None:
    directory.declare("q", Declaration(durable=True, arguments=ARGUMENTS))
    assert fake_broker.queues["q"] == Declaration(durable=True, arguments=ARGUMENTS)
    assert "q" in directory.declared
    assert directory.rules("q").delivery_limit == 4
    with pytest.raises(PreconditionFailed):
        directory.declare("q", Declaration())


def test_exclusive_queues_go_with_the_link(connect: Opener, fake_broker: FakeBroker) -> None:
    link, other = connect(), connect()
    link.directory.declare("mine", Declaration(owner=link.owner))
    link.directory.declare("all", Declaration())
    with pytest.raises(ResourceLocked):
        other.directory.declare("mine", Declaration(owner=other.owner))
    with pytest.raises(ResourceLocked):
        other.directory.check("mine", Method.BASIC_CONSUME)
    other.directory.close()
    assert set(fake_broker.queues) == {"mine", "all"}
    link.directory.close()
    assert set(fake_broker.queues) == {"all"}
    fake_broker.calls.clear()
    link.directory.close()
    assert not fake_broker.calls


def test_a_queue_of_a_link_that_is_lost_goes_now(
    directory: Directory, fake_broker: FakeBroker
) -> None:
    owner = new_owner()
    fake_broker.queues["q"] = Declaration(owner=owner)
    assert directory.find("q") is not None
    note_lost(owner)
    assert directory.find("q") is None
    assert fake_broker.queues == {}


def test_counts(connect: Opener) -> None:
    channel, other = channel_to(connect), channel_to(connect)
    channel.queue_declare("q")
    publish(channel, "0")
    publish(channel, "1")
    directory = channel.connection.directory
    assert directory.counts("q") == (2, 0)
    channel.basic_qos(0, 1)
    for each in (channel, channel, other):
        each.basic_consume("q", sink=Sink(), arguments={})
    channel.basic_cancel(next(iter(channel.consumers)))
    channel.connection.catch_up()
    waiting, consumers = directory.counts("q")
    assert (waiting, consumers) == (0, 2)
    assert other.connection.directory.counts("q")[1] == 2


def test_purge_and_drop(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect)
    channel.exchange_declare("x")
    channel.queue_declare("q")
    channel.queue_bind("q", "x", "key")
    directory = channel.connection.directory
    for number in range(3):
        publish(channel, f"{number}")
    assert directory.purge("q") == 3
    assert fake_broker.bodies("q") == []
    publish(channel, "x")
    assert directory.drop("q") == 1
    assert fake_broker.queues == {}
    assert "q" not in directory.declared
    assert list(channel.list_bindings()) == []


def test_what_was_done_before_counts(connect: Opener, fake_broker: FakeBroker) -> None:
    channel = channel_to(connect)
    channel.queue_declare("q")
    publish(channel, "x")
    message = channel.basic_get("q")
    assert message is not None
    message.requeue()
    channel.connection.directory.settle()
    assert channel.connection.directory.counts("q")[0] == 1


def test_arguments_that_cannot_be_are_refused() -> None:
    directory = QueueDirectory()
    with pytest.raises(PreconditionFailed, match=r"'x-message-ttl': -1 .*queue 'q' in vhost '/'"):
        directory.declare("q", Declaration(arguments={"x-message-ttl": -1}))
    assert directory.queues.calls == []


def test_names_of_the_broker_are_not_declared() -> None:
    directory = QueueDirectory()
    with pytest.raises(AccessRefused, match=r"amq\.mine"):
        directory.declare("amq.mine", Declaration())
    assert directory.queues.queues == {}
    directory.declare("amq.gen-1", Declaration())  # a name that a broker has made up
    directory.queues.queues["amq.mine"] = Declaration()
    directory.declare("amq.mine", Declaration())  # it is there
    assert "make amq.mine" not in directory.queues.calls


def test_names_are_checked_and_writes_settled_by_the_broker_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = QueueDirectory()
    with pytest.raises(AccessRefused):
        directory.check_name("reserved", Method.BASIC_PUBLISH)
    directory.check_name("q", Method.BASIC_PUBLISH)
    monkeypatch.setattr(directory.queues, "settle", lambda: directory.queues.calls.append("settle"))
    directory.settle()
    assert directory.queues.calls == ["settle"]


def test_a_check_returns_the_declaration() -> None:
    directory = QueueDirectory()
    declared = Declaration(durable=True)
    directory.declare("q", declared)
    assert directory.check("q", Method.BASIC_CONSUME) == declared
    directory.queues.is_believed = True
    assert directory.check("q", Method.BASIC_CONSUME) == declared


def test_errors_name_the_virtual_host() -> None:
    known = KnownQueues()
    client = SimpleNamespace(virtual_host="prod")
    link: Any = SimpleNamespace(client=client, owner="us")
    directory = Directory(link, Queues(known), known)
    with pytest.raises(NotFound, match="no queue 'q' in vhost 'prod'"):
        directory.check("q", Method.BASIC_CONSUME)


@pytest.mark.parametrize("theirs", [Declaration(durable=True), Declaration(auto_delete=True)])
def test_a_queue_that_differs_is_refused(theirs: Declaration) -> None:
    directory = QueueDirectory()
    directory.queues.queues["q"] = theirs
    with pytest.raises(PreconditionFailed, match="inequivalent arg"):
        directory.declare("q", Declaration())
    assert "touch q" not in directory.queues.calls


def test_a_queue_that_is_deleted_is_asked_for_while_it_goes() -> None:
    directory = QueueDirectory()
    directory.declare("q", Declaration())
    seen: list[bool] = []
    drop = directory.queues.drop

    def look(name: str) -> int:
        seen.append(name in directory.declared)
        return drop(name)

    directory.queues.drop = look  # type: ignore[method-assign]
    assert directory.drop("q") == 3
    assert (seen, "q" in directory.declared) == ([False], False)


class Feed:
    """A feed with so many consumers."""

    def __init__(self, count: int) -> None:
        self.consumers: list[Any] = [None] * count


class Link:
    """A link that asks a store at once."""

    def __init__(self, store: FakeStore) -> None:
        self.store = store
        self.state = BrokerState()
        self.feeds: dict[str, Feed] = {}
        self.asked: list[str] = []
        self.caught_up = 0

    def ask(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        self.asked.append(what)
        return function(*args)

    def catch_up(self) -> None:
        self.caught_up += 1


@pytest.fixture
def link(fake_broker: FakeBroker) -> Link:
    """A link whose store is open."""
    store = FakeStore(None, lambda queue: None, fake_broker)
    fake_broker.stores.append(store)
    return Link(store)


@pytest.fixture
def known() -> KnownQueues:
    """What the link remembers."""
    return KnownQueues()


@pytest.fixture
def queues(link: Any, known: KnownQueues) -> StoredQueues:
    """The queues of the store."""
    return StoredQueues(link, known)


def test_what_is_made_is_remembered(
    queues: StoredQueues, known: KnownQueues, fake_broker: FakeBroker, link: Link
) -> None:
    assert queues.make("q", DURABLE) is DURABLE
    assert fake_broker.queues == known.declared == {"q": DURABLE}
    assert queues.make("q", Declaration()) is DURABLE  # somebody was quicker
    assert known.declared == {"q": DURABLE}
    assert link.asked == ["declaring a queue"] * 2


def test_what_is_found_is_remembered_and_what_is_not_there_forgotten(
    queues: StoredQueues, known: KnownQueues, fake_broker: FakeBroker
) -> None:
    assert queues.find("q") is None
    fake_broker.queues["q"] = DURABLE
    assert queues.find("q") is DURABLE
    assert known.declared == {"q": DURABLE}
    del fake_broker.queues["q"]
    assert queues.find("q") is None
    assert known.declared == {}


def test_a_queue_whose_owner_is_gone_is_dropped(
    queues: StoredQueues, known: KnownQueues, fake_broker: FakeBroker, link: Link
) -> None:
    owner = new_owner()
    mine = queues.make("mine", Declaration(owner=owner))
    assert queues.find("mine") is mine
    note_lost(owner)
    assert queues.find("mine") is None
    assert (fake_broker.queues, known.declared) == ({}, {})
    assert link.asked[-1] == "deleting a queue"


def test_a_queue_that_is_remembered_is_not_asked_for(
    queues: StoredQueues, known: KnownQueues, fake_broker: FakeBroker
) -> None:
    assert not queues.is_there("q")
    fake_broker.queues["q"] = DURABLE
    assert queues.is_there("q")
    del fake_broker.queues["q"]  # by somebody else
    assert queues.is_there("q")
    known.forget("q")
    assert not queues.is_there("q")


def test_messages_and_consumers_are_counted(
    queues: StoredQueues, fake_broker: FakeBroker, link: Link
) -> None:
    queues.make("q", DURABLE)
    link.store.put([Entry("q", {"body": b"x"})] * 3)
    link.store.registry.set_consumers("q", "another", 2, False)
    assert queues.counts("q") == (3, 2)
    link.feeds["q"] = Feed(4)
    assert queues.counts("q") == (3, 6)
    assert queues.purge("q") == 3
    assert queues.counts("q") == (0, 6)


def test_a_queue_goes_with_its_bindings(
    queues: StoredQueues, fake_broker: FakeBroker, link: Link
) -> None:
    queues.make("q", DURABLE)
    link.state.declare("x", "direct")
    link.state.bind(Binding("x", "q", "key"))
    link.store.put([Entry("q", {"body": b"x"})])
    assert queues.drop("q") == 1
    assert (fake_broker.queues, list(link.state.exchanges["x"].bindings)) == ({}, [])


def test_what_was_settled_counts_for_the_next_call(queues: StoredQueues, link: Link) -> None:
    queues.settle()
    assert link.caught_up == 1


class PlainQueues(QueueStore):
    """Has one queue."""

    def find(self, name: str) -> Declaration | None:
        return ONE if name == "q" else None

    def make(self, name: str, declared: Declaration) -> Declaration:
        return declared

    def counts(self, name: str) -> tuple[int, int]:
        return 0, 0

    def purge(self, name: str) -> int:
        return 0

    def drop(self, name: str) -> int:
        return 0


@pytest.fixture
def kept() -> KnownQueues:
    """What is remembered, with one queue and its rules."""
    kept = KnownQueues()
    kept.remember("q", ONE)
    kept.rules["q"] = RULES
    return kept


def test_rules_stay_as_long_as_the_declaration(kept: KnownQueues) -> None:
    kept.remember("q", Declaration(durable=True))
    assert (kept.declared, kept.rules) == ({"q": ONE}, {"q": RULES})
    kept.remember("q", OTHER)
    assert (kept.declared, kept.rules, kept.last("q")) == ({"q": OTHER}, {}, OTHER)


def test_what_may_have_changed_was_still_read(kept: KnownQueues) -> None:
    kept.forget("q")
    assert (kept.declared, kept.rules, kept.last("q")) == ({}, {}, ONE)
    kept.forget("q")
    kept.ended("q")
    kept.ended("q")
    assert kept.last("q") is UNDECLARED


def test_a_queue_that_ended_has_no_rules(kept: KnownQueues) -> None:
    kept.ended("q")
    assert (kept.declared, kept.rules, kept.last("q")) == ({}, {}, UNDECLARED)


def test_so_many_are_remembered(kept: KnownQueues, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KNOWN", 2)
    kept.remember("p", ONE)
    kept.remember("p", ONE)
    assert (set(kept.declared), kept.rules) == ({"p", "q"}, {"q": RULES})
    kept.remember("r", ONE)
    assert (set(kept.declared), kept.rules, kept.last("q")) == ({"r"}, {}, UNDECLARED)


def test_queue_that_has_changed_is_no_further_one(
    kept: KnownQueues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_KNOWN", 2)
    kept.remember("p", ONE)
    kept.remember("p", OTHER)
    assert kept.declared == {"q": ONE, "p": OTHER}


def test_queue_that_says_nothing_is_not_one_that_was_declared_so(kept: KnownQueues) -> None:
    kept.remember("p", Declaration())
    kept.remember("p", UNDECLARED)
    assert kept.declared["p"] is UNDECLARED
    assert kept.last("p") is UNDECLARED


def test_by_default_the_broker_is_asked_each_time() -> None:
    queues = PlainQueues()
    assert not queues.is_current("q")
    assert (queues.is_there("q"), queues.is_there("p")) == (True, False)
    queues.check_name("amq.reserved", Method.QUEUE_DECLARE)
    queues.settle()
    queues.touch("q")
    assert not queues.ends_exclusive
