"""What the sites of a region draw together."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from controller.ledger.metering import Drawn

CHANGES = st.lists(
    st.tuples(st.sampled_from("stuvw"), st.sampled_from(("A", "B", None)), st.floats(0.0, 1e7)), max_size=60
)


@given(CHANGES)
def test_sums_are_exactly_those_of_the_sites_that_are_there_whatever_changed_before(changes):
    drawn, here = Drawn(), {}
    for site, region, watts in changes:
        if region is None:
            drawn.drop(site)
            here.pop(site, None)
        else:
            drawn.put(site, region, watts)
            here[site] = (region, watts)
        for name in "AB":
            assert drawn.of(name) == math.fsum(watts for region, watts in here.values() if region == name)


def test_a_region_without_sites_draws_nothing():
    assert Drawn().of("A") == 0.0
