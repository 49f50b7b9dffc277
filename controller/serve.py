"""`curtail controller start`: wires the parts together, and nothing else.

Order matters: everything that can be wrong (run file, signal, data, folder,
port) is checked before anything is started; the port is bound before the run
is touched; the clock of the replay starts when all else is ready.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from controller.aggregation.process import ProcessMerger
from controller.auth import token_files
from controller.auth.authority import Identity, ensure, own_names
from controller.energy.microgrid import plants
from controller.energy.simulation import EnergySimulation, LiveClock, ReplayClock, preload
from controller.energy.solar import Course, open_courses
from controller.files.disk_space import DiskRoom, file_sizes
from controller.files.uploads import Uploads
from controller.files.versions import Versions
from controller.fleet.power_commands import SystemRunner
from controller.home import home as homes
from controller.home.backup import clear_holding
from controller.home.housekeeping import CHECKED, Upkeep, warn_of_sqlite, was_killed
from controller.http.listener import ADDRESS_SHARE, BANNER, Face, choose, listen, renewing
from controller.ledger.settlement_thread import live_settler
from controller.scheduling.permits import TICK_LIMIT_S
from controller.service.service import Parts, Service
from controller.signals.select import Signal, Surroundings, columns, open_signal, replayed
from controller.store import Store
from curtail.config import RunConfig, load_config
from curtail.errors import UsageError
from curtail.grid.reading import UNITS
from curtail.grid.trace import load_trace
from curtail.system.clock import Clock, SystemClock
from curtail.system.disk import SystemDisk
from curtail.system.systemd import Notifier, take_notifier
from curtail.wire import RunInfo
from nanochat import presets

log = logging.getLogger("curtail.controller")

SLOWEST, FASTEST = 0.5, 1e6
"""Simulated seconds per real second. A step is a whole simulated second, and steps must come every few real ones."""


@dataclass(frozen=True, slots=True)
class StartOptions:
    """What the command line says."""

    home: Path
    run_file: Path
    trace: Path | None = None  # None: the signal is the run file's
    unit: str | None = None
    speed: float = 1.0
    host: str = "127.0.0.1"
    port: int = 8765
    announce: bool = True
    forecast: bool = False
    tls: bool | None = None  # None: as the host needs it
    insecure: bool = False  # plain HTTP beyond loopback
    advertise: tuple[str, ...] = ()  # further names and addresses at which it is reached
    open_status: bool = False  # the status needs no token
    address_share: float = ADDRESS_SHARE  # of all connections, what one address beyond loopback may hold


def start(options: StartOptions) -> int:
    """Run the controller until it is told to stop; returns the exit code.

    Raises: CurtailError: it cannot start; says why and what to do.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    face = choose(options.host, options.tls, options.insecure, options.open_status)
    config = load_config(options.run_file)
    clock = SystemClock()
    chosen = choose_signal(options, config, Surroundings(clock, os.environ))
    courses = open_courses(config)
    data = homes.load_data(config)
    homes.model_for(config, data.manifest)
    homes.recipe_for(config)
    listener = listen(options.host, options.port)
    with contextlib.closing(listener), homes.lock(options.home):
        return _run(options, config, chosen, courses, data, face, listener, clock)


