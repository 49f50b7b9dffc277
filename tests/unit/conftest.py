"""A controller in memory: real store, versions, uploads and merge; a clock and readings the test sets.

And what several tests of the model need: small shards of text, and two ranks that talk over gloo.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import FakeClock

from controller.aggregation.aggregate import merge
from controller.aggregation.outer_step import MergeResult, MergeSpec
from controller.auth import credentials, tokens
from controller.energy.clock import ReplayClock
from controller.files.uploads import Uploads
from controller.files.versions import Versions
from controller.service import snapshot
from controller.service.service import Service, ServiceDeps
from controller.store import Store, Transaction
from controller.store.rows import BlobRow, MachineRow, RunRow, TokenRow, VersionRow
from curtail import wire
from curtail.config import RunConfig, parse_config
from curtail.errors import CurtailError
from curtail.grid.forecast import Forecast
from curtail.grid.reading import Reading, unknown
from curtail.security.signing import HEADER, AgentKey, Signer
from curtail.system.disk import SystemDisk, file_sha256
from curtail.wire import TokenRequest
from nanochat import checkpoint, delta, weights
from nanochat.presets import GPTConfig, to_json, weight_shapes

MODEL = GPTConfig(sequence_len=8, vocab_size=64, n_layer=1, n_head=1, n_kv_head=1, n_embd=16)
BATCH = 4
STEP_TOKENS = BATCH * MODEL.sequence_len


class SetReadings:
    """Readings that the test sets; a region never set is unknown."""

    def __init__(self) -> None:
        self.mci: dict[str, float | None] = {}

    def reading(self, region: str, now: float) -> Reading:
        value = self.mci.get(region)
        if value is None:
            return unknown(region, now, "test", "the test says nothing")
        return Reading(region, value, now, now + 300.0, "test")

    def forecast(self, region: str, now: float, horizon: float) -> Forecast | None:
        return None

    def second(self, region: str, now: float) -> Reading | None:
        return None

    def ended(self, now: float) -> bool:
        return False


class InlineMerger:
    """Merges when the test says so, in its own thread of control."""

    def __init__(self) -> None:
        self.waiting: list[tuple[MergeSpec, Callable[[MergeResult | None], None]]] = []
        self.automatic = True

    def start(self, spec: MergeSpec, done: Callable[[MergeResult | None], None]) -> None:
        self.waiting.append((spec, done))

    def run(self) -> None:
        while self.waiting:
            spec, done = self.waiting.pop(0)
            try:
                result = merge(spec, SystemDisk())
            except CurtailError:
                result = None
            done(result)


class World:
    """A controller and what its sites know."""

    def __init__(
        self, home: Path, budget_steps: int = 100, part_bytes: int = wire.PART_BYTES, **rounds: object
    ) -> None:
        self.home = home
        self.clock = FakeClock()
        self.source = SetReadings()
        self.merger = InlineMerger()
        self.config = _config(budget_steps, rounds)
        self.provisioning = None  # makes the provisioner of a started service
        self.versions = Versions(home / "versions")
        self.uploads = Uploads(home / "blobs", SystemDisk(), 1 << 30, part_bytes=part_bytes)
        self.store = Store(home / "state.db")
        self.store.open()
        if self.store.call(lambda tx: tx.run()) is None:
            self._genesis(budget_steps)
        self.start()

    def start(self) -> None:
        """A fresh service on what the store holds: also what a restart does."""
        run = self.store.call(lambda tx: tx.run())
        assert run is not None
        self.merger.waiting.clear()
        replay = ReplayClock(run.clock, 1.0, self.clock)
        self.service = Service(
            ServiceDeps(
                self.store,
                self.config,
                self.source,
                replay,
                self.clock,
                self.versions,
                self.uploads,
                self.merger,
                provisioning=self.provisioning,
            )
        )
        self.store.call(self.service.resume)

    def _genesis(self, budget_steps: int) -> None:
        rng = np.random.default_rng(1)
        start = {n: rng.standard_normal(s).astype(np.float32) for n, s in weight_shapes(MODEL).items()}
        folder = self.versions.prepare(0)
        meta = checkpoint.CheckpointMeta(None, MODEL, 0, 0, "", None, None, "2026-01-01T00:00:00+00:00")
        digest = checkpoint.write_checkpoint(folder, start, meta, SystemDisk()).weights_digest
        path = self.versions.publish(0) / checkpoint.MODEL_FILE
        sha = file_sha256(path)
        now = self.clock.wall()
        run = RunRow(
            "run", self.config.to_json(), to_json(MODEL), "m" * 64, "t" * 64, MODEL.sequence_len, "RUNNING",
            now, now, now, 0, 0, budget_steps * BATCH, "PAUSED", now, {}, None, None,
        )  # fmt: skip
        token = credentials.parse_token("ct0.abc.secret")

        def create(tx) -> None:
            tx.create_run(run)
            tx.put_blob(BlobRow(sha, str(path), path.stat().st_size, "weights"))
            tx.add_version(VersionRow(0, None, 0, digest, sha, "", now, 1))
            tx.add_token(TokenRow(token.id, credentials.hashed(token.secret), now))

        self.store.call(create)

    # -- what sites do -------------------------------------------------------

    def token(self, site: str) -> str:
        """A token that admits any machine to one site."""
        request = TokenRequest("agent", site, "", None, None, "test")
        return self.store.call(lambda tx: tokens.create(tx, request, None, self.clock.wall())).token

    def join(
        self, site: str, region: str = "A", agent: str | None = None, token: str = "ct0.abc.secret", **more: object
    ) -> wire.JoinReply:
        agent = agent or f"agent-{site}"
        request = wire.JoinRequest(wire.PROTOCOL, agent, site, region, "host", 1, token, **more)
        return self.store.call(lambda tx: self.service.join(tx, request))

    def who(self, site: str, agent: str | None = None) -> MachineRow:
        """The site's machine, the one of `agent` where it has several."""
        rows = self.store.call(lambda tx: tx.machines(site))
        (row,) = [row for row in rows if agent in (None, row.agent)]
        return row

    def authenticate(self, credential: str) -> MachineRow:
        """The machine a credential belongs to. Raises: AuthError."""
        return self.store.call(lambda tx: credentials.machine_of(tx, credential, self.clock.wall()))

    def beat(self, site: str, job: str | None = None, phase: str = "paused", fence: int | None = None):
        who = self.who(site)
        beat = wire.Heartbeat(who.agent, site, who.fence if fence is None else fence, "IDLE", phase, job, None, "")
        return self.store.call(lambda tx: self.service.heartbeat(tx, who, beat))

    def tick(self, seconds: float = 0.25) -> None:
        self.clock.t += seconds
        self.service.tick(self.service.replay.now(), {})

    def checkout(self, site: str, job: str, held: str | None = None, closing: bool = False) -> wire.CheckoutReply:
        who = self.who(site)
        request = wire.CheckoutRequest(site, who.fence, job, None, held, closing)
        return self.store.call(lambda tx: self.service.checkout(tx, who, request))

    def upload(self, data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        path = self.uploads.path(sha)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.store.call(lambda tx: tx.put_blob(BlobRow(sha, str(path), len(data), "contribution")))
        return sha

    def base(self, version: int) -> weights.Weights:
        return checkpoint.read_checkpoint(self.versions.path(version))[1]

    def contribution(self, assignment: wire.Assignment, shift: float) -> tuple[str, str]:
        """A file in which every weight is `shift` lower than the base; (blob, digest of exact weights)."""
        base = self.base(assignment.base_version)
        local = {name: (array - np.float32(shift)).astype(np.float32) for name, array in base.items()}
        path = self.home / "contribution.bin"
        if assignment.codec == "weights":
            weights.write_weights(path, local, SystemDisk(), "TEST")
            return self.upload(path.read_bytes()), weights.digest(local)
        delta.write_delta(path, delta.encode(delta.difference(base, local), assignment.codec), SystemDisk(), "TEST")
        return self.upload(path.read_bytes()), ""

    def commit(
        self, site: str, job: str, assignment: wire.Assignment, steps: int, shift: float = 0.5, **changes: object
    ) -> wire.Receipt:
        who = self.who(site)
        blob, digest = self.contribution(assignment, shift)
        values: dict[str, object] = {
            "site": site,
            "fence": who.fence,
            "job": job,
            "round": assignment.round,
            "base_version": assignment.base_version,
            "base_digest": assignment.base_digest,
            "steps": steps,
            "samples": steps * BATCH,
            "tokens": steps * STEP_TOKENS,
            "blob": blob,
            "codec": assignment.codec,
            "digest": digest,
            "loss_first": 4.0,
            "loss_mean": 3.0,
            "loss_last": 2.0,
            "seconds": 1.0,
            "keep": False,
        }
        request = wire.CommitRequest(**{**values, **changes})
        receipt = self.store.call(lambda tx: self.service.commit(tx, who, request))
        if self.merger.automatic:
            self.merge()
        return receipt

    def merge(self) -> None:
        """Let waiting merges run and be published."""
        self.merger.run()
        self.store.call(lambda tx: None)

    def ready(self, site: str, job: str, region: str = "A") -> None:
        """A site that joined, holds a permit and has a job."""
        self.join(site, region)
        self.tick()
        assert self.beat(site, job, "start").granted

    # -- what can be checked ---------------------------------------------------

    def sql(self, statement: str, rows: Iterable[tuple[object, ...]] = ((),)) -> None:
        """Carry it out in the store, once for each of `rows`."""
        self.store.call(lambda tx: tx._db.conn.executemany(statement, rows))

    def instructions(self, ask: Callable[[Transaction], object]) -> int:
        """How many instructions SQLite carries out for `ask`."""

        def counted(tx: Transaction) -> int:
            steps: list[int] = []
            tx._db.conn.set_progress_handler(lambda: steps.append(1), 1)
            try:
                ask(tx)
            finally:
                tx._db.conn.set_progress_handler(None, 1)
            return len(steps)

        return self.store.call(counted)

    def status(self) -> wire.Status:
        return self.store.call(lambda tx: snapshot.make(tx, self.service))

    def check(self) -> None:
        """The ledger is sound, and the newest version is what the store says."""
        assert self.store.call(lambda tx: tx.ledger_problems()) == []
        latest = self.store.call(lambda tx: tx.latest_version())
        self.versions.verify(latest.version, latest.digest)


PLAIN_MEAN = {"2": {"lr": 1.0, "momentum": 0.0}}
"""The outer step whose result a test can say in its head."""


def _config(budget_steps: int, rounds: dict[str, object]) -> RunConfig:
    power = {"power_train": "2 kW", "power_idle": "500 W"}
    return parse_config(
        {
            "run": {"name": "test"},
            "model": {"preset": "d2-test"},
            "data": {"path": "nowhere"},
            "training": {"token_budget": budget_steps * STEP_TOKENS, "batch_samples": BATCH},
            "rounds": {"length": "60 s", "grace": "10 s", "inner_steps": 10, "outer": PLAIN_MEAN, **rounds},
            "regions": {"A": dict(power), "B": dict(power)},
        }
    )


@pytest.fixture(scope="session")
def world_class() -> type[World]:
    """For tests that make and close many controllers themselves."""
    return World


@pytest.fixture
def make_world(tmp_path: Path):
    """A function that makes a controller in memory; all are closed afterwards."""
    worlds: list[World] = []

    def make(budget_steps: int = 100, **rounds: object) -> World:
        world = World(tmp_path, budget_steps, **rounds)
        worlds.append(world)
        return world

    yield make
    for world in worlds:
        world.store.close()


@pytest.fixture
def world(make_world) -> World:
    """A controller in memory with both regions curtailed."""
    made = make_world()
    made.source.mci = {"A": 50.0, "B": 60.0}
    return made


# -- a controller that takes whatever comes ----------------------------------


@dataclass
class Besieged:
    """A controller in memory, in this process and behind a real port, with one site, a viewer and an operator."""

    world: World
    app: Any
    url: str
    shown: dict[str, str]  # role -> credential or token
    signer: Signer

    def headers(self, role: str | None, method: str, path: str, body: bytes = b"") -> dict[str, str]:
        """Those of a good request in this role."""
        found = {HEADER: self.signer.header(method.upper(), path, body)}
        return found | ({"Authorization": f"Bearer {self.shown[role]}"} if role else {})


@pytest.fixture(scope="module")
def besieged(tmp_path_factory):
    """No rate limits it: they would answer most of what is sent."""
    import uvicorn

    from controller.files import uploads
    from controller.http import connection_limit, rate_limit
    from controller.http.app import ServerIdentity, create_app

    with pytest.MonkeyPatch.context() as patch:
        for name in ("CONTROL", "HEARTBEATS", "STRANGERS"):
            patch.setattr(rate_limit, name, rate_limit.Rate(1e9, 1e9))
        patch.setattr(uploads, "MOST_UPLOADS", 10**9)
        world = World(tmp_path_factory.mktemp("besieged"))
        world.source.mci = {"A": 50.0, "B": 60.0}
        key = AgentKey()
        joined = world.join("a", key=key.public)
        world.tick()
        assert world.beat("a", "job", "start").granted
        assert world.checkout("a", "job").kind == "train"
        shown = {"agent": joined.credential}
        for role in ("viewer", "operator"):
            request = TokenRequest(role, "", "", None, None, role)
            shown[role] = world.store.call(lambda tx, r=request: tokens.create(tx, r, None, world.clock.wall())).token
        info = wire.RunInfo("run", "n", 1, "p", {}, "0" * 64, "t", 8, 100, 4, 4, "{}", "int8", False, 20, 600.0)
        app = create_app(world.service, world.uploads, info, lambda: None, ServerIdentity("PEM", None, False))
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="critical", access_log=False, **connection_limit.options())
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            signer = Signer(key, world.clock.wall, joined.fence)
            yield Besieged(world, app, f"http://127.0.0.1:{listener.getsockname()[1]}", shown, signer)
            assert thread.is_alive(), "the controller crashed"
            world.check()
        finally:
            server.should_exit = True
            thread.join()
            listener.close()
            world.store.close()


