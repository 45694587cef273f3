"""The public face of a connection."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.connection import BrokerConnection, Connection, PooledConnection
from greenconn.exceptions import OperationalError, RecoverableConnectionError
from greenconn.green.deadline import Deadline
from tests.fix_wires import until
from tests.scripted import PlainTransport, Script, Transport
from tests.unit.fake_channel import FakeChannel

WAIT = 20.0

Connect = Callable[..., Connection]

CAME = 30.0


# -- arguments -----------------------------------------------------------------------------------

URLS = [
    "amqp://",
    "amqp://u:p@h:99/v",
    "amqp://u:p%2F@h:99//",
    "amqp://u@h",
    "amqp://h//foo",
    "amqp://h/%2Ffoo",
    "amqp://[::1]:99/v",
    "amqp://a;amqp://b:55/x",
    "localhost",
    "some.host",
    "pyamqp://h",
    "librabbitmq://h",
]


# -- failover list -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"hostname": "amqp://a;amqp://b;amqp://c"},
        {"hostname": ["amqp://a", "amqp://b", "amqp://c"]},
        {"hostname": ("amqp://a;amqp://b", "amqp://c")},
        {"hostname": "amqp://a", "alternates": ["amqp://b", "amqp://c"]},
        {"hostname": "amqp://a;amqp://b", "alternates": ["amqp://c"]},
    ],
)
def test_a_list_may_be_given_in_several_ways(arguments: dict[str, Any]) -> None:
    connection = Connection(**arguments)
    assert connection.alt == ["amqp://a", "amqp://b", "amqp://c"]
    hosts = [connection.hostname]
    for _ in range(3):
        connection.maybe_switch_next()
        hosts.append(connection.hostname)
    assert hosts == ["a", "b", "c", "a"]


def test_a_bad_url_in_a_list_fails_at_once() -> None:
    with pytest.raises(ValueError, match="heartbeat"):
        Connection("amqp://a;amqp://b?heartbeat=soon")
    with pytest.raises(KeyError, match="amqq"):
        Connection("amqp://a", alternates=["amqq://b"])
    with pytest.raises(ValueError, match="import path"):
        Connection("amqp://a;os.path://b")


def test_each_url_of_a_list_is_filled_from_the_keywords_alone() -> None:
    connection = Connection("amqp://u:p@a:99/v;amqp://b", userid="kw", password="pw")
    connection.maybe_switch_next()
    assert connection.info() | {"alternates": [], "failover_strategy": ""} == Connection(
        "amqp://kw:pw@b"
    ).info() | {"alternates": [], "failover_strategy": ""}


def test_what_opens_a_connection_that_is_being_switched_does_not_stay(
    connect: Connect, script: Script
) -> None:
    connection = connect("scripted://one")
    connection.connect()
    is_closing, may_close = Event(), Event()

    def close() -> None:
        is_closing.set()
        may_close.wait(WAIT)

    script.on_close = close
    switching = gevent.spawn(connection.switch, "scripted://two")
    assert is_closing.wait(WAIT)
    connection.connect()  # of another greenlet, to the former broker
    script.on_close = None
    may_close.set()
    switching.get(timeout=WAIT)
    assert not script.open_links
    connection.connect()  # the next use is of the other broker
    assert connection.connected
    assert script.attempts == ["one", "one", "two"]


def test_a_link_that_is_dropped_before_its_caller_has_it_is_replaced(
    connect: Connect, script: Script
) -> None:
    connection = connect()

    def drop() -> None:
        connection.connect()
        connection.collect()  # in the same turn, before the other one is woken

    dropping = gevent.spawn(drop)
    asking = gevent.spawn(lambda: connection.default_channel)
    dropping.get(timeout=WAIT)
    assert asking.get(timeout=WAIT).use() == "one"
    assert len(script.links) == 2


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["connect_timeout", "heartbeat"])
def test_times_that_are_none_are_refused_at_once(name: str, seconds: float) -> None:
    arguments: dict[str, Any] = {name: seconds}
    with pytest.raises(ValueError, match=name):
        Connection("memory://", **arguments)
    connection = Connection("memory://")
    with pytest.raises(ValueError, match=name):
        setattr(connection, name, seconds)


def test_switch_means_another_broker(connect: Connect, script: Script) -> None:
    connection = connect("scripted://me@one:99/v", password="pw")
    link = connection.connect()
    connection.declared_entities.add("x")
    connection.switch("scripted://two")
    assert not link.is_open
    assert not connection.connected
    assert connection.declared_entities == set()
    assert (connection.hostname, connection.port, connection.virtual_host) == ("two", None, "/")
    assert connection.password == "pw"
    assert connection.default_channel.use() == "two"
    connection.switch("three")
    assert connection.connect().host == "three"


def test_a_switched_connection_is_known_by_its_new_broker() -> None:
    connection = Connection("amqp://one")
    before = connection.__eqhash__()
    connection.switch("amqp://two")
    assert connection.__eqhash__() != before
    assert connection.__eqhash__() == Connection("amqp://two").__eqhash__()


def test_an_open_connection_says_what_was_taken_for_blanks(connect: Connect) -> None:
    connection = connect("scripted://one")
    key = connection.__eqhash__()
    assert (connection.port, connection.userid, connection.host) == (None, None, "one:None")
    connection.connect()
    assert (connection.port, connection.userid, connection.host) == (7, "guest", "one:7")
    assert connection.__eqhash__() == key
    connection.switch("scripted://me@two:8")
    connection.connect()
    assert (connection.userid, connection.host) == ("me", "two:8")


# -- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Connection, BrokerConnection])
@pytest.mark.parametrize("url", URLS)
def test_copies_mean_the_same_broker(cls: type[Connection], url: str) -> None:
    source = cls(url, password="pw", transport_options={"confirm_publish": True})
    for copied in (source.clone(), copy.copy(source), pickle.loads(pickle.dumps(source))):
        assert type(copied) is cls
        assert copied != source
        assert copied.__eqhash__() == source.__eqhash__()
        assert copied.info() == source.info()
        assert copied.session is not source.session
    assert source.clone(userid="other").__eqhash__() != source.__eqhash__()
    assert source == source
    address: object = "amqp://"
    assert source != address


def test_a_clone_goes_on_where_its_source_is() -> None:
    source = Connection("amqp://u@a:99/v;amqp://b;amqp://c")
    source.maybe_switch_next()
    for copied in (source.clone(), pickle.loads(pickle.dumps(source))):
        assert copied.hostname == "b"
        copied.maybe_switch_next()
        assert copied.hostname == "c"
        copied.maybe_switch_next()
        assert copied.as_uri() == "amqp://u:**@a:99/v"


# -- secrets -------------------------------------------------------------------------------------


def test_no_secret_leaves(caplog: pytest.LogCaptureFixture, script: Script) -> None:
    caplog.set_level(logging.DEBUG)
    connection = Connection("scripted://me:secret@one;scripted://me:secret@two")
    script.plan("one", OSError("no"))
    connection.connect()
    connection.close()
    with pytest.raises(RecoverableConnectionError) as raised:
        connection.drain_events()
    texts = [repr(connection), repr(connection.session), connection.as_uri(), str(raised.value)]
    texts += [repr(connection.__eqhash__()), caplog.text]
    assert "scripted://me:**@" in caplog.text
    assert not [text for text in texts if "secret" in text]
    assert "secret" in connection.as_uri(include_password=True)


class ParsesItself(Transport):
    """A transport that is given its URLs whole."""

    can_parse_url = True


class Masks(ParsesItself):
    """One that masks them, too."""

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        return uri if include_password else f"masked by {mask}"


def test_urls_that_the_transport_parses_are_masked_all_the_same() -> None:
    url = "other://me:secret@a,b/db?replicaSet=r"
    connection = Connection(url, transport=ParsesItself)
    assert connection.as_uri(include_password=True) == url
    assert "secret" not in connection.as_uri()
    assert "secret" not in repr(connection)
    connection = Connection(url, transport=Masks)
    assert connection.as_uri(mask="x") == "masked by x"
    assert connection.as_uri(include_password=True) == url
    assert connection.clone().__eqhash__() == connection.__eqhash__()
    connection = Connection("scripted+mysql://me:secret@h/db", transport=Transport)
    assert connection.as_uri(include_password=True) == "scripted+mysql://me:secret@h/db"
    assert connection.as_uri() == "scripted+mysql://me:**@h/db"
    assert connection.clone().as_uri(include_password=True) == "scripted+mysql://me:secret@h/db"


def test_a_transport_without_classes_of_errors_recovers_from_all() -> None:
    class Old:
        connection_errors = (OSError,)
        channel_errors = (LookupError,)

        def __init__(self, client: Any) -> None:
            self.client = client

    connection = Connection("one", transport=Old)
    assert connection.recoverable_connection_errors == (OSError, LookupError)
    assert connection.recoverable_channel_errors == ()


def test_a_password_may_be_a_function() -> None:
    connection = Connection("amqp://me@h", password=lambda: "secret")
    assert connection.as_uri() == "amqp://me:**@h:5672//"
    assert connection.as_uri(include_password=True) == "amqp://me:secret@h:5672//"
    assert connection.clone().__eqhash__() == connection.__eqhash__()


# -- use -----------------------------------------------------------------------------------------


def test_heartbeat_check_is_about_an_open_connection(
    connection: Connection, script: Script
) -> None:
    connection.heartbeat_check()
    assert len(script.attempts) == 1  # a probe that opens nothing would tell nothing
    connection.heartbeat_check(rate=2)
    assert len(script.attempts) == 1
    script.link.lose()
    gevent.sleep(0.01)
    with pytest.raises(RecoverableConnectionError, match="one is gone"):
        connection.heartbeat_check()
    connection.connect()
    connection.heartbeat_check()
    connection.close()
    with pytest.raises(RecoverableConnectionError, match="closed"):
        connection.heartbeat_check()


def test_a_method_of_a_program_opens_within_the_time_limit(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float | None] = []

    def establish(self: Transport, deadline: Deadline) -> Any:
        limits.append(deadline.left())
        return opens(self)

    class Own(Connection):
        def _establish_connection(self) -> Any:
            return super()._establish_connection()

    opens = Transport.establish_connection
    monkeypatch.setattr(Transport, "establish_connection", establish)
    with Own("one", transport=Transport, connect_timeout=7) as connection:
        connection.connect()
    assert [left is not None and 0 < left <= 7 for left in limits] == [True]


def test_drain_opens_and_raises_socket_timeout(connection: Connection, script: Script) -> None:
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.01)
    until(lambda: script.links)  # if that did not leave time enough, it goes on
    assert len(script.links) == 1
    seen: list[str] = []
    script.link.events.put((seen.append, "event"))
    connection.drain_events(timeout=CAME)
    assert seen == ["event"]


def test_maybe_close_channel_takes_no_errors(connection: Connection) -> None:
    class Broken(FakeChannel):
        def __init__(self, error: BaseException) -> None:
            super().__init__(None)
            self.error = error

        def close(self) -> None:
            raise self.error

    connection.maybe_close_channel(connection.channel())
    connection.maybe_close_channel(Broken(OSError("gone")))
    connection.maybe_close_channel(Broken(RecoverableConnectionError("gone")))
    with pytest.raises(LookupError):
        connection.maybe_close_channel(Broken(LookupError()))


def test_revive_replaces_the_default_channel(connection: Connection) -> None:
    former = connection.default_channel
    connection.revive(former)
    assert connection.default_channel is former
    channel = connection.channel()
    connection.revive(channel)
    assert connection.default_channel is channel
    assert not former.is_open
    assert connection.session.successor(former) is channel
    connection.revive(None)
    assert not channel.is_open
    assert connection.default_channel is not channel


def test_revive_takes_no_channel_of_another_connection(
    connection: Connection, connect: Connect
) -> None:
    former, foreign = connection.default_channel, connect().channel()
    connection.revive(foreign)
    assert connection.default_channel not in (former, foreign)
    assert not former.is_open
    assert foreign.is_open


def test_a_transport_written_for_kombu_is_asked_without_a_deadline(
    connect: Connect, script: Script
) -> None:
    class KombuTransport(Transport):
        def establish_connection(self) -> Any:  # type: ignore[override]
            return super().establish_connection()

    connection = connect("one", transport=KombuTransport)
    assert connection.connect().host == "one"


# -- BrokerConnection ----------------------------------------------------------------------------


# -- pooled --------------------------------------------------------------------------------------


class Pool:
    """What a facade asks of a pool."""

    limit = 1

    def __init__(self) -> None:
        self.given_back: list[str] = []

    def release(self, resource: Any) -> None:
        self.given_back.append("released")
        resource.mark_released()

    def replace(self, resource: Any) -> None:
        self.given_back.append("replaced")
        resource.expire("it was given back as defective")


class Special(BrokerConnection):
    """A user's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.colour = "red"

    def hello(self) -> str:
        return f"hello {self.hostname}"


