"""`curtail train` in real processes: killed, and continued on as many ranks or on others."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import curtail
from nanochat import train_checkpoints

pytestmark = pytest.mark.process

MARK = "CURTAIL_TEST_TRAIN"
STEPS, EVERY, ENOUGH = 40, 6, 15
"""Steps of a run, between its checkpoints, and after which it is killed."""

DEADLINE_S = 120.0


def environment(mark: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CURTAIL_", "TORCHELASTIC_"))}
    root = Path(curtail.__file__).resolve().parent.parent
    if root.name not in ("site-packages", "dist-packages"):
        env["PYTHONPATH"] = str(root)
    return {**env, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", MARK: mark}


def flags(data: Path, out: Path, ranks: int) -> list[str]:
    given = {
        "--preset": "d2-test", "--data": data, "--out": out, "--steps": STEPS, "--batch-samples": 8, "--threads": 1,
        "--save-every": EVERY, "--keep": 9, "--ranks": ranks,
    }  # fmt: skip
    return ["train", *(str(part) for pair in given.items() for part in pair), "--json"]


def trained(data: Path, out: Path, ranks: int, torchrun: bool = False) -> dict[str, object]:
    """A run to its end, or the rest of one; what it printed."""
    launcher = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(ranks)]
    start = [*launcher, "-m", "curtail"] if torchrun else ["curtail"]
    done = subprocess.run(
        [sys.executable, "-m", *start, *flags(data, out, ranks)],
        env=environment("whole") | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def machines(data: Path, outs: list[Path]) -> list[subprocess.CompletedProcess[str]]:
    """The same command under torchrun on so many machines of one rank each; here they share the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(outs)), "--node-rank", str(number),
             "--master-addr", "127.0.0.1", "--master-port", str(port), "--nproc-per-node", "1",
             "-m", "curtail", *flags(data, out, 0)],
            env=environment("machines") | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number, out in enumerate(outs)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=DEADLINE_S) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(started, said, strict=True)
    ]


def killed(data: Path, out: Path, ranks: int) -> None:
    """A run that is killed with -9 somewhere between two checkpoints; nothing of it lives on."""
    mark = uuid.uuid4().hex
    with open(out.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "curtail", *flags(data, out, ranks)], env=environment(mark), stdout=log, stderr=log
        )
    try:
        until(lambda: len(losses(out)) >= ENOUGH, out)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: not marked(mark), out)
    assert len(losses(out)) < STEPS and train_checkpoints.saved_steps(out)[-1] >= 12


def until(condition, out: Path) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, out.with_suffix(".log").read_text()
        time.sleep(0.02)


def marked(mark: str) -> list[str]:
    """Processes that still run with this mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


def losses(out: Path) -> list[float]:
    try:
        lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line)["loss"] for line in lines if line.endswith("\n")]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_with_9_goes_on_with_the_same_losses(packed_data, tmp_path, ranks):
    """To the bit on as many ranks; on others sums are made in another order."""
    whole, same, other = (tmp_path / name for name in ("whole", "same", "other"))
    with ThreadPoolExecutor(2) as both:
        # two ranks are started by torchrun here, as on several machines, and by the command below
        running = both.submit(trained, packed_data, whole, ranks, torchrun=ranks > 1)
        killed(packed_data, same, ranks)
        result = running.result()
    assert (result["steps"], result["tokens"]) == (STEPS, STEPS * 8 * 64)
    assert len(losses(whole)) == STEPS and losses(whole)[-1] < losses(whole)[0]

    shutil.copytree(same, other)
    from_step = train_checkpoints.saved_steps(same)[-1]
    with ThreadPoolExecutor(2) as both:
        rest = both.submit(trained, packed_data, same, ranks), both.submit(trained, packed_data, other, 3 - ranks)
        assert [part.result()["steps"] for part in rest] == [STEPS, STEPS]
    assert losses(same) == losses(whole)
    final = [train_checkpoints.read(train_checkpoints.folder_of(out, STEPS)) for out in (whole, same)]
    assert final[0].meta.weights_digest == final[1].meta.weights_digest
    assert final[0].progress.optimizer_sha256 == final[1].progress.optimizer_sha256

    assert losses(other)[:from_step] == losses(whole)[:from_step]
    assert losses(other)[from_step:] == pytest.approx(losses(whole)[from_step:], abs=1e-4)


def test_two_machines_train_one_model_and_one_of_them_writes(packed_data, tmp_path):
    """What docs/guides/training.md says for several machines; the second one has a disk of its own."""
    first, second, one = (tmp_path / name for name in ("first", "second", "one"))
    with ThreadPoolExecutor(2) as both:
        whole = both.submit(trained, packed_data, one, 2)
        done = machines(packed_data, [first, second])
        whole.result()
    assert [each.returncode for each in done] == [0, 0], done
    assert json.loads(done[0].stdout)["steps"] == STEPS and done[1].stdout == ""
    assert train_checkpoints.read(train_checkpoints.folder_of(first, STEPS)).progress.ranks == 2 and not second.exists()
    assert losses(first) == losses(one)  # to the bit, as on one machine
