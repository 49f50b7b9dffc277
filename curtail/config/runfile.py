"""Reads the run file: parses TOML, reads its sections, and checks them together."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from curtail.config.reader import refuse_unknown, section
from curtail.config.schema import (
    AccountingSection,
    DataSection,
    FleetSection,
    ModelSection,
    PolicySection,
    RegionSection,
    RoundsSection,
    RunConfig,
    RunSection,
    SignalSection,
    TrainingSection,
)
from curtail.config.site_schema import ProvisionSection, SiteSection
from curtail.errors import ConfigError, NotFound
from curtail.wire.bounds import NAMED


def load_config(path: Path) -> RunConfig:
    """The run file at `path`; its paths are made absolute.

    Raises: NotFound, ConfigError.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"there is no run file {path}", "write one as docs/reference/run-file.md shows") from error
    except IsADirectoryError as error:
        raise ConfigError(f"the run file {path} is a folder", "name the file in it") from error
    except OSError as error:
        raise ConfigError(
            f"cannot read the run file {path}: {error.strerror}", "check its owner and its mode"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the run file {path} is not UTF-8 text", "write one as docs/reference/run-file.md shows"
        ) from error
    try:
        table = tomllib.loads(text)
    except ValueError as error:  # also raised for integers with too many digits
        raise ConfigError(f"{path} is no valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is no valid TOML: its lists or tables are nested too deep") from error
    config = parse_config(table, str(path))

    def beside(file: str) -> str:
        return str((path.parent / file).resolve()) if file else ""

    signal = config.signal
    regions = {
        name: region
        if region.solar is None
        else dataclasses.replace(region, solar=dataclasses.replace(region.solar, path=beside(region.solar.path)))
        for name, region in config.regions.items()
    }
    return dataclasses.replace(
        config,
        regions=regions,
        data=DataSection(path=beside(config.data.path)),
        signal=dataclasses.replace(signal, path=beside(signal.path), credentials=beside(signal.credentials)),
    )


def parse_config(table: Mapping[str, Any], where: str = "run file") -> RunConfig:
    """The run described by a parsed TOML table.

    Raises: ConfigError: names the key and what to write instead.
    """
    hints: dict[str, Any] = {
        "run": RunSection,
        "model": ModelSection,
        "data": DataSection,
        "training": TrainingSection,
        "rounds": RoundsSection,
        "policy": PolicySection,
        "signal": SignalSection,
        "fleet": FleetSection,
        "accounting": AccountingSection,
        "provision": ProvisionSection,
    }
    refuse_unknown(table, [*hints, "regions", "sites"], where, "section")
    sections: dict[str, Any] = {}
    for name, kind in hints.items():
        if name in table:
            sections[name] = section(kind, table[name], f"{where}: [{name}]")
        elif name in ("run", "model", "data", "training"):
            raise ConfigError(
                f"{where}: section [{name}] is missing", "docs/reference/run-file.md shows a whole run file"
            )
    regions = table.get("regions")
    if not isinstance(regions, Mapping) or not regions:
        raise ConfigError(f"{where}: no region is described", "add a section [regions.NAME] with power_train")
    _check_names("region", regions, where)
    parsed = {name: section(RegionSection, value, f"{where}: [regions.{name}]") for name, value in regions.items()}
    sites = table.get("sites", {})
    if not isinstance(sites, Mapping):
        raise ConfigError(f"{where}: [sites] holds one section for each site", "write [sites.NAME]")
    _check_names("site", sites, where)
    named = {name: section(SiteSection, value, f"{where}: [sites.{name}]") for name, value in sites.items()}
    config = RunConfig(regions=parsed, sites=named, **sections)
    check_sections(config, where)
    return config


def _check_names(what: str, names: Iterable[str], where: str) -> None:
    """Names of regions and sites follow the same rule as in messages, because agents send them."""
    for name in names:
        if NAMED.fault(name) is not None:
            raise ConfigError(f"{where}: {name!r} cannot be the name of a {what}", f"use {NAMED.said}")


