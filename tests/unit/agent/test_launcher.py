"""Jobs are started with the right command and environment, and do not outlive their agent."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

from agent import job_files, launcher, network
from agent.job_files import JobOrders, JobStatus, must_drain
from agent.launcher import (
    LEAVE_SIGNALS,
    TERMINATION_SIGNAL,
    JobSpec,
    Place,
    compile_cache,
    job_argv,
    job_environment,
    start_job,
    system_spawn,
)
from curtail.errors import CurtailError, DiskError


def spec(tmp_path, **changes):
    values = {
        "job": "j1",
        "folder": tmp_path / "jobs" / "j1",
        "url": "http://127.0.0.1:7070",
        "credential_file": tmp_path / "credential",
        "site": "A",
        "fence": 3,
        "cache": tmp_path / "cache",
        "ranks": 2,
        "threads": 4,
    }
    return JobSpec(**(values | changes))


class FakeProcess:
    pid = 1

    def __init__(self):
        self.code, self.signals = None, []

    def poll(self):
        return self.code

    def signal_group(self, number):
        self.signals.append(number)


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_the_command_is_torchrun_on_this_machine():
    argv = job_argv(2, "python3")
    assert argv[len(LEAVE_SIGNALS) :][:3] == ["python3", "-m", "torch.distributed.run"]
    assert argv[-2:] == ["-m", "agent.job"]
    assert "--standalone" in argv and argv[argv.index("--nproc-per-node") + 1] == "2"


def test_what_torchrun_writes_lies_in_the_job_folder_and_goes_away_with_it(tmp_path, monkeypatch):
    from torch.distributed.run import config_from_args, parse_args

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def spawn(argv, env, cwd, log):
        monkeypatch.chdir(cwd)
        config, _, _ = config_from_args(parse_args(argv[len(LEAVE_SIGNALS) + 3 :]))
        assert Path(config.logs_specs.root_log_dir).resolve().parent == cwd
        config.logs_specs.reify({0: {}})  # makes the folders of an attempt
        return FakeProcess()

    job = start_job(spec(tmp_path), JobOrders(1.0, False, ""), spawn, {})
    assert list((job.spec.folder / job_files.OF_TORCHRUN).glob("*/attempt_0/0"))
    assert list(temporary.iterdir()) == []


def test_a_machine_of_several_keeps_its_rank_and_meets_the_others_at_the_lead():
    argv = job_argv(8, "python3", Place("c0ffee", 1, 2, "10.0.0.5:29400", "10.0.0.6"))
    options = dict(itertools.pairwise(argv))
    assert "--standalone" not in argv and options["--rdzv-backend"] == "static"
    assert (options["--nnodes"], options["--node-rank"], options["--nproc-per-node"]) == ("2", "1", "8")
    assert (options["--rdzv-endpoint"], options["--rdzv-id"]) == ("10.0.0.5:29400", "c0ffee")
    assert (options["--max-restarts"], options["--local-addr"]) == ("0", "10.0.0.6")
    alone = job_argv(8, "python3", Place("c0ffee", 0, 1, "10.0.0.5:29400", "10.0.0.5"))
    assert alone == job_argv(8, "python3")


def test_one_machine_talks_over_the_loopback_and_several_over_the_interface_with_their_address(tmp_path, monkeypatch):
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

    def interfaces(address, size=2, **inherited):
        place = None if address is None else Place("c", 0, size, "x:1", address)
        env = job_environment(spec(tmp_path, place=place), inherited)
        return [env.get(name) for name in names]

    loopback = ["lo", "lo"] if sys.platform == "linux" else ["lo0", "lo0"]
    assert interfaces(None) == interfaces("127.0.0.1") == interfaces("10.0.0.5", size=1) == loopback
    monkeypatch.setattr(network, "interface_of", {"10.0.0.5": "eth7"}.get)
    assert interfaces("10.0.0.5") == ["eth7", "eth7"]
    assert interfaces("10.0.0.5", GLOO_SOCKET_IFNAME="ib0") == ["ib0", "eth7"], "who sets one wants it so"
    assert interfaces("10.0.0.9") == [None, None], "nobody knows: gloo and nccl choose"


@pytest.mark.skipif(sys.platform != "linux", reason="the addresses of interfaces are read on Linux only")
def test_an_interface_is_found_by_its_address():
    assert network.interface_of("127.0.0.1") == "lo"
    assert network.interface_of("198.51.100.77") is None and network.interface_of("no such host") is None


def test_the_address_on_the_way_to_a_controller_here_is_the_loopback():
    assert network.local_address("http://127.0.0.1:8765") == "127.0.0.1"
    assert network.local_address("https://no.such.host.invalid") == "127.0.0.1"


def test_the_environment_carries_the_contract_and_no_token(tmp_path):
    env = job_environment(spec(tmp_path), {"PATH": "/bin", "CURTAIL_TOKEN": "secret", "PYTHONPATH": "/own"})
    assert env["PATH"] == "/bin" and "CURTAIL_TOKEN" not in env
    assert env["PYTHONSAFEPATH"] == "1" and env["OMP_NUM_THREADS"] == "4"
    assert env["CURTAIL_DEVICE_BATCH"] == "0"
    assert env["CURTAIL_URL"] == "http://127.0.0.1:7070" and env["CURTAIL_FENCE"] == "3"
    assert env["CURTAIL_JOB_FOLDER"] == str(tmp_path / "jobs" / "j1")
    source = launcher.source_folder()
    if source is not None:
        assert env["PYTHONPATH"] == f"{source}{os.pathsep}/own"


def test_compiled_code_is_kept_between_jobs_unless_the_user_says_where(tmp_path):
    kept = {
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache" / "compiled" / "inductor"),
        "TRITON_CACHE_DIR": str(tmp_path / "cache" / "compiled" / "triton"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
    }
    for job in ("j1", "j2"):  # not in the folder of a job: the next one must find it
        env = job_environment(spec(tmp_path, job=job, folder=tmp_path / "jobs" / job), {"PATH": "/bin"})
        assert kept.items() <= env.items()
    own = {"TORCHINDUCTOR_CACHE_DIR": "/fast", "TORCHINDUCTOR_FX_GRAPH_CACHE": "0"}
    env = job_environment(spec(tmp_path), own)
    assert own.items() <= env.items() and env["TRITON_CACHE_DIR"] == kept["TRITON_CACHE_DIR"]
    assert compile_cache(tmp_path, kept) == {}


def test_the_first_orders_lie_there_before_the_job_starts(tmp_path):
    seen = {}

    def spawn(argv, env, cwd, log):
        seen.update(orders=job_files.read_orders(cwd), cwd=cwd, log=log)
        return FakeProcess()

    orders = JobOrders(10.0, False, "go")
    job = start_job(spec(tmp_path), orders, spawn, {})
    assert seen == {"orders": orders, "cwd": job.spec.folder, "log": job.spec.folder / "job.log"}
    assert job.poll() is None and job.status() is None


def test_a_job_is_ended_as_a_group(tmp_path):
    process = FakeProcess()
    job = start_job(spec(tmp_path), JobOrders(1.0, False, ""), lambda *_: process, {})
    job.terminate()
    job.kill()
    assert process.signals == [TERMINATION_SIGNAL, signal.SIGKILL]


def test_last_words_are_the_jobs_own_reason_or_else_its_last_line(tmp_path):
    job = start_job(spec(tmp_path), JobOrders(1.0, False, ""), lambda *_: FakeProcess(), {})
    assert job.last_words() == ""
    (job.spec.folder / "job.log").write_text("one\ntwo\n\n")
    assert job.last_words() == "two"
    job_files.write_status(job.spec.folder, JobStatus("train", 1, 2, 3.0, 4.0, "the disk is full", 1))
    assert job.last_words() == "the disk is full"


def test_orders_and_status_survive_the_folder(tmp_path):
    status = JobStatus("sync", None, 0, None, 1)
    job_files.write_status(tmp_path, status)
    assert job_files.read_status(tmp_path) == status
    for text in ("", "{}", "[]", '{"valid_until": "x", "drain": false, "reason": ""}'):
        (tmp_path / "control.json").write_text(text)
        assert job_files.read_orders(tmp_path) is None
    with pytest.raises(DiskError):
        job_files.write_orders(tmp_path / "none", JobOrders(0.0, True, ""))


def test_a_job_drains_when_told_when_its_permit_lapses_and_when_nobody_can_be_read():
    assert must_drain(JobOrders(10.0, False, ""), 9.0) is None
    assert must_drain(JobOrders(10.0, True, "curtailment ends"), 9.0) == "curtailment ends"
    assert "expired" in must_drain(JobOrders(10.0, False, ""), 10.1)
    assert "cannot be read" in must_drain(None, 0.0)


def test_a_program_that_is_not_there_is_a_clear_error(tmp_path):
    with pytest.raises(CurtailError, match="cannot start"):
        system_spawn([str(tmp_path / "nothing")], {}, tmp_path, tmp_path / "log")


def test_a_started_process_has_a_group_of_its_own_and_writes_to_the_log(tmp_path):
    script = "import os, time; print(os.getpgrp(), flush=True); time.sleep(60)"
    process = system_spawn([sys.executable, "-c", script], os.environ, tmp_path, tmp_path / "log")
    wait_for(lambda: (tmp_path / "log").read_text().strip())
    assert int((tmp_path / "log").read_text()) == process.pid != os.getpgrp()
    process.signal_group(signal.SIGKILL)
    wait_for(lambda: process.poll() is not None)
    assert process.poll() == -signal.SIGKILL
    process.signal_group(signal.SIGKILL)  # gone: no error


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel kills orphans on Linux only")
def test_a_job_dies_with_a_killed_agent(tmp_path):
    root = Path(launcher.__file__).parent.parent
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    parent = (
        "import os, sys, time; from pathlib import Path; from agent.launcher import system_spawn\n"
        f"system_spawn([sys.executable, '-c', {child!r}], os.environ, Path('.'), Path('child'))\n"
        "time.sleep(60)"
    )
    env = {**os.environ, "PYTHONPATH": str(root)}
    agent = system_spawn([sys.executable, "-c", parent], env, tmp_path, tmp_path / "parent")
    wait_for(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text().strip())
    pid = int((tmp_path / "child").read_text())
    os.kill(agent.pid, signal.SIGKILL)
    wait_for(lambda: agent.poll() is not None)

    def gone():
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except OSError:
            return True

    wait_for(gone)
