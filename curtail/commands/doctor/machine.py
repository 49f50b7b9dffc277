"""Checks of this machine: Python, SQLite, torch, GPUs, NCCL, gloo and zeroconf.

torch runs in separate processes with a timeout: importing it takes seconds, and a
broken driver can hang it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import curtail
from controller.store.sqlite_file import fitness, sqlite_version
from curtail.commands.doctor.finding import Finding, Level, fail, fine, warn

NVIDIA = Path("/proc/driver/nvidia/version")
OLDEST, NEWEST = (3, 11), (3, 13)
TORCH_S, GLOO_S = 120.0, 90.0

ASK_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
d = torch.distributed
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "devices": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if cuda else [],
    "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda and d.is_nccl_available() else None,
    "gloo": d.is_available() and d.is_gloo_available(),
}))
"""

REDUCE = """
import datetime, sys, torch
import torch.distributed as d
rank = int(sys.argv[1])
d.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2,
                     timeout=datetime.timedelta(seconds=60))
value = torch.full((1000,), float(rank + 1))
d.all_reduce(value)
assert value.eq(3).all(), value
d.destroy_process_group()
"""
"""Program of each of two ranks that add up a tensor."""

Ask = Callable[[Sequence[str], float], str]
"""Runs a command with a timeout in seconds; returns its output. Raises: OSError, subprocess.SubprocessError."""


def ask(command: Sequence[str], limit_s: float) -> str:
    """Run the command and return its stdout."""
    done = subprocess.run(list(command), capture_output=True, text=True, timeout=limit_s, check=True)
    return done.stdout


def versions(python: tuple[int, int] | None = None) -> list[Finding]:
    """Versions of Python and curtail."""
    now = python or sys.version_info[:2]
    name, known = ".".join(map(str, now)), f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    found = [fine("python", f"Python {name} at {sys.executable}")]
    if not OLDEST <= now <= NEWEST:
        found = [
            fail(
                "python",
                f"Python {name} is not supported, {known} are",
                f"install curtail into an environment with {known}",
            )
        ]
    return [*found, fine("curtail", f"curtail {curtail.__version__} in {Path(curtail.__file__).parent}")]


def sqlite(version: tuple[int, int, int] | None = None) -> list[Finding]:
    """Version of the SQLite library."""
    fit = fitness(version or sqlite_version())
    return [Finding("sqlite", Level(fit.level), fit.text, fit.remedy)]


def torch(asking: Ask = ask, driver: Callable[[], bool] = NVIDIA.exists) -> list[Finding]:
    """torch, the GPUs that it detects, and NCCL."""
    again = "reinstall curtail with ./install.sh"
    try:
        importlib.metadata.version("torch")
        told: dict[str, Any] = json.loads(asking([sys.executable, "-c", ASK_TORCH], TORCH_S).splitlines()[-1])
    except importlib.metadata.PackageNotFoundError:
        return [fail("torch", "torch is not installed; training jobs and the initial weights need it", again)]
    except subprocess.TimeoutExpired:
        remedy = "run nvidia-smi; if it hangs too, the driver or a GPU has failed: restart the machine"
        return [fail("torch", f"torch did not answer within {TORCH_S:.0f} s", remedy)]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return [fail("torch", f"torch cannot be imported: {last_line(error)}", again)]
    found = [fine("torch", f"torch {told['version']}, CUDA {told['cuda'] or 'none'}")]
    found.append(_gpu(told, driver()))
    if told["devices"]:
        missing = "torch was built without NCCL; ranks on several GPUs cannot communicate"
        remedy = "install a build of torch with NCCL"
        found.append(fine("nccl", f"NCCL {told['nccl']}") if told["nccl"] else fail("nccl", missing, remedy))
    return found


def _gpu(told: dict[str, Any], driver: bool) -> Finding:
    if told["devices"]:
        names = sorted({f"{told['devices'].count(name)} x {name}" for name in told["devices"]})
        return fine("gpu", ", ".join(names))
    if not driver:
        return fine("gpu", "no NVIDIA driver found: jobs run on the CPU")
    if told["cuda"] is None:
        return fail(
            "gpu", "there is an NVIDIA driver, but torch was built without CUDA", "install a build of torch with CUDA"
        )
    return fail(
        "gpu",
        f"there is an NVIDIA driver, but torch for CUDA {told['cuda']} detects no GPU",
        "run nvidia-smi; the driver may be too old for this CUDA, or CUDA_VISIBLE_DEVICES may be empty",
    )


def gloo(start: Callable[..., subprocess.Popen[str]] = subprocess.Popen, limit_s: float = GLOO_S) -> list[Finding]:
    """Two ranks add up a tensor with gloo over loopback; CPU jobs use gloo, and GPU jobs for small messages."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", REDUCE]
        ranks = [
            start([*command, str(n), f"{folder}/meeting"], env=env, text=True,
                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for n in range(2)
        ]  # fmt: skip
        try:
            errors = [rank.communicate(timeout=limit_s)[1] for rank in ranks]
        except subprocess.TimeoutExpired:
            remedy = "check for a firewall on the loopback interface; GLOO_SOCKET_IFNAME selects the interface"
            return [fail("gloo", f"two ranks did not connect within {limit_s:.0f} s", remedy)]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
                if rank.stderr is not None:
                    rank.stderr.close()
    for rank, text in zip(ranks, errors, strict=True):
        if rank.returncode != 0:
            lines = (text or "").strip().splitlines()
            words = lines[-1] if lines else f"exit code {rank.returncode}"
            remedy = "check the installation of torch, and that the loopback interface is up"
            return [fail("gloo", f"two ranks cannot communicate: {words}", remedy)]
    return [fine("gloo", "two ranks added up a tensor over loopback")]


def zeroconf(open_it: Callable[[], None] | None = None) -> list[Finding]:
    """Discovery on the local network; a convenience that is never required."""
    try:
        (open_it or _open_zeroconf)()
    except (ImportError, OSError) as error:
        remedy = "pass the controller's URL to the agents; nothing else needs discovery"
        return [warn("zeroconf", f"cannot discover controllers on the local network: {error}", remedy)]
    return [fine("zeroconf", "discovery on the local network works")]


def _open_zeroconf() -> None:
    from curtail.system.mdns import browse

    browse(0.3)


def last_line(error: BaseException) -> str:
    """The last line that a failed process printed, or the error itself."""
    text = getattr(error, "stderr", None) or str(error)
    lines = str(text).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
