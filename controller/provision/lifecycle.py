"""The life cycle of a provisioned machine, as a table and pure functions.

A site with a provisioner has `machines` machines. Each is requested before or when its window opens
and released when the window closes. `controller.provision.provisioner` stores each state before it
acts on it, so after a restart no machine is requested twice. Seconds are wall time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from curtail.errors import RefusedTransition

RETRY_S, RETRY_MOST_S = 15.0, 900.0
"""First and longest pause after a failed request; doubles with each failure in a row."""


class MachineState(StrEnum):
    """The state of one machine of a site with a provisioner."""

    ABSENT = "ABSENT"  # there is none
    HELD = "HELD"  # wanted, but a cap forbids it
    REQUESTED = "REQUESTED"  # stored, and not confirmed by the provisioner yet
    PENDING = "PENDING"  # in the provisioner's queue
    BOOTING = "BOOTING"  # started; its agent has not joined yet
    JOINED = "JOINED"  # its agent reports
    RELEASING = "RELEASING"  # asked to drain and end
    BACKOFF = "BACKOFF"  # the last request failed, or the machine was lost


class MachineEvent(StrEnum):
    """What can happen to a machine."""

    WANTED = "wanted"
    CAPPED = "capped"
    UNWANTED = "unwanted"
    QUEUED = "queued"
    STARTED = "started"
    JOINED = "joined"
    LOST = "lost"  # it ended, and nobody released it
    FAILED = "failed"
    OVERDUE = "overdue"  # started long ago, and its agent has not joined
    GONE = "gone"  # released, and ended


S, E = MachineState, MachineEvent

MACHINE_NEXT: dict[tuple[MachineState, MachineEvent], MachineState] = {
    (S.ABSENT, E.WANTED): S.REQUESTED,
    (S.ABSENT, E.CAPPED): S.HELD,
    (S.HELD, E.WANTED): S.REQUESTED,
    (S.HELD, E.UNWANTED): S.ABSENT,
    (S.REQUESTED, E.QUEUED): S.PENDING,
    (S.REQUESTED, E.STARTED): S.BOOTING,
    (S.REQUESTED, E.FAILED): S.BACKOFF,
    (S.REQUESTED, E.UNWANTED): S.RELEASING,
    (S.PENDING, E.STARTED): S.BOOTING,
    (S.PENDING, E.LOST): S.BACKOFF,
    (S.PENDING, E.UNWANTED): S.RELEASING,
    (S.BOOTING, E.QUEUED): S.PENDING,
    (S.BOOTING, E.JOINED): S.JOINED,
    (S.BOOTING, E.LOST): S.BACKOFF,
    (S.BOOTING, E.OVERDUE): S.RELEASING,
    (S.BOOTING, E.UNWANTED): S.RELEASING,
    (S.JOINED, E.LOST): S.BACKOFF,
    (S.JOINED, E.UNWANTED): S.RELEASING,
    (S.RELEASING, E.GONE): S.ABSENT,
    (S.BACKOFF, E.WANTED): S.REQUESTED,
    (S.BACKOFF, E.CAPPED): S.HELD,
    (S.BACKOFF, E.UNWANTED): S.ABSENT,
}

EXISTS = frozenset({S.REQUESTED, S.PENDING, S.BOOTING, S.JOINED, S.RELEASING})
"""States in which a machine exists or may exist, so that it counts against the caps."""


@dataclass(frozen=True, slots=True)
class Observed:
    """A machine as its provisioner reports it."""

    machine: int  # its number at the site, from 0
    state: str  # pending, running, or gone
    reason: str = ""
    native: str = ""  # the provisioner's own id
    expected_s: float | None = None  # until it starts, by the provisioner's estimate
    key: str = ""  # of the request, where the provisioner keeps it


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """Everything on which a machine's next event depends."""

    now: float  # Unix seconds
    wanted: bool
    cap: str  # why a cap forbids a request; "": none does
    observed: Observed | None  # by the latest observation since the last change of state; None: there is none
    failed: bool  # the request failed
    joined: bool  # its agent reports
    since: float  # Unix seconds of the state's begin
    retry_at: float  # Unix seconds before which no request is made after a failure
    booting_since: float | None  # Unix seconds of its start
    boot_limit: float
    too_old: bool  # it has existed for the site's `longest`


def advance_machine(state: MachineState, event: MachineEvent) -> MachineState:
    """The state after `event`. Raises: RefusedTransition: `event` is forbidden in `state`."""
    try:
        return MACHINE_NEXT[state, event]
    except KeyError:
        raise RefusedTransition(f"a machine that is {state.value} cannot take the event '{event.value}'") from None


def next_machine_event(state: MachineState, facts: MachineFacts) -> MachineEvent | None:
    """The next event of a machine, or None."""
    if state in (S.ABSENT, S.HELD, S.BACKOFF):
        return _before_request(state, facts)
    seen = facts.observed.state if facts.observed is not None else None
    if state is S.RELEASING:
        return E.GONE if seen == "gone" else None
    if state is S.REQUESTED and facts.failed:
        return E.FAILED
    if seen == "gone" and state is not S.REQUESTED:
        return E.LOST
    if not facts.wanted or facts.too_old:
        return E.UNWANTED
    if state is S.BOOTING and facts.joined:
        return E.JOINED
    if state is S.BOOTING and facts.booting_since is not None and facts.now - facts.booting_since >= facts.boot_limit:
        return E.OVERDUE
    changes = {
        (S.REQUESTED, "pending"): E.QUEUED,
        (S.REQUESTED, "running"): E.STARTED,
        (S.PENDING, "running"): E.STARTED,
        (S.BOOTING, "pending"): E.QUEUED,
    }
    return changes.get((state, seen or ""))


def _before_request(state: MachineState, facts: MachineFacts) -> MachineEvent | None:
    if not facts.wanted:
        return None if state is S.ABSENT else E.UNWANTED
    if state is S.BACKOFF and facts.now < facts.retry_at:
        return None
    if facts.cap:
        return None if state is S.HELD else E.CAPPED
    return E.WANTED


def retry_s(failures: int) -> float:
    """Pause after this many failures in a row: 15, 30, 60, ... at most 900 s."""
    return min(RETRY_S * 2.0 ** (max(1, failures) - 1), RETRY_MOST_S)
