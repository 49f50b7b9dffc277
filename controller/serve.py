"""`curtail controller start`: creates the parts of the controller and connects them.

The order matters. Run file, signal, data, folder and port are checked before
anything starts; the port is bound before the run's folder is opened; the replay
clock starts when all else is ready.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from controller.aggregation.process import MergeProcess
from controller.auth import token_files
from controller.auth.authority import TlsIdentity, ensure, own_names
from controller.energy.clock import ReplayClock, run_clock
from controller.energy.microgrid import plants
from controller.energy.simulation import EnergySimulation, preload
from controller.energy.solar import Course, open_courses
from controller.files.disk_space import DiskRoom, file_sizes
from controller.files.uploads import Uploads
from controller.files.versions import Versions
from controller.fleet.power_commands import SystemRunner
from controller.home import home as homes
from controller.home.backup import clear_holding
from controller.home.housekeeping import CHECKED, Upkeep, warn_of_sqlite, was_killed
from controller.home.run_info import run_info
from controller.http.listener import ADDRESS_SHARE, BANNER, ListenAddress, announcing, choose, listen
from controller.http.server import Endpoint, Pulse, serve, unhealthy
from controller.ledger.settlement_thread import live_settler
from controller.provision.start import make_call_thread, provisioning
from controller.service.elastic import Provisioning
from controller.service.service import Service, ServiceDeps
from controller.signals.select import SelectedSignal, Surroundings
from controller.signals.start import SignalOptions, choose_signal, has_perfect_forecast
from controller.store import Store
from controller.store.rows import RunRow
from curtail.config import RunConfig, load_config
from curtail.system.clock import Clock, SystemClock
from curtail.system.disk import Disk, SystemDisk
from curtail.system.home_files import ADDRESS, BLOBS, JOIN_TOKEN, STORE, VERSIONS
from curtail.system.systemd import take_notifier
from nanochat import presets

log = logging.getLogger("curtail.controller")

SMALL_FILES = 64 * 1024 * 1024
"""Largest size of a contribution beyond the arrays of its weights, bytes."""


@dataclass(frozen=True, slots=True)
class StartOptions:
    """Options of the command line."""

    home: Path
    run_file: Path
    signal: SignalOptions = field(default_factory=SignalOptions)
    host: str = "127.0.0.1"
    port: int = 8765
    announce: bool = True
    tls: bool | None = None  # None: decided by the host
    insecure: bool = False  # plain HTTP beyond loopback
    advertise: tuple[str, ...] = ()  # further names and addresses of the controller
    open_status: bool = False  # the status needs no token
    address_share: float = ADDRESS_SHARE  # largest share of all connections for one address that is not loopback


@dataclass(frozen=True, slots=True)
class RunInputs:
    """Inputs, read and checked before anything starts."""

    options: StartOptions
    config: RunConfig
    face: ListenAddress
    signal: SelectedSignal
    courses: Mapping[str, Course]
    data: homes.Data
    names: list[str]  # names and addresses of this machine, for its certificate
    clock: Clock
    disk: Disk


@dataclass(frozen=True, slots=True)
class OpenRun:
    """The run's opened folder, and the controller's TLS identity."""

    store: Store
    merger: MergeProcess
    versions: Versions
    run: RunRow
    identity: TlsIdentity


def start(options: StartOptions) -> int:
    """Run the controller until it is stopped; returns the exit code.

    Raises: CurtailError: it cannot start.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    inputs = _check(options)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(listen(options.host, options.port)))
        stack.enter_context(homes.lock(options.home))
        return _run(inputs, listener, stack)


def _check(options: StartOptions) -> RunInputs:
    """Check options, run file, signal and data. Raises: CurtailError."""
    face = choose(options.host, options.tls, options.insecure, options.open_status)
    config = load_config(options.run_file)
    clock = SystemClock()
    chosen = choose_signal(options.signal, config, Surroundings(clock, os.environ))
    courses = open_courses(config)
    data = homes.load_data(config)
    homes.model_for(config, data.manifest)
    homes.recipe_for(config)
    names = own_names(options.advertise, options.host)
    return RunInputs(options, config, face, chosen, courses, data, names, clock, SystemDisk())


