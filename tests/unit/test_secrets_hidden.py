"""No URL form and no option shows its secret in an error, a ``repr()``, a log record or an output."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import gevent
import pytest

import greenconn
from greenconn import App, Connection, defaults
from greenconn.checks import Record, invalid
from greenconn.cli import main
from greenconn.connection import BrokerConnection
from greenconn.options import AmqpOptions
from greenconn.session.broker import Parameters
from greenconn.transport import FOREIGN, MEANT, TRANSPORT_ALIASES
from greenconn.transport.couchdb import CouchOptions
from greenconn.transport.mongodb import MongoOptions
from greenconn.transport.redis import SentinelTransport
from greenconn.transport.redis.options import RedisOptions
from greenconn.transport.SQS import SQSOptions
from greenconn.transport.SQS.queues import SqsQueue
from greenconn.transport.SQS.service import NewQueues
from greenconn.url import BrokerURL, maybe_sanitize_url
from tests.brokers.tls import CERTS

SECRET: Final = "SeKret-99x"
#: Seconds for an attempt to connect: nobody answers, and its error is what counts.
SOON: Final = 0.1
#: In the scheme, behind the plus sign.
INNER: Final = (
    *("cluster", "http", "https", "sentinel", "socket", "srv", "ssl", "tcp", "tls", "unix"),
)
SCHEMES: Final = sorted({*TRANSPORT_ALIASES, *MEANT, "http", "nosuch", "redis+cluster+tls", "unix"})
PLUS_SCHEMES: Final = [
    f"{alias}+{inner}"
    for alias in ("amqp", "amqps", "redis", "rediss", "sentinel", "mongodb", "couchdb", "sqs")
    for inner in INNER
] + ["beanstalk+tcp", "memory+x", "nosuch+x", "sqla+postgresql", "sqlite+x", "valkey+tls"]
#: ``{s}`` is the scheme, ``{p}`` the secret.  Nothing listens on port 1.
FORMS: Final = (
    "{s}://user:{p}@127.0.0.1:1/0",
    "{s}://:{p}@127.0.0.1:1",
    "{s}://user:{p}@127.0.0.1:1/0?nosuch=1",
    "{s}://user:{p}@127.0.0.1:1/0;{s}://user:{p}@127.0.0.1:1/1",
    "{s}://user:{p}@127.0.0.1:port/0",
    "{s}://user:{p}@[::1/0",
    "{s}://user:{p}/@:?;{p}@127.0.0.1:1/0",
    "{s}://user:{p}%ff@127.0.0.1:1/0",
    "{s}://user:{p}@one,two/0",
    "{s}://user:{p}",
    "{s}://user:{p}/0",
    "{s}://127.0.0.1:1/0?password={p}",
    "{s}://127.0.0.1:1/0?session_token={p}",
    "{s}://127.0.0.1:1/0?pwd={p}",
    '{s}://127.0.0.1:1/0?sentinel_kwargs={{"password":"{p}"}}',
    "{s}:/user:{p}@127.0.0.1:1",
    "{s}//user:{p}@127.0.0.1:1",
    "{s}:user:{p}@127.0.0.1:1",
    "user:{p}@127.0.0.1:1",
)


class Seen(logging.Handler):
    """All texts that anybody may have seen."""

    def __init__(self) -> None:
        super().__init__(0)
        self._texts: list[str] = []
        self._begun: list[gevent.Greenlet[..., None]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._texts += [self.format(record), repr(vars(record))]

    def show(self, *values: object) -> None:
        """Look at values as a program does that logs them."""
        self._texts += [show(value) for value in values for show in (str, repr)]

    def error(self, error: BaseException) -> None:
        """Look at an error and at all that led to it."""
        self._texts.append("".join(traceback.format_exception(error)))
        chain: list[BaseException | None] = [error]
        while chain:
            link = chain.pop()
            if link is not None:
                self.show(link, link.args, vars(link))
                chain += [link.__cause__, link.__context__]

    def call(self, function: Callable[..., object], *arguments: Any, **options: Any) -> Any:
        """Call *function*, and look at its result or its error."""
        try:
            result = function(*arguments, **options)
        except Exception as exc:
            self.error(exc)
            return None
        self.show(result)
        return result

    def begin(self, function: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Call *function* beside the others that were begun: most of them wait."""
        self._begun.append(gevent.spawn(function, *arguments, **options))

    def check(self) -> None:
        """Fail if one of them had the secret, when all have ended."""
        gevent.joinall(self._begun, raise_error=True)
        shown = [text for text in self._texts if SECRET in text]
        assert not shown, shown[0].replace(SECRET, "<SECRET>")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Seen]:
    monkeypatch.chdir(tmp_path)
    handler, root = Seen(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(0)
    yield handler
    monkeypatch.undo()
    defaults.reset()
    root.removeHandler(handler)
    root.setLevel(level)


def use(seen: Seen, *arguments: Any, **options: Any) -> None:
    """Make a connection, look at it and try to open it, beside others."""
    seen.begin(_use, seen, *arguments, **options)


def _use(seen: Seen, *arguments: Any, **options: Any) -> None:
    options = {"connect_timeout": SOON, **options}
    connection = seen.call(Connection, *arguments, **options)
    if connection is None:
        return
    broker = connection.session.broker
    seen.show(broker.parameters, broker.keywords, broker.failover, broker.label)
    for look in (connection.as_uri, connection.clone, lambda: connection.transport):
        seen.call(look)
    seen.call(lambda: connection.transport.options)
    seen.call(connection.ensure_connection, max_retries=1, interval_start=0.01, timeout=SOON)
    seen.call(lambda: connection.connection)
    seen.call(connection.release)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("scheme", [*SCHEMES, *PLUS_SCHEMES])
@pytest.mark.sampled(8)
def test_a_url(scheme: str, seen: Seen) -> None:
    for form in FORMS:
        url = form.format(s=scheme, p=SECRET)
        use(seen, url)
        seen.call(App, url)
        seen.call(BrokerURL.parse, url)
        seen.call(maybe_sanitize_url, url)
    seen.check()


@pytest.mark.parametrize("scheme", sorted(FOREIGN))
def test_a_url_of_a_transport_of_kombus(scheme: str, seen: Seen) -> None:
    for form in FORMS:
        seen.call(Connection, form.format(s=scheme, p=SECRET))
    seen.check()


@pytest.mark.parametrize("url", [f"redis+tls://u:{SECRET}@h/0", f"amqp://u:{SECRET}"])
def test_each_way_to_give_a_url(
    url: str, seen: Seen, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    connection = Connection("memory://")
    seen.call(connection.switch, url)
    seen.call(connection.clone, hostname=url)
    seen.call(Connection, "amqp://h", alternates=[url])
    seen.call(Connection, ["amqp://h", url])
    seen.call(BrokerConnection, url)
    seen.call(greenconn.configure, url)
    for wrong in (url.encode(), 5, {"url": url}, [url.encode()]):
        seen.call(Connection, wrong)
        seen.call(greenconn.configure, wrong)
        seen.call(App, wrong)
        seen.call(greenconn.publish, "q", 1, connection=wrong)
    monkeypatch.setenv("GREENCONN_URL", url)
    greenconn.configure()
    seen.call(greenconn.publish, "q", 1)
    for arguments in (["ping"], ["publish", "q", "x", "--url", url], ["ping", url], ["peek", url]):
        assert main(arguments) == 2
    seen.show(*capfd.readouterr())
    seen.check()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("scheme", sorted(TRANSPORT_ALIASES))
@pytest.mark.sampled(5)
def test_a_url_in_place_of_a_host(scheme: str, seen: Seen) -> None:
    for url in (f"tls://u:{SECRET}@h", f"{scheme}://u:{SECRET}@127.0.0.1:1/0"):
        connection = Connection(f"{scheme}://127.0.0.1:1/0", connect_timeout=SOON)
        seen.call(setattr, connection, "hostname", url)
        seen.call(connection.ensure_connection, max_retries=1, timeout=SOON)
        seen.show(connection, connection.as_uri(), connection.session)
    options = {"manager_hostname": f"http://u:{SECRET}@h"}
    with Connection("amqp://127.0.0.1:1//", transport_options=options) as connection:
        seen.call(connection.get_manager)
        seen.call(lambda: connection.get_manager().get_users())
    seen.check()


@pytest.mark.parametrize("scheme", sorted(TRANSPORT_ALIASES))
@pytest.mark.sampled(5)
def test_a_login_by_keyword(scheme: str, seen: Seen) -> None:
    class Provider:
        def get_credentials(self) -> tuple[str, str]:
            return "user", SECRET

    # A scheme with a host that does not listen; a file for SQLite.
    url = f"{scheme}://127.0.0.1:1/0"
    use(seen, url, userid="user", password=SECRET)
    use(seen, url, userid="user", password=lambda: SECRET)
    use(seen, url, userid="user", password=[SECRET])
    use(seen, url, credential_provider=Provider())
    seen.check()


SHAPES: Final = (
    SECRET,
    [SECRET],
    SECRET.encode(),
    {"password": SECRET},
    json.dumps({"password": SECRET}),  # as Airflow has it from its file
    f"https://u:{SECRET}@h/q",
    f"https://u:{SECRET}@h:port/q",
    {"q": SECRET},
    {"q": {"url": f"https://u:{SECRET}@h/q"}},
    {"q": {"url": f"https://u:{SECRET}@h:port/q"}},
    {"q": {"url": f"https://u:{SECRET}@h/q.fifo"}},
    {"q": {"url": SECRET, "secret_access_key": SECRET, "session_token": SECRET}},
)
OPTIONS: Final[tuple[type[Record], ...]] = (
    AmqpOptions,
    RedisOptions,
    SQSOptions,
    CouchOptions,
    MongoOptions,
)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in OPTIONS for name in sorted(kind.hidden)]
)
@pytest.mark.sampled(8)
def test_a_hidden_option(kind: type[Record], name: str, seen: Seen) -> None:
    scheme = {
        AmqpOptions: "amqp",
        RedisOptions: "sentinel",
        SQSOptions: "sqs",
        CouchOptions: "couchdb",
        MongoOptions: "mongodb",
    }[kind]
    for value in SHAPES:
        seen.call(kind, **{name: value})
        options = {name: value, "master_name": "m"} if scheme == "sentinel" else {name: value}
        use(seen, f"{scheme}://127.0.0.1:1", transport_options=options)
    seen.check()


