"""Power loss at every durable write of a job: the next one trains from the right weights and loses no commit.

A job trains against a controller that follows a script. At each point of each
durable write it is worked out what a power loss would leave of the site's folder;
there a new job starts, and the controller goes on from what it had acknowledged.
"""

import functools
import importlib.util
import tempfile
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from curtail import wire
from nanochat import delta, weights


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


UNIT = Path(__file__).parents[1]
jobs, power_loss = load(UNIT / "agent" / "job" / "test_job.py"), load(UNIT / "power_loss" / "power_loss.py")

FIRST_ROUND = [
    ("folder", "DATA_FOLDER"),
    ("folder", "DATA_FOLDER"),
    ("publish", "BLOB"),  # the manifest
    ("publish", "BLOB"),  # the token file
    ("publish", "BLOB"),  # whole weights
]

ALONE = [
    *FIRST_ROUND,
    ("folder", "INNER_FOLDER"),
    ("publish", "INNER_STATE"),
    ("publish", "CONTRIBUTION"),
    ("publish", "INNER_STATE"),
    ("publish", "CONTRIBUTION"),
]
"""Two rounds of a sole site, whose contribution is the next version: its optimizer's state is safe before that."""

TOGETHER = [
    *FIRST_ROUND,
    ("publish", "CONTRIBUTION"),
    ("folder", "INNER_FOLDER"),
    ("publish", "INNER_STATE"),
    ("publish", "BLOB"),  # the update
    ("publish", "CONTRIBUTION"),
    ("publish", "INNER_STATE"),
]
"""Two rounds of one site of several, which hands in encoded pseudo-gradients and fetches updates."""


class World(jobs.World):
    """Answers ranges, as the controller does."""

    def handle(self, request):
        reply = super().handle(request)
        found = request.headers.get("range")
        if request.method != "GET" or found is None or reply.status_code != 200:
            return reply
        first = int(found.removeprefix("bytes=").removesuffix("-"))
        if first >= len(reply.content):
            return httpx.Response(416, content=wire.encode(wire.Problem("X", "the range starts behind the end", "")))
        return httpx.Response(206, content=reply.content[first:])


@functools.cache
def whole(rounds):
    """The weights of a plain loop after so many rounds of three steps."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        return jobs.plain(world, 3 * rounds)[0] if rounds else world.base


@functools.cache
def first_loss(version):
    """Of a round on the weights that `together` begins with, or on the updated ones."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        return jobs.plain_from(world, second(world) if version else world.base).loss_first


def alone(world, done):
    """Script the rounds of a sole site after so many were committed, up to the third."""
    for number in range(done + 1, 4):
        base = whole(number - 1)
        fetch = ("weights", world.put_weights(base)) if number == done + 1 else ("none", "")
        world.train(number, base, *fetch, start=6 * (number - 1), before=(number - 1) * 3 * jobs.STEP_TOKENS)


def step(world):
    return delta.encode({name: np.full_like(array, 0.01) for name, array in world.base.items()}, "int8")


def second(world):
    return delta.apply_update(world.base, delta.decode(step(world)))


def together(world, done):
    """Script the rounds of one site of several after so many were committed; a third one is for the restart only."""
    if done == 0:
        world.train(1, world.base, "weights", world.put_weights(world.base), codec="int8")
        world.train(2, second(world), "update", world.put_update(step(world)), codec="fp32")
    else:
        world.train(2, second(world), "weights", world.put_weights(second(world)), codec="fp32")


def life(make, tmp_path, script, rounds, name):
    """One job's life; its writes, and at each point the images, and how many commits the controller had taken."""
    below = tmp_path / name
    below.mkdir()
    world = make(below)
    script(world, 0)
    del world.replies[rounds:]
    left = {}

    def at(point):
        images = writes.power.cut_all(tmp_path / f"{name}-{len(left)}", ("j1",))
        left[point] = (images, [commit.digest for commit in world.commits])

    with pytest.MonkeyPatch.context() as patch:
        writes = power_loss.Writes(patch.setattr, power_loss.PowerLoss(below), at)
        assert world.run() == "the script ends"
    writes.power.close()
    return writes, left


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    threads = torch.get_num_threads()
    tmp_path = tmp_path_factory.mktemp("lives")
    yield {
        "alone": life(World, tmp_path, alone, 2, "alone"),
        "together": life(World, tmp_path, together, 2, "together"),
    }
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("name", "expected"), [("alone", ALONE), ("together", TOGETHER)])
def test_the_durable_writes_of_a_job_are_these(lives, name, expected):
    writes, _ = lives[name]
    assert writes.ops == [op for _, op in expected]
    assert writes.seen == power_loss.points(expected)


@pytest.mark.parametrize("point", power_loss.points(ALONE))
def test_a_sole_site_that_lost_its_power_goes_on_from_its_last_commit_bit_for_bit(lives, point):
    images, committed = lives["alone"][1][point]
    done = len(committed)
    for image in images.values():
        world = World(image)
        alone(world, done)
        if not done and list((image / "cache" / "inner").glob("*/*.safetensors")):
            del world.replies[1:]  # the momentum of steps that nobody has is used: other weights, from the same base
        rounds = len(world.replies)
        assert world.run("j2") == "the script ends"
        bases = [weights.digest(whole(number)) for number in range(done, 4)]
        assert [commit.base_digest for commit in world.commits] == bases[:rounds]
        if rounds > 1 or done:
            assert [commit.digest for commit in world.commits] == bases[1:]


@pytest.mark.parametrize("point", power_loss.points(TOGETHER))
def test_one_site_of_several_that_lost_its_power_trains_from_the_version_it_is_told(lives, point):
    images, committed = lives["together"][1][point]
    done = min(1, len(committed))
    for image in images.values():
        world = World(image)
        together(world, done)
        assert world.run("j2") == "the script ends"
        bases = [weights.digest(base) for base in (world.base, second(world))]
        assert [commit.base_digest for commit in world.commits] == bases[done:]
        assert [commit.loss_first for commit in world.commits] == [first_loss(v) for v in range(done, 2)]
