"""Which machines of a site form one job (controller.fleet.crew)."""

from __future__ import annotations

from dataclasses import replace

from controller.fleet.crew import CrewMachine, CrewState, form_crew

A, B, C = (CrewMachine(name, f"{name}.lan", 29400, order) for order, name in enumerate("abc"))
PATIENCE = 10.0


def look(before: CrewState, *heard: CrewMachine, expected: int = 2, now: float = 0.0, new_id: str = "new") -> CrewState:
    return form_crew(before, heard, expected, now, PATIENCE, new_id)


def test_machines_that_are_all_here_form_a_crew_at_once_in_the_order_they_joined():
    found = look(CrewState(), B, A)
    assert found.crew is not None and found.crew.agents == ("a", "b")
    assert found.crew.endpoint == "a.lan:29400" and found.crew.rank("b") == 1 and found.crew.rank("c") is None


def test_a_machine_that_is_alone_waits_for_the_others_and_then_goes_on_without_them():
    waiting = look(CrewState(), A)
    assert waiting.crew is None
    assert look(waiting, A, now=PATIENCE - 1).crew is None
    late = look(waiting, A, now=PATIENCE)
    assert late.crew is not None and late.crew.agents == ("a",)


def test_a_site_of_one_machine_never_waits():
    found = look(CrewState(), A, expected=1)
    assert found.crew is not None and found.crew.agents == ("a",)


def test_a_lost_machine_makes_a_crew_of_the_rest_at_once_under_another_id():
    both = look(CrewState(), A, B, new_id="one")
    rest = look(both, A, new_id="two")
    assert rest.crew is not None and (rest.crew.id, rest.crew.agents) == ("two", ("a",))


def test_when_the_lead_is_lost_the_next_one_leads():
    rest = look(look(CrewState(), A, B, new_id="one"), B, new_id="two")
    assert rest.crew is not None and rest.crew.agents == ("b",) and rest.crew.endpoint == "b.lan:29400"


def test_a_machine_that_comes_back_is_taken_in_and_the_lead_stays():
    led_by_b = look(look(CrewState(), A, B, new_id="one"), B, new_id="two")
    again = look(led_by_b, A, B, new_id="three")
    assert again.crew is not None and (again.crew.id, again.crew.agents) == ("three", ("b", "a"))


def test_a_third_of_three_is_waited_for_while_two_go_on():
    two = look(look(CrewState(), A, B, expected=3), A, B, expected=3, now=PATIENCE, new_id="two")
    assert two.crew is not None and two.crew.agents == ("a", "b")
    three = look(two, A, B, C, expected=3, now=PATIENCE + 1, new_id="three")
    assert three.crew is not None and three.crew.agents == ("a", "b", "c")


def test_the_same_machines_keep_their_crew():
    both = look(CrewState(), A, B, new_id="one")
    assert look(both, A, B, now=99.0, new_id="two") == both


def test_after_a_restart_of_the_controller_the_crew_that_runs_goes_on():
    running = replace(B, crew="x", alive=True, rank=0, size=2), replace(A, crew="x", alive=True, rank=1, size=2)
    found = look(CrewState(), *running)
    assert found.crew is not None and (found.crew.id, found.crew.agents) == ("x", ("b", "a"))


def test_after_a_restart_a_crew_of_which_a_part_is_silent_is_made_anew():
    lead = replace(A, crew="x", alive=True, rank=0, size=2)
    first = look(CrewState(), lead)
    assert first.crew is None, "the second machine may report any moment"
    found = look(first, lead, now=PATIENCE)
    assert found.crew is not None and (found.crew.id, found.crew.agents) == ("new", ("a",))


def test_without_machines_there_is_no_crew_and_nothing_is_remembered():
    assert look(look(CrewState(), A, B)) == CrewState()


def runs(machine: CrewMachine, crew: str, alive: bool = True) -> CrewMachine:
    return replace(machine, crew=crew, alive=alive)


def test_a_job_that_ended_at_one_machine_ends_its_crew_and_no_crew_runs_two_jobs():
    both = look(CrewState(), A, B, new_id="one")
    running = look(both, runs(A, "one"), runs(B, "one"), new_id="two")
    assert running.crew == both.crew
    after = look(running, runs(A, "one"), runs(B, "one", alive=False), new_id="two")
    assert after.crew is not None and (after.crew.id, after.crew.agents) == ("two", ("a", "b"))


def test_a_machine_that_has_not_started_its_part_yet_does_not_end_the_crew():
    both = look(CrewState(), A, B, new_id="one")
    assert look(both, runs(A, "one"), runs(B, "zero", alive=False), new_id="two").crew == both.crew


def test_a_lead_with_another_address_makes_a_crew_anew():
    both = look(CrewState(), A, B, new_id="one")
    moved = look(both, replace(A, address="x.lan"), B, new_id="two")
    assert moved.crew is not None and (moved.crew.id, moved.crew.endpoint) == ("two", "x.lan:29400")


def test_a_machine_that_left_the_crew_is_not_taken_in_before_its_job_is_over():
    rest = look(look(CrewState(), A, B, new_id="one"), A, new_id="two")
    still = look(rest, A, runs(B, "one"), new_id="three")
    assert still.crew == rest.crew
    free = look(still, A, runs(B, "one", alive=False), new_id="three")
    assert free.crew is not None and (free.crew.id, free.crew.agents) == ("three", ("a", "b"))


def test_an_address_of_ipv6_is_bracketed():
    assert replace(A, address="fd00::1").endpoint == "[fd00::1]:29400"
