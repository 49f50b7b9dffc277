"""The optimizer split over ranks: the same weights and the same state as without."""

import json

import pytest
import torch

from nanochat.gpt import GPT
from nanochat.optim import SPLIT_ELEMENTS, MuonAdamW
from nanochat.presets import GPTConfig
from nanochat.recipe import BEST
from nanochat.schedule import Hyper
from nanochat.sharded import Share, gathered, mean_of_share, share_of

# three layers: neither 12 square matrices over 5 ranks nor 3 wide ones over 2 come out even
MODEL = GPTConfig(16, 1000, 3, 2, 2, 64)
STEPS = 4


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("ranks", [1, 2, 5, 8])
def test_the_shares_of_all_ranks_make_up_the_rows(count, ranks):
    shares = [Share(count, rank, ranks) for rank in range(ranks)]
    owned = [row for share in shares for row in range(share.start, share.stop)]
    assert owned == list(range(count))
    assert all(share.stop - share.start <= share.rows for share in shares)


def test_alone_everything_is_owned_and_nothing_is_copied():
    share = share_of(5, None)
    values = torch.arange(10.0).view(5, 2)
    assert (share.start, share.stop, share.ranks) == (0, 5, 1)
    assert mean_of_share(values, share, None) is values
    assert gathered(values, share, None) is values


def test_this_model_has_tensors_of_every_kind():
    elements = [parameter.numel() for name, parameter in GPT(MODEL).named_parameters() if ".h." not in name]
    assert min(elements) < SPLIT_ELEMENTS <= max(elements)


PROGRAM = """
import hashlib, json, sys
import torch
from nanochat import distributed as places
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW
from nanochat.presets import GPTConfig
from nanochat.recipe import BEST
from nanochat.schedule import Hyper
from nanochat.sharded import gathered, mean_of_share, share_of

torch.set_num_threads(1)
ranks = places.join_ranks(places.choose_device("cpu"))
share = share_of(5, None)
rows = torch.arange(10.0).view(5, 2)
facts = {
    "rows": gathered(mean_of_share(rows * (1 + 2 * ranks.rank), share, None), share, None).tolist(),
    "own": [share.start, share.stop],
}

def trained(shard, steps, state=None, weights=None):
    model = GPT(GPTConfig(16, 1000, 3, 2, 2, 64))
    model.init_weights(3)
    optimizer = MuonAdamW(model, model.config, 2**17, BEST, shard=shard)
    if state is not None:
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
    for step in steps:
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(10000 * step + 10 * number + ranks.rank)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step(Hyper(1 - step / 10, 0.9, 0.3))
    return model, optimizer

def print_of(model, state):
    total = hashlib.sha256()
    for values in (model.state_dict(), state):
        for name in sorted(values):
            total.update(values[name].numpy().tobytes())
    return total.hexdigest()

steps = range(STEPS)
split, split_optimizer = trained(True, steps)
whole, whole_optimizer = trained(False, steps)
split_state, whole_state = split_optimizer.state_dict(), whole_optimizer.state_dict()
facts["equal"] = [print_of(split, split_state), print_of(whole, whole_state)]
facts["held"] = [sum(e.mean.numel() for e in o._adam) + sum(g.momentum.numel() for g in o._muon)
                 for o in (split_optimizer, whole_optimizer)]
facts["unwanted"] = split_optimizer.state_dict(wanted=False) == {}
half, half_optimizer = trained(True, range(2))
again, again_optimizer = trained(True, range(2, STEPS), half_optimizer.state_dict(), half.state_dict())
facts["resumed"] = print_of(again, again_optimizer.state_dict())
if ranks.rank == 0:
    torch.save({"model": split.state_dict(), "state": split_state}, f"{sys.argv[1]}/state.pt")
with open(f"{sys.argv[1]}/{ranks.rank}.json", "w") as file:
    json.dump(facts, file)
places.leave_ranks()
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, run_two_ranks):
    """What two gloo ranks found out, and the folder with the state they saved."""
    folder = tmp_path_factory.mktemp("ranks")
    program = folder / "program.py"
    program.write_text(PROGRAM.replace("STEPS", str(STEPS)))
    run_two_ranks(program, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)], folder


def test_rows_that_do_not_divide_are_averaged_and_put_together_again(two_ranks):
    (left, right), _ = two_ranks
    assert (left["own"], right["own"]) == ([0, 3], [3, 5])
    # the ranks gave once and three times the rows
    assert left["rows"] == right["rows"] == (2 * torch.arange(10.0).view(5, 2)).tolist()


def test_split_and_unsplit_give_the_same_bits_on_two_ranks(two_ranks):
    (left, right), _ = two_ranks
    assert len({*left["equal"], *right["equal"]}) == 1


def test_a_rank_holds_about_half_of_the_state(two_ranks):
    (left, right), _ = two_ranks
    assert left["held"][0] + right["held"][0] <= 1.01 * left["held"][1]
    assert max(left["held"][0], right["held"][0]) < 0.6 * left["held"][1]
    assert left["unwanted"] and right["unwanted"]


def test_a_split_state_that_was_saved_and_loaded_goes_on_bit_for_bit(two_ranks):
    (left, right), _ = two_ranks
    assert left["resumed"] == right["resumed"] == left["equal"][0]


def test_the_state_of_two_ranks_is_that_of_one_and_goes_on_there(two_ranks):
    _, folder = two_ranks
    saved = torch.load(folder / "state.pt", weights_only=True)
    model = GPT(MODEL)
    model.load_state_dict(saved["model"])
    alone = MuonAdamW(model, MODEL, 2**17, BEST)
    assert {name: tuple(value.shape) for name, value in saved["state"].items()} == alone.state_shapes()
    alone.load_state_dict(saved["state"])
    state = alone.state_dict()
    assert all(torch.equal(state[name], value) for name, value in saved["state"].items())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    alone.step(Hyper(1.0, 0.9, 0.0))
    assert all(value.isfinite().all() for value in model.state_dict().values())
