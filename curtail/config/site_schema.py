"""[sites.NAME] and [provision]: how the controller switches a site's machines, or adds and removes them.

docs/guides/elastic.md shows a whole site for Slurm, for Kubernetes and for a command.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from curtail.config.quantities import Duration, OneOf, Positive, quantity
from curtail.wire.bounds import Real, String, Whole

PROVISIONERS = ("static", "command", "slurm", "kubernetes")

Limit = Annotated[float, quantity("duration", low=1.0)]
Money = Annotated[float, Real(0.0, 1e9)]


@dataclass(frozen=True, slots=True)
class SlurmSection:
    """[sites.NAME.slurm]: one batch job per machine, through sbatch, squeue and scancel."""

    prefix: tuple[String, ...] = ()  # before each command, for example ["ssh", "login1"]
    partition: String = ""
    account: String = ""
    qos: String = ""
    gres: String = ""
    constraint: String = ""
    extra: tuple[String, ...] = ()  # further options of sbatch
    curtail: String = "curtail"  # the command on the compute nodes
    home: String = ""  # folder on the compute nodes for agents' homes; default: $HOME/.curtail


@dataclass(frozen=True, slots=True)
class KubernetesSection:
    """[sites.NAME.kubernetes]: one StatefulSet per site, scaled through kubectl."""

    prefix: tuple[String, ...] = ("kubectl",)
    context: String = ""
    namespace: String = "default"
    statefulset: String = ""  # default: curtail-SITE
    image: String = "curtail:latest"
    gpus: Annotated[int, Whole(0, 1024)] = 1
    storage: String = "50Gi"  # of each machine's volume
    queue: String = ""  # label kueue.x-k8s.io/queue-name


@dataclass(frozen=True, slots=True)
class SiteSection:
    """[sites.NAME]: how the controller switches a site's machines off and on, or adds and removes them."""

    on_pause: String = ""  # command for the shell, on the controller's machine
    on_resume: String = ""
    off_after: Duration = 900.0  # controller clock; shorter pauses are not worth it
    limit: Limit = 300.0  # wall time that each command may take
    wake_limit: Limit = 900.0  # wall time until the agent must be heard from
    provisioner: Annotated[str, OneOf(PROVISIONERS)] = "static"
    region: String = ""  # of a site with a provisioner, which may not have joined yet
    machines: Positive = 1
    command: tuple[String, ...] = ()  # program of the provisioner "command", with its arguments
    lead: Duration | None = None  # controller clock; request to first step; default: by measured boots and starts
    shortest: Duration = 0.0  # controller clock; shortest window worth a machine; at least what [policy] requires
    longest: Limit = 43_200.0  # wall time; a machine is released after so long
    grace: Limit = 120.0  # wall time that a released machine has to drain
    boot_limit: Limit = 1800.0  # wall time from its start until a machine must have joined
    price: Money = 0.0  # of one machine per hour
    agent_options: tuple[String, ...] = ()  # further options of `curtail agent join` on these machines
    join_url: String = ""  # the controller's address for these machines; default: as it announces itself
    slurm: SlurmSection | None = None
    kubernetes: KubernetesSection | None = None


@dataclass(frozen=True, slots=True)
class ProvisionSection:
    """[provision]: caps over all sites with a provisioner."""

    most_machines: Positive | None = None  # at once
    most_per_hour: Money | None = None  # sum of the prices of the machines that exist
    most_per_day: Money | None = None  # spent within the last 24 hours
    poll: Limit = 10.0  # wall time between two observations of a provisioner
