"""The machines of each site: joins, leaves, reports, and the crew that runs the site's job.

Records what `controller.service.admission` and `controller.fleet.crew` decide. Each join
of a machine takes the site's next fencing token; the machine's older tokens are
refused from then on. A site's samples are leased under the fencing token of its
lead. They return to the pool when the lead joins again or leaves, or when another
machine becomes the lead. Methods run inside one transaction on the store's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from controller.auth import credentials
from controller.energy.clock import ReplayClock
from controller.fleet.live import Fleet, LiveMachine, LiveSite
from controller.ledger.recorder import EnergyLedger
from controller.service import admission
from controller.store import Transaction
from controller.store.events import Event
from controller.store.rows import MachineRow, SiteRow, TokenRow
from curtail import wire
from curtail.config import RunConfig
from curtail.errors import NotFound
from curtail.security.signing import fingerprint
from curtail.system.clock import Clock
from curtail.wire import NodeInfo, NodeList

Release = Callable[[Transaction, str, float, str], None]
"""Returns a site's leased samples to the pool: (transaction, site, Unix time, reason)."""


class Sites:
    """The machines of all sites, and which of them leads its site."""

    def __init__(
        self,
        config: RunConfig,
        clock: Clock,
        replay: ReplayClock,
        fleet: Fleet,
        energy_ledger: EnergyLedger,
        release: Release,
        event: Event,
    ) -> None:
        self._lost_after, self._clock, self._replay = config.fleet.lost_after, clock, replay
        self._fleet, self._energy_ledger, self._release, self._event = fleet, energy_ledger, release, event

    def join(self, tx: Transaction, request: wire.JoinRequest, token: TokenRow) -> tuple[int, str]:
        """Admit an agent with this token. Returns: its machine's fencing token and credential.

        Raises: Refused: the site belongs to another key, or the other machines describe it differently. WireError: no
        name, or an invalid number of machines.
        """
        admission.check_admission(request)
        before, rows, now = tx.site(request.site), tx.machines(request.site), self._clock.monotonic()
        live = self._fleet.find(request.site)

        def here(row: MachineRow) -> bool:
            machine = None if live is None or row.left_run else live.machines.get(row.agent)
            return machine is not None and machine.heard(now, self._lost_after)

        admitted = admission.admit(request, before, rows, here)
        admission.check_owner(request, before, rows, token)
        if not self._holds(tx, request.site, admitted.stay):
            self._release(tx, request.site, self._clock.wall(), "its agent joined anew")
        credential = credentials.new_credential()
        site = SiteRow(
            site=request.site,
            region=request.region,
            machines=request.machines,
            fence=1 if before is None else before.fence + 1,
            left_run=0,
            tokens=0 if before is None else before.tokens,
            joined_wall=self._clock.wall(),
        )
        row = MachineRow(
            site=request.site,
            agent=request.agent,
            machine=request.machine,
            devices=request.devices,
            address=request.address,
            port=request.port,
            place=admitted.place,
            fence=site.fence,
            credential=credentials.hashed(credential),
            left_run=0,
            joined_wall=site.joined_wall,
            key=request.key,
            expires_wall=site.joined_wall + credentials.LIFE_S,
        )
        tx.put_site(site)
        for gone in admitted.gone:
            tx.drop_machine(gone.site, gone.agent)
        tx.put_machine(row)
        if live is None or not any(here(other) for other in admitted.stay):
            self._energy_ledger.finish(tx, request.site, self._replay.now(), again=True)
            live = self.enter(tx, site)
        for gone in admitted.gone:
            live.machines.pop(gone.agent, None)
        machine = live.machines[row.agent] = LiveMachine.of(row)
        machine.seen = live.seen = now
        of = "" if site.machines == 1 else f", one of {site.machines} machines"
        whence = f"{row.machine} in {site.region} with token {token.id}"
        self._event(tx, "site", f"{site.site} joined from {whence}, fencing token {site.fence}{of}")
        return site.fence, credential

    def leave(self, tx: Transaction, who: MachineRow, reason: str) -> None:
        """A machine leaves for good. After the last one, no energy is booked for the site any more."""
        tx.set_machine(who.site, who.agent, left_run=1)
        others = [row for row in tx.machines(who.site) if not row.left_run]
        if not self._holds(tx, who.site, others):
            self._release(tx, who.site, self._clock.wall(), "its agent left")
        live = self._fleet.find(who.site)
        if others and live is not None:
            live.machines.pop(who.agent, None)
            self.gather(tx, live)
            live.show()
            self._event(tx, "site", f"{who.machine} of {who.site} left: {reason}")
            return
        self._energy_ledger.finish(tx, who.site, self._replay.now())
        tx.set_site(who.site, left_run=1)
        self._fleet.drop(who.site)
        self._event(tx, "site", f"{who.site} left: {reason}")

    def remove(self, tx: Transaction, site: str, agent: str | None) -> int:
        """Remove a machine of a site, or all: they leave, and their keys and credentials are deleted.

        Returns: the number removed. Raises: NotFound: there is none.
        """
        for row in chosen(tx, site, agent):
            if not row.left_run:
                self.leave(tx, row, "an operator removed it")
        return forget(tx, site, agent)

    def nodes(self, tx: Transaction) -> NodeList:
        """All machines that joined, with the age of their last heartbeat."""
        found, now = [], self._clock.monotonic()
        for site in tx.sites():
            live = self._fleet.find(site.site)
            for row in tx.machines(site.site):
                seen = live.machines[row.agent].seen if live is not None and row.agent in live.machines else None
                found.append(node(row, site.region, None if seen is None else now - seen))
        return NodeList(tuple(found))

    def heard(self, tx: Transaction, live: LiveSite, who: MachineRow, beat: wire.Heartbeat) -> LiveMachine:
        """Record a machine's report. One that had left is back."""
        machine = live.machines.get(who.agent)
        if machine is None:
            machine = live.machines[who.agent] = LiveMachine.of(who)
        before = machine.note
        machine.take(beat, self._clock.monotonic())
        if machine.note != before and _tells_of_a_hook(machine.note):
            self._event(tx, "power", f"{live.site}: {machine.note}")
        if who.left_run:
            tx.set_site(who.site, left_run=0)
            tx.set_machine(who.site, who.agent, left_run=0)
        self.gather(tx, live)
        live.show()
        return machine

    def enter(self, tx: Transaction, site: SiteRow) -> LiveSite:
        """Add the site with its machines, of which none has reported yet."""
        machines = [LiveMachine.of(row) for row in tx.machines(site.site) if not row.left_run]
        return self._fleet.add(site.site, site.region, site.machines, machines)

    def live(self, tx: Transaction, who: MachineRow) -> LiveSite:
        """The live site of a machine that reports; added if this is its first report."""
        live = self._fleet.find(who.site)
        if live is not None:
            return live
        site = tx.site(who.site)
        assert site is not None, "a machine belongs to a site"
        return self.enter(tx, site)

    def gather(self, tx: Transaction, live: LiveSite) -> None:
        """Form a new crew if the machines that are present have changed."""
        crew = live.gather(self._clock.monotonic(), self._lost_after, credentials.new_id)
        if crew is None:
            return
        if live.led_by is not None and live.led_by != crew.lead:
            self._release(tx, live.site, self._clock.wall(), "another of its machines leads now")
        live.led_by = crew.lead
        live.show()
        names = {row.agent: row.machine for row in tx.machines(live.site)}
        text = ", ".join(names.get(agent, agent) for agent in crew.agents)
        self._event(tx, "site", f"{live.site}: {len(crew.agents)} of {live.expected} machines form one job: {text}")

    def _holds(self, tx: Transaction, site: str, machines: Sequence[MachineRow]) -> bool:
        """Whether the job of one of these machines took the site's newest lease."""
        newest = tx.newest_part(site)
        return newest is not None and newest.fence in {row.fence for row in machines}


