"""The parts of the chaos run: its plan is drawn from a seed, and its proxy does to a line what it says."""

import socket
import threading

import pytest

from benchmarks.chaos import Course, trains
from benchmarks.chaos_faults import COMMON, CONTROLLER, KINDS, plan, stale
from benchmarks.chaos_proxy import Proxy, Weather


@pytest.fixture
def echo():
    """A listener on loopback that sends back what it gets; (host, port)."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(line):
        with line:
            while data := line.recv(65536):
                line.sendall(data)

    def accept():
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(line,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


@pytest.fixture
def proxy(echo):
    made = Proxy(echo)
    yield made
    made.close()


def through(proxy, data):
    """What comes back of `data`; empty if the connection broke."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10.0) as line:
        try:
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            got = b""
            while piece := line.recv(65536):
                got += piece
        except OSError:
            return b""
        return got


def test_a_plan_has_every_kind_once_before_any_comes_twice_and_is_drawn_from_its_seed():
    faults = plan(3, ["a", "b"], 600.0, len(KINDS))
    assert {fault.kind for fault in faults} == set(KINDS)
    again = [fault.kind for fault in plan(3, ["a", "b"], 600.0, len(KINDS) + 4)]
    assert set(again) == set(KINDS) and sum(kind in COMMON for kind in again) == len(COMMON) + 4
    assert faults == plan(3, ["a", "b"], 600.0, len(KINDS)) != plan(4, ["a", "b"], 600.0, len(KINDS))
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert all(0.0 < fault.at < 600.0 for fault in faults)
    many = [fault for seed in range(20) for fault in plan(seed, ["a", "b"], 600.0, len(KINDS))]
    for fault in many:
        at_site, at_controller, (shortest, longest) = KINDS[fault.kind]
        assert (fault.target == CONTROLLER and at_controller) or (fault.target in ("a", "b") and at_site)
        assert shortest <= fault.seconds <= longest


def test_a_plan_of_unknown_kinds_or_without_sites_is_refused():
    with pytest.raises(ValueError):
        plan(1, ["a"], 10.0, 1, ["flood"])
    with pytest.raises(ValueError):
        plan(1, [], 10.0, 1)


def test_the_trace_says_nothing_while_a_signal_is_stale():
    (fault,) = plan(1, ["a"], 100.0, 1, ["stale signal"])
    assert stale([fault], "a", fault.at) and not stale([fault], "a", fault.at + fault.seconds)
    assert not stale([fault], "b", fault.at)


def test_the_proxy_passes_everything_on_in_fair_weather(proxy):
    data = bytes(range(256)) * 1000
    assert through(proxy, data) == data and proxy.flipped == 0


def test_nothing_passes_a_cut_line_and_everything_does_after_it(proxy):
    proxy.set(Weather(cut=True))
    assert through(proxy, b"hello") == b""
    proxy.set(Weather())
    assert through(proxy, b"hello") == b"hello"


def test_bits_are_flipped_at_the_distance_asked_for_and_counted(proxy):
    proxy.set(Weather(flip_every=100))
    back = through(proxy, bytes(1000))
    assert len(back) == 1000 and sum(byte != 0 for byte in back) == proxy.flipped > 0


def test_tokens_between_two_versions_are_on_a_line():
    class Snapshot:
        def __init__(self, tokens, version):
            self.tokens, self.version, self.sites = tokens, version, ()

    course = Course()
    for now, tokens, version in ((-5.0, 0, 0), (0.0, 100, 1), (5.0, 100, 1), (10.0, 300, 2)):
        course.see(now, Snapshot(tokens, version))
        course.see(now, None)
    assert [point[0] for point in course.points] == [0.0, 10.0], "the first look tells no moment of a version"
    assert [course.tokens(at) for at in (0.0, 5.0, 10.0, 20.0)] == [100.0, 200.0, 300.0, 300.0]
    assert not trains(Snapshot(1, 1), ["a"]) and not trains(None, ["a"])
