"""Many agents at one controller for a while, by the code of the benchmark: nobody waits and nothing is left open."""

import pytest

from benchmarks.soak import Sample, soak, verdict

pytestmark = pytest.mark.process

AGENTS, SECONDS, HEARTBEAT_S = 60, 8.0, 1.0


def test_agents_that_come_and_go_get_their_answers_and_leave_no_file_open(tmp_path):
    result = soak(tmp_path, AGENTS, SECONDS, HEARTBEAT_S)
    assert (result["failures"], result["ledger"]) == ([], [])
    assert result["beats"] > AGENTS * SECONDS / HEARTBEAT_S / 2
    assert result["samples"][-1]["files"] < 60


def test_growth_is_the_last_quarter_over_the_first():
    def sample(at, memory):
        return Sample(at, memory, 10, 5, 1, 1, 100, 0.01, 0.02, 0.01, 0)

    found = verdict([sample(10.0 * n, 100 + n) for n in range(40)])
    assert found["memory"]["first"] == 108.0 and found["memory"]["last"] == 135.0
    assert found["files"]["factor"] == 1.0
