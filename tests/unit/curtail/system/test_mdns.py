"""A controller announced on loopback is found there, and the choice between several is clear."""

from __future__ import annotations

import socket

import pytest

from curtail.errors import NotFound, UsageError
from curtail.system.mdns import AnnouncedController, announce, browse, find_controller

A = AnnouncedController("a", "http://127.0.0.1:7070", "run1")
B = AnnouncedController("b", "http://127.0.0.1:7071", "run2")


def test_one_controller_is_found():
    assert find_controller(1.0, lambda _: [A]) == A


def test_none_found_says_how_to_go_on():
    with pytest.raises(NotFound, match="give its address"):
        find_controller(1.0, lambda _: [])


def test_several_found_are_listed():
    with pytest.raises(UsageError, match=r"7070.*7071"):
        find_controller(1.0, lambda _: [A, B])


def test_one_controller_under_two_names_is_one():
    assert find_controller(1.0, lambda _: [A, AnnouncedController("a-2", A.url, "run1")]) == A


def test_a_machine_without_network_is_a_clear_error():
    def browsing(_):
        raise OSError("no multicast")

    with pytest.raises(NotFound, match="no multicast"):
        find_controller(1.0, browsing)


def test_failing_to_announce_is_a_reason_and_no_error():
    with announce("x", 7070, ["no address"]) as announcement:
        assert announcement.reason is not None and "no address" in announcement.reason


def test_what_is_announced_on_loopback_is_found_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with announce(f"test {port}", port, ["127.0.0.1"], {"proto": "http", "run": "r1"}) as announcement:
        if announcement.reason is not None:
            pytest.skip(announcement.reason)
        found = [entry for entry in browse(2.0, loopback_only=True) if str(port) in entry.url]
    if not found:
        pytest.skip("multicast does not work on this machine's loopback interface")
    assert found == [AnnouncedController(f"test {port}", f"http://127.0.0.1:{port}", "r1")]
