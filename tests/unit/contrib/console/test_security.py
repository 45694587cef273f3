"""Who may do what, what is shown of it, and what no content of a message can do to a page."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from gevent.event import Event

import greenconn
from greenconn import App, Connection, Queue
from greenconn.contrib.console import ACTIONS, Console
from greenconn.identity import uuid
from tests.console_client import OWN, Answer, Client

pytestmark = pytest.mark.halved

#: Pages that need no name.
PAGES = ("", "dead", "handlers", "schedules", "connections", "jobs")


@pytest.fixture
def connection() -> Iterator[Connection]:
    """A broker in memory with a queue and a dead letter."""
    with Connection(f"memory:///{uuid()}") as connection:
        for name in ("mail", "mail.dead"):
            greenconn.publish(Queue(name), {"to": "ada"}, connection=connection)
        yield connection


@pytest.fixture
def console(connection: Connection) -> Iterator[Console]:
    """A console that allows everything."""
    console = Console(connection, authorize=lambda environ, action: True)
    yield console
    console.close()


@pytest.fixture
def read_only(connection: Connection) -> Iterator[Console]:
    """A console without ``authorize``."""
    console = Console(connection)
    yield console
    console.close()


def count(connection: Connection, queue: str) -> int:
    """Return the number of ready messages."""
    with connection.channel() as channel:
        return int(channel.queue_declare(queue, passive=True).message_count)


FORMS: dict[str, dict[str, str]] = {
    "publish": {"queue": "mail", "body": "{}", "content_type": "application/json"},
    "purge": {"queue": "mail", "sure": "1"},
    "move": {"queue": "mail", "target": "mail.dead"},
    "pause": {"queue": "mail"},
    "resume": {"queue": "mail"},
    "retry": {"name": "mail.dead", "all": "1", "target": "mail"},
    "delete": {"name": "mail.dead", "all": "1", "sure": "1"},
    "edit": {"name": "mail.dead", "key": "0", "target": "mail", "body": "{}"},
    "interrupt": {"key": "0"},
    "run": {"name": "tick"},
}


def test_forms_of_all_actions() -> None:
    assert set(FORMS) == set(ACTIONS)


@pytest.mark.parametrize("action", ACTIONS)
def test_without_authorize_nothing_can_be_done(
    read_only: Console, connection: Connection, action: str
) -> None:
    client = Client(read_only)
    answer = client.post(action, **FORMS[action])
    assert answer.status == 403
    assert "this console is read-only: the program must pass authorize=" in answer.shown
    assert (count(connection, "mail"), count(connection, "mail.dead")) == (1, 1)
    for page in PAGES:
        tags = [tag for tag, _ in client.get(page).elements]
        assert "button" not in tags or page in ("", "dead")  # of a search
    for page in ("queue", "dead/letters"):
        assert "formaction" not in client.get(page, name="mail.dead").text


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    "headers",
    [
        {"HTTP_SEC_FETCH_SITE": "cross-site"},
        {"HTTP_SEC_FETCH_SITE": "same-site"},
        {"HTTP_SEC_FETCH_SITE": "none"},
        {"HTTP_SEC_FETCH_SITE": "cross-site", "HTTP_ORIGIN": "http://localhost"},
        {"HTTP_ORIGIN": "http://evil.example"},
        {"HTTP_ORIGIN": "null"},
        {},
    ],
    ids=str,
)
def test_a_form_of_another_site_is_refused(
    console: Console, connection: Connection, action: str, headers: dict[str, str]
) -> None:
    answer = Client(console).post(action, headers, **FORMS[action])
    assert answer.status == 403
    assert "was not sent from a page of this console" in answer.shown
    assert (count(connection, "mail"), count(connection, "mail.dead")) == (1, 1)


@pytest.mark.parametrize("headers", [OWN, {"HTTP_ORIGIN": "http://localhost"}], ids=str)
def test_a_form_of_this_site_is_done(
    console: Console, connection: Connection, headers: dict[str, str], caplog: Any
) -> None:
    with caplog.at_level("INFO", "greenconn.console"):
        answer = Client(console, REMOTE_USER="ada").post("purge", headers, **FORMS["purge"])
    assert "purged 1 message of mail" in answer.shown
    assert count(connection, "mail") == 0
    lines = [each.getMessage() for each in caplog.records if each.name == "greenconn.console"]
    assert lines == ["ada: purge mail", "ada: purge mail: purged 1 message of mail (done)"]


def test_actions_are_allowed_one_by_one(connection: Connection) -> None:
    asked: list[str] = []

    def authorize(environ: dict[str, Any], action: str) -> bool:
        asked.append(action)
        return action in ("view", "publish") and environ["REMOTE_ADDR"] == "127.0.0.1"

    console = Console(connection, authorize)
    client = Client(console)
    assert "published 1 message to mail" in client.post("publish", **FORMS["publish"]).shown
    assert client.post("purge", **FORMS["purge"]).status == 403
    page = client.get("queue", name="mail").text
    assert "do/publish" in page
    assert "do/purge" not in page
    assert Client(console, REMOTE_ADDR="10.0.0.9").get().status == 403
    assert {"view", "publish", "purge"} <= set(asked)
    console.close()


def test_who_answers_neither_true_nor_false_is_refused(connection: Connection) -> None:
    console = Console(connection, lambda environ, action: "yes")  # type: ignore[arg-type,return-value]
    answer = Client(console).get()
    assert answer.status == 500
    assert "authorize must return True or False, got str for 'view'" in answer.shown
    console.close()


def test_a_host_that_was_rebound_is_refused(connection: Connection) -> None:
    console = Console(connection, hosts=("localhost",))
    for host, status in (
        ("localhost:8080", 200),
        ("LOCALHOST", 200),
        ("evil.example", 421),
        ("[", 421),
    ):
        assert Client(console, HTTP_HOST=host).get().status == status
    console.close()


def check_headers(answer: Answer) -> None:
    """Check the headers that each response has."""
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"


def check_page(answer: Answer) -> None:
    """Check that nothing in a page can run, or came from a message."""
    check_headers(answer)
    scripts = [attrs for tag, attrs in answer.elements if tag == "script"]
    assert len(scripts) == 1
    assert "static/console.js" in str(scripts[0]["src"])
    for tag, attrs in answer.elements:
        assert tag not in (
            "iframe",
            "object",
            "embed",
            "img",
            "base",
            "style",
            "math",
            "foreignobject",
        )
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, attrs)
            assert name not in ("style", "srcdoc")
            if name in ("href", "src", "action", "formaction"):
                assert str(value).startswith(("/", "#main")), (tag, attrs)


#: Of which each poisoned text is made.
PARTS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "</code></pre><iframe src=//evil.example>",
    "{{7*7}}{text}{0}%s%(name)s",
    "&lt;b&gt;&#x3c;script&#x3e;",
    "\u202egnp.exe\u2066",
    "\x00\x08\x1b[31m\x7f",
    "<!--<script>-->",
    "]]><style>*{display:none}</style>",
    "\u2028\u2029\ufeff\ud7ff",
    "<base href=//evil.example>",
    "x" * 5000,
)


def poison(seed: int) -> str:
    """Return a text that tries to leave its place."""
    draw = random.Random(seed)
    return "".join(draw.choices(PARTS, k=draw.randint(1, 4)))


@pytest.mark.parametrize("first", range(0, 300, 25))
def test_no_content_leaves_its_place(first: int) -> None:
    with Connection(f"memory:///{uuid()}") as connection:
        names = set()
        for seed in range(first, first + 25):
            text = poison(seed)
            name = f"{poison(seed + 1000)[:100]}{'.dead' * (seed % 2)}"
            names.add(name)
            headers = {
                text[:200]: text,
                "x-greenconn-error": text[:200],
                "x-greenconn-traceback": text,
                "x-greenconn-queue": text[:200],
                "x-greenconn-reason": text[:50],
                "x-greenconn-attempts": text[:20],
                "x-greenconn-first-failure": text[:30],
            }
            body: Any = (text, {text[:100]: [text]}, text.encode() + b"\xff\xfe")[seed % 3]
            options: dict[str, Any] = {}
            if seed % 5 == 0:
                options = {"content_type": text[:60], "content_encoding": "utf-8"}
                body = text.encode()
            greenconn.publish(Queue(name), body, connection=connection, headers=headers, **options)
        console = Console(connection, lambda environ, action: True)
        client = Client(console)
        answers = [client.get(page) for page in PAGES]
        for name in names:
            answers += [client.get(page, name=name) for page in ("queue", "dead/letters")]
            letters = answers[-1].elements
            keys = [attrs["value"] for tag, attrs in letters if attrs.get("name") == "key"]
            answers += [client.get("dead/letter", name=name, key=key) for key in keys]
        answers.append(client.get("", q=poison(first), state=poison(first + 1), sort=poison(first)))
        answers.append(client.get("job", id=poison(first), back=poison(first + 3)))
        answers.append(client.get(poison(first)[:50]))
        for answer in answers:
            check_page(answer)
        console.close()


def test_a_body_of_a_megabyte_is_shortened(connection: Connection, console: Console) -> None:
    greenconn.publish(Queue("large"), "<b>" * 400_000, connection=connection)
    answer = Client(console).get("queue", name="large")
    check_page(answer)
    assert len(answer.text) < 100_000


def test_a_body_that_cannot_be_decoded_is_shown(connection: Connection, console: Console) -> None:
    with connection.Producer() as producer:
        producer.publish(
            b"{\xff\x00",
            "broken.dead",
            content_type="application/json",
            declare=[Queue("broken.dead")],
        )
    client = Client(console)
    assert "\\xff" in client.get("queue", name="broken.dead").shown
    assert client.get("dead").status == 200


def test_bodies_and_fields_are_hidden(connection: Connection) -> None:
    secret = {"to": "ada", "Api-Key": "s3cret", "inner": [{"user_password": "s3cret"}]}
    headers = {"X-Token": "s3cret", "url": "amqp://ada:s3cret@host/"}
    greenconn.publish(Queue("secret"), secret, connection=connection, headers=headers)
    console = Console(connection)
    shown = Client(console).get("queue", name="secret").shown
    assert "ada" in shown
    assert "s3cret" not in shown.replace("amqp://ada:s3cret@host/", "")
    console.close()
    hidden = Console(connection, lambda environ, action: True, show_bodies=False)
    client = Client(hidden)
    assert '"to"' not in client.get("queue", name="secret").text
    assert "The body is not shown here." in client.get("queue", name="secret").shown
    assert client.post("edit", **FORMS["edit"]).status == 403
    hidden.close()


def test_a_running_handler_shows_what_it_has(connection: Connection) -> None:
    shows, hides = Console(connection), Console(connection, show_bodies=False)
    begun, may_end = Event(), Event()

    def handler(body: Any, message: Any) -> None:
        if body["n"] == 2:
            begun.set()
        may_end.wait(30)

    consumer = greenconn.spawn_consumer(
        Queue("slow"), handler, concurrency=2, connection=connection
    )
    for body in ({"n": 1, "password": "s3cret", "why": "<b>" * 90}, {"n": 2, "why": "y" * 20_000}):
        greenconn.publish(Queue("slow"), body, connection=connection)
    assert begun.wait(30)
    shown = Client(shows).get("handlers").shown
    assert '{"n": 1, "password": "**", "why": "<b><b>' in shown
    assert "characters)" in shown
    assert "s3cret" not in shown
    assert '{"n": 2' not in shown, "a large body is left out"
    assert '"n"' not in Client(hides).get("handlers").shown
    may_end.set()
    assert consumer.stop(30)
    for console in (shows, hides):
        console.close()


@pytest.mark.parametrize("is_ordered", [False, True])
def test_the_place_of_a_running_handler_names_no_file_of_the_library(
    connection: Connection, console: Console, is_ordered: bool
) -> None:
    begun, may_end = Event(), Event()

    def handler(body: Any, message: Any) -> None:
        begun.set()
        may_end.wait(30)

    called = greenconn.in_order(lambda body, message: body, running=1)(handler)
    consumer = greenconn.spawn_consumer(
        Queue("slow"), called if is_ordered else handler, connection=connection
    )
    greenconn.publish(Queue("slow"), 1, connection=connection)
    assert begun.wait(30)
    shown = Client(console).get("handlers").shown
    may_end.set()
    assert consumer.stop(30)
    (place,) = re.findall(r"console/test_security\.py:\d+ handler.*", shown)
    assert "worker/" not in place
    assert "greenconn/" not in place


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            {"app_or_url": 5},
            TypeError,
            "app_or_url must be an App, a Connection, a URL or None, got 5",
        ),
        ({"authorize": True}, TypeError, "authorize must be a callable or None, got True"),
        ({"queues": "mail"}, TypeError, "queues must be a list of names, got 'mail'"),
        ({"mask": "token"}, TypeError, "mask must be a list of names, got 'token'"),
    ],
)
def test_arguments_that_are_wrong(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        Console(**arguments)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nosuch", 404),
        ("GET", "/static/nosuch.js", 404),
        ("GET", "/static/../__init__.py", 404),
        ("PUT", "/", 405),
        ("POST", "/do/nosuch", 403),
        ("GET", "/live?page=nosuch", 404),
        ("GET", "/live?page=__init__", 404),
        ("GET", "/queue", 200),
        ("GET", "/?n=999999999&sort=%00", 200),
        ("GET", "/dead/letters?name=&count=x", 200),
        ("HEAD", "/", 200),
        ("GET", "/%ff%00?q=%ff%ed%a0%80", 400),
    ],
)
def test_requests_that_are_wrong(console: Console, method: str, path: str, status: int) -> None:
    answer = Client(console).request(method, path, b"", **OWN)
    assert answer.status == status
    check_headers(answer)


def test_forms_that_are_wrong(console: Console, connection: Connection) -> None:
    client = Client(console)
    for action, fields, text in (
        ("purge", {"queue": "mail"}, "must be checked"),
        ("purge", {"sure": "1"}, "the field queue must be given"),
        ("move", {"queue": "mail", "target": "mail"}, "the target must be another queue"),
        (
            "move",
            {"queue": "mail", "target": "x", "limit": "-1"},
            "limit must be a positive number",
        ),
        (
            "retry",
            {"name": "mail.dead", "all": "1", "rate": "nan"},
            "rate must be a number above 0",
        ),
        ("retry", {"name": "mail.dead", "queue": "mail"}, "choose at least one message"),
        ("retry", {"name": "mail.dead", "all": "1"}, "these dead letters name no queue"),
        ("publish", {**FORMS["publish"], "body": "{"}, "the body must be JSON"),
        ("publish", {**FORMS["publish"], "headers": "[]"}, "the headers must be an object of JSON"),
        ("run", {"name": "tick"}, "there is no schedule 'tick'"),
    ):
        answer = client.post(action, **fields)
        assert (answer.status, text in answer.shown) == (400, True), (action, answer.shown)
    large = client.request(
        "POST", "/do/purge", b"", **OWN,
        CONTENT_LENGTH="99999999", CONTENT_TYPE="application/x-www-form-urlencoded",
    )  # fmt: skip
    assert large.status == 413
    assert (count(connection, "mail"), count(connection, "mail.dead")) == (1, 1)


def test_a_wrong_url_is_told() -> None:
    console = Console("redis://127.0.0.1:1/0")
    answer = Client(console).get()
    assert answer.status == 200
    assert "cannot connect to 127.0.0.1:1: Connection refused" in answer.shown
    console.close()


def test_an_application_can_be_given() -> None:
    app = App(f"memory:///{uuid()}")

    @app.every(3600, name="tick")
    def tick() -> None:
        pass

    console = Console(app)
    assert "tick" in Client(console).get("schedules").shown
    console.close()
