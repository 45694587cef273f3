"""The pages of the console.

Each page is a method of :class:`Pages` that returns HTML.  The parts that change by themselves are
made by a method called ``live_`` and the name of the page: elements with an ``id``, which the script
replaces.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from html import escape
from math import isfinite
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, quote, urlencode

from greenconn._version import __version__
from greenconn.contrib.console.actions import (
    Job,
    WrongInput,
    editable_body,
    editable_headers,
)
from greenconn.contrib.console.broker import (
    SAMPLING,
    BrokerView,
    HandlerWatch,
    Peek,
    Snapshot,
    consumers_of,
    handler_of,
    schedules,
)
from greenconn.contrib.console.markup import (
    Html,
    as_html,
    html,
    join,
    moment,
    number,
    parsed_moment,
    rate,
    shortened,
    span,
    sparkline,
    table,
)
from greenconn.contrib.console.security import Mask, Refused, masked_text
from greenconn.entity.queue import DEAD
from greenconn.exceptions import error_summary
from greenconn.green.hub import yield_to_hub
from greenconn.resource import all_pools
from greenconn.service import health
from greenconn.service.records import body_of, record_of
from greenconn.worker.failures import FAILURE_HEADERS, DeadLetterEntry, dead_letter_of

if TYPE_CHECKING:
    from greenconn.message import Message
    from greenconn.service.app import App
    from greenconn.service.records import QueueTrend

#: Rows of a page of queues.
ROWS: Final = 50
#: Queues of dead letters on a page, and letters of each that are grouped.
DEAD_ROWS: Final = 10
SAMPLE: Final = 100
#: Messages that can be looked at.
COUNTS: Final = (10, 50, 100, 500)
#: Characters of a body, of a header, and of an error on a page with many messages.
BODY: Final = 4000
WHOLE_BODY: Final = 200_000
VALUE: Final = 500
#: Characters of the body of a message that a handler has, and bytes of the largest that is shown.
LINE: Final = 80
LARGE: Final = 10_000
#: Bytes of a form.
MOST_BYTES: Final = 4 * 2**20

#: State -> what it means.  The words are also classes of the style sheet.
STATES: Final[Mapping[str, str]] = {
    "stuck": "messages wait, and none leaves: no consumer, or none that finishes",
    "growing": "more messages come than leave",
    "shrinking": "more messages leave than come",
    "steady": "messages come and leave",
    "idle": "no message waits",
    "dead letters": "messages that were given up wait here",
}


class Request:
    """A request, and the links from its page.

    Arguments:
        page: name of the page or action.
        allowed: the actions that its sender may do.
    """

    def __init__(
        self, environ: dict[str, Any], page: str, allowed: frozenset[str] = frozenset()
    ) -> None:
        self.allowed = allowed
        self.query_string: str = environ.get("QUERY_STRING", "")
        self._root = quote(environ.get("SCRIPT_NAME", "").rstrip("/").encode("latin-1")) + "/"
        self._query = _parsed(self.query_string)
        #: The page whose parts are asked for, if it is ``live``.
        self.live = self._query.pop("page", [""])[0]
        self.page = page if page != "live" else LIVE.get(self.live, self.live)
        self.form: dict[str, list[str]] = {}
        if environ.get("REQUEST_METHOD") == "POST":
            self.form = _parsed(_read(environ))

    def text(self, name: str, default: str = "") -> str:
        """Return a part of the query."""
        return self._query.get(name, [default])[0]

    def whole(self, name: str, default: int) -> int:
        """Return a positive number of the query."""
        text = self.text(name)
        return int(text) if text.isascii() and text.isdigit() and 0 < len(text) < 9 else default

    def link(self, page: str, /, **query: object) -> str:
        """Return the address of a page."""
        given = {name: str(each) for name, each in query.items() if each not in (None, "")}
        text = urlencode(given, errors="surrogatepass")
        return f"{self._root}{page}{'?' * bool(text)}{text}"

    def same(self, **query: object) -> str:
        """Return the address of this page with another part of the query."""
        given: dict[str, object] = {name: each[0] for name, each in self._query.items()}
        return self.link(self.page, **{**given, **query})

    # -- fields of a form

    def field(self, name: str) -> str:
        """Return a field; empty if there is none."""
        return self.form.get(name, [""])[0]

    def fields(self, name: str) -> list[str]:
        """Return all values of a field."""
        return self.form.get(name, [])

    def needed(self, name: str) -> str:
        """Return a field that must be there.

        Raises:
            WrongInput: it is not.
        """
        value = self.field(name)
        if not value:
            raise WrongInput(
                "nothing was deleted: the box that confirms it must be checked"
                if name == "sure"
                else f"the field {name} must be given"
            )
        return value

    def limit(self) -> int | None:
        """Return the field ``limit``: how many messages; None: all.

        Raises:
            WrongInput: it is no positive number.
        """
        text = self.field("limit").strip()
        if not text:
            return None
        if not (text.isascii() and text.isdigit() and int(text[:12]) > 0):
            raise WrongInput(f"limit must be a positive number, got {text[:20]!r}")
        return int(text[:12])

    def rate(self) -> float | None:
        """Return the field ``rate``: messages a second; None: as fast as can be.

        Raises:
            WrongInput: it is no number above 0.
        """
        text = self.field("rate").strip()
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not (isfinite(value) and value > 0):
            raise WrongInput(f"rate must be a number above 0, got {text[:20]!r}")
        return value


def _parsed(text: str) -> dict[str, list[str]]:
    try:
        return parse_qs(text, keep_blank_values=True, errors="surrogatepass", max_num_fields=2000)
    except ValueError as exc:
        raise WrongInput(f"the request cannot be read: {exc}") from exc


def _read(environ: dict[str, Any]) -> str:
    length = environ.get("CONTENT_LENGTH") or "0"
    if not length.isdigit() or int(length) > MOST_BYTES:
        raise Refused(f"a form must have at most {MOST_BYTES:,} bytes", "413 Content Too Large")
    if "form-urlencoded" not in environ.get("CONTENT_TYPE", ""):
        raise Refused("a form must be sent as a page of this console does")
    data: bytes = environ["wsgi.input"].read(int(length))
    return data.decode("ascii", "replace")


@dataclass(frozen=True)
class Group:
    """Dead letters of one queue with the same error."""

    queue: str | None
    error: str | None
    reason: str | None
    letters: Sequence[tuple[str, DeadLetterEntry]]
    """Each with its fingerprint, the oldest first."""

    @property
    def first(self) -> DeadLetterEntry:
        """The oldest one."""
        return self.letters[0][1]

    @property
    def query(self) -> dict[str, str]:
        """The parts of a query, and the hidden fields of a form, that mean this group."""
        return {"queue": self.queue or "", "error": self.error or "", "reason": self.reason or ""}


def state_of(trend: QueueTrend) -> str:
    """Return the state of a queue in a word; one of :data:`STATES`."""
    figures, totals = trend.figures, trend.totals
    if not figures.ready and not figures.unacked:
        return "idle"
    if figures.name.endswith(DEAD):
        return "dead letters"
    if figures.ready and figures.consumers == 0:
        return "stuck"
    is_seen = len(totals) > 2
    leaves = figures.out_rate if figures.out_rate is not None else None
    if is_seen and totals[-1] < totals[0]:
        return "shrinking"
    if (
        figures.ready
        and is_seen
        and not leaves
        and min(totals) == totals[0] == figures_total(trend)
    ):
        return "stuck"
    if is_seen and totals[-1] > totals[0]:
        return "growing" if leaves or leaves is None else "stuck"
    return "steady"


def figures_total(trend: QueueTrend) -> int:
    """Return the number of messages of a queue, ready and unacknowledged."""
    return (trend.figures.ready or 0) + (trend.figures.unacked or 0)


class Pages:
    """The pages.  All methods may switch; none waits long for the broker.

    Arguments:
        app: the application whose schedules are shown; None: of none.
        show_bodies: whether bodies are shown.
        mask: the fields that are not.

    Attributes:
        version: part of the addresses of the style sheet and the script.
    """

    def __init__(
        self,
        view: BrokerView,
        actions: Any,
        watch: HandlerWatch,
        app: App | None,
        *,
        show_bodies: bool,
        mask: Mask,
    ) -> None:
        self._view = view
        self._actions = actions
        self._watch = watch
        self._app = app
        self._mask = mask
        self.show_bodies = show_bodies
        self.version = ""

    # -- the frame of all pages

    def _page(
        self, request: Request, title: str, *parts: Html, live: str = "", shows_rights: bool = True
    ) -> Html:
        """Return a whole page.

        Arguments:
            live: name of the page whose parts the script replaces; empty: none.
            shows_rights: say if its viewer may do nothing.
        """
        links = join(
            html(
                '<li><a href="{href}"{current}>{text}</a></li>',
                href=request.link(page),
                text=text,
                current=Html(' aria-current="page"') if page == _section(request.page) else None,
            )
            for page, text in MENU
        )
        query = request.same(page=live).partition("?")[2]
        return html(
            _FRAME,
            title=title,
            links=links,
            style=request.link("static/console.css", v=self.version),
            script=request.link("static/console.js", v=self.version),
            icon=request.link("static/icon.svg", v=self.version),
            home=request.link(""),
            broker=self._view.label,
            live=f"{request.link('live')}?{query}" if live else None,
            jobs=self._running(request),
            parts=join(parts),
            version=__version__,
            rights="" if request.allowed or not shows_rights else "read-only",
        )

    def _running(self, request: Request) -> Html:
        running = self._actions.running()
        if not running or request.page in ("job", "jobs"):
            return Html("")
        return html(
            '<p class="note"><a href="{href}">{count} running</a></p>',
            href=request.link("jobs"),
            count=f"{len(running)} action{'s' * (len(running) != 1)}",
        )

    def error(self, request: Request, text: str) -> Html:
        """Return the page of a request that was refused or failed."""
        try:
            return self._page(request, "Not done", _alert(text), shows_rights=False)
        except Exception:  # of a console whose URL is wrong
            return html("<!doctype html><title>Not done</title><p>{text}</p>", text=text)

    # -- queues

    def queues(self, request: Request) -> Html:
        """Return the page of all queues."""
        return self._page(
            request,
            "Queues",
            html("<h1>Queues</h1>"),
            _search(
                request,
                ("q", "Search", "name, or a pattern such as mail.*"),
                ("state", "State", ["", *STATES]),
            ),
            self.live_queues(request),
            live="queues",
        )

    def live_queues(self, request: Request) -> Html:
        """Return the table of queues."""
        snapshot = self._view.queues()
        found = self._found(request, snapshot.trends)
        sort, rows, first = request.text("sort", "ready"), request.whole("n", 1), 0
        if sort not in _SORTS:
            sort = "ready"
        found.sort(key=_SORTS[sort])
        pages = max(1, -(-len(found) // ROWS))
        rows = min(rows, pages)
        first = (rows - 1) * ROWS
        shown = found[first : first + ROWS]
        ready = sum(each.figures.ready or 0 for each, _ in found)
        dead = sum(each.figures.ready or 0 for each, _ in found if each.figures.name.endswith(DEAD))
        has_rates = any(each.figures.out_rate is not None for each, _ in found)
        # Not every broker tells it.
        has_unacked = any(each.figures.unacked is not None for each, _ in shown)
        head = _heads(
            request,
            sort,
            ("name", "Queue", ""),
            ("state", "State", ""),
            ("ready", "Ready", "num"),
            *([("", "Unacked", "num opt")] * has_unacked),
            ("", "Consumers", "num opt"),
            *(
                (("", "In/s", "num opt"), ("", "Out/s", "num opt"))
                if has_rates
                else (("", "Change/s", "num opt"),)
            ),
            ("", "Lag", "num opt"),
            ("", "Trend", "opt"),
        )
        body = join(
            self._queue_row(request, each, state, has_rates, has_unacked) for each, state in shown
        )
        summary = html(
            '<p id="summary" class="summary"><b>{count}</b> {queues}, <b>{ready}</b> ready{dead}, '
            "{when}</p>",
            count=number(len(found)),
            queues="queue" if len(found) == 1 else "queues",
            ready=number(ready),
            dead=html(
                ', <b>{count}</b> of them <a href="{href}">dead letters</a>',
                count=number(dead),
                href=request.link("dead"),
            )
            if dead
            else None,
            when=_read_at(snapshot),
        )
        return join(
            (
                _snapshot_alert(snapshot),
                summary,
                table("Queues", head, body, "queues"),
                Html("") if shown else _empty("No queue fits.", "none"),
                _pager(request, rows, pages),
            )
        )

    def _found(
        self, request: Request, trends: Sequence[QueueTrend]
    ) -> list[tuple[QueueTrend, str]]:
        """Return the queues that the search means, each with its state."""
        text, state = request.text("q").strip(), request.text("state")
        is_pattern = any(each in text for each in "*?[")
        lower = text.lower()
        found = []
        for trend in trends:
            name = trend.figures.name
            if text and not (fnmatchcase(name, text) if is_pattern else lower in name.lower()):
                continue
            own = state_of(trend)
            if not state or own == state:
                found.append((trend, own))
        return found

    def _queue_row(
        self, request: Request, trend: QueueTrend, state: str, has_rates: bool, has_unacked: bool
    ) -> Html:
        figures = trend.figures
        rates = (figures.in_rate, figures.out_rate) if has_rates else (trend.change,)
        columns = [number(figures.unacked)] * has_unacked
        columns += [number(figures.consumers), *map(rate, rates)]
        columns.append(span(trend.lag) if figures.ready else "-")
        page = "dead/letters" if figures.name.endswith(DEAD) else "queue"
        return html(
            '<tr data-key="{name}"><th scope="row"><a href="{href}"><bdi>{name}</bdi></a>{kind}</th>'
            "<td>{state}</td>"
            '<td class="num strong">{ready}</td>{columns}<td class="opt">{trend}</td></tr>',
            name=figures.name,
            href=request.link(page, name=figures.name),
            kind=html(' <span class="kind">{kind}</span>', kind=figures.kind)
            if figures.kind not in (None, "classic")
            else None,
            state=_state(state),
            ready=number(figures.ready),
            columns=join(html('<td class="num opt">{text}</td>', text=each) for each in columns),
            trend=sparkline(trend.totals),
        )

    def queue(self, request: Request) -> Html:
        """Return the page of one queue."""
        name = request.text("name")
        count = request.whole("count", COUNTS[0])
        return self._page(
            request,
            f"Queue {name}",
            html(
                '<h1><span class="what">Queue</span> <bdi>{name}</bdi></h1>'
                '<p class="links"><a href="{dead}">As dead letters</a></p>',
                name=name,
                dead=request.link("dead/letters", name=name),
            ),
            self.live_queue(request),
            self._queue_actions(request, name),
            html("<h2>Oldest messages</h2>"),
            self._messages(request, name, min(count, COUNTS[-1])),
            live="queue",
        )

    def live_queue(self, request: Request) -> Html:
        """Return the figures of one queue, and its consumers in this process."""
        name = request.text("name")
        snapshot = self._view.queues()
        trend = snapshot.by_name.get(name)
        return join(
            (
                _snapshot_alert(snapshot),
                html(
                    '<div id="figures">{figures}</div><div id="consumers">{consumers}</div>',
                    figures=_empty(f"{name} is not among the queues that the broker lists.")
                    if trend is None and not snapshot.error
                    else _tiles(trend, snapshot),
                    consumers=self._consumers_of(request, name),
                ),
            )
        )

    def _consumers_of(self, request: Request, name: str) -> Html:
        consumers = consumers_of(name)
        if not consumers:
            return Html("")
        rows = join(
            html(
                '<tr><th scope="row"><bdi>{name}</bdi></th><td>{handler}</td><td>{state}</td>'
                '<td class="num">{running} of {most}</td></tr>',
                name=each.lifecycle.options.name,
                handler=handler_of(each),
                state=_word(each.state.value, "paused" if each.state.value == "paused" else ""),
                running=each.stats()["in_flight"],
                most=each.stats()["concurrency"],
            )
            for each in consumers
        )
        is_paused = any(each.lifecycle.is_pausing for each in consumers)
        button = _button(
            request,
            "resume" if is_paused else "pause",
            "Resume" if is_paused else "Pause",
            queue=name,
        )
        return html(
            "<h2>Consumers of this process</h2>{table}{button}",
            table=table(
                "Consumers of this process",
                '<th>Consumer</th><th>Handler</th><th>State</th><th class="num">Running</th>',
                rows,
            ),
            button=button,
        )

    def _queue_actions(self, request: Request, name: str) -> Html:
        trend = self._view.snapshot.by_name.get(name)
        ready = 0 if trend is None else trend.figures.ready or 0
        own, parts = {"queue": name}, []
        if "publish" in request.allowed:
            fields = [
                _area("body", "Body", "", 6),
                _input("content_type", "Content type", value="application/json"),
                _area("headers", "Headers, as an object of JSON", "", 2),
            ]
            parts.append(_form(request, "publish", "Publish", fields, own))
        if "move" in request.allowed:
            fields = [_input("target", "To queue", required=True), *_limit_fields()]
            parts.append(_form(request, "move", "Move", fields, own))
        if "purge" in request.allowed:
            fields = [_sure(f"Delete all {ready:,} ready messages of {name}")]
            parts.append(_form(request, "purge", "Purge", fields, own, danger=True))
        return html('<div class="actions">{parts}</div>', parts=join(parts)) if parts else Html("")

    def _peek(self, request: Request, queue: str, count: int) -> Peek | Html:
        """Return the oldest messages of a queue, or why they are not shown."""
        if self._view.counts_looks(queue) and request.text("look") != "1":
            return html(
                '<p class="note">Looking at a message of this quorum queue counts as a delivery, and '
                'its delivery limit may give the message up. <a href="{href}">Look once</a></p>',
                href=request.same(look=1),
            )
        try:
            return self._view.peek(queue, count)
        except Exception as exc:
            return _alert(masked_text(error_summary(exc)))

    def _messages(self, request: Request, queue: str, count: int) -> Html:
        peek = self._peek(request, queue, count)
        if isinstance(peek, Html):
            return peek
        if not peek.messages:
            return _empty("No message waits.")
        cards = join(self._card(n, message) for n, (_, message) in enumerate(peek.messages, 1))
        return html(
            '<p class="summary">{shown} of {waiting}, the oldest first. Show {counts}</p>{cards}',
            shown=number(len(peek.messages)),
            waiting=number(peek.waiting),
            counts=_counts(request, count),
            cards=cards,
        )

    def _card(self, position: int, message: Message) -> Html:
        return html(
            '<article class="message"><h3>{n} <span class="kind">{kind}</span></h3>{fields}{body}'
            "</article>",
            n=f"#{position}",
            kind=message.content_type or "no content type",
            fields=self._fields(message),
            body=self._body(message, BODY),
        )

    def _fields(self, message: Message, *, hides_failure: bool = False) -> Html:
        """Return the properties and headers of a message."""
        record = record_of(message)
        rows = [(name, record[name]) for name in ("exchange", "routing_key") if record[name]]
        rows += [("redelivered", "yes")] * record["redelivered"]
        rows += list(record["properties"].items())
        headers = self._mask.apply(record["headers"])
        rows += [
            (f"header {name}" if isinstance(name, str) else f"header {name!r}", value)
            for name, value in headers.items()
            if not (hides_failure and name in FAILURE_HEADERS)
        ]
        return _definitions(rows)

    def _body(self, message: Message, length: int) -> Html:
        if not self.show_bodies:
            return html('<p class="note">The body is not shown here.</p>')
        return html(
            '<pre class="body" tabindex="0"><code>{text}</code></pre>',
            text=shortened(self._body_text(message, indent=2), length),
        )

    def _body_text(self, message: Message, indent: int | None) -> str:
        """Return the body as text, without the values of fields that are masked."""
        try:
            body = body_of(message)
            if isinstance(body, (bytes, bytearray)):
                return bytes(body).decode("utf-8", "backslashreplace")
            if isinstance(body, str):
                return body
            masked = self._mask.apply(body)
            return json.dumps(masked, indent=indent, default=repr, ensure_ascii=False)
        except RecursionError:
            return repr(message.body)

    def _excerpt(self, message: Message) -> Html | None:
        """Return the beginning of a body on a line; None: bodies are not shown, or it is a large one."""
        body: Any = message.body
        is_text = isinstance(body, (str, bytes, bytearray, memoryview))
        if not self.show_bodies or not is_text or len(body) > LARGE:
            return None
        return html(
            '<div class="text">{text}</div>', text=shortened(self._body_text(message, None), LINE)
        )

    # -- dead letters

    def dead(self, request: Request) -> Html:
        """Return the page of all dead letters, grouped by error."""
        snapshot = self._view.queues()
        names = self._view.dead_letter_queues()
        text = request.text("q").strip().lower()
        counted = [
            (name, snapshot.by_name[name].figures.ready)
            for name in names
            if text in name.lower() and snapshot.by_name[name].figures.ready
        ]
        counted.sort(key=lambda each: (-(each[1] or 0), each[0]))
        pages = max(1, -(-len(counted) // DEAD_ROWS))
        page = min(request.whole("n", 1), pages)
        shown = counted[(page - 1) * DEAD_ROWS : page * DEAD_ROWS]
        self._view.peek_soon([name for name, _ in shown], SAMPLE, SAMPLING)
        total = sum(count or 0 for _, count in counted)
        return self._page(
            request,
            "Dead letters",
            html("<h1>Dead letters</h1>"),
            _search(request, ("q", "Search", "name of a queue")),
            _snapshot_alert(snapshot),
            html(
                '<p class="summary"><b>{total}</b> in <b>{count}</b> {queues}, {when}</p>',
                total=number(total),
                count=number(len(counted)),
                queues="queue" if len(counted) == 1 else "queues",
                when=_read_at(snapshot),
            ),
            join(self._dead_queue(request, name, count or 0) for name, count in shown)
            if shown
            else _empty("No message was given up."),
            _pager(request, page, pages),
        )

    def _dead_queue(self, request: Request, name: str, count: int) -> Html:
        peek = self._view.kept_peek(name, SAMPLE)
        if peek is None:
            content = html(
                '<p class="note"><a href="{href}">Look at them</a></p>',
                href=request.link("dead/letters", name=name),
            )
        else:
            content = self._groups(request, name, peek)
        return html(
            '<section class="card"><h2><a href="{href}"><bdi>{name}</bdi></a> '
            '<span class="count">{count}</span></h2>{content}</section>',
            href=request.link("dead/letters", name=name),
            name=name,
            count=number(count),
            content=content,
        )

    def _groups(self, request: Request, name: str, peek: Peek) -> Html:
        rows = join(self._group_row(request, name, each) for each in groups_of(peek))
        sample = ""
        if peek.waiting > len(peek.messages):
            sample = f"Of the oldest {len(peek.messages):,}."
        return html(
            "{table}{sample}",
            table=table(
                f"Errors of {name}",
                '<th>Error</th><th>Queue and handler</th><th class="num">Letters</th>'
                '<th class="num opt">Attempts</th><th class="opt">First failure</th>',
                rows,
            ),
            sample=html('<p class="hint">{text}</p>', text=sample) if sample else None,
        )

    def _group_row(self, request: Request, name: str, group: Group) -> Html:
        first = group.first
        return html(
            '<tr><th scope="row"><a href="{href}">{error}</a><div class="text">{text}</div></th>'
            '<td><bdi>{queue}</bdi><div class="text">{handler}</div></td><td class="num">{count}</td>'
            '<td class="num opt">{attempts}</td><td class="opt">{first}</td></tr>',
            href=request.link("dead/letters", name=name, by="1", **group.query),
            error=_error_name(first),
            text=shortened(masked_text(first.text or ""), VALUE),
            queue=group.queue or "not known",
            handler=self._handler_of(first),
            count=number(len(group.letters)),
            attempts=max(each.attempts for _, each in group.letters) or "-",
            first=parsed_moment(first.first_failure) if first.first_failure else "-",
        )

    def _handler_of(self, letter: DeadLetterEntry) -> str:
        """Return the handler of a dead letter: of its queue in this process, or where it has raised."""
        for consumer in consumers_of(letter.queue) if letter.queue else ():
            return handler_of(consumer)
        return origin_of(letter.traceback) or ""

    def dead_letters(self, request: Request) -> Html:
        """Return the page of the dead letters of one queue, or of one error among them."""
        name = request.text("name")
        self._view.queues()  # an action says of how many it is
        count = min(request.whole("count", SAMPLE), COUNTS[-1])
        peek = self._peek(request, name, count)
        title = html(
            '<h1><span class="what">Dead letters</span> <bdi>{name}</bdi></h1>'
            '<p class="links"><a href="{queue}">As a queue</a></p>',
            name=name,
            queue=request.link("queue", name=name),
        )
        if isinstance(peek, Html):
            return self._page(request, f"Dead letters {name}", title, peek)
        groups = groups_of(peek)
        if request.text("by"):
            meant = {each: request.text(each) for each in ("queue", "error", "reason")}
            groups = [each for each in groups if each.query == meant]
        parts = [title]
        parts.append(
            html(
                '<p class="summary">{shown} of {waiting}, the oldest first. Look at {counts}{all}</p>',
                shown=number(len(peek.messages)),
                waiting=number(peek.waiting),
                counts=_counts(request, count),
                all=html(
                    '. <a href="{href}">All errors</a>',
                    href=request.link("dead/letters", name=name),
                )
                if request.text("by")
                else None,
            )
        )
        parts += [self._group(request, name, each, peek) for each in groups]
        if not groups:
            parts.append(_empty("No such message waits."))
        return self._page(request, f"Dead letters {name}", *parts)

    def _group(self, request: Request, name: str, group: Group, peek: Peek) -> Html:
        first = group.first
        rows = join(
            html(
                '<tr><td class="check">{box}</td><th scope="row"><a href="{href}">{text}</a></th>'
                '<td class="num">{attempts}</td><td class="opt">{first}</td></tr>',
                box=html(
                    '<input type="checkbox" name="key" value="{key}" aria-label="choose">', key=key
                )
                if request.allowed & {"retry", "delete"}
                else None,
                href=request.link("dead/letter", name=name, key=key, count=request.text("count")),
                text=shortened(masked_text(each.text or each.reason or "no text"), 160),
                attempts=each.attempts or "-",
                first=parsed_moment(each.first_failure) if each.first_failure else "-",
            )
            for key, each in group.letters
        )
        every = '<input type="checkbox" class="every" hidden aria-label="choose all">'
        if not request.allowed & {"retry", "delete"}:
            every = ""
        return html(
            '<section class="card"><h2>{error} <span class="count">{count}</span></h2>'
            '<p class="text">{queue} {handler}</p><form method="post" class="letters">'
            "{hidden}{table}{buttons}</form></section>",
            error=_error_name(first),
            count=number(len(group.letters)),
            queue=html("queue <b><bdi>{queue}</bdi></b>", queue=group.queue)
            if group.queue
            else None,
            handler=self._handler_of(first),
            hidden=_hidden(name=name, back=request.same(), **group.query),
            table=table(
                " ".join(filter(None, (_error_name(first), group.reason, group.queue))),
                f'<td class="check">{every}</td><th>Text</th>'
                '<th class="num">Attempts</th><th class="opt">First failure</th>',
                rows,
            ),
            buttons=self._group_buttons(request, group),
        )

    def _group_buttons(self, request: Request, group: Group) -> Html:
        parts = []
        if "retry" in request.allowed:
            parts.append(
                html(
                    '<fieldset><legend>Retry</legend>{fields}<div class="buttons">'
                    '<button formaction="{href}">Retry chosen</button>'
                    '<button formaction="{href}" name="all" value="1" class="every">'
                    "Retry all of this error</button></div></fieldset>",
                    fields=join(
                        (
                            _input("rate", "Messages a second", "number", minimum="0.1"),
                            _input("limit", "At most", "number", minimum="1"),
                            _input("target", "To queue", placeholder=group.queue or ""),
                        )
                    ),
                    href=request.link("do/retry"),
                )
            )
        if "delete" in request.allowed:
            parts.append(
                html(
                    '<fieldset class="danger"><legend>Delete</legend>'
                    '<label class="sure"><input type="checkbox" name="sure" value="1"> '
                    'I am sure</label><div class="buttons">'
                    '<button formaction="{href}" class="danger">Delete chosen</button>'
                    '<button formaction="{href}" class="danger" name="all" value="1">'
                    "Delete all of this error</button></div></fieldset>",
                    href=request.link("do/delete"),
                )
            )
        return html('<div class="group">{parts}</div>', parts=join(parts)) if parts else Html("")

    def dead_letter(self, request: Request) -> Html:
        """Return the page of one dead letter: its error, traceback, headers and body."""
        name, key = request.text("name"), request.text("key")
        count = min(request.whole("count", SAMPLE), COUNTS[-1])
        peek = self._peek(request, name, count)
        back = html(
            '<p class="links"><a href="{href}">All of {name}</a></p>',
            href=request.link("dead/letters", name=name),
            name=name,
        )
        if isinstance(peek, Html):
            return self._page(request, "Dead letter", back, peek)
        message = next((each for known, each in peek.messages if known == key), None)
        if message is None:
            text = f"The message is not among the oldest {len(peek.messages):,} of {name} any more."
            return self._page(request, "Dead letter", back, _empty(text))
        letter = dead_letter_of(message)
        rows: list[tuple[str, Any]] = [
            ("queue", letter.queue or "not known"),
            ("handler", self._handler_of(letter) or "not known"),
            ("reason", letter.reason),
            ("attempts", letter.attempts or None),
            (
                "first failure",
                parsed_moment(letter.first_failure) if letter.first_failure else None,
            ),
        ]
        return self._page(
            request,
            "Dead letter",
            back,
            html(
                '<h1>{error}</h1><p class="lead">{text}</p>{about}',
                error=_error_name(letter),
                text=masked_text(letter.text or ""),
                about=_definitions([each for each in rows if each[1] is not None]),
            ),
            html(
                '<h2>Traceback</h2><pre class="traceback" tabindex="0"><code>{text}</code></pre>',
                text=masked_text(letter.traceback),
            )
            if letter.traceback
            else Html(""),
            html("<h2>Message</h2>"),
            html(
                '<article class="message"><h3>{kind}</h3>{fields}{body}</article>',
                kind=message.content_type or "no content type",
                fields=self._fields(message, hides_failure=True),
                body=self._body(message, WHOLE_BODY),
            ),
            self._letter_actions(request, name, key, message, letter),
        )

    def _letter_actions(
        self, request: Request, name: str, key: str, message: Message, letter: DeadLetterEntry
    ) -> Html:
        back = request.link("dead/letters", name=name)
        own = {"name": name, "key": key, "queue": letter.queue or "", "back": back}
        parts = []
        if "retry" in request.allowed:
            fields = [_input("target", "To queue", placeholder=letter.queue or "")]
            parts.append(_form(request, "retry", "Retry", fields, own))
        if "edit" in request.allowed and self.show_bodies:
            text = editable_body(message)
            why = self._not_editable(message, text)
            headers = editable_headers(message, self._mask)
            as_json = json.dumps(headers, indent=2, ensure_ascii=False) if headers else ""
            fields = [
                _input("target", "To queue", value=letter.queue or "", required=True),
                _area("body", "Body", text or "", 12),
                _area("headers", "Headers, as an object of JSON", as_json, 4),
            ]
            if why:
                parts.append(html('<p class="note">{why}</p>', why=why))
            else:
                parts.append(_form(request, "edit", "Edit and retry", fields, own))
        if "delete" in request.allowed:
            fields = [_sure("Delete this message for good")]
            parts.append(_form(request, "delete", "Delete", fields, own, danger=True))
        return html('<div class="actions">{parts}</div>', parts=join(parts)) if parts else Html("")

    def _not_editable(self, message: Message, text: str | None) -> str:
        """Return why a body cannot be edited on a page; empty if it can."""
        if text is None:
            return "The body is not text, so it cannot be edited here."
        if len(text) > WHOLE_BODY:
            return "The body is too large to be edited here."
        body = body_of(message)
        if not isinstance(body, (str, bytes)) and self._mask.apply(body) != body:
            return "The body has fields that are not shown, so it cannot be edited here."
        return ""

    # -- this process

    def handlers(self, request: Request) -> Html:
        """Return the page of the handlers that run now."""
        return self._page(
            request,
            "Handlers running now",
            html("<h1>Handlers running now</h1>"),
            self.live_handlers(request),
            self._consumers_elsewhere(),
            live="handlers",
        )

    def live_handlers(self, request: Request) -> Html:
        """Return the handlers and the consumers of this process."""
        running = self._watch.running()
        rows = join(
            html(
                '<tr data-key="{key}"><th scope="row"><bdi>{queue}</bdi></th><td>{handler}</td>'
                '<td class="num strong">{seconds}</td><td class="opt">{message}{body}</td>'
                '<td class="place opt">{place}</td><td>{button}</td></tr>',
                key=each.key,
                queue=each.event.queue,
                handler=each.event.handler or "-",
                seconds=span(each.seconds),
                message=shortened(_name_of(each.message), 60),
                body=self._excerpt(each.message),
                place=each.place,
                button=_button(request, "interrupt", "Interrupt", key=each.key),
            )
            for each in running
        )
        handlers = table(
            "Handlers running now",
            '<th>Queue</th><th>Handler</th><th class="num">Running for</th>'
            '<th class="opt">Message</th><th class="opt">Waits at</th><td></td>',
            rows,
        )
        none = _empty("No handler of this process runs.")
        return html(
            '<div id="running">{table}</div><h2>Consumers of this process</h2>'
            '<div id="consumers">{consumers}</div>',
            table=handlers if running else none,
            consumers=self._consumers(),
        )

    def _consumers(self) -> Html:
        found = health.check().consumers
        if not found:
            return _empty("No consumer runs in this process.")
        rows = join(
            html(
                '<tr data-key="{name}"><th scope="row"><bdi>{name}</bdi></th>'
                '<td>{state}{why}</td><td class="num">{in_flight} of {concurrency}</td>'
                '<td class="num">{handled}</td><td class="num">{failed}</td>'
                '<td class="num opt">{retried}</td><td class="num opt">{last}</td></tr>',
                name=each.name,
                state=_word("stalled", "stuck") if each.stall else _word(each.state, each.state),
                why=html('<div class="text">{why}</div>', why=masked_text(each.reason.why or ""))
                if each.reason
                else None,
                in_flight=each.stats["in_flight"],
                concurrency=each.stats["concurrency"],
                handled=number(each.stats["handled"]),
                failed=number(each.stats["failed"]),
                retried=number(each.stats["retried"]),
                last=span(each.stats["last_delivery_age"]),
            )
            for each in found
        )
        return table(
            "Consumers of this process",
            '<th>Consumer</th><th>State</th><th class="num">Running</th>'
            '<th class="num">Handled</th><th class="num">Failed</th><th class="num opt">Retried</th>'
            '<th class="num opt">Last delivery</th>',
            rows,
        )

    def _consumers_elsewhere(self) -> Html:
        """Return the consumers of all processes, where the broker can list them."""
        found = self._view.consumers()
        if not found:
            return Html("")
        rows = join(
            html(
                '<tr><th scope="row"><bdi>{queue}</bdi></th><td>{where}</td><td class="opt">{tag}</td>'
                '<td class="num">{prefetch}</td></tr>',
                queue=queue,
                where=where,
                tag=tag,
                prefetch=number(prefetch),
            )
            for queue, where, tag, prefetch in found[:ROWS]
        )
        return html(
            "<h2>Consumers of all processes</h2>{table}{more}",
            table=table(
                "Consumers of all processes",
                '<th>Queue</th><th>Connection</th><th class="opt">Tag</th><th class="num">Prefetch</th>',
                rows,
            ),
            more=html('<p class="hint">And {count} more.</p>', count=number(len(found) - ROWS))
            if len(found) > ROWS
            else None,
        )

    def schedules(self, request: Request) -> Html:
        """Return the page of the periodic calls."""
        rows = join(
            html(
                '<tr><th scope="row"><bdi>{name}</bdi></th><td>{schedule}</td><td>{next}</td>'
                '<td class="opt">{last}</td><td>{state}</td><td>{button}</td></tr>',
                name=each.name,
                schedule=each.schedule,
                next=moment(each.next_at),
                last=moment(each.last_at),
                state=each.state,
                button=_button(request, "run", "Run now", name=each.name),
            )
            for each in schedules(self._app)
        )
        content = (
            table(
                "Schedules",
                "<th>Schedule</th><th>When</th><th>Next call</th>"
                '<th class="opt">Last call here</th><th>This process</th><td></td>',
                rows,
            )
            if rows
            else _empty(
                "The application has no schedule."
                if self._app is not None
                else "Schedules are those of an application: Console(app)."
            )
        )
        return self._page(request, "Schedules", html("<h1>Schedules</h1>"), content)

    def connections(self, request: Request) -> Html:
        """Return the page of the connections and pools of this process."""
        return self._page(
            request,
            "Connections",
            html("<h1>Connections of this process</h1>"),
            self.live_connections(request),
            live="connections",
        )

    def live_connections(self, request: Request) -> Html:
        """Return the connections, the pools and the lag of the hub."""
        began_at = monotonic()
        yield_to_hub()
        lag = monotonic() - began_at
        rows = join(
            html(
                '<tr><th scope="row"><bdi>{url}</bdi></th><td>{state}{why}</td>'
                '<td class="num opt">{lives}</td><td>{since}</td></tr>',
                url=each.url,
                state=_word("blocked", "stuck")
                if each.blocked
                else _word(each.state, "stuck" if each.state == "recovering" else each.state),
                why=html(
                    '<div class="text">{why}</div>',
                    why=masked_text(each.blocked or each.lost or ""),
                )
                if each.blocked or each.lost
                else None,
                lives=each.lives,
                since=parsed_moment(each.since),
            )
            for each in health.check().connections
        )
        pools = [(each, each.stats()) for each in all_pools()]
        used = [(each, stats) for each, stats in pools if stats["in_use"] or stats["idle"]]
        pool_rows = join(
            html(
                '<tr><th scope="row"><bdi>{name}</bdi></th><td class="num">{used}</td>'
                '<td class="num">{limit}</td><td class="num">{waiting}</td></tr>',
                name=each.name,
                used=stats["in_use"],
                limit=stats["limit"] or "no limit",
                waiting=stats["waiting"],
            )
            for each, stats in used
        )
        pools_table = html(
            "<h2>Pools</h2>{table}",
            table=table(
                "Pools",
                '<th>Pool</th><th class="num">In use</th><th class="num">Limit</th>'
                '<th class="num">Waiting</th>',
                pool_rows,
            ),
        )
        return html(
            '<div id="connections">{table}<p class="hint">Lag of the hub: {lag} ms</p>{pools}</div>',
            table=table(
                "Connections",
                '<th>Broker</th><th>State</th><th class="num opt">Opened</th><th>Since</th>',
                rows,
            ),
            lag=f"{1000 * lag:.1f}",
            pools=pools_table if used else None,
        )

    # -- actions

    def jobs(self, request: Request) -> Html:
        """Return the page of the actions of this process."""
        return self._page(
            request, "Actions", html("<h1>Actions</h1>"), self.live_jobs(request), live="jobs"
        )

    def live_jobs(self, request: Request) -> Html:
        """Return the actions, the latest first."""
        jobs: list[Job] = list(reversed(self._actions.jobs.values()))
        rows = join(
            html(
                '<tr data-key="{id}"><th scope="row"><a href="{href}">{text}</a></th><td>{state}</td>'
                '<td class="num">{done}</td><td class="opt">{user}</td><td class="opt">{began}</td>'
                "</tr>",
                id=each.id,
                href=request.link("job", id=each.id),
                text=each.text,
                state=_word(each.state, each.state),
                done=number(each.done),
                user=each.user,
                began=moment(each.began_at),
            )
            for each in jobs
        )
        found = table(
            "Actions",
            '<th>Action</th><th>State</th><th class="num">Messages</th>'
            '<th class="opt">By</th><th class="opt">When</th>',
            rows,
        )
        none = _empty("Nothing was done in this process.")
        return html('<div id="jobs">{table}</div>', table=found if jobs else none)

    def job(self, request: Request) -> Html:
        """Return the page of one action: how far it is, or what it has done."""
        return self._page(
            request,
            "Action",
            html("<h1>Action</h1>"),
            self.live_job(request),
            live="job",
        )

    def live_job(self, request: Request) -> Html:
        """Return how far an action is."""
        job: Job | None = self._actions.jobs.get(request.text("id"))
        if job is None:
            return html(
                '<div id="job"><p class="note">This action runs in another process of the server, or '
                "its "
                'process has ended. <a href="{href}">Look again</a></p></div>',
                href=request.same(),
            )
        is_running = job.state == "running"
        back = request.text("back")
        # Only to a page of this console.
        is_own = back.startswith(request.link("")) and not ("\\" in back or back.startswith("//"))
        rate_now = job.done / job.seconds if job.seconds > 0.5 else None
        return html(
            '<div id="job" class="card"><p class="lead">{text}</p><p>{state} {result}</p>{progress}'
            '<p class="summary">{figures}</p>{buttons}</div>',
            text=job.text,
            state=_word(job.state, job.state),
            result=job.result,
            progress=html(
                '<progress max="{total}" value="{done}">{done} of {total}</progress>',
                total=job.total,
                done=min(job.done, job.total),
            )
            if is_running and job.total
            else None,
            figures=_progress(job, rate_now),
            buttons=join(
                (
                    _button(request, "stop", "Stop", id=job.id, back=back, action=job.action)
                    if is_running
                    else Html(""),
                    html(
                        '<p class="links"><a href="{href}">Look again</a></p>', href=request.same()
                    )
                    if is_running
                    else Html(""),
                    html('<p class="links"><a href="{href}">Back</a></p>', href=back)
                    if is_own
                    else Html(""),
                )
            ),
        )


def _progress(job: Job, rate_now: float | None) -> str:
    total = "" if job.total is None else f" of {job.total:,}"
    text = f"{job.done:,}{total} messages in {span(job.seconds)}"
    return text if rate_now is None else f"{text}, {rate(rate_now)} a second"


#: Address -> page.
PAGES: Final[Mapping[str, Callable[[Pages, Request], Html]]] = {
    "": Pages.queues,
    "queue": Pages.queue,
    "dead": Pages.dead,
    "dead/letters": Pages.dead_letters,
    "dead/letter": Pages.dead_letter,
    "handlers": Pages.handlers,
    "schedules": Pages.schedules,
    "connections": Pages.connections,
    "jobs": Pages.jobs,
    "job": Pages.job,
}
#: Pages whose address is not their name.
LIVE: Final = {"queues": ""}
#: The links at the top of each page.
MENU: Final = (
    ("", "Queues"),
    ("dead", "Dead letters"),
    ("handlers", "Handlers"),
    ("schedules", "Schedules"),
    ("connections", "Connections"),
    ("jobs", "Actions"),
)

_SORTS: Final[Mapping[str, Callable[[tuple[QueueTrend, str]], Any]]] = {
    "ready": lambda each: (-(each[0].figures.ready or 0), each[0].figures.name),
    "name": lambda each: each[0].figures.name,
    "state": lambda each: (list(STATES).index(each[1]), each[0].figures.name),
}

_FRAME: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} - greenconn</title>
<link rel="stylesheet" href="{style}">
<link rel="icon" href="{icon}">
<script src="{script}" defer></script>
</head>
<body>
<a class="skip" href="#main">To the content</a>
<header>
<a class="brand" href="{home}">greenconn</a>
<nav aria-label="Pages"><ul>{links}</ul></nav>
<span class="broker" title="{broker}"><bdi>{broker}</bdi></span>
</header>
<main id="main" data-live="{live}" tabindex="-1">{jobs}{parts}</main>
<footer>greenconn {version} <span class="rights">{rights}</span> <span id="live" role="status"></span>
</footer>
</body>
</html>
"""


