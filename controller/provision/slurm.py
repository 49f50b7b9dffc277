"""Machines as Slurm batch jobs: one job per machine, whose script is the agent itself.

Uses sbatch, squeue and scancel, after a prefix such as `ssh login1`, so every site's authentication
works as it is. The job's name is `curtail:RUN:SITE:MACHINE` and singleton, so a second job of a machine
waits for the first; its comment is the key of the request. Jobs are not requeued, because Slurm delays
a requeued job by two minutes. The script travels through standard input: the join token in it is
readable by the job's owner and root only.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from controller.provision.driver import ProvisionError, Request, Runs, output_of, run_program
from controller.provision.lifecycle import Observed
from curtail.config import SlurmSection

QUEUED = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
STARTED = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "STOPPED", "RESIZING"})
FORMAT = "%i|%j|%T|%r|%k"
"""Of squeue: job id, name, state, reason, comment."""

EARLY_S = 120.0
"""Slurm checks limits about once a minute, so it may send the signal of `--signal` a minute early; wall seconds."""

LISTED = len(FORMAT.split("|"))


def job_name(run: str, site: str, machine: int) -> str:
    """The name of a machine's job."""
    return f"curtail:{run}:{site}:{machine}"


def sbatch_argv(settings: SlurmSection, request: Request) -> list[str]:
    """The submission of a machine's job; its script is standard input."""
    options = {
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "gres": settings.gres,
        "constraint": settings.constraint,
    }
    return [
        *settings.prefix,
        "sbatch",
        "--parsable",
        f"--job-name={job_name(request.run, request.site, request.machine)}",
        f"--comment={request.key}",
        "--dependency=singleton",
        "--no-requeue",
        "--nodes=1",
        f"--time={math.ceil((request.seconds + EARLY_S) / 60.0)}",
        f"--signal=B:TERM@{math.ceil(request.grace_s)}",
        *(f"--{name}={value}" for name, value in options.items() if value),
        *settings.extra,
    ]


def batch_script(settings: SlurmSection, request: Request) -> str:
    """The script of a machine's job: it becomes the agent, so that Slurm's signals reach the agent itself."""
    home = settings.home or "$HOME/.curtail"
    folder = f"{home}/{request.run}-{request.site}-{request.machine}"
    words = [
        *shlex.split(settings.curtail),
        *("agent", "join", request.url, "--site", request.site, "--region", request.region),
    ]
    if request.machines > 1:
        words += ["--machines", str(request.machines)]
    words += request.options
    return "\n".join(
        [
            "#!/bin/sh",
            f"export CURTAIL_TOKEN={shlex.quote(request.token)}" if request.token else "unset CURTAIL_TOKEN",
            f'exec {shlex.join(words)} --home "{folder}"',
            "",
        ]
    )


def parse_queue(text: str, run: str, site: str) -> list[Observed]:
    """The site's jobs in squeue's output. Other jobs are passed over.

    Raises: ProvisionError: a line is not in `FORMAT`.
    """
    found = []
    for line in filter(None, text.splitlines()):
        fields = line.split("|")
        if len(fields) < LISTED:
            raise ProvisionError(
                f"squeue printed an unexpected line: {line[:100]!r}", "check [sites.NAME.slurm] prefix"
            )
        job, name, state, reason, key = (*fields[: LISTED - 1], "|".join(fields[LISTED - 1 :]))
        head, _, machine = name.rpartition(":")
        if head != f"curtail:{run}:{site}" or not machine.isdigit():
            continue
        kind = "pending" if state in QUEUED else "running" if state in STARTED else "gone"
        why = f"Slurm: {state.lower()}" + (f", {reason}" if reason not in ("None", "") else "")
        found.append(Observed(int(machine), kind, f"job {job}; {why}", job, key=key))
    return found


@dataclass(frozen=True, slots=True)
class SlurmDriver:
    """The machines of one site as Slurm jobs."""

    settings: SlurmSection
    run_name: str
    site: str
    run: Runs = run_program

    def ensure(self, request: Request) -> Observed:
        for seen in self.observe():
            if seen.machine == request.machine:
                return seen
        out = output_of(self.run, sbatch_argv(self.settings, request), batch_script(self.settings, request))
        job = out.strip().splitlines()[-1].split(";")[0] if out.strip() else ""
        if not job.isdigit():
            raise ProvisionError(f"sbatch printed {out.strip()[:100]!r} instead of a job id")
        return Observed(request.machine, "pending", f"job {job}; Slurm: submitted", job, key=request.key)

    def release(self, observed: Observed, grace_s: float, now: bool) -> None:
        gentle = ("--signal=TERM", "--batch") if observed.state == "running" and not now else ()
        done = self.run([*self.settings.prefix, "scancel", *gentle, observed.native])
        said = done.err.strip()
        if done.code != 0 and "Invalid job id" not in said and "already completing" not in said.lower():
            raise ProvisionError(f"scancel {observed.native} failed with {done.code}: {said[-200:]}")

    def observe(self) -> list[Observed]:
        out = output_of(self.run, [*self.settings.prefix, "squeue", "--noheader", "--me", "-o", FORMAT])
        return [seen for seen in parse_queue(out, self.run_name, self.site) if seen.state != "gone"]