class Slotted(Connection):
    """A user's own, with slots."""

    __slots__ = ("colour",)


@pytest.mark.parametrize("cls", [Connection, BrokerConnection, Special, Slotted])
def test_a_facade_is_of_the_family(cls: type[Connection], script: Script) -> None:
    core = cls("scripted://one")
    facade = core.lend(Pool())
    assert isinstance(facade, cls)
    assert isinstance(facade, PooledConnection)
    assert facade == core
    assert core == facade
    assert hash(facade) == hash(core)
    assert facade != cls("scripted://two")
    assert type(facade.clone()) is cls
    assert type(pickle.loads(pickle.dumps(facade))) is cls
    assert facade.transport is core.transport
    assert facade.session is core.session
    assert facade.declared_entities is core.declared_entities
    channel = facade.default_channel
    assert core.default_channel is channel
    assert channel.connection.client is core
    assert facade.connected == True  # noqa: E712
    facade.hostname = "three"
    assert core.hostname == "three"
    core.close()


@pytest.mark.parametrize("cls", [Connection, BrokerConnection, Special, Slotted])
def test_a_facade_stays_of_the_family(cls: type[Connection], script: Script) -> None:
    core, pool = cls("scripted://one"), Pool()
    facade: Any = core.lend(pool)
    kind = type(facade)
    for _ in range(2):
        facade.tenant = "blue"
        facade.release()
        assert facade.tenant == "blue"
        assert {cls, PooledConnection} <= set(type(facade).__mro__)
        assert repr(facade).startswith(f"<{kind.__name__}: ")
        assert type(pickle.loads(pickle.dumps(facade))) is cls
        assert facade.lend_again(pool)
        assert type(facade) is kind
        assert not hasattr(facade, "tenant")
        assert facade.session is core.session
    facade.expire("the test ends")
    with pytest.raises(OperationalError, match="the test ends"):
        facade.connect()
    assert isinstance(facade, cls)


