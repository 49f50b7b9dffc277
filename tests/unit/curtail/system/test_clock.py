"""A machine's clock that is set while a round runs moves no deadline."""

import pytest
from doubles import FakeClock

from curtail.system.clock import EvenClock


def test_an_even_clock_goes_on_as_it_began_when_the_wall_clock_is_set():
    below = FakeClock(100.0, set_by=5000.0)
    even = EvenClock(below)
    assert even.wall() == 5100.0
    below.set_by -= 3600.0
    even.sleep(7.0)
    assert (even.wall(), even.monotonic(), below.wall()) == (5107.0, 107.0, 1507.0)


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_round_keeps_its_deadline_when_the_controllers_clock_is_set(world, jump):
    world.ready("a", "job")
    work = world.checkout("a", "job").assignment
    left = world.status().round.left_s
    world.clock.set_by = jump
    world.tick(1.0)
    assert world.status().round.left_s == pytest.approx(left - 1.0)
    world.commit("a", "job", work, steps=10)
    assert world.status().version == 1
    world.check()


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_after_a_restart_with_another_wall_clock_a_round_still_ends_within_its_length(world, jump):
    world.ready("a", "job")
    world.checkout("a", "job")
    world.clock.set_by = jump
    world.start()
    world.tick()
    length, lost_after = world.config.rounds.length, world.config.fleet.lost_after
    assert lost_after - 1.0 < world.status().round.left_s <= max(length, lost_after)
