"""Starts, watches and ends this machine's torchrun job; only this module of `agent` starts processes.

Decides the command, its environment and how it is ended: a drain through the
control file, SIGUSR2 to the process group, SIGKILL after a grace period.
`agent.loop` decides when. A job never outlives its agent: the kernel kills it
when the thread that started it ends, so start jobs from the main thread. Units:
seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import curtail
from agent import job_files
from agent.job_files import JobOrders, JobStatus
from agent.network import socket_interface
from curtail.errors import CurtailError
from curtail.system.disk import disk_error
from curtail.system.process import dying_with

WITHHELD_VARIABLES = ("CURTAIL_TOKEN",)
"""Variables of the agent that a job must not inherit. A job needs no join token."""


TERMINATION_SIGNAL = signal.SIGUSR2
"""Ends a job. torchrun and its ranks ignore the usual signals: those that reach a whole process tree are for the agent,
which drains the job."""

LEAVE_SIGNALS = ("/bin/sh", "-c", 'trap "" HUP INT QUIT TERM; exec "$@"', "sh")
"""Prefix of a command that ignores these signals. Ignored signals stay ignored after exec and in child processes."""

RENDEZVOUS_S = 120
"""How long the machines of a site wait for one another at the start of a job."""

KEPT_COMPILED = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Variables that name the caches of compiled code, and their folders."""


@dataclass(frozen=True, slots=True)
class Place:
    """This machine's place in the crew of a job, if the site has several machines."""

    crew: str  # id of the crew
    rank: int  # 0: the lead, whose torchrun hosts the rendezvous
    size: int
    endpoint: str  # host:port at the lead
    address: str  # where the others reach this machine


@dataclass(frozen=True, slots=True)
class JobSpec:
    """Everything a job needs to know at its start."""

    job: str
    folder: Path  # job folder: control, status, log; also its working directory
    url: str
    credential_file: Path
    site: str
    fence: int
    cache: Path
    ranks: int
    threads: int  # per rank
    device_batch_samples: int = 0  # 0: as the run file says
    link_bytes_s: float = 0.0  # bandwidth limit of its transfers, bytes per second; 0: none
    place: Place | None = None  # None: the site has one machine
    server_name: str = ""  # name expected in the controller's certificate; "": the host of its address
    insecure: bool = False  # plain HTTP to another machine is allowed


class Process(Protocol):
    """A started process group."""

    pid: int

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        ...

    def signal_group(self, number: int) -> None:
        """Send a signal to the whole group; no error if the group has ended."""
        ...


