"""One run: a client and its workload in a target, the faults, and the balance."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from time import monotonic
from typing import Any

import gevent
from gevent import monkey

from tests.fix_leaks import Traces
from tests.quality.faults.client import Client
from tests.quality.faults.client_processes import ClientProcesses
from tests.quality.faults.kinds import LASTING, OF_PROCESSES, Fault, Kind, faults_of
from tests.quality.faults.ledger import Ledger
from tests.quality.faults.targets.base import DELETED, Target
from tests.quality.faults.targets.registry import declare, depths
from tests.quality.faults.workload import Workload

#: Seconds without any message handled after which those that are missing are lost; and the same of
#: messages for whose loss there is an excuse.
LOSS_TIMEOUT, EXCUSED_TIMEOUT = 60.0, 1.0
#: Seconds after which nothing may be in the queues: before the consumers end, and afterwards.
DRAIN_TIMEOUT, ACK_TIMEOUT = 30.0, 30.0
#: Seconds for which a recovery is waited for.
RECOVERY_TIMEOUT = 30.0
DESCRIPTORS = "/proc/self/fd"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is.

    Attributes:
        seconds: how long faults come.
        count: how many come at most, if that is over before; None is as many as come.
        greenlets: how many publish.
        rate: messages a second, unless the target bears less.
        longest: seconds that no fault exceeds, and no time from one to the next.
        processes: further ones that publish and consume, where they can be killed.
    """

    seed: int
    seconds: float
    greenlets: int
    rate: float
    kinds: frozenset[Kind]
    count: int | None = None
    longest: float = 10.0
    processes: int = 2