def _run(
    options: StartOptions,
    config: RunConfig,
    chosen: Signal,
    courses: Mapping[str, Course],
    data: homes.Data,
    face: Face,
    listener: socket.socket,
    clock: Clock,
) -> int:
    from controller.http.app import Door, create_app

    disk = SystemDisk()
    names = own_names(options.advertise, options.host)
    killed, notifier = was_killed(options.home), take_notifier(os.environ)
    clear_holding(options.home)
    store = Store(options.home / "state.db", thorough=killed)
    store.open()
    merger = ProcessMerger(options.home / "merge")
    try:
        versions = Versions(options.home / "versions")
        begin = clock.wall() if chosen.trace is None else chosen.trace.start
        run = homes.begin_or_continue(options.home, config, data, store, versions, begin, clock)
        identity = ensure(options.home, names, clock.wall(), disk)
        token_files.ensure(options.home, store, identity.pin, clock.wall(), disk)
        model = presets.from_json(run.model)
        largest = 6 * presets.parameter_count(model) + 64 * 1024 * 1024
        uploads = Uploads(options.home / "blobs", disk, largest)
        uploads.purge(clock.wall())
        preload()
        replay = run_clock(run.clock, options, chosen, clock)
        room = DiskRoom(options.home, file_sizes(model, config.rounds))
        perfect = chosen.trace is not None and _foresees(options, config)
        parts = Parts(store, config, chosen.source, replay, clock, versions, uploads, merger, room)
        commands = SystemRunner(options.home / "hooks", clock)
        service = Service(dataclasses.replace(parts, perfect_forecast=perfect, commands=commands))
        store.call(service.resume)
        if killed:
            service.tell("controller", CHECKED)
        grids = plants(config, courses, store.call(lambda tx: tx.stored()))
        energy = EnergySimulation(list(config.regions), service.power, service.tick, replay, plants=grids)
        info = run_info(config, run.id, run.model, run.manifest, run.tokenizer, run.sequence_len, run.sample_limit)
        port = listener.getsockname()[1]
        url = face.url(port)
        door = Door(identity.authority, identity.pin, face.open_status)
        address = {"url": url, "pid": os.getpid(), "run": run.id}
        upkeep = Upkeep(store, options.home / "state.db", service.tell)
        settler = live_settler(store.call, config, chosen, Surroundings(clock, os.environ))
        chosen.start()
        settler.start()
        energy.start()
        upkeep.start()
        try:
            with _announcement(options, face, port, names, run.id, config.run.name):
                disk.replace("ADDRESS", options.home / "controller.json", json.dumps(address).encode())
                _greet(options, config, face.public(port, names), face)
                app = create_app(service, uploads, info, lambda: unhealthy(service, energy), door)

                def renewed() -> Identity:
                    return ensure(options.home, names, clock.wall(), disk)

                pulse = Pulse(notifier, clock, lambda: unhealthy(service, energy))
                warn_of_sqlite()
                notifier.ready()
                return _serve(app, face, identity, renewed, listener, pulse, options.address_share)
        finally:
            notifier.stopping()
            upkeep.stop()
            energy.stop()
            settler.stop()
            chosen.stop()
            (options.home / "controller.json").unlink(missing_ok=True)
    finally:
        merger.stop()
        store.close()


def run_info(
    config: RunConfig, run: str, model: str, manifest: str, tokenizer: str, sequence_len: int, limit: int
) -> RunInfo:
    """What a job must know of the run."""
    return RunInfo(
        run=run,
        name=config.run.name,
        seed=config.run.seed,
        preset=config.model.preset,
        model_config=dict(presets.to_dict(presets.from_json(model))),
        manifest=manifest,
        tokenizer=tokenizer,
        sequence_len=sequence_len,
        token_budget=limit * sequence_len,
        batch_samples=config.training.batch_samples,
        device_batch_samples=config.training.device_batch_samples,
        recipe=homes.recipe_for(config).to_json(),
        codec=config.rounds.codec,
        overlap=config.rounds.overlap,
        rewarm_steps=config.rounds.rewarm_steps,
        outage_s=config.rounds.outage,
    )


def unhealthy(service: Service, energy: EnergySimulation) -> str | None:
    """Why the controller cannot do its work, or None."""
    if energy.failure is not None:
        return f"the energy simulation failed: {energy.failure}"
    if service.seconds_since_tick() > TICK_LIMIT_S:
        return "the energy simulation makes no steps"
    return None


@dataclass(frozen=True, slots=True)
class Pulse:
    """Tells systemd that the controller works: the HTTP loop comes around, and the store and the energy do steps."""

    notifier: Notifier
    clock: Clock
    unhealthy: Callable[[], str | None]

    async def beat(self) -> None:
        """Called by the HTTP loop."""
        if self.unhealthy() is None:
            self.notifier.alive(self.clock.monotonic())


def _serve(
    app: Any,
    face: Face,
    identity: Identity,
    renewed: Callable[[], Identity],
    listener: socket.socket,
    pulse: Pulse,
    share: float,
) -> int:
    import uvicorn

    from controller.http import connection_limit, connection_timeouts

    connection_timeouts.raise_file_handles()
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,  # `controller.http.request_limits` says it
        **connection_limit.options(),
        callback_notify=pulse.beat if pulse.notifier.every else None,
        timeout_notify=max(1, int(pulse.notifier.every)),
        ssl_certfile=identity.files.certificate if face.tls else None,
        ssl_keyfile=identity.files.key if face.tls else None,
    )
    config.load()
    server = uvicorn.Server(config)
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        # uvicorn restores this handler and raises the signal again after it has ended.
        received.append(number)
        server.should_exit = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    with renewing(config.ssl, identity, renewed) if config.ssl is not None else contextlib.nullcontext():
        server.run(
            sockets=[
                connection_limit.Gate(listener, connection_limit.caps(connection_timeouts.most_connections(), share))
            ]
        )
    return 130 if signal.SIGINT in received else 0


