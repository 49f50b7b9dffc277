"""The driver of a site, by its section of the run file. To add a provisioner, add its module and its row here."""

from __future__ import annotations

from controller.provision.command import CommandDriver
from controller.provision.driver import Driver, Runs, run_program
from controller.provision.kubernetes import KubernetesDriver
from controller.provision.slurm import SlurmDriver
from curtail.config import RunConfig


def driver_of(config: RunConfig, site: str, run_id: str, run: Runs = run_program) -> Driver | None:
    """The driver of a site; None: its machines are simply there (`static`).

    Args: run_id: names the run at the provisioner.
    """
    section = config.sites[site]
    if section.provisioner == "slurm" and section.slurm is not None:
        return SlurmDriver(section.slurm, run_id, site, run)
    if section.provisioner == "kubernetes" and section.kubernetes is not None:
        return KubernetesDriver(section.kubernetes, run_id, site, run)
    if section.provisioner == "command":
        return CommandDriver(section.command, run_id, site, run)
    return None