@pytest.mark.parametrize("kind", [Parameters, BrokerURL, *OPTIONS])
def test_an_option_whose_name_says_secret_is_hidden(kind: type[Record]) -> None:
    secret = re.compile("passw|secret|token|response$|credential|kwargs|predefined")
    # A number of seconds, and an address of AWS that is no secret.
    shown = {"sts_token_timeout", "sts_token_buffer_time"}
    named = {name for name in kind.fields if secret.search(name)} - shown
    assert named <= kind.hidden


def test_an_error_about_a_hidden_option_names_the_type_of_its_value() -> None:
    with pytest.raises(
        ValueError, match=r"sentinel_kwargs must be of type Mapping, or None, got a "
    ) as r:
        RedisOptions(sentinel_kwargs=json.dumps({"password": SECRET}))  # type: ignore[arg-type]
    assert "value of type str" in str(r.value)
    assert SECRET not in str(invalid(AmqpOptions(manager_password=SECRET), "manager_password", "x"))


@pytest.mark.parametrize(
    "ssl",
    [
        SECRET,
        {"keyfile_password": SECRET, "certfile": SECRET},
        {"keyfile_password": [SECRET], "certfile": str(CERTS / "client.pem")},
        {
            "keyfile_password": SECRET,
            "certfile": str(CERTS / "client.pem"),
            "keyfile": str(CERTS / "client-locked.key"),
        },
        {"password": SECRET, "nosuch": SECRET},
    ],
)
def test_tls(ssl: Any, seen: Seen) -> None:
    if "certfile" in ssl:
        ssl = {**ssl, "certfile": str(CERTS / "client.pem")}
    for scheme in (*("amqp", "redis", "couchdb", "sqs", "mongodb", "redis+cluster", "postgresql"),):
        use(seen, f"{scheme}://127.0.0.1:1", ssl=ssl)
    use(
        seen,
        "sentinel://127.0.0.1:1",
        transport_options={"master_name": "m", "sentinel_kwargs": {"ssl_password": SECRET}},
    )
    seen.check()


def test_what_is_made_of_options(seen: Seen) -> None:
    url = f"https://u:{SECRET}@h/q"
    seen.show(SqsQueue("q", "q", url, None, {"secret": SECRET}, NewQueues()))  # type: ignore[arg-type]
    connection = Connection(
        "sentinel://127.0.0.1:1",
        transport_options={"master_name": "m", "sentinel_kwargs": {"password": SECRET}},
    )
    transport = connection.transport
    assert isinstance(transport, SentinelTransport)
    seen.show(transport.options, *transport.sentinels())
    seen.show(connection, connection.session, connection.session.broker.key())
    seen.check()