# -- the model ---------------------------------------------------------------


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory) -> Callable[[int, int], Path]:
    """small_shards(documents, turns): a folder of four shards, one for validation; short documents."""
    from nanochat.dataset import import_texts

    @cache
    def make(documents: int, turns: int) -> Path:
        folder = tmp_path_factory.mktemp("texts")
        texts = [f"document {n}: " + "tide wind sun é 世 " * (n % turns) for n in range(documents)]
        (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
        import_texts(
            [folder], folder / "shards", disk=SystemDisk(), validation_fraction=0.1, documents_per_shard=documents // 3
        )
        return folder / "shards"

    return make


@pytest.fixture(scope="session")
def run_two_ranks() -> Callable[..., None]:
    """run_two_ranks(program, *arguments): runs a Python file as two ranks that find each other; both must succeed."""
    import torch.distributed as dist

    import nanochat

    def run(program: Path, *arguments: object) -> None:
        # as torchrun does it: the parent holds the store that the ranks meet at
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {"PYTHONPATH": str(Path(nanochat.__file__).parents[1]), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        started = [
            subprocess.Popen(
                [sys.executable, str(program), *map(str, arguments)],
                env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            for process in started:
                _, errors = process.communicate(timeout=120)
                assert process.returncode == 0, errors
        finally:
            for process in started:
                process.kill()

    return run