def check_sections(config: RunConfig, where: str) -> None:
    """Checks across sections. Raises: ConfigError: names `where` and what to write instead."""
    _check_together(config, where)
    for name, region in config.regions.items():
        _check_microgrid(region, f"{where}: [regions.{name}")
    for name, site in config.sites.items():
        _check_switching(site, f"{where}: [sites.{name}]")
        _check_provisioner(config, site, f"{where}: [sites.{name}]")


def _check_together(config: RunConfig, where: str) -> None:
    if config.fleet.lost_after < 2 * config.fleet.heartbeat:
        raise ConfigError(
            f"{where}: [fleet] lost_after is shorter than two heartbeats",
            "one lost message would lose a site; raise lost_after or lower heartbeat",
        )
    if config.policy.permit < 2 * config.fleet.heartbeat:
        raise ConfigError(
            f"{where}: [policy] permit is shorter than two heartbeats",
            "permits would lapse between renewals; raise permit or lower [fleet] heartbeat",
        )
    policy = config.policy
    if policy.deadline_at(0.0) is not None and policy.budget_kg is not None:
        raise ConfigError(
            f"{where}: [policy] deadline and budget_kg do not go together",
            "a deadline asks for the cleanest power in time, a budget for the least time within the kg; keep one",
        )
    for region in config.regions:
        if policy.leave_above is not None and policy.leave_above < config.threshold(region):
            raise ConfigError(
                f"{where}: [policy] leave_above is below the threshold of region {region}",
                "sites that train go on up to leave_above; raise it to at least the threshold, or leave it out",
            )
    if config.training.device_batch_samples > config.training.batch_samples:
        raise ConfigError(f"{where}: [training] device_batch_samples is larger than batch_samples")


def _check_microgrid(region: RegionSection, where: str) -> None:
    solar, battery = region.solar, region.battery
    if solar is not None:
        placed = solar.latitude is not None and solar.longitude is not None
        if bool(solar.path) == placed or (solar.latitude is None) != (solar.longitude is None):
            raise ConfigError(
                f"{where}.solar] needs exactly one source of the panels' output",
                "give path, a CSV with shares of the peak, or both latitude and longitude for a sky without clouds",
            )
    if battery is None:
        return
    if solar is None:
        raise ConfigError(
            f"{where}.battery] has no panels to charge it",
            f"it is charged by the region's own panels only: add {where.rpartition(' ')[2]}.solar]",
        )
    if battery.initial_soc is not None and battery.initial_soc < battery.min_soc:
        raise ConfigError(
            f"{where}.battery] initial_soc = {battery.initial_soc:g} is below min_soc = {battery.min_soc:g}",
            "raise it, or leave it out to begin at min_soc",
        )


def _check_provisioner(config: RunConfig, site: SiteSection, where: str) -> None:
    kind = site.provisioner
    for name in ("slurm", "kubernetes", "command"):
        if kind == name and not getattr(site, name):
            remedy = 'add command = ["PROGRAM"]' if name == "command" else f"add {where.rpartition(' ')[2]}.{name}]"
            raise ConfigError(f"{where} has the provisioner {kind} and no {name}", remedy)
        if kind != name and getattr(site, name):
            raise ConfigError(
                f"{where} has {name} and the provisioner {kind}", f'add provisioner = "{name}", or remove {name}'
            )
    if kind == "static":
        return
    if site.region not in config.regions:
        known = ", ".join(sorted(config.regions))
        raise ConfigError(f"{where}: region = {site.region!r} is no region of the run", f"use one of {known}")
    if site.on_pause or site.on_resume:
        raise ConfigError(
            f"{where} has a provisioner and on_pause or on_resume", "keep one: both would start and stop the machines"
        )


def _check_switching(site: SiteSection, where: str) -> None:
    if bool(site.on_pause) != bool(site.on_resume):
        given, lacks = ("on_pause", "on_resume") if site.on_pause else ("on_resume", "on_pause")
        raise ConfigError(
            f"{where} has {given} and no {lacks}",
            f'a site that is switched off must be switched on again: add {lacks} = "..."',
        )
