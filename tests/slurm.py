"""A real Slurm in a folder: munged, slurmctld and one slurmd on loopback, as root, without systemd."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")

CONFIGURATION = """\
ClusterName=curtail
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
CryptoType=crypto/munge
SlurmctldPort={port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
MinJobAge=300
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
InactiveLimit=0
AccountingStorageType=accounting_storage/none
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=high Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why Slurm cannot run here; "": it can."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root here"


def free_port() -> int:
    with socket.socket() as asking:
        asking.bind(("127.0.0.1", 0))
        return int(asking.getsockname()[1])


class Slurm:
    """A cluster of this machine alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.host = socket.gethostname().split(".")[0]
        self.conf = self.folder / "slurm.conf"
        self.env = os.environ | {"SLURM_CONF": str(self.conf), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}

    def start(self) -> None:
        for name in ("state", "spool", "log", "run"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        key, run = self.folder / "munge.key", self.folder / "run"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self._run(
            "munged", "--force", f"--key-file={key}", f"--socket={run}/munge.sock", f"--pid-file={run}/munged.pid",
            f"--log-file={self.folder}/log/munged.log", f"--seed-file={self.folder}/munge.seed",
        )  # fmt: skip
        self.conf.write_text(
            CONFIGURATION.format(
                host=self.host, folder=self.folder, port=free_port(), node_port=free_port(), cores=os.cpu_count()
            )
        )
        self.start_controller()
        self._run("slurmd", "-f", self.conf, "-N", self.host)
        self.wait(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%t"), "a node is idle")

    def start_controller(self) -> None:
        self._run("slurmctld", "-f", self.conf)

    def kill_controller(self) -> None:
        """kill -9 of slurmctld."""
        os.kill(self.pid("slurmctld"), signal.SIGKILL)

    def pid(self, daemon: str) -> int:
        return int((self.folder / "run" / f"{daemon}.pid").read_text())

    def ask(self, *argv: object) -> str:
        """Standard output of a client program; "" if it fails."""
        done = subprocess.run([str(word) for word in argv], env=self.env, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else ""

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Id -> (name, state) of the jobs that exist."""
        rows = (line.split("|") for line in self.ask("squeue", "-h", "-o", "%i|%j|%T").splitlines())
        return {job: (name, state) for job, name, state in rows}

    def wait(self, condition, what: str, seconds: float = 60.0):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f"never: {what}\n{self.ask('squeue')}"
            time.sleep(0.1)
        return found

    def stop(self) -> None:
        self.ask("scancel", "--me")
        for daemon in ("slurmd", "slurmctld", "munged"):
            try:
                pid = self.pid(daemon)
                os.kill(pid, signal.SIGTERM)
                self.wait(lambda pid=pid: not Path(f"/proc/{pid}").exists(), f"{daemon} ends", 20.0)
            except (OSError, ValueError):
                continue

    def _run(self, *argv: object) -> None:
        done = subprocess.run([str(word) for word in argv], env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{argv[0]}: {done.stderr}"
