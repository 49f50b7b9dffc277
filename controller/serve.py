"""`curtail controller start`: wires the parts together, and nothing else.

Order matters: everything that can be wrong (run file, signal, data, folder,
port) is checked before anything is started; the port is bound before the run
is touched; the clock of the replay starts when all else is ready.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from controller import home as homes
from controller.beside import ProcessMerger
from controller.blobs import Uploads
from controller.energy import EnergySimulation, LiveClock, ReplayClock, preload
from controller.service import TICK_LIMIT_S, Parts, Service
from controller.signals.choose import Signal, Surroundings, columns, open_signal, replayed
from controller.signals.trace import load_trace
from controller.store import Store
from controller.versions import Versions
from curtail.clock import Clock, SystemClock
from curtail.config import RunConfig, load_config
from curtail.disk import SystemDisk
from curtail.errors import CurtailError, UsageError
from curtail.reading import UNITS
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


def start(options: StartOptions) -> int:
    """Run the controller until it is told to stop; returns the exit code.

    Raises: CurtailError: it cannot start; says why and what to do.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _check_host(options.host)
    config = load_config(options.run_file)
    clock = SystemClock()
    chosen = choose_signal(options, config, Surroundings(clock, os.environ))
    data = homes.load_data(config)
    homes.model_for(config, data.manifest)
    homes.recipe_for(config)
    listener = _listen(options.host, options.port)
    with contextlib.closing(listener), homes.lock(options.home):
        return _run(options, config, chosen, data, listener, clock)


def _run(
    options: StartOptions, config: RunConfig, chosen: Signal, data: homes.Data, listener: socket.socket, clock: Clock
) -> int:
    disk = SystemDisk()
    store = Store(options.home / "state.db")
    store.open()
    merger = ProcessMerger(options.home / "merge")
    try:
        versions = Versions(options.home / "versions")
        begin = clock.wall() if chosen.trace is None else chosen.trace.start
        run = homes.begin_or_continue(options.home, config, data, store, versions, begin, clock, disk)
        largest = 6 * presets.parameter_count(presets.from_json(run.model)) + 64 * 1024 * 1024
        uploads = Uploads(options.home / "blobs", disk, largest)
        uploads.purge(clock.wall())
        preload()
        replay = run_clock(run.clock, options, chosen, clock)
        service = Service(Parts(store, config, chosen.source, replay, clock, versions, uploads, merger))
        store.call(service.resume)
        energy = EnergySimulation(list(config.regions), service.power, service.tick, replay)
        info = run_info(config, run.id, run.model, run.manifest, run.tokenizer, run.sequence_len, run.sample_limit)
        url = f"http://{options.host}:{listener.getsockname()[1]}"
        address = {"url": url, "pid": os.getpid(), "run": run.id}
        chosen.start()
        energy.start()
        try:
            with _announcement(options, url, run.id, config.run.name):
                disk.replace("ADDRESS", options.home / "controller.json", json.dumps(address).encode())
                _greet(options, config, url)
                return _serve(service, uploads, info, energy, listener)
        finally:
            energy.stop()
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


def _serve(service: Service, uploads: Uploads, info: RunInfo, energy: EnergySimulation, listener: socket.socket) -> int:
    import uvicorn

    from controller.api import create_app

    def healthy() -> str | None:
        if energy.failure is not None:
            return f"the energy simulation failed: {energy.failure}"
        if service.seconds_since_tick() > TICK_LIMIT_S:
            return "the energy simulation makes no steps"
        return None

    app = create_app(service, uploads, info, healthy)
    # Agents send every few seconds; uvicorn must not close their idle connections in between.
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=75, lifespan="off")
    )
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        # uvicorn restores this handler and raises the signal again after it has ended.
        received.append(number)
        server.should_exit = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server.run(sockets=[listener])
    return 130 if signal.SIGINT in received else 0


def _greet(options: StartOptions, config: RunConfig, url: str) -> None:
    log.info("curtail controller for run %s at %s, folder %s", config.run.name, url, options.home)
    log.info(
        "join with: curtail agent join %s --site NAME --region %s --token-file %s",
        url,
        "|".join(config.regions),
        options.home / "join-token",
    )


def _announcement(options: StartOptions, url: str, run: str, name: str) -> contextlib.AbstractContextManager[object]:
    if not options.announce:
        return contextlib.nullcontext()
    from curtail.discovery import announce

    port = int(url.rsplit(":", 1)[1])
    return announce(f"curtail {name} {run}", port, [options.host], {"run": name})


def _check_host(host: str) -> None:
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise UsageError(
            f"--host {host} is refused: plain HTTP is served on loopback only",
            "use 127.0.0.1 and reach it from other machines through an SSH tunnel",
        )


def choose_signal(options: StartOptions, config: RunConfig, around: Surroundings) -> Signal:
    """The trace of the command line, or else what the run file names.

    Raises: UsageError, ConfigError, AuthError, NotFound, DataError.
    """
    if not SLOWEST <= options.speed <= FASTEST:
        raise UsageError(f"--speed {options.speed:g} is not possible", f"use {SLOWEST:g} to {FASTEST:g}")
    if options.trace is None:
        if options.unit is not None:
            raise UsageError("--unit is the unit of a trace, and no --trace is given", "give both or neither")
        chosen = open_signal(config, around)
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
    forecast = options.forecast if options.trace is not None else config.signal.forecast
    if config.policy.leave_lead > 0 and not forecast:
        raise UsageError("[policy] leave_lead needs a forecast", "add --forecast, or remove leave_lead")


def _check_live(options: StartOptions, config: RunConfig, chosen: Signal) -> None:
    if options.speed != 1.0:
        raise UsageError(f"--speed {options.speed:g} is for a trace; {chosen.name} is live", "leave --speed out")
    if options.forecast:
        raise UsageError(f"--forecast is for a trace; {chosen.name} brings its own, if any", "leave --forecast out")
    if config.policy.leave_lead > 0 and chosen.name == "constant":
        raise UsageError("[policy] leave_lead needs a forecast", "remove leave_lead")


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


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CurtailError(
            f"cannot listen on {host}:{port}: {reason}", "stop what listens there, or choose another --port"
        ) from error
    return listener