def _run(inputs: RunInputs, listener: socket.socket, stack: contextlib.ExitStack) -> int:
    """Start all parts, serve, and stop the parts in reverse order."""
    from controller.http.app import ServerIdentity, create_app

    options, config, clock = inputs.options, inputs.config, inputs.clock
    killed, notifier = was_killed(options.home), take_notifier(os.environ)
    opened = _open(inputs, killed, stack)
    store, run, identity = opened.store, opened.run, opened.identity
    model = presets.from_json(run.model)
    uploads = Uploads(options.home / BLOBS, inputs.disk, 6 * presets.parameter_count(model) + SMALL_FILES)
    uploads.purge(clock.wall())
    preload()
    replay = run_clock(run.clock, None if inputs.signal.trace is None else options.signal.speed, clock)
    port = listener.getsockname()[1]
    caller = make_call_thread(config, run)
    url = inputs.face.public(port, inputs.names)
    made = provisioning(config, run, caller, clock, replay.speed, url, identity.pin)
    service = _make_service(inputs, opened, uploads, replay, made)
    stack.callback(caller.stop)
    caller.start()
    store.call(service.resume)
    if killed:
        service.tell("controller", CHECKED)
    grids = plants(config, inputs.courses, store.call(lambda tx: tx.stored()))
    energy = EnergySimulation(list(config.regions), service.power, service.tick, replay, plants=grids)
    _start_threads(inputs, store, service, energy, stack)
    stack.callback(notifier.stopping)
    if options.announce:
        stack.enter_context(announcing(inputs.face, port, inputs.names, run.id, config.run.name))
    address = {"url": inputs.face.url(port), "pid": os.getpid(), "run": run.id}
    inputs.disk.replace("ADDRESS", options.home / ADDRESS, json.dumps(address).encode())
    _greet(inputs, port)
    info = run_info(config, run.id, run.model, run.manifest, run.tokenizer, run.sequence_len, run.sample_limit)
    door = ServerIdentity(identity.authority, identity.pin, inputs.face.open_status)
    app = create_app(service, uploads, info, lambda: unhealthy(service, energy), door)
    pulse = Pulse(notifier, clock, lambda: unhealthy(service, energy))
    warn_of_sqlite()
    notifier.ready()
    endpoint = Endpoint(listener, inputs.face, identity, lambda: _identity(inputs), options.address_share)
    return serve(app, endpoint, pulse)


def _identity(inputs: RunInputs) -> TlsIdentity:
    """The controller's keys and certificates: created, loaded, or with a renewed certificate."""
    return ensure(inputs.options.home, inputs.names, inputs.clock.wall(), inputs.disk)


def _open(inputs: RunInputs, killed: bool, stack: contextlib.ExitStack) -> OpenRun:
    """Open the run's folder, or begin the run in it. Raises: CurtailError.

    Args: killed: the last controller was killed, so the whole store is checked.
    """
    home, clock = inputs.options.home, inputs.clock
    clear_holding(home)
    store = Store(home / STORE, thorough=killed)
    store.open()
    stack.callback(store.close)
    merger = MergeProcess(home / "merge")
    stack.callback(merger.stop)
    versions = Versions(home / VERSIONS)
    trace = inputs.signal.trace
    begin = clock.wall() if trace is None else trace.start
    run = homes.begin_or_continue(home, inputs.config, inputs.data, store, versions, begin, clock)
    identity = _identity(inputs)
    token_files.ensure(home, store, identity.pin, clock.wall(), inputs.disk)
    return OpenRun(store, merger, versions, run, identity)


def _make_service(
    inputs: RunInputs, opened: OpenRun, uploads: Uploads, replay: ReplayClock, made: Provisioning
) -> Service:
    options, config = inputs.options, inputs.config
    parts = ServiceDeps(
        store=opened.store,
        config=config,
        source=inputs.signal.source,
        replay=replay,
        clock=inputs.clock,
        versions=opened.versions,
        uploads=uploads,
        merger=opened.merger,
        room=DiskRoom(options.home, file_sizes(presets.from_json(opened.run.model), config.rounds)),
        commands=SystemRunner(options.home / "hooks", inputs.clock),
        perfect_forecast=has_perfect_forecast(options.signal, config, inputs.signal),
        provisioning=made,
    )
    return Service(parts)


def _start_threads(
    inputs: RunInputs, store: Store, service: Service, energy: EnergySimulation, stack: contextlib.ExitStack
) -> None:
    """Start the background threads; `stack` stops them and then deletes the address file."""
    home = inputs.options.home
    settler = live_settler(store.call, inputs.config, inputs.signal, Surroundings(inputs.clock, os.environ))
    upkeep = Upkeep(store, home / STORE, service.tell)
    stack.callback((home / ADDRESS).unlink, missing_ok=True)
    for part in (inputs.signal, settler, energy, upkeep):
        part.start()
        stack.callback(part.stop)


def _greet(inputs: RunInputs, port: int) -> None:
    options, config, url = inputs.options, inputs.config, inputs.face.public(port, inputs.names)
    if inputs.face.insecure:
        print(BANNER.format(url=url), file=sys.stderr, flush=True)
    log.info("curtail controller for run %s at %s, folder %s", config.run.name, url, options.home)
    log.info(
        "join with: curtail agent join %s --site NAME --region %s --token-file %s",
        url,
        "|".join(config.regions),
        options.home / JOIN_TOKEN,
    )