def groups_of(peek: Peek) -> list[Group]:
    """Return dead letters by queue, error and reason, the largest group first."""
    found: dict[tuple[str | None, str | None, str | None], list[tuple[str, DeadLetterEntry]]] = {}
    for key, message in peek.messages:
        letter = dead_letter_of(message)
        found.setdefault((letter.queue, letter.error, letter.reason), []).append((key, letter))
    groups = [
        Group(queue, error, reason, letters) for (queue, error, reason), letters in found.items()
    ]
    return sorted(groups, key=lambda each: -len(each.letters))


def origin_of(traceback: str | None) -> str | None:
    """Return the line of a traceback that says where the error was raised."""
    lines = [each.strip() for each in (traceback or "").splitlines()]
    files = [each for each in lines if each.startswith('File "')]
    return files[-1] if files else None


def _section(page: str) -> str:
    return {"queue": "", "job": "jobs"}.get(page, page.partition("/")[0])


def _error_name(letter: DeadLetterEntry) -> str:
    error = (letter.error or "").removeprefix("builtins.")
    return shortened(error, 200) or letter.reason or "No failure is noted"


def _name_of(message: Message) -> str:
    return str(message.properties.get("message_id") or message.delivery_tag)


def _state(state: str) -> Html:
    return _word(state, state.replace(" ", "-"), STATES[state])


