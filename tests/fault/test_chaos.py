"""A short chaos run, by the code of the benchmark: real jobs under faults of several kinds, and nobody helps."""

import pytest

from benchmarks.chaos import run
from benchmarks.chaos_faults import CONTROLLER, Fault
from benchmarks.chaos_fleet import Form

pytestmark = pytest.mark.fault

SECONDS = 18.0
FAULTS = [
    Fault(1.0, "partition", "a", 3.0),
    Fault(2.0, "kill agent", "b", 0.0),
    Fault(5.0, "corrupt bytes", "a", 3.0),
    Fault(8.0, "clock jump", CONTROLLER, 5.0),
    Fault(9.0, "kill controller", CONTROLLER, 0.0),
    Fault(14.0, "stop job", "a", 2.0),
]


@pytest.mark.long
def test_after_faults_of_many_kinds_all_sites_train_again_and_every_ledger_is_exact(tmp_path, packed_data):
    result = run(tmp_path / "struck", packed_data, ["a", "b"], FAULTS, SECONDS, Form(lead_s=5.0))
    assert result.problems == []
    assert result.tokens > 0 and result.facts["bits flipped"] > 0
    assert result.facts["starts"] == {"controller": 2, "a": 1, "b": 2}
