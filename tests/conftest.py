"""What several test folders share: packed data, and fleets of real processes.

A fleet is a controller, its agents and their torchrun jobs, each as on a real
machine: own process groups, logs in files, HTTP on loopback. Tests wait for
conditions that they read from `GET /v1/status`, with a deadline, never for a
time. Every process inherits a mark in its environment, so that after each test
the fleet can find whatever is left, kill it and complain.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from hypothesis import settings

import curtail
from controller.home.data_ledger import inspect_store
from controller.store import Store
from curtail import wire
from curtail.commands.ledger import verify
from curtail.errors import WireError

if not Path("/dev/nvidia0").exists():
    # torch imports it on the first step of any optimizer of its own. Without a GPU that costs seconds and serves
    # nothing, and its bindings print complaints after pytest's closing line.
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]

# A person's runs draw other examples each time, so that somebody finds what is left; CI's are always the same.
# CURTAIL_EXAMPLES=100 or more is for nightly runs (`make fuzz`).
settings.register_profile(
    "curtail",
    max_examples=int(os.environ.get("CURTAIL_EXAMPLES", "25")),
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("curtail")

MARK = "CURTAIL_TEST_FLEET"
DEADLINE_S = 120.0
"""Longest wait for a condition: a start of torchrun takes 10 s on two free cores, more on busy ones."""

POLL_S = 0.1
PRESET, VOCABULARY, SEQUENCE, BATCH = "d2-test", 512, 64, 4
PACKAGES = ("json", "asyncio", "email", "http")
SPEED = 60.0
PERIOD_S = 60.0
"""Trace seconds between readings: one second of time at SPEED."""

START = datetime(2026, 3, 1, 10, tzinfo=UTC).timestamp()
CLEAN, DIRTY = 40.0, 450.0
PACE_S = 0.1
"""Of an inner step, where a test is about anything but training: jobs then leave the cores to the other tests."""

PACER = Path(__file__).resolve().parents[1] / "benchmarks" / "chaos_clock"
"""Its `sitecustomize` paces the jobs of processes that have it on their PYTHONPATH."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests that share a fleet stay together in one worker, in their order (pytest-xdist, `--dist loadgroup`).

    Of the others the long ones come first: a long one that starts last would keep one core busy alone.
    """
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    for item in items:
        if "module_fleet" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def packed_data(tmp_path_factory):
    """Folder of packed data for the preset d2-test: a megabyte of the standard library's sources."""
    from curtail.system.disk import SystemDisk
    from nanochat import dataset, pack
    from nanochat.tokenizer import Tokenizer

    folder, disk = tmp_path_factory.mktemp("packed"), SystemDisk()
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(path for name in PACKAGES for path in (library / name).glob("*.py"))
    dataset.import_texts(sources, folder / "shards", disk=disk)
    tokenizer = Tokenizer.train(dataset.iterate_texts(folder / "shards"), VOCABULARY)
    pack.prepare(folder / "shards", tokenizer, folder / "data", disk=disk, sequence_len=SEQUENCE)
    return folder / "data"


@pytest.fixture(scope="session")
def slowness():
    """How much longer than on two free cores a job needs to start here and now, between 1 and 2."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch.distributed.run, agent.job"], env=environment(), check=True)
    return min(2.0, max(1.0, (time.monotonic() - began) / 4.0))


@pytest.fixture
def fleet(tmp_path, packed_data, request):
    """A fleet that ends with the test."""
    with running_fleet(tmp_path, packed_data, request) as made:
        yield made


@pytest.fixture(scope="module")
def module_fleet(tmp_path_factory, packed_data, request):
    """A fleet that the tests of one module share."""
    with running_fleet(tmp_path_factory.mktemp("fleet"), packed_data, request) as made:
        yield made


@pytest.fixture(scope="session")
def command():
    """Runs one `curtail` command to its end: command("eval", ...) -> CompletedProcess."""

    def run(*arguments, seconds=DEADLINE_S, **variables):
        return subprocess.run(
            [sys.executable, "-m", "curtail", *map(str, arguments)],
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )

    return run


def environment(**more):
    """The environment of everything that tests start."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CURTAIL_")}
    root = Path(curtail.__file__).resolve().parent.parent
    if root.name not in ("site-packages", "dist-packages"):
        env["PYTHONPATH"] = str(root)
    return {**env, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", **more}


@contextlib.contextmanager
def running_fleet(folder, data, request):
    failed_before = request.session.testsfailed
    made = Fleet(folder, data)
    try:
        yield made
    finally:
        left = made.close()
        ledger = made.ledger()
        if request.session.testsfailed > failed_before:
            print(made.tails())
    assert not left, f"these processes outlived their agents and controller: {left}"
    assert not ledger, f"the data ledger is broken: {ledger}"
    # Whatever a test kills, controller and agents have a sentence for it.
    spilt = [program.tail() for program in made.programs if "Traceback" in program.text()]
    assert not spilt, "\n".join(spilt)


class Program:
    """One started `curtail` process, the leader of its own process group, with its log."""

    def __init__(self, name, log, popen):
        self.name, self.log, self.popen = name, log, popen
        self.may_end = False

    @property
    def pid(self):
        return self.popen.pid

    def running(self):
        return self.popen.poll() is None

    def send(self, number):
        self.may_end = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill_9(self):
        """As a crash: this process alone, and at once."""
        self.send(signal.SIGKILL)
        self.popen.wait(DEADLINE_S)

    def wait(self, seconds=DEADLINE_S):
        """The exit code, when the process ends by itself."""
        self.may_end = True
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} still runs after {seconds:.0f} s\n{self.tail()}")

    def text(self):
        return self.log.read_text(errors="replace")

    def tail(self, lines=25):
        return f"--- {self.name}: {self.log}\n" + "\n".join(self.text().splitlines()[-lines:])


