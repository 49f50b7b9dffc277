"""What torchrun runs on every rank: `python -m agent.job`.

Lives for a whole curtailment window: data are fetched and process group, model
and optimizer are built once, then `agent.job.loop` trains round after round. Rank
0 talks for the site (`agent.job.controller_link`). Where the job runs on several machines,
the first rank of each has a `ControllerLink` too: it fetches the data for its machine
and answers its agent. Exit code 0 means drained or told to leave; the status file
and the last line of the first rank's log say why.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from agent.controller_trust import open_jobs_control
from agent.http.bandwidth import Link
from agent.http.transfer import Stopped
from agent.job.controller_link import ControllerLink, JobEnvironment
from agent.job.data_cache import data_folder, fetch_data
from agent.job.loop import JobLoop
from agent.job.ranks import RankGroup
from agent.job.trainer import Trainer
from curtail import wire
from curtail.errors import CurtailError, UsageError
from curtail.system.clock import Clock, SystemClock
from curtail.system.disk import Disk, SystemDisk
from curtail.system.process import die_with_starter
from nanochat.distributed import choose_device, join_ranks, leave_ranks, ranks_from_environment
from nanochat.train import SampleStream

COLLECTIVE_S = 1800.0
"""Longest wait of a rank for the others within a step."""


def environment(values: Mapping[str, str]) -> JobEnvironment:
    """What the agent told this job.

    Raises: UsageError: a variable is missing or no number.
    """
    try:
        return JobEnvironment(
            url=values["CURTAIL_URL"],
            credential_file=Path(values["CURTAIL_CREDENTIAL_FILE"]),
            site=values["CURTAIL_SITE"],
            fence=int(values["CURTAIL_FENCE"]),
            job=values["CURTAIL_JOB"],
            cache=Path(values["CURTAIL_CACHE"]),
            folder=Path(values["CURTAIL_JOB_FOLDER"]),
            threads=int(values.get("CURTAIL_THREADS", "1")),
            device_batch_samples=int(values.get("CURTAIL_DEVICE_BATCH", "0")),
            link_bytes_s=float(values.get("CURTAIL_LINK", "0")),
            server_name=values.get("CURTAIL_SERVER_NAME", ""),
            insecure=values.get("CURTAIL_INSECURE", "0") == "1",
        )
    except (KeyError, ValueError) as error:
        raise UsageError(f"this job was started without {error}", "jobs are started by `curtail agent join`") from None


def begin(link: ControllerLink) -> dict[str, object]:
    """Rank 0: the run, or why to leave at once."""
    info = link.run_info()
    return {"info": asdict(info)} if info is not None else {"leave": _why(link)}


def fetch(link: ControllerLink, info: wire.RunInfo, disk: Disk, clock: Clock) -> str | None:
    """The first rank of each machine: the data into its cache; why to leave instead."""
    env = link.env
    try:
        fetch_data(link.control, info.manifest, env.cache, disk, clock, link.draining, link.log)
    except Stopped:
        return _why(link)
    return None


def _why(link: ControllerLink) -> str:
    return link.drain_reason() or "draining"


def open_stream(folder: Path) -> SampleStream:
    """The training samples in a data folder."""
    from nanochat.pack import Manifest, TokenStream

    return TokenStream(folder, Manifest.load(folder), "train")


def train_window(
    env: JobEnvironment,
    link: ControllerLink | None,
    disk: Disk,
    clock: Clock,
    opening: Callable[[Path], SampleStream] = open_stream,
) -> str:
    """Everything between start and end of this rank; why it ended.

    Args: link: on the first rank of each machine, None on the others.
    """
    torch.set_num_threads(env.threads)
    device = choose_device("auto", ranks_from_environment().local_rank)
    if link is not None:
        link.tell("start")
    group = RankGroup(join_ranks(device, COLLECTIVE_S))
    start = group.share(begin(link) if link is not None and group.speaks else None)
    if "leave" in start:
        return str(start["leave"])
    info = wire.RunInfo(**start["info"])
    leave = fetch(link, info, disk, clock) if link is not None else None
    if group.any(leave is not None):
        return leave or "another machine of the site drains"
    stream = opening(data_folder(env.cache, info.manifest))
    trainer = Trainer(info, stream, group, device, env.device_batch_samples)
    if link is not None:
        link.log(f"a rank takes {trainer.device_batch} samples through the model at once; {trainer.fast}")
        if not group.speaks:
            link.tell("train")  # the lead alone knows the rounds: to its agent this machine trains until it leaves
    return JobLoop(trainer, link if group.speaks else None, disk, clock).run()


def _log(line: str) -> None:
    print(f"job: {line}", flush=True)


def main() -> int:
    """One rank of the job; the exit code."""
    # Importing torch took seconds: the torchrun that started this rank may have been killed with its agent.
    die_with_starter("CURTAIL_JOB", os.environ.get("CURTAIL_JOB", ""))
    link: ControllerLink | None = None
    try:
        env = environment(os.environ)
        disk, clock = SystemDisk(), SystemClock()
        if ranks_from_environment().local_rank == 0:
            limit = Link(env.link_bytes_s, clock) if env.link_bytes_s else None
            control = open_jobs_control(
                env.url, env.credential_file, env.fence, clock.wall, limit, env.server_name or None, env.insecure
            )
            link = ControllerLink(env, control, clock, disk, _log)
        reason = train_window(env, link, disk, clock)
        leave_ranks()
        if link is not None:
            link.tell(link.phase, reason, 0)
            _log(f"left: {reason}")
        return 0
    except CurtailError as error:
        return _failed(link, str(error), error.exit_code)
    except Exception as error:  # the top of the process: whatever it is, the agent must learn it
        traceback.print_exc()
        return _failed(link, f"{type(error).__name__}: {error}", 1)


def _failed(link: ControllerLink | None, reason: str, code: int) -> int:
    if link is not None:
        link.tell(link.phase, reason, code)
    _log(f"ended: {reason}")
    return code


if __name__ == "__main__":
    sys.exit(main())