def chosen(tx: Transaction, site: str, agent: str | None) -> list[MachineRow]:
    """The machines of a site whose agent id begins with `agent`, or all. Raises: NotFound: there is none."""
    rows = [row for row in tx.machines(site) if agent is None or (agent and row.agent.startswith(agent))]
    if not rows:
        which = "" if agent is None else f" {agent!r}"
        raise NotFound(f"the site {site!r} has no machine{which}", "`curtail node list` shows them")
    return rows


def forget(tx: Transaction, site: str, agent: str | None) -> int:
    """Delete keys, credentials and nonces of the machines. Returns: the number of machines.

    The controller's next step returns the site's leased samples, as when an agent left. Raises: NotFound."""
    rows = chosen(tx, site, agent)
    for row in rows:
        tx.drop_machine(row.site, row.agent)
        tx.forget_nonces(row.key)
    if all(row.left_run for row in tx.machines(site)):
        tx.set_site(site, left_run=1)
    return len(rows)


def node(row: MachineRow, region: str, seen_s: float | None) -> NodeInfo:
    """A machine as `curtail node list` shows it."""
    return NodeInfo(
        row.site, region, row.agent, row.machine, row.devices, fingerprint(row.key), row.fence, bool(row.left_run),
        row.joined_wall, seen_s,
    )  # fmt: skip


def _tells_of_a_hook(note: str) -> bool:
    """Whether a machine reports that one of its commands failed."""
    return note.startswith(("on_pause ", "on_resume ")) and not note.endswith(" runs")
