"""Many sites at one controller: real HTTP, real merges, sites without torch; by the code of the benchmark."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
SITES, ROUNDS = 8, 3


@pytest.fixture
def scale(monkeypatch):
    path = ROOT / "benchmarks" / "scale.py"
    spec = importlib.util.spec_from_file_location("benchmarks.scale", path)
    assert spec and spec.loader
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmarks.scale", module)
    spec.loader.exec_module(module)
    return module


def test_eight_sites_that_hand_in_at_the_same_moment_are_all_merged_and_no_heartbeat_waits(scale, tmp_path):
    options = argparse.Namespace(
        sites=SITES, rounds=ROUNDS, regions=2, preset="d2-test", readers=None, heartbeat=0.3, quiet=0.0, limit=60.0
    )
    result = scale.simulate(tmp_path, options)
    assert result.failures == [], "requests, permits and the data ledger"
    assert [row["members"] for row in result.rounds] == [SITES] * ROUNDS
    sent = [span.bytes for span in result.spans if span.what == "upload"]
    assert sent == [result.delta_bytes] * SITES * ROUNDS, "every contribution is a file of its own"
    read = [span.bytes for span in result.spans if span.what == "download"]
    assert len(read) == SITES * ROUNDS and min(read) > result.delta_bytes // 2
    assert len({beat["site"] for beat in result.beats}) == SITES
    assert max(beat["seconds"] for beat in result.beats) < 2.0
    kept = sorted(path.name for path in (tmp_path / "home" / "versions").iterdir())
    assert kept == ["v000002", "v000003"]
    assert [path.name for path in (tmp_path / "home" / "blobs").iterdir()] == ["incoming"]
