"""No test may make the library tell a secret.

Every password that a test gives to the library is remembered while it runs, as it is and in the forms
in which protocols send it.  None of them may be in a line that the library logs (at any level, with
the errors that go with it), in an error that the test expects, in one that the library raises anywhere
(where Python can tell: 3.12 and later), or in what is written to the standard streams.
"""

from __future__ import annotations

import base64
import logging
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import CodeType
from typing import Any, Final
from urllib.parse import quote

import pytest
from _pytest.raises import RaisesExc

import greenconn
from greenconn.credentials import Token
from greenconn.session.broker import Parameters

PACKAGE: Final = str(Path(greenconn.__file__).resolve().parent)
#: A shorter password may be part of any word.
SHORTEST: Final = 6
#: Passwords that are words of ours, or the name of the user too.
COMMON: Final = frozenset({"guest", "secret", "password"})
#: What may hold a password beside that of the connection.
OPTIONS: Final = ("password", "keyfile_password", "sentinel_kwargs", "manager_password")


class Secrets:
    """The passwords that the library was given since the test began, and where they were seen."""

    def __init__(self) -> None:
        self._forms: dict[str, None] = {}
        #: Where a secret was found: the place, and the text with it.
        self.found: list[str] = []

    def clear(self) -> None:
        """Begin anew."""
        self._forms.clear()
        self.found.clear()

    def learn(self, secret: Any, user: Any = "") -> None:
        """Remember a password."""
        if not isinstance(secret, str) or len(secret) < SHORTEST or secret in COMMON:
            return
        plain = str.__str__(secret)
        forms = [plain, quote(plain, safe="")]
        for sent in (plain, f"{user}:{plain}", f"\0{user}\0{plain}"):
            forms.append(base64.b64encode(sent.encode()).decode().rstrip("="))
        self._forms.update(dict.fromkeys(forms))

    def learn_options(self, options: Any, user: Any = "") -> None:
        """Remember the passwords in a table of options."""
        if isinstance(options, dict):
            for name in OPTIONS:
                self.learn_options(options.get(name), user)
        else:
            self.learn(options, user)

    def search(self, where: str, text: str) -> None:
        """Note it if *text* has one of them."""
        for form in self._forms:
            if form in text:
                self.found.append(f"{where}: {text.replace(form, '<SECRET>')[:500]}")

    def search_error(self, where: str, error: BaseException | None) -> None:
        """Search an exception and all that led to it."""
        seen: set[int] = set()
        todo = [error]
        while todo:
            each = todo.pop()
            if each is None or id(each) in seen:
                continue
            seen.add(id(each))
            for show in (str, repr):
                try:
                    text = show(each)
                except Exception:  # that of a test may be broken on purpose
                    continue
                self.search(f"{where}, {type(each).__name__}", text)
            todo += [each.__cause__, each.__context__]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to look for."""
        return not self._forms


_secrets = Secrets()


class _Searcher(logging.Handler):
    """Searches what the library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        if _secrets.is_empty or not record.name.startswith("greenconn"):
            return
        where = f"log of {record.name}"
        _secrets.search(where, record.getMessage())
        if record.exc_info:
            _secrets.search_error(where, record.exc_info[1])


def _learn_from_parameters() -> None:
    original: Callable[..., None] = Parameters.__init__

    def __init__(self: Parameters, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        _secrets.learn(self.password, self.userid)
        for options in (self.ssl, self.transport_options):
            _secrets.learn_options(options, self.userid)

    setattr(Parameters, "__init__", __init__)  # noqa: B010  (mypy minds the assignment)


def _learn_from_tokens() -> None:
    original = Token.__new__

    def __new__(cls: type[Token], secret: str, expires_in: float | None = None) -> Token:  # noqa: N807
        _secrets.learn(secret)
        return original(cls, secret, expires_in)

    setattr(Token, "__new__", __new__)  # noqa: B010


def _search_expected_errors() -> None:
    original: Callable[..., bool] = RaisesExc.__exit__

    def __exit__(self: Any, kind: Any, value: Any, trace: Any) -> bool:  # noqa: N807
        if value is not None and not _secrets.is_empty:
            _secrets.search_error("expected error", value)
        return original(self, kind, value, trace)

    setattr(RaisesExc, "__exit__", __exit__)  # noqa: B010


def _search_raised_errors() -> None:
    """Look at each exception that is raised in a line of the package."""
    monitoring = getattr(sys, "monitoring", None)  # there since Python 3.12
    if monitoring is None:
        return
    tool = monitoring.PROFILER_ID

    def raised(code: CodeType, offset: int, error: BaseException) -> Any:
        if not code.co_filename.startswith(PACKAGE):
            return
        if not _secrets.is_empty and isinstance(error, Exception):
            _secrets.search_error(f"raised in {code.co_name}", error)

    monitoring.use_tool_id(tool, "greenconn's search for secrets")
    monitoring.register_callback(tool, monitoring.events.RAISE, raised)
    monitoring.set_events(tool, monitoring.events.RAISE)


def pytest_configure() -> None:
    """Begin to watch."""
    logging.getLogger().addHandler(_Searcher())
    _learn_from_parameters()
    _learn_from_tokens()
    _search_expected_errors()
    _search_raised_errors()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Search what was written while the test ran."""
    report = yield
    if not _secrets.is_empty:
        for name, text in report.sections:
            if "log" not in name:  # that of pytest has the test's own lines
                _secrets.search(name, text)
    return report


@pytest.fixture(autouse=True)
def _no_secret_shown() -> Iterator[None]:
    """Fail the test in which a secret was shown."""
    _secrets.clear()
    yield
    found = list(dict.fromkeys(_secrets.found))
    _secrets.clear()
    if found:
        pytest.fail("a secret was shown:\n" + "\n".join(found), pytrace=False)
