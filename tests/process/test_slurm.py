"""A site on a real Slurm: its job comes with the window, trains, and is gone after it; signals lose no work."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import slurm as real

pytestmark = [pytest.mark.process, pytest.mark.skipif(bool(real.missing()), reason=real.missing())]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    made = real.Slurm(tmp_path / "slurm")
    made.start()
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, made.env[name])
    yield made
    made.stop()


@pytest.fixture
def site_on_slurm(fleet, cluster):
    """Starts a controller whose site `one` is on Slurm; Args: the trace. Returns the fleet."""

    def start(*phases, **section):
        fleet.pace_s = fleet.PACE_S
        fleet.write_run(
            regions=("A",),
            policy={"leave_lead": "60 s", "min_window": "0 s", "start": "60 s", "stop": "10 s"},
            provision={"poll": "1 s"},
            **{
                "sites.one": {
                    "provisioner": "slurm", "region": "A", "grace": "20 s",
                    "agent_options": ["--ranks", "1", "--threads", "1"], **section,
                },
                "sites.one.slurm": {
                    "curtail": f"{sys.executable} -m curtail", "home": str(fleet.folder / "homes"),
                    "extra": [f"--output={fleet.folder}/job-%j.log"],
                },
            },
        )  # fmt: skip
        fleet.write_trace(phases, regions=("A",))
        os.environ.update(fleet.pace())  # the job inherits the controller's environment
        fleet.start_controller("--forecast")
        return fleet

    before = dict(os.environ)
    yield start
    # Not by scancel: a slurmctld that has just started does not reach its node.
    agents = [pid for pid, line in fleet.marked().items() if "agent join" in line]
    for pid in agents:
        os.kill(pid, signal.SIGTERM)
    cluster.wait(lambda: not set(agents) & set(fleet.marked()), "the agents have left", 60.0)
    fleet.stop()
    assert fleet.in_store(lambda tx: tx.ledger_problems()) == []
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


def machine(status):
    return status.machines[0]


@pytest.mark.long
def test_a_job_comes_before_the_window_trains_in_it_and_is_gone_after_it(site_on_slurm, cluster):
    fleet = site_on_slurm((12, ""), (20, "A"), (600, ""), lead="600 s")
    waits = fleet.until("the job is in Slurm's queue", lambda s: machine(s).state in ("PENDING", "BOOTING"))
    assert waits.regime == "PAUSED" and "Slurm" in machine(waits).reason
    ((name, _),) = cluster.jobs().values()
    assert name.startswith("curtail:test-") and name.endswith(":one:0")
    fleet.until("it has joined", lambda s: machine(s).state == "JOINED")
    trained = fleet.until("it trains", lambda s: s.tokens > 0)
    assert trained.regime == "LOCAL"
    gone = fleet.until("the machine is gone", lambda s: machine(s).state == "ABSENT" and s.tokens > 0)
    assert gone.tokens >= trained.tokens and "is not below" in machine(gone).reason
    cluster.wait(lambda: not cluster.jobs(), "no job is left")
    assert any("one left: the agent was stopped" in e.text for e in gone.events)
    log = next(fleet.folder.glob("job-*.log")).read_text()
    assert "draining" in log and "CURTAIL_TOKEN" not in log


@pytest.mark.long
def test_a_cancelled_job_commits_its_work(site_on_slurm, cluster):
    fleet = site_on_slurm((600, "A"))
    before = fleet.until("a round is under way", lambda s: s.version > 0 and s.sites and s.sites[0].step > 0)
    (job,) = cluster.jobs()
    cluster.ask("scancel", job)
    left = "one left: the agent was stopped"
    after = fleet.until(
        "its work is merged", lambda s: s.version > before.version and left in [e.text for e in s.events]
    )
    assert not any("contributes nothing" in event.text for event in after.events)
    cluster.wait(lambda: job not in cluster.jobs(), "the job is gone", 10.0)


@pytest.mark.long
def test_a_killed_slurmctld_stops_no_training(site_on_slurm, cluster):
    fleet = site_on_slurm((600, "A"))
    fleet.until("it trains", lambda s: s.tokens > 0)
    (job,) = cluster.jobs()
    cluster.kill_controller()
    away = fleet.until("the provisioner cannot be asked", lambda s: "squeue" in machine(s).reason)
    fleet.until("it trains on", lambda s: s.version >= away.version + 2)
    cluster.start_controller()
    fleet.until("Slurm answers again", lambda s: "squeue" not in machine(s).reason and machine(s).state == "JOINED")
    assert list(cluster.jobs()) == [job]