@pytest.mark.parametrize("end", ["release", "close", "replace"])
def test_giving_back_happens_once(script: Script, end: str) -> None:
    core, pool = Connection("scripted://one"), Pool()
    facade = core.lend(pool)
    facade.connect()
    getattr(facade, end)()
    for again in ("release", "close", "collect", "replace"):
        getattr(facade, again)()
    with facade:
        pass
    assert pool.given_back == ["replaced" if end == "replace" else "released"]
    assert core.connected
    assert facade == core
    assert hash(facade) == hash(core)
    assert "released" in repr(facade)
    core.close()


def test_a_released_facade_goes_on_and_each_place_is_logged_once(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    core = Connection("scripted://one")
    facade = core.lend(Pool())
    channel = facade.default_channel
    facade.release()
    for _ in range(3):
        assert facade.default_channel is channel
    assert facade.connected
    assert facade.hostname == "one"
    lines = [r.message for r in caplog.records if "after its release" in r.message]
    assert len(lines) == 3
    assert all(f"{__file__}:" in line for line in lines)
    assert facade.session is core.session
    core.close()


def test_an_error_in_with_replaces_only_a_broken_connection(script: Script) -> None:
    core, pool = Connection("scripted://one"), Pool()
    with pytest.raises(LookupError), core.lend(pool) as facade:
        facade.connect()
        raise LookupError
    with pytest.raises(RecoverableConnectionError), core.lend(pool) as facade:
        channel = facade.channel()
        script.link.lose()
        channel.use()
    assert pool.given_back == ["released", "replaced"]
    core.close()


@pytest.mark.parametrize("error", [OSError, LookupError, gevent.GreenletExit])
def test_any_error_in_with_replaces_a_connection_that_cannot_tell_whether_it_is_lost(
    error: type[BaseException],
) -> None:
    core, pool = Connection("one", transport=PlainTransport), Pool()
    with pytest.raises(error), core.lend(pool):
        raise error  # it was never open
    with core.lend(pool) as facade:
        facade.connect()
    with pytest.raises(error), core.lend(pool):
        raise error
    assert pool.given_back == ["released", "released", "replaced"]
    core.close()


def test_a_facade_cannot_be_lent(script: Script) -> None:
    with pytest.raises(TypeError):
        Connection("scripted://one").lend(Pool()).lend(Pool())


# -- event loops ---------------------------------------------------------------------------------


def test_a_loop_needs_add_reader(connection: Connection) -> None:
    with pytest.raises(TypeError, match="add_reader"):
        connection.register_with_event_loop(object())
