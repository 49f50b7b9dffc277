"""The state machine of switching a site's machines off and on, as pure functions.

If the run file gives a site commands, `on_pause` switches it off when no start is
expected soon, and `on_resume` switches it on when its region may train. Both run
on the controller's machine (`controller.fleet.power_commands`). A site counts as on
only when its agent sends a heartbeat. Seconds: of the controller's clock for the
length of a pause, real time for everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from curtail.config import SiteSection
from curtail.errors import RefusedTransition
from curtail.grid.forecast import Forecast

RETRY_S, RETRY_MOST_S = 15.0, 600.0
"""First and longest pause after an on_resume that failed or brought no agent back; doubles with each in a row."""


class PowerState(StrEnum):
    """The power state of a site's machines."""

    ON = "ON"  # on, or never switched
    SWITCHING_OFF = "SWITCHING_OFF"  # on_pause runs
    OFF = "OFF"  # on_pause succeeded
    SWITCHING_ON = "SWITCHING_ON"  # on_resume runs
    WAKING = "WAKING"  # on_resume succeeded; no heartbeat yet


class PowerEvent(StrEnum):
    """What can happen to a site's machines."""

    OFF_DUE = "off due"
    ON_DUE = "on due"
    HOOK_DONE = "hook done"
    HOOK_FAILED = "hook failed"
    HEARD = "agent heard from"
    STILL_HEARD = "agent still heard from"  # long after on_pause, so the machines were not switched off
    OVERDUE = "agent overdue"


POWER_NEXT: dict[tuple[PowerState, PowerEvent], PowerState] = {
    (PowerState.ON, PowerEvent.OFF_DUE): PowerState.SWITCHING_OFF,
    (PowerState.SWITCHING_OFF, PowerEvent.HOOK_DONE): PowerState.OFF,
    (PowerState.SWITCHING_OFF, PowerEvent.HOOK_FAILED): PowerState.ON,
    (PowerState.OFF, PowerEvent.ON_DUE): PowerState.SWITCHING_ON,
    (PowerState.OFF, PowerEvent.HEARD): PowerState.ON,  # switched on by someone else
    (PowerState.OFF, PowerEvent.STILL_HEARD): PowerState.ON,
    (PowerState.SWITCHING_ON, PowerEvent.HOOK_DONE): PowerState.WAKING,
    (PowerState.SWITCHING_ON, PowerEvent.HOOK_FAILED): PowerState.OFF,
    (PowerState.WAKING, PowerEvent.HEARD): PowerState.ON,
    (PowerState.WAKING, PowerEvent.OVERDUE): PowerState.OFF,
}

AFTER_RESTART = {PowerState.SWITCHING_OFF: PowerState.OFF, PowerState.SWITCHING_ON: PowerState.OFF}
"""If a command ran when the controller ended, its result is unknown; OFF makes on_resume due, which is always safe."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All values on which the next event depends."""

    now_wall: float
    granted: bool  # the site's region may train, and there is work left
    idle: bool  # its agent sends heartbeats and has no job
    heard: bool  # a heartbeat within `lost_after`
    was_silent: bool  # silent at some time since it was switched off
    paused_s: float  # how long it has been idle without a permit, controller clock
    start_expected: bool | None  # within `off_after`, by the forecast; None: the forecast does not reach that far
    since_wall: float  # when the state began
    retry_wall: float  # when on_resume may run again
    spent: bool  # on_pause failed or had no effect in this pause
    hook_failed: bool | None  # whether the command failed; None while it runs


def advance_power(state: PowerState, event: PowerEvent) -> PowerState:
    """The state after `event`. Raises: RefusedTransition: `event` is forbidden in `state`."""
    try:
        return POWER_NEXT[state, event]
    except KeyError:
        raise RefusedTransition(f"machines that are {state.value} cannot take the event '{event.value}'") from None


def next_power_event(state: PowerState, facts: Facts, section: SiteSection) -> PowerEvent | None:
    """The next event of a site's machines, or None."""
    taken = facts.now_wall - facts.since_wall
    if state is PowerState.ON:
        due = facts.idle and not facts.granted and not facts.spent
        return PowerEvent.OFF_DUE if due and worth_switching_off(facts, section.off_after) else None
    if state in (PowerState.SWITCHING_OFF, PowerState.SWITCHING_ON):
        if facts.hook_failed is None:
            return None
        return PowerEvent.HOOK_FAILED if facts.hook_failed else PowerEvent.HOOK_DONE
    if state is PowerState.WAKING:
        return PowerEvent.HEARD if facts.heard else PowerEvent.OVERDUE if taken >= section.wake_limit else None
    if facts.heard:
        # An agent sends heartbeats until its machine is down, which may take a while after the command.
        if facts.was_silent:
            return PowerEvent.HEARD
        return PowerEvent.STILL_HEARD if taken >= section.wake_limit else None
    return PowerEvent.ON_DUE if facts.granted and facts.now_wall >= facts.retry_wall else None


def worth_switching_off(facts: Facts, off_after: float) -> bool:
    """Is no start expected within `off_after` seconds?

    The forecast decides if it reaches that far. Otherwise the site is switched off after a pause of `off_after`
    (the ski-rental rule): that costs at most twice the optimum, however long the pause becomes.
    """
    if facts.start_expected is not None:
        return not facts.start_expected
    return facts.paused_s >= off_after


def start_expected(forecast: Forecast | None, limit: float, now: float, off_after: float) -> bool | None:
    """Does the forecast fall below `limit` within `off_after` seconds? None: it does not reach that far."""
    if forecast is None:
        return None
    if forecast.first_below(limit, now, now + off_after) is not None:
        return True
    return False if forecast.known_until >= now + off_after else None


def retry_s(failures: int) -> float:
    """Pause after this many failures of on_resume in a row: 15, 30, 60, ... at most 600 s."""
    return min(RETRY_S * 2.0 ** (max(1, failures) - 1), RETRY_MOST_S)