def _greet(options: StartOptions, config: RunConfig, url: str, face: Face) -> None:
    if face.insecure:
        print(BANNER.format(url=url), file=sys.stderr, flush=True)
    log.info("curtail controller for run %s at %s, folder %s", config.run.name, url, options.home)
    log.info(
        "join with: curtail agent join %s --site NAME --region %s --token-file %s",
        url,
        "|".join(config.regions),
        options.home / "join-token",
    )


def _announcement(
    options: StartOptions, face: Face, port: int, names: list[str], run: str, name: str
) -> contextlib.AbstractContextManager[object]:
    if not options.announce:
        return contextlib.nullcontext()
    from curtail.system.mdns import announce

    facts = {"run": name, "proto": "https" if face.tls else "http"}
    return announce(f"curtail {name} {run}", port, face.addresses(names), facts)


def choose_signal(options: StartOptions, config: RunConfig, around: Surroundings) -> Signal:
    """The trace of the command line, or else what the run file names.

    Raises: UsageError, ConfigError, AuthError, NotFound, DataError.
    """
    if not SLOWEST <= options.speed <= FASTEST:
        raise UsageError(f"--speed {options.speed:g} is not possible", f"use {SLOWEST:g} to {FASTEST:g}")
    if options.trace is None:
        if options.unit is not None:
            raise UsageError("--unit is the unit of a trace, and no --trace is given", "give both or neither")
        chosen = open_signal(config, around, ", or give --trace and --unit")
    else:
        if options.unit is None:
            raise UsageError("the unit of the trace is not given", f"add --unit {' or --unit '.join(UNITS)}")
        if options.unit not in UNITS:
            raise UsageError(f"--unit {options.unit} is not known", f"use one of {', '.join(UNITS)}")
        chosen = replayed(load_trace(options.trace, options.unit, columns(config).values()), config, options.forecast)
    if chosen.trace is None:
        _check_live(options, config, chosen)
    else:
        _check_replay(options, config, chosen.trace.period)
    return chosen


def _check_replay(options: StartOptions, config: RunConfig, period: float) -> None:
    # The oldest reading that is still fresh is one period old; a permit lives on what is left.
    permit = (config.policy.max_reading_age - period) / options.speed
    if permit < 2 * config.fleet.heartbeat:
        raise UsageError(
            f"at --speed {options.speed:g} a reading justifies only {max(0.0, permit):.2f} s of training, which is"
            f" less than two heartbeats of {config.fleet.heartbeat:g} s",
            "lower --speed or [fleet] heartbeat, or raise [policy] max_reading_age",
        )
    if not _foresees(options, config):
        _refuse_without_forecast(config, "add --forecast, or remove {key}")


def _foresees(options: StartOptions, config: RunConfig) -> bool:
    """Is the trace its own forecast?"""
    return options.forecast if options.trace is not None else config.signal.forecast


def _refuse_without_forecast(config: RunConfig, remedy: str) -> None:
    """Raises: UsageError: a key of the policy does nothing without a forecast, and there is none."""
    policy = config.policy
    wanted = {"leave_lead": policy.leave_lead > 0, "deadline": policy.deadline, "budget_kg": policy.budget_kg}
    for key, given in wanted.items():
        if given:
            raise UsageError(f"[policy] {key} needs a forecast", remedy.format(key=key))


def _check_live(options: StartOptions, config: RunConfig, chosen: Signal) -> None:
    if options.speed != 1.0:
        raise UsageError(f"--speed {options.speed:g} is for a trace; {chosen.name} is live", "leave --speed out")
    if options.forecast:
        raise UsageError(f"--forecast is for a trace; {chosen.name} brings its own, if any", "leave --forecast out")
    if chosen.name == "constant":
        _refuse_without_forecast(config, "remove {key}")


LATE_S = 60.0
"""By how much this machine's clock may be behind the run's."""


def run_clock(stopped: float, options: StartOptions, chosen: Signal, clock: Clock) -> ReplayClock:
    """The controller's clock: that of the trace, or real time where the signal is live.

    Args: stopped: where the clock of the run stands.
    Raises: UsageError: the run is already later than now, as after a trace of the future.
    """
    if chosen.trace is not None:
        return ReplayClock(stopped, options.speed, clock)
    ahead = stopped - clock.wall()
    if ahead > LATE_S:
        raise UsageError(
            f"the run's clock is {ahead:.0f} s ahead of this machine's",
            "set the clock right; a run that followed a trace of the future cannot go on with a live signal",
        )
    return LiveClock(stopped, clock)
