"""Switches machines off and on with the run file's commands, and stores which are off.

`controller.fleet.power_states` decides, `controller.fleet.power_commands` runs the
commands. A state is stored before its command starts, so that on_resume is never
skipped, whenever the controller ends. Methods run inside a transaction on the
store's thread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from controller.fleet.live import LiveSite
from controller.fleet.power_commands import CommandResult, Runner
from controller.fleet.power_states import (
    AFTER_RESTART,
    Facts,
    PowerEvent,
    PowerState,
    advance_power,
    next_power_event,
    retry_s,
    start_expected,
)
from controller.store import Transaction
from controller.store.events import Event
from controller.store.rows import SwitchedRow
from curtail.carbon.accounting import ATTRIBUTED
from curtail.config import RunConfig, SiteSection
from curtail.grid.forecast import Forecast
from curtail.policy.rules import Verdict


@dataclass(frozen=True, slots=True)
class Now:
    """The time on all three clocks, and whether the run is finished."""

    clock: float  # the controller's
    wall: float
    mono: float
    finished: bool  # the run is finished: nothing is switched any more


class Switches:
    """The machines of all sites that have commands.

    Args: runner: None: commands cannot be run, so nothing is switched.
    """

    def __init__(self, config: RunConfig, runner: Runner | None, event: Event) -> None:
        self._config, self._runner, self._event = config, runner, event
        self._rows: dict[str, SwitchedRow] = {}
        self._paused_since: dict[str, float] = {}  # controller clock
        self._silent: set[str] = set()  # since they were switched off
        self._woken: set[str] = set()  # heard from again, and no job has started since

    def restore(self, tx: Transaction, now: Now) -> None:
        """Restore the state from the store."""
        for row in tx.switched():
            state = PowerState(row.state)
            if state in AFTER_RESTART:
                row = replace(row, state=AFTER_RESTART[state].value, since=now.clock, since_wall=now.wall)
                tx.put_switched(row)
            self._rows[row.site] = row

    def state(self, site: str) -> PowerState:
        """The power state of the site's machines."""
        row = self._rows.get(site)
        return PowerState.ON if row is None else PowerState(row.state)

    def away(self, site: str) -> bool:
        """Are they switched off or being switched? Then a silent agent is not an error."""
        return self.state(site) is not PowerState.ON

    def going_down(self, site: str) -> bool:
        """Are they being switched off? A job that starts now would be killed."""
        return self.state(site) in (PowerState.SWITCHING_OFF, PowerState.OFF)

    def step(
        self, tx: Transaction, live: LiveSite, now: Now, verdict: Verdict, forecast: Forecast | None,
        price: float | None = None,
    ) -> None:  # fmt: skip
        """Do what is due for a site, and set its energy phase.

        Args: price: the clearing price in gCO2/kWh, if a deadline or a budget sets one.
        """
        section = self._config.sites.get(live.site)
        if (section is not None and section.on_pause and self._runner is not None) or live.site in self._rows:
            self._decide(
                tx, live, section or SiteSection(), now, verdict, self._expected(live, now, verdict, forecast, price)
            )
        self._show(live, now)

    def horizon(self, site: str) -> float:
        """Seconds of forecast that `step` needs for the site; 0: none."""
        section = self._config.sites.get(site)
        return section.off_after if section is not None and section.on_pause else 0.0

    def left(self, live: LiveSite, agent: str) -> bool:
        """An agent leaves: is it because its machine is being switched off? Then the site stays in the run."""
        if self.state(live.site) not in (PowerState.SWITCHING_OFF, PowerState.OFF):
            return False
        machine = live.machines.get(agent)
        if machine is not None:
            machine.seen, machine.state, machine.phase, machine.job = None, "OFF", "paused", None
        live.show()
        self._silent.add(live.site)
        return True

    def forget(self, tx: Transaction, site: str) -> None:
        """Forget a site that left the run."""
        self._paused_since.pop(site, None)
        if site in self._rows:
            self._forget_row(tx, site)

    # -- deciding --------------------------------------------------------------

    def _expected(
        self, live: LiveSite, now: Now, verdict: Verdict, forecast: Forecast | None, price: float | None
    ) -> bool | None:
        """Does the forecast expect a start within the site's `off_after`?"""
        threshold = self._config.threshold(live.region)
        if verdict.curtailed and price is None:
            return True  # the region is in a window, so only the policy's delays are left
        limit = threshold if price is None else min(threshold, price)
        return start_expected(forecast, limit, now.clock, self.horizon(live.site))

    def _decide(
        self, tx: Transaction, live: LiveSite, section: SiteSection, now: Now, verdict: Verdict,
        expected: bool | None,
    ) -> None:  # fmt: skip
        row = self._rows.get(live.site)
        granted = verdict.granted and not now.finished
        if row is not None and PowerState(row.state) is PowerState.ON and granted:
            self._forget_row(tx, live.site)  # the next pause may try on_pause again
            row = None
        facts = self._facts(live, row, now, granted, expected)
        state = self.state(live.site)
        if state is PowerState.OFF and not self._can_resume(live.site):
            facts = replace(facts, granted=False)  # until someone switches it on by hand
        ended = self._ended(live.site, state)
        if ended is not None:
            facts = replace(facts, hook_failed=ended.failed)
        event = None if now.finished and state is PowerState.ON else next_power_event(state, facts, section)
        if event is not None:
            self._take(tx, live, section, now, verdict, event, ended)

    def _facts(self, live: LiveSite, row: SwitchedRow | None, now: Now, granted: bool, expected: bool | None) -> Facts:
        heard = live.heard(now.mono, self._config.fleet.lost_after)
        idle = heard and live.job is None and live.phase not in ATTRIBUTED
        if idle and not granted:
            since = self._paused_since.setdefault(live.site, now.clock)
        else:
            since = now.clock
            self._paused_since.pop(live.site, None)
        if not heard:
            self._silent.add(live.site)
        return Facts(
            now_wall=now.wall,
            granted=granted,
            idle=idle,
            heard=heard,
            was_silent=live.site in self._silent or live.job is not None,
            paused_s=now.clock - since,
            start_expected=expected,
            since_wall=now.wall if row is None else row.since_wall,
            retry_wall=0.0 if row is None else row.retry_wall,
            spent=row is not None and row.note != "",
            hook_failed=None,
        )

    def _can_resume(self, site: str) -> bool:
        section = self._config.sites.get(site)
        return self._runner is not None and section is not None and bool(section.on_resume)

    def _ended(self, site: str, state: PowerState) -> CommandResult | None:
        if self._runner is None or state not in (PowerState.SWITCHING_OFF, PowerState.SWITCHING_ON):
            return None
        return self._runner.ended(site)

    def _take(
        self, tx: Transaction, live: LiveSite, section: SiteSection, now: Now, verdict: Verdict, event: PowerEvent,
        ended: CommandResult | None,
    ) -> None:  # fmt: skip
        before = self._rows.get(live.site) or SwitchedRow(live.site, live.region, PowerState.ON.value, 0.0, 0.0)
        state = advance_power(PowerState(before.state), event)
        row = replace(before, state=state.value, since=now.clock, since_wall=now.wall)
        hook = "on_pause" if PowerState(before.state) in (PowerState.ON, PowerState.SWITCHING_OFF) else "on_resume"
        text = f"{live.site}: {ended.words}" if ended is not None else ""
        if event in (PowerEvent.OFF_DUE, PowerEvent.ON_DUE):
            text = f"{live.site}: running {hook} ({verdict.reason})"
            self._silent.discard(live.site)
        elif event is PowerEvent.HOOK_FAILED and state is PowerState.ON:
            assert ended is not None
            row = replace(row, note=ended.words)
        elif event is PowerEvent.STILL_HEARD:
            row = replace(
                row, note=f"on_pause did not switch it off: its agent still reports after {section.wake_limit:.0f} s"
            )
            text = f"{live.site}: {row.note}"
        elif event in (PowerEvent.HOOK_FAILED, PowerEvent.OVERDUE):
            words = ended.words if ended is not None else f"no agent reports {section.wake_limit:.0f} s after on_resume"
            failures = before.failures + 1
            row = replace(row, failures=failures, retry_wall=now.wall + retry_s(failures), note=words)
            text = f"{live.site}: {words}; on_resume runs again in {retry_s(failures):.0f} s"
        elif event is PowerEvent.HOOK_DONE and state is PowerState.OFF:
            row = replace(row, failures=0, retry_wall=0.0, note="")
        elif event is PowerEvent.HEARD:
            self._woken.update([live.site] if PowerState(before.state) is PowerState.WAKING else [])
            text = f"{live.site}: its machines are on again"
        self._event(tx, "power", text)
        if state is PowerState.ON and row.note == before.note:
            self._forget_row(tx, live.site)
        else:
            tx.put_switched(row)
            # The command starts after the commit, too, so this is registered first: the state changes before it.
            tx.after_commit.append(lambda: self._rows.update({row.site: row}))
        if event in (PowerEvent.OFF_DUE, PowerEvent.ON_DUE):
            self._begin(tx, live, section, hook, verdict.reason)

    def _begin(self, tx: Transaction, live: LiveSite, section: SiteSection, hook: str, reason: str) -> None:
        runner = self._runner
        assert runner is not None, "without a runner nothing becomes due"
        command = section.on_pause if hook == "on_pause" else section.on_resume
        env = {
            "CURTAIL_HOOK": hook,
            "CURTAIL_SITE": live.site,
            "CURTAIL_REGION": live.region,
            "CURTAIL_RUN": self._config.run.name,
            "CURTAIL_REASON": reason,
        }
        site, limit = live.site, section.limit
        tx.after_commit.append(lambda: runner.begin(site, hook, command, env, limit))

    def _forget_row(self, tx: Transaction, site: str) -> None:
        tx.drop_switched(site)
        self._silent.discard(site)

        def forgotten() -> None:
            self._rows.pop(site, None)

        tx.after_commit.append(forgotten)

    # -- showing ---------------------------------------------------------------

    def _show(self, live: LiveSite, now: Now) -> None:
        """Set the energy phase of a site whose agent is silent because its machines are off or being switched."""
        if live.heard(now.mono, self._config.fleet.lost_after):
            self.still_starting(live)
            return
        state = self.state(live.site)
        if state in (PowerState.SWITCHING_ON, PowerState.WAKING):
            live.phase = "start"  # waking up is part of the cost of a start
        elif state in (PowerState.SWITCHING_OFF, PowerState.OFF):
            live.phase = "off" if state is PowerState.OFF else "paused"

    def still_starting(self, live: LiveSite) -> None:
        """Set a woken site that may train to the phase start until its job has started."""
        if self.state(live.site) is not PowerState.WAKING and live.site not in self._woken:
            return
        if live.job is None and live.permit.granted:
            live.phase = "start"
        else:
            self._woken.discard(live.site)

    def reason(self, site: str, otherwise: str, verdict: str, now_wall: float) -> str:
        """Why the site waits, with regard to switching its machines.

        Args: otherwise: the reason apart from that. verdict: the reason in its region's verdict.
        """
        row = self._rows.get(site)
        if row is None:
            return otherwise
        state = PowerState(row.state)
        if state is PowerState.ON:
            return f"{otherwise}; {row.note}"
        if state is PowerState.WAKING:
            return f"on_resume ended {now_wall - row.since_wall:.0f} s ago; its agent has not reported yet"
        if state is PowerState.OFF and not self._can_resume(site):
            return "switched off by on_pause; the run file has no on_resume for it, so switch it on by hand"
        if state is PowerState.OFF and row.note:
            return f"{row.note}; on_resume runs again in {max(0.0, row.retry_wall - now_wall):.0f} s"
        runs = {PowerState.SWITCHING_OFF: "on_pause runs", PowerState.SWITCHING_ON: "on_resume runs"}
        return runs.get(state, f"switched off by on_pause; {verdict}")
