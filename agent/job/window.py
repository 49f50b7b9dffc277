"""One rank of a job, from its start to its end.

One process lives for a whole curtailment window: it fetches the data, builds process
group, model and optimizer once, then trains round after round (`agent.job.loop`). Rank 0
talks to the controller for the site. On a site of several machines the first rank
of each has a `ControllerLink` too: it fetches the data for its machine and writes the
status for its agent. Exit code 0 means drained or told to leave; the status file and
the last line of the first rank's log say why.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from agent.controller_trust import open_jobs_control
from agent.http.bandwidth import BandwidthLimit
from agent.http.transfer import Stopped
from agent.job.agent_link import JobEnvironment, read_environment
from agent.job.controller_link import ControllerLink
from agent.job.data_cache import data_folder, fetch_data
from agent.job.loop import JobLoop
from agent.job.rank_zero import RankZero
from agent.job.ranks import RankGroup
from agent.job.trainer import RankTrainer
from curtail import wire
from curtail.errors import CurtailError
from curtail.system.clock import Clock, SystemClock
from curtail.system.disk import SystemDisk
from curtail.system.process import die_with_starter
from nanochat.distributed import COLLECTIVE_S, choose_device, join_ranks, leave_ranks, ranks_from_environment
from nanochat.train import SampleStream


def begin(link: ControllerLink) -> dict[str, object]:
    """Rank 0: what is fixed for the run, or why to leave at once."""
    info = link.run_info()
    return {"info": asdict(info)} if info is not None else {"leave": _why(link)}


def fetch(link: ControllerLink, info: wire.RunInfo) -> str | None:
    """The first rank of each machine: fetch the data into its cache; returns why to leave, or None."""
    stop = link.agent.draining
    try:
        fetch_data(link.control, info.manifest, link.env.cache, link.disk, link.clock, stop, link.log)
    except Stopped:
        return _why(link)
    return None


def _why(link: ControllerLink) -> str:
    return link.agent.drain_reason() or "draining"


def open_stream(folder: Path) -> SampleStream:
    """The training samples in a data folder."""
    from nanochat.pack import Manifest, TokenStream

    return TokenStream(folder, Manifest.load(folder), "train")


def train_window(
    env: JobEnvironment,
    link: ControllerLink | None,
    clock: Clock,
    opening: Callable[[Path], SampleStream] = open_stream,
) -> str:
    """Everything between start and end of this rank; returns why it ended.

    Args: link: on the first rank of each machine, None on the others.
    """
    torch.set_num_threads(env.threads)
    device = choose_device("auto", ranks_from_environment().local_rank)
    if link is not None:
        link.agent.tell("start")
    group = RankGroup(join_ranks(device, COLLECTIVE_S))
    start = group.share(begin(link) if link is not None and group.is_rank_zero else None)
    if "leave" in start:
        return str(start["leave"])
    info = wire.RunInfo(**start["info"])
    leave = fetch(link, info) if link is not None else None
    if group.any(leave is not None):
        return leave or "another machine of the site drains"
    stream = opening(data_folder(env.cache, info.manifest))
    trainer = RankTrainer(info, stream, group, device, env.device_batch_samples)
    if link is not None:
        link.log(f"a rank takes {trainer.device_batch} samples in a forward pass; {trainer.fast}")
        if not group.is_rank_zero:
            link.agent.tell("train")  # only the lead knows the rounds: to its agent this machine trains until it leaves
    rank_zero = RankZero(link, info.run, trainer.shapes) if link is not None and group.is_rank_zero else None
    return JobLoop(trainer, rank_zero, clock).run()


def _log(line: str) -> None:
    print(f"job: {line}", flush=True)


def main() -> int:
    """Run one rank of the job; returns the exit code."""
    # Importing torch took seconds; the torchrun that started this rank may have been killed with its agent meanwhile.
    die_with_starter("CURTAIL_JOB", os.environ.get("CURTAIL_JOB", ""))
    link: ControllerLink | None = None
    try:
        env = read_environment(os.environ)
        clock = SystemClock()
        if ranks_from_environment().local_rank == 0:
            limit = BandwidthLimit(env.link_bytes_s, clock) if env.link_bytes_s else None
            control = open_jobs_control(
                env.url, env.credential_file, env.fence, clock.wall, limit, env.server_name or None, env.insecure
            )
            link = ControllerLink(env, control, clock, SystemDisk(), _log)
        reason = train_window(env, link, clock)
        leave_ranks()
        if link is not None:
            link.agent.tell(link.agent.phase, reason, 0)
            _log(f"left: {reason}")
        return 0
    except CurtailError as error:
        return _failed(link, str(error), error.exit_code)
    except Exception as error:  # the top of the process: the agent must learn of any error
        traceback.print_exc()
        return _failed(link, f"{type(error).__name__}: {error}", 1)


def _failed(link: ControllerLink | None, reason: str, code: int) -> int:
    if link is not None:
        link.agent.tell(link.agent.phase, reason, code)
    _log(f"ended: {reason}")
    return code
