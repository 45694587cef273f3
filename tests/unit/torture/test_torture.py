"""Torture tests: what they take, what they find, and how they tell it."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import gevent
import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers

import greenconn
from greenconn import App, DeadLetter
from greenconn.cli import main
from greenconn.torture import Report, TortureFailure, torture

#: Counts payments after a wait in which the handler may be killed.
PROGRAM = """
import gevent
from greenconn import App

app = App("amqp://nowhere/")
paid = []


@app.consumer("orders")
def pay(body, message):
    paid.append(body["id"])
    gevent.sleep(1)


def once():
    return len(paid) == len(set(paid))
"""
MESSAGE = '{"queue": "orders", "body": {"id": 1}}\n'


@pytest.fixture
def app() -> App:
    """An application without a broker."""
    return App("amqp://nowhere/")


@pytest.fixture
def paid(app: App) -> Counter[int]:
    """The payments that its handler has counted."""
    paid: Counter[int] = Counter()

    @app.consumer("orders")
    def pay(body: Any, message: Any) -> None:
        paid[body["id"]] += 1
        gevent.sleep(1)

    return paid


def test_the_shortest_history_is_told(app: App, paid: Counter[int]) -> None:
    with pytest.raises(TortureFailure) as caught, torture(app, seed=3, reset=paid.clear) as run:
        run.publish("orders", {"id": 1})
        run.publish("orders", {"id": 2})
        run.check(lambda: max(paid.values()) == 1)
    found = caught.value
    assert (found.history, found.steps, found.seed) == ("2: kill 1.1", 2, 3)
    assert [line.split()[0] for line in found.story] == [
        "published",
        "delivered",
        "killed",
        "delivered",
        "handled",
    ]
    assert re.search(
        r"killed +pay in call 1, at .*test_torture\.py:\d+ in pay: gevent\.sleep\(1\)", str(found)
    )
    assert "it returned False: run.check(lambda: max(paid.values()) == 1)" in str(found)
    assert "Repeat it: torture(app, replay='2: kill 1.1')" in str(found)


def test_a_report_tells_what_was_run(app: App, paid: Counter[int]) -> None:
    run = torture(app, faults="kill", reset=paid.clear)
    run.publish("orders", {"id": 1})
    run.check(lambda: paid[1] >= 1)
    counts: list[int] = []
    report = run.explore(counts.append)
    assert isinstance(report, Report)
    assert report == run.report
    assert report.is_complete
    assert report.points == 1
    assert counts == list(range(1, report.histories + 1))


def test_without_a_check_no_message_may_be_given_up(app: App) -> None:
    started: list[int] = []

    @app.consumer("orders")
    def pay(body: Any, message: Any) -> None:
        started.append(1)
        if len(started) > 1:
            raise DeadLetter("twice")
        gevent.sleep(1)

    run = torture(app, reset=started.clear)
    run.publish("orders", {"id": 1})
    with pytest.raises(TortureFailure, match="1 messages were given up"):
        run.explore()


def test_a_handler_that_never_ends_is_told(app: App) -> None:
    locks: list[int] = []

    @app.consumer("reports")
    def build(body: Any, message: Any) -> None:
        while locks:
            gevent.sleep(1)
        locks.append(1)
        gevent.sleep(1)
        locks.pop()

    run = torture(app, reset=locks.clear, deadline=0.5)
    run.publish("reports", {"id": 1})
    with pytest.raises(TortureFailure, match="A handler did not end") as caught:
        run.explore()
    assert "build" in str(caught.value)


def test_what_fails_without_a_fault_is_told(app: App, paid: Counter[int]) -> None:
    run = torture(app, reset=paid.clear)
    run.publish("orders", {"id": 1})
    run.check(lambda: paid[1] == 2)
    with pytest.raises(TortureFailure, match="it fails for the messages alone"):
        run.explore()


def test_an_error_in_the_block_runs_nothing(app: App, paid: Counter[int]) -> None:
    with pytest.raises(LookupError), torture(app) as run:
        run.publish("orders", {"id": 1})
        raise LookupError
    assert not paid


def test_logging_is_as_before_whatever_happens(
    app: App, paid: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    disable = logging.disable

    def fail(level: int) -> None:
        disable(level)
        if level:
            raise RuntimeError("a lock of logging")

    monkeypatch.setattr(logging, "disable", fail)
    with pytest.raises(RuntimeError, match="a lock of logging"), torture(app) as run:
        run.publish("payments", 1)
    assert not logging.root.manager.disable


def test_steps_are_functions_and_time_too(app: App, paid: Counter[int]) -> None:
    @app.every(60)
    def remind() -> None:
        app.publish("orders", {"id": 7})

    with torture(app, histories=20, faults=("kill",), reset=paid.clear) as run:
        run.call(app.publish, "orders", {"id": 1})
        run.advance(61)
        run.check(lambda: paid[1] and paid[7])


def test_the_application_is_as_before(app: App, paid: Counter[int]) -> None:
    connection = app.connection
    with torture(app, histories=5) as run:
        run.publish("orders", {"id": 1})
        run.check(lambda: True)
    assert app.connection is connection
    with pytest.raises(RuntimeError, match="while a history runs"):
        _ = run.broker
    with app.testing() as test:
        app.publish("orders", {"id": 1})
        test.run_until_idle()
        assert len(test.handled("orders")) == 1


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"histories": 0}, ValueError, "histories must be a positive integer, got 0"),
        ({"processes": True}, ValueError, "processes must be a positive integer, got True"),
        ({"faults": ("kil",)}, ValueError, "faults must be of kill, .*, got 'kil'"),
        ({"reset": 3}, TypeError, "reset must be a callable, or None, got 3"),
        ({"forget": "x"}, TypeError, "forget must be a callable, or None, got 'x'"),
        ({"replay": "kill"}, ValueError, "replay must be a history as a failure prints it"),
        ({"replay": "1: melt 1.1"}, ValueError, "replay must be a history as a failure prints it"),
        ({"deadline": 0}, ValueError, "deadline must be a number of seconds above 0, got 0"),
    ],
)
def test_arguments_that_are_wrong(
    app: App, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        torture(app, **options)


def test_no_application() -> None:
    with pytest.raises(TypeError, match=r"app must be a greenconn\.App, got <module"):
        torture(greenconn)  # type: ignore[arg-type]


def test_nothing_to_do(app: App, paid: Counter[int]) -> None:
    with pytest.raises(RuntimeError, match="nothing is published or called"):
        torture(app).explore()
    run = torture(app, replay="2: kill 1.1")
    run.publish("orders", {"id": 1})
    with pytest.raises(ValueError, match=r"replay must have steps up to 1, got '2: kill 1\.1'"):
        run.explore()
    with pytest.raises(ValueError, match="seconds must be at least 0, got -1"):
        run.advance(-1)
    with pytest.raises(TypeError, match="function must be a callable, got 'x'"):
        run.check("x")  # type: ignore[arg-type]


# -- the command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a program and messages."""
    name = f"program_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(PROGRAM)
    (tmp_path / "orders.jsonl").write_text(MESSAGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / name


def command(folder: Path, *arguments: str) -> int:
    """Run ``greenconn torture`` without patching this process."""
    return main(["torture", folder.name, "--messages", "orders.jsonl", "--no-patch", *arguments])


def test_a_command_that_finds_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(folder, "--histories", "50") == 0
    assert re.match(
        r"50 histories passed in .* s: a sample of those with up to", capsys.readouterr().out
    )


def test_a_command_that_finds_a_bug(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--check", f"{folder.name}:once", "--reset", f"{folder.name}:paid.clear")
    assert command(folder, *options) == 1
    told = capsys.readouterr().out
    assert "killed       pay in call 1" in told
    assert (
        f"Repeat it: greenconn torture {folder.name} --messages orders.jsonl --check "
        f"{folder.name}:once --reset {folder.name}:paid.clear --replay '1: kill 1.1'" in told
    )
    assert command(folder, *options, "--replay", "1: kill 1.1") == 1
    assert "history 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "options", "text"),
    [
        ("{", (), "line 1 of orders.jsonl must be JSON"),
        ("[]", (), "line 1 of orders.jsonl must be an object with 'queue' and 'body', got []"),
        (MESSAGE + '{"queue": "x"}', (), "line 2 of orders.jsonl must have a 'body'"),
        ("", (), "orders.jsonl must have at least one message, a line each"),
        (
            MESSAGE,
            ("--check", "json:nosuch"),
            "must be a function as module:name, got 'json:nosuch'",
        ),
        (MESSAGE, ("--check", "nosuch_module:x"), "No module named 'nosuch_module'"),
        (MESSAGE, ("--fault", "melt"), "faults must be of kill,"),
        (MESSAGE, ("--replay", "x"), "replay must be a history as a failure prints it"),
        ('{"queue": "orders", "body": 1, "prioritee": 1}', (), "prioritee"),
    ],
)
def test_a_command_that_is_wrong(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    lines: str,
    options: tuple[str, ...],
    text: str,
) -> None:
    (folder.parent / "orders.jsonl").write_text(lines)
    assert command(folder, *options) != 0
    assert text in " ".join(capsys.readouterr().err.split())


# -- the fixture


def test_messages_of_hypothesis(app: App) -> None:
    balance: Counter[str] = Counter()

    @app.consumer("payments")
    def book(body: Any, message: Any) -> None:
        if body["amount"] > 100:  # large ones are written in two steps
            balance[body["account"]] += 100
            gevent.sleep(1)
            balance[body["account"]] += body["amount"] - 100
        else:
            balance[body["account"]] = body["amount"]

    amounts = integers(1, 1000)

    @settings(max_examples=50, deadline=None, derandomize=True, database=None)
    @given(amounts)
    def explore(amount: int) -> None:
        with torture(app, histories=20, faults="kill", reset=balance.clear) as run:
            run.publish("payments", {"account": "ada", "amount": amount})
            run.check(lambda: balance == {"ada": amount})

    with pytest.raises(TortureFailure) as caught:
        explore()
    assert "'amount': 101" in str(caught.value), "hypothesis finds the smallest one"
    assert caught.value.history == "1: kill 1.1"


@pytest.mark.full
def test_the_options_of_pytest(tmp_path: Path) -> None:
    from tests.integration.processes import run

    (tmp_path / "conftest.py").write_text('pytest_plugins = ["greenconn.torture"]\n')
    (tmp_path / "shop.py").write_text(PROGRAM)
    (tmp_path / "test_shop.py").write_text(
        "import shop\n\n\n"
        "def test_orders(torture):\n"
        "    with torture(shop.app, reset=shop.paid.clear) as run:\n"
        '        run.publish("orders", {"id": 1})\n'
        "        run.check(shop.once)\n"
    )
    pytest_ = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path))
    done = run(*pytest_, "--torture-seed", "5", str(tmp_path))
    assert done.code == 1
    assert "(history 2, seed 5)" in done.output
    line = re.search(r"Repeat it: pytest '(.*)' --torture-replay '(.*)'", done.output)
    assert line is not None
    again = run(*pytest_, "--torture-replay", line[2], str(tmp_path))
    assert "(history 1, seed 0)" in again.output
    few = run(*pytest_, "--torture-histories", "1", str(tmp_path))
    assert few.code == 0, few.output
