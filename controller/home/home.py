"""Creates or continues the run in a controller's folder, and locks the folder.

Decides whether the folder has this run, another one or none, creates version 0,
and checks that run file, data and model fit together.
Layout: state.db, versions/, blobs/, merge/, tls/, data (link), join-token, operator-token, controller.json.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from controller.aggregation.process import make_initial_weights
from controller.files.versions import Versions
from controller.store import Store, Transaction, sample_pool
from controller.store.rows import BlobRow, RunRow, VersionRow
from controller.store.sqlite_file import RESTORE
from curtail.config import RunConfig, config_from_json
from curtail.errors import ConfigError, CurtailError, DataError, Refused
from curtail.system.clock import Clock
from curtail.system.disk import SystemDisk, clear_leftovers, disk_error, file_sha256
from curtail.system.home_files import BLOBS, STORE, TLS, UPDATE_FILE, VERSIONS
from nanochat import presets
from nanochat.checkpoint import MODEL_FILE, read_meta
from nanochat.manifest import MANIFEST_NAME, Manifest
from nanochat.recipe import Recipe, recipe_of

FIRST = "v000000"

FIXED = ("run", "model", "training")
"""Sections of the run file that cannot change after a run has started; data may move but not change."""


@dataclass(frozen=True, slots=True)
class Data:
    """The packed data of a run."""

    folder: Path
    manifest: Manifest
    sha256: str  # of the manifest file


def lock(home: Path) -> IO[str]:
    """Lock the folder for this process, as long as the returned file is open.

    Raises: Refused: another controller runs there. CurtailError: its store is missing. DiskError.
    """
    SystemDisk().folder("HOME", home, 0o700)
    try:
        file = open(home / "lock", "w")  # noqa: SIM115 (stays open until the process ends)
    except OSError as error:
        raise disk_error("use the folder", home, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise Refused(f"another controller already uses {home}", "stop it, or choose another --home") from error
    try:
        check_store_is_there(home)
    except CurtailError:
        file.close()
        raise
    for folder in (home, home / TLS):
        clear_leftovers(folder)
    return file


def check_store_is_there(home: Path) -> None:
    """Refuse a folder that has versions of a run, but no store with them.

    A new run there would overwrite the remains of the old one. Version 0 alone is allowed: a first start
    that was killed before its row was written leaves it.
    Raises: CurtailError.
    """
    store = home / STORE
    if store.is_file() and store.stat().st_size > 0:
        return
    orphans = sorted(path.name for path in (home / VERSIONS).glob("v*") if path.name != FIRST)
    if orphans:
        state = "empty" if store.is_file() else "missing"
        raise CurtailError(f"{home} has {orphans[-1]} of a run, but its store {store} is {state}", RESTORE)


def load_data(config: RunConfig) -> Data:
    """The run's data. Raises: NotFound, DataError: no manifest, or a file is missing or has a wrong size."""
    folder = Path(config.data.path)
    manifest = Manifest.load(folder)
    manifest.check_files(folder)
    if manifest.samples("train") < config.training.batch_samples:
        raise DataError(
            f"the data in {folder} have {manifest.samples('train')} samples, but a batch needs"
            f" {config.training.batch_samples}",
            "import more text, or lower [training] batch_samples",
        )
    text = (folder / MANIFEST_NAME).read_bytes()
    return Data(folder, manifest, hashlib.sha256(text).hexdigest())


def model_for(config: RunConfig, manifest: Manifest) -> presets.GPTConfig:
    """The model of the run. Raises: ConfigError: it does not fit the data."""
    return presets.preset_for(config.model.preset, manifest.vocab_size, manifest.sequence_len)


def recipe_for(config: RunConfig) -> Recipe:
    """The hyperparameters of the run. Raises: ConfigError: no such recipe, or a value that is not allowed."""
    training = config.training
    settings = list(training.overrides)
    if training.warmdown_fraction is not None:
        if any(setting.startswith("warmdown_fraction=") for setting in settings):
            raise ConfigError("[training] gives warmdown_fraction twice, as a key and in overrides", "keep one of them")
        settings.append(f"warmdown_fraction={training.warmdown_fraction!r}")
    try:
        return recipe_of(training.recipe, settings)
    except ConfigError as error:
        raise ConfigError(f"[training]: {error.message}", error.remedy) from None


def begin_or_continue(
    home: Path,
    config: RunConfig,
    data: Data,
    store: Store,
    versions: Versions,
    start: float,
    clock: Clock,
) -> RunRow:
    """The run in `home`; created if there is none.

    Args:
        start: the controller's clock at the start of a new run.
    Raises: ConfigError: the folder has another run. CheckpointError: its weights are damaged.
        CurtailError: its data ledger does not balance.
    """
    run = store.call(lambda tx: tx.run())
    if run is None:
        run = _begin(home, config, data, store, versions, start, clock)
    else:
        _check_same(home, config, data, run)
        _check_regions(home, config, store)
        _check_ledger(home, store)
        latest = store.call(lambda tx: tx.latest_version())
        versions.verify(latest.version, latest.digest)
        store.call(lambda tx: tx.set_run(config=config.to_json()))
    blobs = _data_blobs(data)

    def register(tx: Transaction) -> None:
        for blob in blobs:
            tx.put_blob(blob)
        relocate(tx, home, versions)

    store.call(register)
    _link_data(home, data.folder)
    return run