class Spawn(Protocol):
    """Starts a process; tests pass a fake."""

    def __call__(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> Process: ...


class SystemProcess:
    """A process group of this machine."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.pid = popen.pid

    def poll(self) -> int | None:
        """Exit code, or None while it runs; negative: ended by that signal."""
        return self._popen.poll()

    def signal_group(self, number: int) -> None:
        """Send a signal to the whole group; no error if the group has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def system_spawn(argv: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> SystemProcess:
    """Start a process in its own session, with stdout and stderr appended to `log`.

    Raises: DiskError: the log cannot be opened. CurtailError: the program cannot be started.
    """
    try:
        output = open(log, "ab")  # noqa: SIM115 (closed below; the child has its own descriptor)
    except OSError as error:
        raise disk_error("write", log, error) from error
    with output:
        try:
            popen = subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=dying_with(os.getpid()),
            )
        except OSError as error:
            raise CurtailError(f"cannot start {argv[0]}: {error}") from error
    return SystemProcess(popen)


def job_argv(ranks: int, python: str = sys.executable, place: Place | None = None) -> list[str]:
    """The command of a job: torchrun without restarts, on this machine alone or as one of a crew.

    A crew uses the static rendezvous: only that keeps the order of the machines, so that the lead has rank 0.
    torchrun's own files go to the job folder, its working directory. By default they would go to the system's
    temporary folder, and stay there after torchrun was killed.
    """
    meeting = ["--standalone", "--local-addr", "127.0.0.1"]  # by default the host's full name, which may not resolve
    if place is not None and place.size > 1:
        meeting = [
            *("--nnodes", str(place.size)),
            *("--node-rank", str(place.rank)),
            *("--rdzv-backend", "static"),
            *("--rdzv-endpoint", place.endpoint),
            *("--rdzv-id", place.crew),
            *("--rdzv-conf", f"timeout={RENDEZVOUS_S}"),
            *("--local-addr", place.address),
        ]
    return [
        *LEAVE_SIGNALS,
        python,
        *("-m", "torch.distributed.run"),
        *("--signals-to-handle", TERMINATION_SIGNAL.name),
        *meeting,
        *("--nproc-per-node", str(ranks)),
        *("--max-restarts", "0"),
        *("--log-dir", job_files.OF_TORCHRUN),
        *("-m", "agent.job"),
    ]


def job_environment(spec: JobSpec, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of a job: `inherited` from the agent, plus the job's own variables."""
    env = {name: value for name, value in inherited.items() if name not in WITHHELD_VARIABLES}
    # Otherwise a folder named `agent` in the working directory would shadow this package.
    env["PYTHONSAFEPATH"] = "1"
    env["PYTHONUNBUFFERED"] = "1"
    env["OMP_NUM_THREADS"] = str(spec.threads)
    env |= socket_interface(spec.place.address if spec.place is not None and spec.place.size > 1 else None, inherited)
    env |= compile_cache(spec.cache / "compiled", inherited)
    source = source_folder()
    if source is not None:
        env["PYTHONPATH"] = os.pathsep.join([str(source), *filter(None, [inherited.get("PYTHONPATH")])])
    env |= {
        "CURTAIL_URL": spec.url,
        "CURTAIL_CREDENTIAL_FILE": str(spec.credential_file),
        "CURTAIL_SITE": spec.site,
        "CURTAIL_FENCE": str(spec.fence),
        "CURTAIL_JOB": spec.job,
        "CURTAIL_CACHE": str(spec.cache),
        "CURTAIL_JOB_FOLDER": str(spec.folder),
        "CURTAIL_THREADS": str(spec.threads),
        "CURTAIL_DEVICE_BATCH": str(spec.device_batch_samples),
        "CURTAIL_LINK": repr(spec.link_bytes_s),
        "CURTAIL_SERVER_NAME": spec.server_name,
        "CURTAIL_INSECURE": "1" if spec.insecure else "0",
    }
    return env


def compile_cache(folder: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """Variables that make torch cache compiled code below `folder`, so that the next process need not compile again.

    Variables that the user has set are left alone.
    """
    wanted = {name: str(folder / below) for name, below in KEPT_COMPILED.items()}
    wanted["TORCHINDUCTOR_FX_GRAPH_CACHE"] = "1"
    return {name: value for name, value in wanted.items() if name not in inherited}


def source_folder() -> Path | None:
    """The folder of the packages if they run from a source tree; None if they are installed."""
    folder = Path(curtail.__file__).resolve().parent.parent
    return None if folder.name in ("site-packages", "dist-packages") else folder


class Job:
    """One started job.

    Args: process: as `Spawn` returned it.
    """

    def __init__(self, spec: JobSpec, process: Process) -> None:
        self.spec = spec
        self.process = process

    def poll(self) -> int | None:
        """Exit code, or None while the job runs."""
        return self.process.poll()

    def status(self) -> JobStatus | None:
        """The job's own status; None if there is none yet."""
        return job_files.read_status(self.spec.folder)

    def order(self, orders: JobOrders) -> None:
        """Extend the job's permit, or ask it to drain."""
        job_files.write_orders(self.spec.folder, orders)

    def terminate(self) -> None:
        """Send `TERMINATION_SIGNAL` to the process group."""
        self.process.signal_group(TERMINATION_SIGNAL)

    def kill(self) -> None:
        """Send SIGKILL to the process group."""
        self.process.signal_group(signal.SIGKILL)

    def last_words(self) -> str:
        """Why the job ended: the reason in its status, else the last line of its log."""
        status = self.status()
        if status is not None and status.exit_code is not None and status.reason:
            return status.reason
        return job_files.last_log_line(self.spec.folder)


def start_job(spec: JobSpec, orders: JobOrders, spawn: Spawn, inherited: Mapping[str, str]) -> Job:
    """Create the job folder, write the first orders, start torchrun.

    Raises: DiskError; CurtailError: the program cannot be started.
    """
    try:
        spec.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error("create", spec.folder, error) from error
    job_files.write_orders(spec.folder, orders)
    argv, env = job_argv(spec.ranks, place=spec.place), job_environment(spec, inherited)
    return Job(spec, spawn(argv, env, spec.folder, spec.folder / job_files.LOG))


def count_devices() -> int:
    """Number of CUDA devices that a job can use here; 1, for one CPU rank, if there is none.

    Runs in its own process, so that the agent imports no torch and holds no device.
    """
    if not Path("/proc/driver/nvidia/gpus").exists():
        return 1
    ask = "import torch; print(torch.cuda.device_count())"
    try:
        answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, timeout=120, check=True, text=True)
        return max(1, int(answer.stdout.split()[-1]))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 1


def threads_per_rank(ranks: int) -> int:
    """CPU threads for each rank: the cores available to this process, split evenly."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // ranks)
