"""From the run file's text to its checked sections."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from curtail.config.checks import check
from curtail.config.deciding import AccountingSection, FleetSection, PolicySection, SignalSection
from curtail.config.learning import DataSection, ModelSection, RoundsSection, RunSection, TrainingSection
from curtail.config.places import RegionSection, SiteSection
from curtail.config.values import refuse_unknown, section
from curtail.config.whole import RunConfig
from curtail.errors import ConfigError, NotFound, WireError
from curtail.limits import NAMED


def load_config(path: Path) -> RunConfig:
    """The run file at `path`; its paths are made absolute.

    Raises: NotFound, ConfigError.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"there is no run file {path}", "write one as docs/run-file.md shows") from error
    except IsADirectoryError as error:
        raise ConfigError(f"the run file {path} is a folder", "name the file in it") from error
    except OSError as error:
        raise ConfigError(
            f"cannot read the run file {path}: {error.strerror}", "check its owner and its mode"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the run file {path} is no text in UTF-8", "write one as docs/run-file.md shows") from error
    try:
        table = tomllib.loads(text)
    except ValueError as error:  # also a number of more digits than Python reads
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
    }
    refuse_unknown(table, [*hints, "regions", "sites"], where, "section")
    sections: dict[str, Any] = {}
    for name, kind in hints.items():
        if name in table:
            sections[name] = section(kind, table[name], f"{where}: [{name}]")
        elif name in ("run", "model", "data", "training"):
            raise ConfigError(f"{where}: section [{name}] is missing", "docs/run-file.md shows a whole run file")
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
    check(config, where)
    return config


def _check_names(what: str, names: Iterable[str], where: str) -> None:
    """Agents, traces and files must be able to say them: the rule is that of the messages."""
    for name in names:
        try:
            NAMED.check(name, "")
        except WireError:
            raise ConfigError(f"{where}: {name!r} cannot be the name of a {what}", f"use {NAMED.said}") from None
