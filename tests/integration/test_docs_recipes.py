"""The programs of docs/recipes.rst, each on several brokers: they print what the page says."""

from __future__ import annotations

import os
import re
from pathlib import Path
from textwrap import dedent

import pytest

import greenconn
from greenconn import Broadcast, Connection
from tests.brokers.rabbitmq import RabbitMQ
from tests.integration.processes import start
from tests.interpreter import printed

pytestmark = [pytest.mark.programs, pytest.mark.halved]

ROOT = Path(__file__).resolve().parents[2]
RECIPES = re.compile(
    r"^(?P<title>[A-Z][^\n]*)\n=+\n(?:(?!^\.\. code-block).*\n)*?"
    r"\.\. code-block:: python\n\n(?P<program>(?:(?:    .*)?\n)+)"
    r"It prints::\n\n(?P<output>(?:(?:    .*)?\n)+)",
    re.MULTILINE,
)
PAGE = (ROOT / "docs" / "recipes.rst").read_text()
PROGRAMS = {
    match["title"]: (dedent(match["program"]), dedent(match["output"]).strip())
    for match in RECIPES.finditer(PAGE)
}
#: The longest that a program may have, but for its empty lines.
LINES = 24


def test_all_programs_are_found() -> None:
    assert len(PROGRAMS) == PAGE.count(".. code-block:: python")


@pytest.mark.parametrize("title", PROGRAMS)
def test_programs_are_short(title: str) -> None:
    program, _ = PROGRAMS[title]
    assert len([line for line in program.splitlines() if line.strip()]) <= LINES


def url_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """Return the address of a broker."""
    if kind == "memory":
        return "memory://"
    if kind == "sqlite":
        return f"sqlite:///{folder}/queue.db"
    return str(request.getfixturevalue(f"{kind}_url"))


def limits_for(kind: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the variables that name the store of limits for a broker which keeps none."""
    if kind in WITH_LIMITS:
        return {}
    return {"GREENCONN_LIMITS": str(request.getfixturevalue("redis_url"))}


#: The programs for which people choose a work queue.
CHOSEN_FOR = {
    *("Limits over all processes", "One message of a kind", "Idempotent handlers", "Order by key"),
    *("An API that says Retry-After", "Broadcast to all processes"),
}
WITH_LIMITS = ("redis", "sqlite", "memory", "postgresql")
OTHERS = ("mongodb", "couchdb", "beanstalk", "sqs")
#: What brokers refuse with an error, as the pages say.
REFUSED = {
    "Order by key": OTHERS,
    "Broadcast to all processes": ("couchdb", "beanstalk", "sqs"),
}


@pytest.mark.parametrize("title", sorted(CHOSEN_FOR))
def test_programs_that_people_choose_for_have_less_than_twenty_lines(title: str) -> None:
    program, _ = PROGRAMS[title]
    assert len([line for line in program.splitlines() if line.strip()]) < 20


@pytest.mark.parametrize(
    "kind",
    ["amqp", *(pytest.param(kind, marks=pytest.mark.full) for kind in (*WITH_LIMITS, *OTHERS))],
)
@pytest.mark.parametrize("title", PROGRAMS)
def test_programs_print_what_the_page_says(
    request: pytest.FixtureRequest, title: str, kind: str, tmp_path: Path
) -> None:
    if kind in REFUSED.get(title, ()):
        pytest.skip("the broker refuses it")
    url = url_of(kind, request, tmp_path)
    program, output = PROGRAMS[title]
    env = {"GREENCONN_URL": url, **limits_for(kind, request)}
    said = printed("-W", "error", "-c", program, env=env)
    assert said.strip() == output
    if kind in ("amqp", "redis"):
        with Connection(url) as connection:
            for name in re.findall(r'"([a-z-]+)"', program):
                connection.default_channel.queue_delete(name)
                connection.default_channel.queue_delete(f"{name}.dead")


def program_with(text: str) -> str:
    """Return the one program that has *text* in it."""
    (program,) = (each for each, _ in PROGRAMS.values() if text in each)
    return program


@pytest.mark.full
@pytest.mark.parametrize("kind", ["amqp", "redis", "sqlite"])
def test_a_broadcast_reaches_processes(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    """The part that listens, in three processes, with one queue each."""
    url = url_of(kind, request, tmp_path)
    program = program_with("Broadcast(")
    listening = program.partition("app.publish(")[0] + "print('ready', flush=True)\n"
    listening += "print(*sorted(heard.get(timeout=150) for _ in range(2)), flush=True)\n"
    env = {"GREENCONN_URL": url, "PYTHONPATH": str(ROOT)}
    running = [start("-c", listening, env=env) for _ in range(3)]
    try:
        assert [each.line() for each in running] == ["ready"] * 3
        with Connection(url) as connection:
            greenconn.publish(Broadcast("invalidate"), "user:7", connection=connection)
        heard = "('forgotten', 'user:7') ('noted', 'user:7')"
        assert [each.line() for each in running] == [heard] * 3
    finally:
        for each in running:
            each.end()


@pytest.mark.full
def test_the_web_application_loses_nothing_when_the_broker_restarts(own_rabbitmq: RabbitMQ) -> None:
    program = program_with("flask.Flask(")
    requests = (
        "import sys\nwhile sys.stdin.read(1):\n"
        "    print(client.post('/orders', json={'item': 'milk'}).status_code, flush=True)\n"
    )
    env = {"GREENCONN_URL": own_rabbitmq.url, "PYTHONPATH": str(ROOT)}
    site = start("-c", program + requests, env=env)
    accepted = 0

    def post() -> None:
        os.write(site.input.fileno(), b"1")

    def answer() -> str:
        nonlocal accepted
        status = site.line()
        accepted += status == "200"
        return status

    try:
        assert answer() == "200"
        for _ in range(3):
            post()
            assert answer() == "200"
            own_rabbitmq.stop_app()
            post()  # it waits for the broker
            own_rabbitmq.start_app()
            answers = [answer()]
            while answers[-1] != "200":  # it was away for more than five seconds
                post()
                answers.append(answer())
            assert set(answers) <= {"200", "503"}
        with Connection(own_rabbitmq.url) as connection:
            channel = connection.default_channel
            waiting = channel.queue_declare("web-orders", passive=True).message_count
            assert waiting >= accepted  # where the answer was 503, the broker may have it, too
            channel.queue_delete("web-orders")
    finally:
        site.end()