def _word(text: str, kind: str, title: str = "") -> Html:
    """Return a word with a colour, and a sign that is seen without it."""
    return html(
        '<span class="state {kind}" title="{title}">{text}</span>',
        kind=kind,
        text=text,
        title=title,
    )


def _alert(text: str) -> Html:
    return html('<p class="alert" role="alert">{text}</p>', text=text)


def _snapshot_alert(snapshot: Snapshot) -> Html:
    return html(
        '<div id="alert">{text}</div>', text=_alert(snapshot.error) if snapshot.error else None
    )


def _read_at(snapshot: Snapshot) -> Html:
    return (
        html("read {when}", when=moment(snapshot.at)) if snapshot.number else Html("not read yet")
    )


def _empty(text: str, kind: str = "") -> Html:
    return html('<p class="empty {kind}">{text}</p>', text=text, kind=kind)


def _definitions(rows: Iterable[tuple[str, Any]]) -> Html:
    parts = join(
        html(
            "<dt><bdi>{name}</bdi></dt><dd><bdi>{value}</bdi></dd>", name=name, value=_value(value)
        )
        for name, value in rows
    )
    return html("<dl>{parts}</dl>", parts=parts) if parts else Html("")


def _value(value: Any) -> Html:
    if isinstance(value, (Html, str)):
        text = value
    else:
        try:
            text = json.dumps(value, default=repr, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            text = repr(value)
    return text if isinstance(text, Html) else as_html(shortened(masked_text(text), VALUE))


def _tiles(trend: QueueTrend | None, snapshot: Snapshot) -> Html:
    if trend is None:
        return Html("")
    figures = trend.figures
    tiles: list[tuple[str, Html | str]] = [
        ("State", _state(state_of(trend))),
        ("Ready", number(figures.ready)),
        ("Unacked", number(figures.unacked)),
        ("Consumers", number(figures.consumers)),
    ]
    if figures.out_rate is not None:
        tiles += [("In/s", rate(figures.in_rate)), ("Out/s", rate(figures.out_rate))]
    else:
        tiles.append(("Change/s", rate(trend.change)))
    tiles += [("Lag", span(trend.lag)), ("Trend", sparkline(trend.totals))]
    return html(
        '<dl class="tiles">{tiles}</dl><p class="hint">{kind} {when}</p>',
        tiles=join(
            html("<div><dt>{name}</dt><dd>{value}</dd></div>", name=name, value=value)
            for name, value in tiles
            if value not in ("-", "")
        ),
        kind=f"{figures.kind}," if figures.kind else None,
        when=_read_at(snapshot),
    )


# Forms and links


def _hidden(**fields: str) -> Html:
    return join(
        html('<input type="hidden" name="{name}" value="{value}">', name=name, value=_raw(value))
        for name, value in fields.items()
    )


def _raw(value: str) -> Html:
    """Return a value for an attribute that is sent back: as it is, and only escaped."""
    return Html(escape(value))


def _form(
    request: Request,
    action: str,
    text: str,
    parts: Sequence[Html],
    hidden: Mapping[str, str],
    *,
    danger: bool = False,
) -> Html:
    """Return a form that is folded until it is needed."""
    hidden = {"back": request.same(), **hidden}
    return html(
        '<details><summary>{text}</summary><form method="post" action="{href}">{hidden}{parts}'
        "<button{kind}>{text}</button></form></details>",
        text=text,
        href=request.link(f"do/{action}"),
        hidden=_hidden(**hidden),
        parts=join(parts),
        kind=Html(' class="danger"') if danger else None,
    )


def _button(request: Request, do: str, text: str, action: str = "", **hidden: str) -> Html:
    """Return a button; nothing if its action is not allowed.

    Arguments:
        do: where its form is sent.
        action: the action of that; empty: *do*.
    """
    if (action or do) not in request.allowed:
        return Html("")
    hidden.setdefault(
        "back",
        request.link("queue", name=hidden["queue"])
        if "queue" in hidden
        else request.link(_section(request.page)),
    )
    return html(
        '<form method="post" action="{href}" class="inline">{hidden}<button>{text}</button></form>',
        href=request.link(f"do/{do}"),
        hidden=_hidden(**hidden),
        text=text,
    )


def _input(
    name: str,
    label: str,
    kind: str = "text",
    *,
    value: str = "",
    placeholder: str = "",
    minimum: str = "",
    required: bool = False,
) -> Html:
    return html(
        '<label>{label} <input name="{name}" type="{kind}" value="{value}" placeholder="{placeholder}"'
        "{rest}></label>",
        name=name,
        label=label,
        kind=kind,
        value=_raw(value),
        placeholder=placeholder,
        rest=Html(' min="' + minimum + '" step="any"' if minimum else "")
        + (" required" if required else ""),
    )


def _area(name: str, label: str, value: str, rows: int) -> Html:
    # A newline right behind the tag is dropped by the browser.
    return html(
        '<label>{label} <textarea name="{name}" rows="{rows}" spellcheck="false">\n{value}</textarea>'
        "</label>",
        name=name,
        label=label,
        value=_raw(value),
        rows=rows,
    )


def _sure(text: str) -> Html:
    return html(
        '<label class="sure"><input type="checkbox" name="sure" value="1" required> {text}</label>',
        text=text,
    )


def _limit_fields() -> list[Html]:
    return [
        _input("limit", "At most", "number", minimum="1"),
        _input("rate", "Messages a second", "number", minimum="0.1"),
    ]


def _search(request: Request, *fields: tuple[str, str, Any]) -> Html:
    """Return a form that searches, by the query of the page."""
    parts = []
    for name, label, kind in fields:
        value = request.text(name)
        if isinstance(kind, list):
            options = join(
                html(
                    '<option value="{value}"{chosen}>{text}</option>',
                    value=each,
                    text=each or "any",
                    chosen=Html(" selected") if each == value else None,
                )
                for each in kind
            )
            parts.append(
                html(
                    '<label>{label} <select name="{name}">{options}</select></label>',
                    label=label,
                    name=name,
                    options=options,
                )
            )
        else:
            parts.append(
                html(
                    '<label>{label} <input type="search" name="{name}" value="{value}" '
                    'placeholder="{kind}"></label>',
                    label=label,
                    name=name,
                    value=_raw(value),
                    kind=kind,
                )
            )
    return html(
        '<form method="get" action="{href}" class="search" role="search">{parts}<button>Search</button>'
        "</form>",
        href=request.link(request.page),
        parts=join(parts),
    )


def _heads(request: Request, sort: str, *columns: tuple[str, str, str]) -> Html:
    """Return the titles of a table; those with a name sort it."""
    cells = []
    for name, title, kind in columns:
        text: Html | str = title
        if name:
            text = html('<a href="{href}">{title}</a>', href=_sorted_by(request, name), title=title)
        cells.append(
            html(
                '<th scope="col" class="{kind}"{sorted}>{text}</th>',
                kind=kind,
                text=text,
                sorted=Html(
                    f' aria-sort="{"descending" if name == "ready" else "ascending"}"'
                    if name and name == sort
                    else ""
                ),
            )
        )
    return join(cells)


def _sorted_by(request: Request, name: str) -> str:
    query = {each: request.text(each) for each in ("q", "state")}
    return request.link(request.page, sort=name, **query)


def _pager(request: Request, page: int, pages: int) -> Html:
    if pages == 1:
        return Html("")
    query = {each: request.text(each) for each in ("q", "state", "sort")}
    links = [
        html('<a href="{href}" rel="{rel}">{text}</a>', href=href, rel=rel, text=text)
        for rel, text, to in (("prev", "Previous", page - 1), ("next", "Next", page + 1))
        if 1 <= to <= pages
        for href in [request.link(request.page, n=to, **query)]
    ]
    return html(
        '<nav class="pager" aria-label="Further rows">{links} <span>page {page} of {pages}</span></nav>',
        links=join(links, " "),
        page=page,
        pages=pages,
    )


def _counts(request: Request, count: int) -> Html:
    return join(
        (
            html("<b>{n}</b>", n=each)
            if each == count
            else html('<a href="{href}">{n}</a>', n=each, href=request.same(count=each))
            for each in COUNTS
        ),
        " ",
    )
