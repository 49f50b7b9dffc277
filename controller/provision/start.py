"""Assembles the provisioner of a run: drivers, call thread, and the join tokens of its machines."""

from __future__ import annotations

import re
from collections.abc import Callable

from controller.auth import tokens
from controller.provision.calls import CallThread, Poll
from controller.provision.driver import Runs, run_program
from controller.provision.drivers import driver_of
from controller.provision.observations import Observations
from controller.provision.provisioner import Provisioner
from controller.store import Transaction
from controller.store.events import Event
from controller.store.rows import RunRow
from curtail.config import RunConfig
from curtail.system.clock import Clock
from curtail.wire import TokenReply, TokenRequest


def run_label(name: str, run_id: str) -> str:
    """How provisioners name a run: its name and the begin of its id, so that two runs never share machines."""
    return f"{re.sub('[^A-Za-z0-9_.-]', '-', name)[:40]}-{run_id[:6]}"


def make_call_thread(config: RunConfig, run: RunRow, program: Runs = run_program) -> CallThread:
    """The thread that calls the drivers of the run's sites; not started."""
    label = run_label(config.run.name, run.id)
    drivers = {site: driver_of(config, site, label, program) for site in config.sites}
    return CallThread({site: driver for site, driver in drivers.items() if driver is not None})


def provisioning(
    config: RunConfig, run: RunRow, caller: CallThread, clock: Clock, speed: float, url: str, pin: str | None
) -> Callable[[Event], Provisioner]:
    """What makes the provisioner once there is a way to write events.

    Args: url: of the controller, for agents. pin: hash of the public key of its CA.
    """

    def new_token(tx: Transaction, site: str, region: str, seconds: float) -> TokenReply:
        request = TokenRequest("agent", site, region, 1, seconds, "provisioned")
        return tokens.create(tx, request, pin, clock.wall())

    def make(event: Event) -> Provisioner:
        observations = Observations(caller, Poll(clock, config.provision.poll))
        return Provisioner(config, run_label(config.run.name, run.id), observations, speed, url, new_token, event)

    return make
