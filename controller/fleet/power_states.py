"""Whether a site's machines are switched on: the life cycle as a table, and what happens next, from values alone.

A site whose run file section names commands is switched off by `on_pause` when
no start is expected soon, and on by `on_resume` when its region may train. Both
run on the controller's machine (`controller.fleet.power_commands`). A site is back only when
its agent is heard from. Seconds: of the controller's clock for how long a site
paused, real time for everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from curtail.config import SiteSection
from curtail.errors import RefusedTransition
from curtail.grid.forecast import Forecast

RETRY_S, RETRY_MOST_S = 15.0, 600.0
"""Pause after a failed on_resume, or one that brought no agent back; doubles with each in a row."""


class Power(StrEnum):
    """What is known of a site's machines."""

    ON = "ON"  # on, or nothing was done to them
    SWITCHING_OFF = "SWITCHING_OFF"  # on_pause runs
    OFF = "OFF"  # on_pause ended well
    SWITCHING_ON = "SWITCHING_ON"  # on_resume runs
    WAKING = "WAKING"  # on_resume ended well, no agent is heard from yet


class PowerEvent(StrEnum):
    """What can happen to them."""

    OFF_DUE = "off due"
    ON_DUE = "on due"
    HOOK_DONE = "hook done"
    HOOK_FAILED = "hook failed"
    HEARD = "agent heard from"
    STILL_HEARD = "agent still heard from"  # long after on_pause: the machines were not switched off
    OVERDUE = "agent overdue"


POWER_NEXT: dict[tuple[Power, PowerEvent], Power] = {
    (Power.ON, PowerEvent.OFF_DUE): Power.SWITCHING_OFF,
    (Power.SWITCHING_OFF, PowerEvent.HOOK_DONE): Power.OFF,
    (Power.SWITCHING_OFF, PowerEvent.HOOK_FAILED): Power.ON,
    (Power.OFF, PowerEvent.ON_DUE): Power.SWITCHING_ON,
    (Power.OFF, PowerEvent.HEARD): Power.ON,  # somebody else switched them on
    (Power.OFF, PowerEvent.STILL_HEARD): Power.ON,
    (Power.SWITCHING_ON, PowerEvent.HOOK_DONE): Power.WAKING,
    (Power.SWITCHING_ON, PowerEvent.HOOK_FAILED): Power.OFF,
    (Power.WAKING, PowerEvent.HEARD): Power.ON,
    (Power.WAKING, PowerEvent.OVERDUE): Power.OFF,
}

AFTER_RESTART = {Power.SWITCHING_OFF: Power.OFF, Power.SWITCHING_ON: Power.OFF}
"""A command that ran when the controller ended: it may have done its work or not. on_resume sets that right."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the next event depends on."""

    now_wall: float
    granted: bool  # the site's region may train, and there is work left
    idle: bool  # its agent is heard from, and has no job
    heard: bool  # within `lost_after`
    was_silent: bool  # at some moment since it was switched off
    paused_s: float  # for how long it has been idle without a permit, controller clock
    start_expected: bool | None  # within `off_after`, by the forecast; None: the forecast does not say
    since_wall: float  # when the state began
    retry_wall: float  # no on_resume before
    spent: bool  # on_pause failed, or did nothing, in this pause
    hook_failed: bool | None  # how the running command ended, None while it runs


def advance_power(state: Power, event: PowerEvent) -> Power:
    """The state after `event`. Raises: RefusedTransition: `event` is forbidden in `state`."""
    try:
        return POWER_NEXT[state, event]
    except KeyError:
        raise RefusedTransition(f"machines that are {state.value} cannot take the event '{event.value}'") from None


def next_power_event(state: Power, facts: Facts, section: SiteSection) -> PowerEvent | None:
    """What happened to a site's machines, or None."""
    taken = facts.now_wall - facts.since_wall
    if state is Power.ON:
        due = facts.idle and not facts.granted and not facts.spent
        return PowerEvent.OFF_DUE if due and worth_switching_off(facts, section.off_after) else None
    if state in (Power.SWITCHING_OFF, Power.SWITCHING_ON):
        if facts.hook_failed is None:
            return None
        return PowerEvent.HOOK_FAILED if facts.hook_failed else PowerEvent.HOOK_DONE
    if state is Power.WAKING:
        return PowerEvent.HEARD if facts.heard else PowerEvent.OVERDUE if taken >= section.wake_limit else None
    if facts.heard:
        # An agent goes on to report until its machine is down, which may take a while after the command.
        if facts.was_silent:
            return PowerEvent.HEARD
        return PowerEvent.STILL_HEARD if taken >= section.wake_limit else None
    return PowerEvent.ON_DUE if facts.granted and facts.now_wall >= facts.retry_wall else None


def worth_switching_off(facts: Facts, off_after: float) -> bool:
    """Is no start to be expected within `off_after` seconds?

    The forecast decides where it reaches so far. Else it has to be waited for: after a pause
    of `off_after` at most twice the least is lost, however long the pause turns out to be.
    """
    if facts.start_expected is not None:
        return not facts.start_expected
    return facts.paused_s >= off_after


def start_expected(forecast: Forecast | None, limit: float, now: float, off_after: float) -> bool | None:
    """Does the forecast fall below `limit` within `off_after` seconds? None: it does not reach so far."""
    if forecast is None:
        return None
    if forecast.first_below(limit, now, now + off_after) is not None:
        return True
    return False if forecast.known_until >= now + off_after else None


def retry_s(failures: int) -> float:
    """Pause after so many failures of on_resume in a row: 15, 30, 60, ... at most 600 s."""
    return min(RETRY_S * 2.0 ** (max(1, failures) - 1), RETRY_MOST_S)
