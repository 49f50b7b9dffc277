"""What the ranks of a job tell one another (agent.job.ranks)."""

from __future__ import annotations

from agent.job.ranks import RankGroup
from nanochat.distributed import Ranks

PROGRAM = """
import torch
from agent.job.ranks import RankGroup
from nanochat.distributed import join_ranks, leave_ranks

group = RankGroup(join_ranks(torch.device("cpu")))
rank = group.ranks.rank
assert group.is_rank_zero == (rank == 0)
assert group.share({"word": "hello"} if rank == 0 else None) == {"word": "hello"}
assert [group.any(flag) for flag in (False, rank == 0, rank == 1, True)] == [False, True, True, True]
assert group.share_code(7 if rank == 0 else 0) == 7
leave_ranks()
"""


def test_what_any_rank_says_all_hear(tmp_path, run_two_ranks):
    program = tmp_path / "ranks.py"
    program.write_text(PROGRAM)
    run_two_ranks(program)


def test_a_rank_alone_is_all_of_them():
    group = RankGroup(Ranks(0, 1, 0))
    assert group.is_rank_zero and group.any(True) and not group.any(False)