@dataclass(kw_only=True)
class Outcome:
    """What came of a run.  ``lost`` and what stands below it is 0 when all is well.

    Attributes:
        unconfirmed: messages whose publish raised.
        redelivered, repeated: handled again, with the mark, and without it because of a fault.
        dropped: of consumers without acks, lost by a fault.
        lost: sent and never handled.
        unexplained: handled again for no reason.
        left: messages in the queues although all were handled and acknowledged.
        hung: calls that did not end, consumers that ended, publishes that fail without a fault.
        slots, descriptors, greenlets_left: not given back.
        recovery: longest time from the end of a fault until messages flow again, seconds.
        recovery_after: that fault, and the queue.
        recoveries: the same for each kind of fault that came alone.
    """

    broker: str
    client: str
    is_patched: bool
    seed: int
    seconds: float
    greenlets: int
    faults: dict[str, int] = field(default_factory=dict)
    sent: int = 0
    handled: int = 0
    unconfirmed: int = 0
    redelivered: int = 0
    repeated: int = 0
    dropped: int = 0
    recovery: float = 0.0
    recovery_after: str = ""
    recoveries: dict[str, float] = field(default_factory=dict)
    lost: int = 0
    unexplained: int = 0
    disordered: int = 0
    spoiled: int = 0
    left: int = 0
    hung: int = 0
    slots: int = 0
    descriptors: int = 0
    greenlets_left: int = 0
    notes: list[str] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    #: What must be 0.
    MUST_BE_0 = (
        *("lost", "unexplained", "disordered", "spoiled", "left", "hung", "slots", "descriptors"),
        "greenlets_left",
    )

    @property
    def count(self) -> int:
        """How many faults there were."""
        return sum(self.faults.values())

    @property
    def again(self) -> int:
        """Messages that were handled again, for a reason."""
        return self.redelivered + self.repeated

    @property
    def leaked(self) -> int:
        """All that was not given back."""
        return self.slots + self.descriptors + self.greenlets_left

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, nothing leaked, and nothing hung."""
        return bool(self.sent) and not any(getattr(self, name) for name in self.MUST_BE_0)

    def as_dict(self) -> dict[str, Any]:
        """All figures."""
        return asdict(self)


class Storm:
    """Runs a plan.

    Arguments:
        show: called with what happens now, for people.
    """

    def __init__(
        self,
        plan: Plan,
        target: Target,
        make: Callable[[Target, bool], Client],
        show: Callable[[str], object],
    ) -> None:
        self.plan = plan
        self.target = target
        self.kinds = plan.kinds & target.kinds
        self.ledger = Ledger(is_ordered=target.is_ordered and not self.kinds)
        self.injected: Counter[str] = Counter()
        self.stage = "begin"
        self._make = make
        self._show = show
        self._notes: list[str] = []
        self._lasting: set[gevent.Greenlet[..., None]] = set()

    def run(self) -> Outcome:
        """Run it.  May switch, for long."""
        plan = self.plan
        traces, descriptors = Traces(), len(os.listdir(DESCRIPTORS))
        client = self._make(self.target, not self.kinds)
        client_processes = ClientProcesses(
            client.name,
            self.target,
            self.ledger,
            plan.seed,
            plan.processes if OF_PROCESSES & self.kinds else 0,
        )
        workload: Workload | None = None
        try:
            declare(self.target, for_good=Kind.KILL in self.kinds)
            workload = Workload(
                client,
                self.ledger,
                self.target.places(),
                greenlets=plan.greenlets,
                rate=min(plan.rate, self.target.rate),
                seed=plan.seed,
                is_calm=not self.kinds,
            )
            workload.begin()
            client_processes.begin()
            self._inject_faults(workload, client_processes)
            hung = self._end_faults(workload, client_processes)
            hung += workload.troubles()
            slots = client.slots()
            self._left(DRAIN_TIMEOUT)
            hung += workload.end() + client_processes.end()
            left = self._left(ACK_TIMEOUT)
        finally:
            self.stage = "closing"
            if workload is not None:
                workload.close()
            client_processes.close()
            client.close()
        new = traces.settle()
        outcome = self._outcome(client, hung)
        outcome.slots, outcome.left = slots, sum(left.values())
        outcome.notes += [f"left in {name}: {count}" for name, count in left.items() if count]
        outcome.notes += new.values()
        outcome.greenlets_left = len([text for text in new.values() if "greenlet" in text])
        outcome.descriptors = max(len(os.listdir(DESCRIPTORS)) - descriptors, 0)
        return outcome

    def _inject_faults(self, workload: Workload, client_processes: ClientProcesses) -> None:
        """Have the faults come until the time is up."""
        end = monotonic() + self.plan.seconds
        faults = faults_of(self.plan.seed, self.kinds, self.plan.longest)
        for fault in islice(faults, self.plan.count):
            self.stage = "storm"
            gevent.sleep(min(fault.gap, max(end - monotonic(), 0)))
            if fault.is_alone:
                self._recover(end)
            # One comes in any case: a busy machine may hold us up for longer than a short storm is.
            if monotonic() >= end and self.injected:
                break
            self._show(f"{monotonic() - end + self.plan.seconds:6.1f} s  {fault}")
            self._inject(fault, workload, client_processes)
            if fault.is_alone:
                self._recover(end)
        if self.plan.count is None or not self.kinds:
            gevent.sleep(max(end - monotonic(), 0))

    def _recover(self, end: float) -> None:
        """Wait until all have recovered from all faults; not longer than the storm lasts."""
        self.stage = "recovery"
        left = end - monotonic()
        is_whole = self.ledger.is_whole.wait(min(RECOVERY_TIMEOUT, max(left, 0)))
        if not is_whole and left > RECOVERY_TIMEOUT:
            self.ledger.give_up()

    def _inject(self, fault: Fault, workload: Workload, client_processes: ClientProcesses) -> None:
        self.stage = str(fault)
        self.injected[fault.kind.value] += 1
        with self._noted(fault, workload):
            if fault.kind is Kind.INTERRUPT:
                workload.interrupt(random.Random(fault.seed))
            elif fault.kind is Kind.KILL_CLIENT:
                client_processes.kill(random.Random(fault.seed))
            elif fault.kind is Kind.SUSPEND_CLIENT:
                client_processes.suspend(random.Random(fault.seed), fault.seconds)
            else:
                self.target.inject(fault)
            if fault.kind in (Kind.DELETE, Kind.KILL, Kind.RESTART):
                # What was declared a moment before a kill may be forgotten, too.
                self.ledger.excuse(DELETED)

    @contextmanager
    def _noted(self, fault: Fault, workload: Workload) -> Iterator[None]:
        """Tell the ledger of the begin and of the end of a fault."""
        self.ledger.fault_begins()

        def ended() -> None:
            alone = fault.kind.value if fault.is_alone else ""
            self.ledger.fault_ended(str(fault), workload.queues_in_use, alone)
            workload.publish_now()

        try:
            yield
        finally:
            if fault.kind in LASTING:
                self._lasting.add(gevent.spawn_later(fault.seconds, ended))
            else:
                ended()

    def _end_faults(self, workload: Workload, client_processes: ClientProcesses) -> list[str]:
        """End all faults and wait for the balance; returns what hangs."""
        self.stage = "healing"
        self.target.heal()
        gevent.joinall(list(self._lasting), raise_error=True)
        self.stage = "last publishes"
        hung = workload.stop_publishing()
        hung += client_processes.stop_publishing()
        hung += workload.publish_last()
        self.stage = "balance"
        self._balance()
        return hung

    def _balance(self) -> None:
        """Wait until all is handled that may still come."""
        last, since = self.ledger.handled, monotonic()
        while True:
            if self.ledger.handled != last:
                last, since = self.ledger.handled, monotonic()
            timeout = LOSS_TIMEOUT if self.ledger.missing() else EXCUSED_TIMEOUT
            if monotonic() - since > timeout or not self.ledger.are_open():
                return
            gevent.sleep(0.1)

    def _left(self, timeout: float) -> dict[str, int]:
        """What is left in the queues, if there is something for so long.  May switch."""
        end = monotonic() + timeout
        while True:
            # Twice: one that is claimed between the looks at the held and the waiting is in neither.
            looks = [self._look() for _ in range(2)]
            _, left = looks[-1]
            is_empty = not any(held or any(waiting.values()) for held, waiting in looks)
            if is_empty or monotonic() > end:
                return left
            gevent.sleep(0.2)

    def _look(self) -> tuple[int, dict[str, int]]:
        """How many messages are held, and how many wait in each queue.  May switch."""
        # Held first: from there one may come into a queue.
        return self.target.held(), depths(self.target)

    def _outcome(self, client: Client, hung: list[str]) -> Outcome:
        ledger, missing = self.ledger, self.ledger.missing()
        lost = [f"lost: {number} of {stream.number}, {stream.queue}" for stream, number in missing]
        return Outcome(
            broker=self.target.name,
            client=client.name,
            is_patched=bool(monkey.is_module_patched("socket")),
            seed=self.plan.seed,
            seconds=self.plan.seconds,
            greenlets=self.plan.greenlets,
            faults=dict(self.injected),
            sent=ledger.sent,
            handled=ledger.handled,
            unconfirmed=ledger.unconfirmed,
            redelivered=ledger.redelivered,
            repeated=ledger.repeated,
            recovery=round(ledger.longest_recovery, 2),
            recovery_after=ledger.longest_after,
            recoveries={kind: round(took, 2) for kind, took in ledger.recoveries.items()},
            dropped=ledger.dropped(),
            lost=len(missing),
            unexplained=ledger.unexplained,
            disordered=ledger.disordered,
            spoiled=ledger.spoiled,
            hung=len(hung),
            notes=[*ledger.notes, *hung, *lost[:20]],
            errors=dict(ledger.errors),
        )