class Fleet:
    """A controller and its agents, as processes."""

    CLEAN, DIRTY, SPEED, START, PACE_S = CLEAN, DIRTY, SPEED, START, PACE_S

    def __init__(self, folder, data):
        self.folder, self.data = folder, data
        self.home, self.run_file, self.trace_file = folder / "home", folder / "run.toml", folder / "trace.csv"
        self.mark = uuid.uuid4().hex
        self.programs = []
        self.controller = None
        self.agents = {}
        self.port = 0
        self.flags = ()
        self.pace_s = 0.0
        self.seen = []
        self.http = httpx.Client(trust_env=False, timeout=5.0)

    # -- settings ------------------------------------------------------------

    def write_run(self, budget_steps=1_000_000, regions=("A", "B"), **sections):
        """The run file; `sections` add to the defaults: rounds={"length": "3 s"}, or are new ones."""
        table = {
            "run": {"name": "test", "seed": 7},
            "model": {"preset": PRESET},
            "data": {"path": str(self.data)},
            "training": {"token_budget": budget_steps * BATCH * SEQUENCE, "batch_samples": BATCH},
            "rounds": {"length": "3 s", "inner_steps": 10_000, "grace": "20 s"},
            "policy": {"threshold": "100 g/kWh", "max_reading_age": "3600 s", "permit": "6 s"},
            "fleet": {"heartbeat": "300 ms", "lost_after": "6 s"},
        }
        table |= {f"regions.{region}": {"power_train": "2 kW", "power_idle": "500 W"} for region in regions}
        for name, values in sections.items():
            table[name] = {**table.get(name, {}), **values}
        lines = []
        for name, values in table.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        self.run_file.write_text("\n".join(lines) + "\n")

    def write_trace(self, phases, start=START, regions=("A", "B")):
        """The trace: phases of (wall seconds, curtailed regions, or a value for each region, or None for no rows).

        A region's value None is an empty cell.
        """
        rows, at = [f"point_time,{','.join(regions)}"], start
        for seconds, what in phases:
            for _ in range(max(1, round(seconds * SPEED / PERIOD_S))):
                if what is not None:
                    values = what if isinstance(what, dict) else {r: CLEAN if r in what else DIRTY for r in regions}
                    cells = ["" if values[r] is None else f"{values[r]:g}" for r in regions]
                    rows.append(",".join([datetime.fromtimestamp(at, UTC).isoformat(), *cells]))
                at += PERIOD_S
        self.trace_file.write_text("\n".join(rows) + "\n")

    # -- processes -------------------------------------------------------------

    def start(self, name, *arguments, **variables):
        """Start `curtail ARGUMENTS` in a process group of its own."""
        log = self.folder / f"{name}-{len(self.programs)}.log"
        with open(log, "wb") as output:
            popen = subprocess.Popen(
                [sys.executable, "-m", "curtail", *map(str, arguments)],
                env=environment(**{MARK: self.mark}, **variables),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        program = Program(name, log, popen)
        self.programs.append(program)
        return program

    def start_controller(self, *flags):
        """Start the controller, after the first time on the same port, and wait until it answers."""
        self.flags = flags or self.flags
        self.controller = self.start(
            "controller", "controller", "start", self.run_file, "--home", self.home, "--trace", self.trace_file,
            "--unit", "g/kWh", "--speed", SPEED, "--port", self.port, "--no-announce", *self.flags,
        )  # fmt: skip
        pid = self.controller.pid

        def listens():
            try:
                found = json.loads((self.home / "controller.json").read_text())
            except (OSError, ValueError):
                return None
            return found if found["pid"] == pid else None

        found = self.wait_for("the controller writes its address", listens)
        self.port = httpx.URL(found["url"]).port
        return self.until("the controller answers", lambda status: True)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start_agent(self, site, region, ranks=1, token=True, name=None, flags=()):
        """Start the agent of one site, or of one machine `name` of it; without `token` it must have joined before."""
        admission = ("--token-file", self.home / "join-token") if token else ()
        name = name or site
        self.agents[name] = self.start(
            f"agent-{name}", "agent", "join", self.url, "--site", site, "--region", region,
            "--home", self.folder / f"home-{name}", "--ranks", ranks, "--threads", 1, *admission, *flags, **self.pace(),
        )  # fmt: skip
        return self.agents[name]

    def pace(self):
        """What in an agent's environment makes each inner step of its jobs take `pace_s` (0: as fast as it goes)."""
        if not self.pace_s:
            return {}
        path = [str(PACER), *filter(None, [environment().get("PYTHONPATH")])]
        return {"CURTAIL_CHAOS_PACE": f"{self.pace_s:g}", "PYTHONPATH": os.pathsep.join(path)}

    def stop(self):
        """End everything in order, agents first; the exit codes by name."""
        agents = [agent for agent in self.agents.values() if agent.running()]
        for agent in agents:
            agent.send(signal.SIGTERM)
        codes = {agent.name: agent.wait() for agent in agents}
        if self.controller is not None and self.controller.running():
            self.controller.send(signal.SIGTERM)
            codes["controller"] = self.controller.wait()
        return codes

    def close(self):
        """Kill what still runs; returns what was left that no agent or controller answers for."""
        for program in self.programs:
            program.send(signal.SIGKILL)
        for program in self.programs:
            program.popen.wait(DEADLINE_S)
        self.http.close()
        # What its parent's death should end has a moment for it.
        end = time.monotonic() + 5.0
        while (left := self.marked()) and time.monotonic() < end:
            time.sleep(POLL_S)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return list(left.values())

    def marked(self, **variables):
        """Living processes of this fleet whose environment also holds `variables`: pid -> command line."""
        wanted = [f"{name}={value}".encode() for name, value in {MARK: self.mark, **variables}.items()]
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # another user's, or gone meanwhile
                values = (entry / "environ").read_bytes().split(b"\0")
                if all(want in values for want in wanted):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def job(self, site):
        """The processes of the site's job, torchrun and ranks: pid -> command line."""
        return self.marked(CURTAIL_SITE=site)

    # -- looking on --------------------------------------------------------------

    def status(self):
        """The present snapshot, None while the controller does not answer."""
        try:
            reply = self.http.get(self.url + wire.STATUS)
            return wire.decode(wire.Status, reply.content)
        except (httpx.HTTPError, WireError):
            return None

    def until(self, what, condition, seconds=DEADLINE_S):
        """The first snapshot for which `condition` holds."""

        def look():
            status = self.status()
            if status is None:
                return None
            self.seen.append(status)
            return status if condition(status) else None

        return self.wait_for(what, look, seconds)

    def wait_for(self, what, look, seconds=DEADLINE_S, every=POLL_S):
        """What `inspect_store` returns as soon as that is true."""
        end = time.monotonic() + seconds
        while True:
            if found := look():
                return found
            ended = [p.name for p in self.programs if not p.may_end and not p.running()]
            if ended or time.monotonic() > end:
                why = f"{', '.join(ended)} ended" if ended else f"{seconds:.0f} s passed"
                pytest.fail(f"{why} before this was true: {what}\n{self.tails()}", pytrace=False)
            time.sleep(every)

    def tails(self):
        """The last lines of all logs, and the last snapshot."""
        parts = [program.tail() for program in self.programs]
        for log in sorted(self.folder.glob("home-*/jobs/*/job.log")):
            parts.append(f"--- {log}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:]))
        if self.seen:
            parts.append(f"--- last status\n{wire.encode(self.seen[-1]).decode()}")
        return "\n".join(parts)

    def in_store(self, ask):
        """What `ask` finds in the store; only while no controller runs."""
        assert self.controller is None or not self.controller.running()
        store = Store(self.home / "state.db")
        store.open()
        try:
            return store.call(ask)
        finally:
            store.close()

    def ledger(self):
        """What `curtail ledger check --weights` and `ledger verify` find wrong; nothing where there is no store."""
        if not (self.home / "state.db").is_file():
            return []
        problems = [problem for _, problem in inspect_store(self.home, weights=True) if problem is not None]
        chain = verify.verify_chain(self.home, None).problem
        return [*problems, chain] if chain else problems

    def members(self):
        """Every site's part in every round, oldest first; only while no controller runs."""
        return self.in_store(lambda tx: [m for number in range(1, tx.next_round()) for m in tx.members(number)])


def site_of(status, name):
    """One site of a snapshot, None if it is not there."""
    return next((site for site in status.sites if site.site == name), None)


@pytest.fixture(scope="session")
def site():
    """site(status, name): one site of a snapshot, None if it is not there."""
    return site_of