def _begin(
    home: Path, config: RunConfig, data: Data, store: Store, versions: Versions, start: float, clock: Clock
) -> RunRow:
    model = model_for(config, data.manifest)
    making = versions.prepare(0)
    make_initial_weights(
        making,
        config.model.preset,
        presets.to_json(model),
        config.run.seed,
        data.manifest.tokenizer,
        data.manifest.digest,
    )
    digest = read_meta(making).weights_digest
    folder = versions.publish(0)
    weights = folder / MODEL_FILE
    blob = BlobRow(file_sha256(weights), str(weights), weights.stat().st_size, "weights")
    limit = sample_pool.budget_samples(
        config.training.token_budget, data.manifest.sequence_len, config.training.batch_samples
    )
    run = RunRow(
        id=secrets.token_hex(6),
        config=config.to_json(),
        model=presets.to_json(model),
        manifest=data.sha256,
        tokenizer=data.manifest.tokenizer,
        sequence_len=data.manifest.sequence_len,
        state="RUNNING",
        created_wall=clock.wall(),
        started=start,
        clock=start,
        tokens=0,
        cursor=0,
        sample_limit=limit,
        regime="PAUSED",
        regime_since=start,
        regime_seconds={},
        loss_first=None,
        loss_last=None,
    )

    def create(tx: Transaction) -> None:
        tx.create_run(run)
        tx.put_blob(blob)
        tx.add_version(VersionRow(0, None, 0, digest, blob.sha256, "", clock.wall(), 1))

    store.call(create)
    return run


def _check_same(home: Path, config: RunConfig, data: Data, run: RunRow) -> None:
    before, now = _facts(config_from_json(run.config)), _facts(config)
    for section in FIXED:
        for key in sorted(set(before[section]) | set(now[section])):
            old, new = before[section].get(key), now[section].get(key)
            if old != new:
                raise ConfigError(
                    f"{home} has a run with [{section}] {key} = {old!r}, but the run file has {new!r}",
                    "restore the run file, or choose another --home for a new run",
                )
    if data.sha256 != run.manifest:
        raise ConfigError(
            f"the run in {home} uses other data than {data.folder}",
            "restore [data] path, or choose another --home for a new run",
        )


def _facts(config: RunConfig) -> dict[str, Any]:
    """The run file as plain values, with the recipe's defaults for the keys that it omits."""
    values = dataclasses.asdict(config)
    values["training"]["warmdown_fraction"] = recipe_for(config).warmdown_fraction
    return values


def _check_regions(home: Path, config: RunConfig, store: Store) -> None:
    for site in store.call(lambda tx: tx.sites()):
        if site.region not in config.regions:
            raise ConfigError(
                f"{home} has ledger rows of site {site.site} in region {site.region}, which is not in the run file",
                f"add [regions.{site.region}] again",
            )


def _check_ledger(home: Path, store: Store) -> None:
    problems = store.call(lambda tx: tx.ledger_problems())
    if problems:
        raise CurtailError(f"the data ledger in {home} does not balance: {problems[0]}", RESTORE)


def relocate(tx: Transaction, home: Path, versions: Versions) -> None:
    """Update the paths of the run's files, because the folder may have been moved or restored from a backup."""
    now: dict[str, list[str]] = {}
    for version in tx.kept_versions():
        now.setdefault(version.weights, []).append(str(versions.path(version.version) / MODEL_FILE))
        if version.updates:
            now.setdefault(version.updates, []).append(str(versions.path(version.version) / UPDATE_FILE))
    for blob in tx.blobs_of_kind("contribution"):
        now[blob.sha256] = [str(home / BLOBS / blob.sha256)]
    for sha256, places in now.items():
        known = tx.blob(sha256)
        if known is not None and known.path not in places:
            tx.put_blob(dataclasses.replace(known, path=places[-1]))


def _data_blobs(data: Data) -> list[BlobRow]:
    manifest = data.folder / MANIFEST_NAME
    blobs = [BlobRow(data.sha256, str(manifest), manifest.stat().st_size, "data")]
    blobs += [BlobRow(f.sha256, str(data.folder / f.name), f.size, "data") for f in data.manifest.files]
    return blobs


def _link_data(home: Path, folder: Path) -> None:
    """Link HOME/data to the data, so that `curtail eval HOME/versions/...` finds tokenizer and text."""
    link, temp = home / "data", home / f".data.{os.getpid()}.tmp"
    try:
        temp.unlink(missing_ok=True)
        temp.symlink_to(folder, target_is_directory=True)
        os.replace(temp, link)
    except OSError as error:
        raise disk_error("write", link, error) from error
