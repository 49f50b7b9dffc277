"""Runs merges, and the creation of the initial weights, in child processes beside the API.

They need CPU time, memory or torch, which the API process should not use. Each
child runs one of our modules and is killed with the controller. It reports through
a file, so an interrupted one has no effect.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import curtail
from controller.aggregation.outer_step import MergeResult, MergeSpec, result_from_json, spec_to_json
from curtail.errors import CurtailError
from curtail.system.process import dying_with

log = logging.getLogger("curtail.merge")


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs one of our modules with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """An environment in which our packages are found, and no folders of the same name in the working directory."""
    env = dict(os.environ, PYTHONSAFEPATH="1")
    root = str(Path(curtail.__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(part for part in (root, env.get("PYTHONPATH", "")) if part)
    return env


def run_module(module: str, arguments: Sequence[str]) -> None:
    """Run one of our modules and wait. Raises: CurtailError: it failed; contains the last line that it printed."""
    done = subprocess.run(
        module_command(module, *arguments),
        env=module_environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=dying_with(os.getpid()),
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise CurtailError(f"{module} failed: {lines[-1] if lines else f'exit code {done.returncode}'}")


NICE = 5
"""Niceness of a merge: its threads use all CPUs, and the API must still answer heartbeats in time."""


def _beneath(controller: int) -> Callable[[], None]:
    """A preexec function: the child dies with the controller and has a lower priority than the API."""
    dies = dying_with(controller)

    def prepare() -> None:
        dies()
        os.nice(NICE)

    return prepare


class MergeProcess:
    """Runs each merge in a child process; the caller starts at most one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def start(self, spec: MergeSpec, done: Callable[[MergeResult | None], None]) -> None:
        """Start a merge. `done` is called once from another thread, with None if the merge failed."""
        threading.Thread(target=self._run, args=(spec, done), name="merge", daemon=True).start()

    def stop(self) -> None:
        """Kill a running merge; it is repeated after the next start."""
        self._stopped = True
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()

    def _run(self, spec: MergeSpec, done: Callable[[MergeResult | None], None]) -> None:
        result = None
        try:
            result = self._merge(spec)
        except (OSError, ValueError, CurtailError) as error:
            log.error("merging round %d failed: %s", spec.round, error)
        if not self._stopped:
            done(result)

    def _merge(self, spec: MergeSpec) -> MergeResult | None:
        self._folder.mkdir(parents=True, exist_ok=True)
        ask, answer = self._folder / "spec.json", self._folder / "result.json"
        answer.unlink(missing_ok=True)
        ask.write_text(spec_to_json(spec))
        self._process = subprocess.Popen(
            module_command("controller.aggregation.aggregate", str(ask), str(answer)),
            env=module_environment(),
            stderr=subprocess.PIPE,
            text=True,
            # This thread waits for the child, so it lives as long. A merge that outlived a killed controller
            # would write to the folder in which the next controller creates the same version.
            preexec_fn=_beneath(os.getpid()),
        )
        _, errors = self._process.communicate()
        if self._process.returncode != 0:
            raise CurtailError(errors.strip() or f"exit code {self._process.returncode}")
        return result_from_json(answer.read_text())


def make_initial_weights(folder: Path, preset: str, model: str, seed: int, tokenizer: str, manifest: str) -> None:
    """Create version 0 in `folder`. Args: model: the configuration as JSON. Raises: CurtailError."""
    spec = {
        "folder": str(folder),
        "preset": preset,
        "model": json.loads(model),
        "seed": seed,
        "tokenizer": tokenizer,
        "manifest": manifest,
    }
    run_module("controller.aggregation.initial_weights", [json.dumps(spec)])
