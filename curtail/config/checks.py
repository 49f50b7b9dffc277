"""What the keys of a run file must fulfil together."""

from __future__ import annotations

from curtail.config.places import RegionSection, SiteSection
from curtail.config.whole import RunConfig
from curtail.errors import ConfigError


def check(config: RunConfig, where: str) -> None:
    """What no section can say of itself alone. Raises: ConfigError: names `where`, and what to write instead."""
    _check_together(config, where)
    for name, region in config.regions.items():
        _check_microgrid(region, f"{where}: [regions.{name}")
    for name, site in config.sites.items():
        _check_switching(site, f"{where}: [sites.{name}]")


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
                "it is a band above the threshold, in which what trains goes on; raise it, or leave it out",
            )
    if config.training.device_batch_samples > config.training.batch_samples:
        raise ConfigError(f"{where}: [training] device_batch_samples is larger than batch_samples")


def _check_microgrid(region: RegionSection, where: str) -> None:
    solar, battery = region.solar, region.battery
    if solar is not None:
        placed = solar.latitude is not None and solar.longitude is not None
        if bool(solar.path) == placed or (solar.latitude is None) != (solar.longitude is None):
            raise ConfigError(
                f"{where}.solar] says no course of the power, or two",
                "give path, a CSV with shares of the peak, or both latitude and longitude for a sky without clouds",
            )
    if battery is None:
        return
    if solar is None:
        raise ConfigError(
            f"{where}.battery] has nothing that charges it",
            f"it is charged by the region's own panels only: add {where.rpartition(' ')[2]}.solar]",
        )
    if battery.initial_soc is not None and battery.initial_soc < battery.min_soc:
        raise ConfigError(
            f"{where}.battery] initial_soc = {battery.initial_soc:g} is below min_soc = {battery.min_soc:g}",
            "raise it, or leave it out to begin at min_soc",
        )


def _check_switching(site: SiteSection, where: str) -> None:
    if bool(site.on_pause) != bool(site.on_resume):
        given, lacks = ("on_pause", "on_resume") if site.on_pause else ("on_resume", "on_pause")
        raise ConfigError(
            f"{where} has {given} and no {lacks}",
            f'a site that is switched off must be switched on again: add {lacks} = "..."',
        )
