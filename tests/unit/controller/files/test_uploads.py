"""Uploads on disk: what is promised before bytes are sent, parts that come twice, and what is thrown away."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections import namedtuple

import pytest

from controller.files import uploads as blobs
from controller.files.uploads import ABANDONED_S, LEFT_S, MOST_UPLOADS, TIDY_S, Uploads
from curtail.errors import DiskError, NotFound, Refused, WireError
from curtail.system.disk import SystemDisk

LARGEST = 10_000
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def uploads(tmp_path):
    return Uploads(tmp_path / "blobs", SystemDisk(), LARGEST, part_bytes=1000)


def name(number):
    return f"{number:064x}"


def digest(data):
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def send(uploads, sha, number, data):
    with uploads.begin_part(sha, number, digest(data)) as part:
        part.write(data)
        part.finish()


@pytest.fixture
def free(monkeypatch):
    """free(bytes): so much is free on the disk."""
    return lambda count: monkeypatch.setattr(blobs.shutil, "disk_usage", lambda path: Usage(0, 0, count))


# -- before bytes are sent ---------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1, LARGEST + 1, 2**53])
def test_a_size_that_no_contribution_has_is_refused_with_the_largest(uploads, size):
    with pytest.raises(Refused, match=str(size)) as caught:
        uploads.check(name(1), size)
    assert str(LARGEST) in str(caught.value) and not uploads.folder.exists()


def test_a_site_has_a_quota_and_is_told_the_numbers(uploads):
    for number in range(4):
        uploads.reserve(name(number), LARGEST)
    others = [name(number) for number in range(4)]
    with pytest.raises(Refused, match="40000 bytes here, 1 more exceed its quota of 40000"):
        uploads.check(name(9), 1, others)
    uploads.check(name(9), 1, others[1:])
    uploads.check(name(9), 1)  # another site's


def test_finished_files_count_for_the_quota_too(uploads):
    data = os.urandom(500)
    sha = hashlib.sha256(data).hexdigest()
    uploads.reserve(sha, len(data))
    send(uploads, sha, 0, data)
    uploads.finish(sha)
    small = Uploads(uploads.folder, SystemDisk(), LARGEST, quota=600)
    with pytest.raises(Refused, match="500 bytes here, 101 more"):
        small.check(name(9), 101, [sha])
    small.check(name(9), 100, [sha])


def test_a_site_has_a_bounded_number_of_files(uploads):
    with pytest.raises(Refused, match=f"{MOST_UPLOADS} files"):
        uploads.check(name(1), 1, [name(number) for number in range(2, 2 + MOST_UPLOADS)])


def test_what_is_promised_to_one_upload_is_not_there_for_the_next(uploads, free):
    free(blobs.RESERVE + 15_000)
    uploads.reserve(name(1), LARGEST)
    with pytest.raises(DiskError, match="10000 are promised") as caught:
        uploads.check(name(2), 5001)
    for number in (blobs.RESERVE + 15_000, blobs.RESERVE, 5001):
        assert str(number) in str(caught.value)
    with pytest.raises(DiskError):
        uploads.reserve(name(2), 5001)
    assert not (uploads.folder / "incoming" / name(2)).exists()
    uploads.reserve(name(2), 5000)
    uploads.reserve(name(1), LARGEST)  # to go on with what has its place needs none


def test_what_lies_on_the_disk_is_not_promised_twice(uploads, free):
    data = os.urandom(8192)
    uploads.reserve(name(1), len(data))
    assert uploads._promised() == 8192
    for number in range(9):
        send(uploads, name(1), number, data[number * 1000 : (number + 1) * 1000])
    assert uploads._promised() == 0


def test_uploads_at_the_same_moment_are_not_promised_the_same_room(uploads, free):
    free(blobs.RESERVE + 30_000)
    begin, results = threading.Barrier(8), []

    def reserve(number):
        begin.wait()
        try:
            uploads.reserve(name(number), LARGEST)
            results.append(True)
        except DiskError:
            results.append(False)

    threads = [threading.Thread(target=reserve, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 5 + [True] * 3


def test_what_a_killed_job_left_makes_way_for_the_next_upload_of_its_site(uploads):
    for number in range(4):
        uploads.reserve(name(number), LARGEST)
        os.utime(uploads.folder / "incoming" / name(number) / "data", (1000.0 + number, 1000.0 + number))
    others = [name(number) for number in range(4)]
    assert uploads.make_way(LARGEST, others, 1003.0 + LEFT_S - 4) == [], "none stands still for long enough"
    assert uploads.make_way(0, others, 1e9) == [], "there is no need"
    assert uploads.make_way(LARGEST, others, 1003.0 + LEFT_S) == [name(0)], "the oldest, and as few as it takes"
    assert not (uploads.folder / "incoming" / name(0)).exists()
    uploads.check(name(9), LARGEST, others[1:])
    assert uploads.make_way(4 * LARGEST, others[1:], 1e9) == others[1:]


def test_finished_files_never_make_way(uploads):
    data = os.urandom(500)
    sha = hashlib.sha256(data).hexdigest()
    uploads.reserve(sha, len(data))
    send(uploads, sha, 0, data)
    uploads.finish(sha)
    assert uploads.make_way(4 * LARGEST, [sha], 1e12) == []
    assert uploads.path(sha).exists()


# -- parts ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [-1, 3, 1_000_000, 10**30])
def test_a_part_that_there_is_not_is_refused(uploads, number):
    uploads.reserve(name(1), 2500)
    with pytest.raises(WireError, match="there are 3"):
        uploads.begin_part(name(1), number, digest(b""))


@pytest.mark.parametrize("header", ["", "sha-256=::", "sha-512=:" + "A" * 43 + "=:", "sha-256=:" + "A" * 10**4 + "=:"])
def test_a_part_without_a_digest_is_refused_before_its_bytes(uploads, header):
    uploads.reserve(name(1), 2500)
    with pytest.raises(WireError, match="Content-Digest"):
        uploads.begin_part(name(1), 0, header)


def test_the_newer_of_two_connections_writes_the_part_and_the_older_is_refused(uploads):
    good, bad = os.urandom(1000), os.urandom(1000)
    sha = hashlib.sha256(good).hexdigest()
    uploads.reserve(sha, 1000)
    old = uploads.begin_part(sha, 0, digest(bad))
    old.write(bad[:500])
    new = uploads.begin_part(sha, 0, digest(good))
    new.write(good)
    with pytest.raises(WireError, match="another connection"):
        old.write(bad[500:])
    new.finish()
    for part in (old, new):
        part.close()
    assert uploads._writing == {}
    assert uploads.finish(sha)[0].read_bytes() == good


def test_a_finished_part_stays_when_an_older_connection_ends_later(uploads):
    good = os.urandom(1000)
    sha = hashlib.sha256(good).hexdigest()
    uploads.reserve(sha, 1000)
    old = uploads.begin_part(sha, 0, digest(good))
    send(uploads, sha, 0, good)
    with pytest.raises(WireError, match="another connection"):
        old.write(bytes(1000))
    old.close()
    assert uploads.finish(sha)[0].read_bytes() == good


def test_two_who_finish_the_same_upload_at_the_same_moment_both_succeed(uploads):
    data = os.urandom(3000)
    sha = hashlib.sha256(data).hexdigest()
    uploads.reserve(sha, len(data))
    for number in range(3):
        send(uploads, sha, number, data[number * 1000 : (number + 1) * 1000])
    begin, results = threading.Barrier(4), []

    def finish():
        begin.wait()
        results.append(uploads.finish(sha))

    threads = [threading.Thread(target=finish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(uploads.path(sha), 3000)] * 4
    assert uploads._finishing == {}


def test_a_file_that_was_finished_but_not_booked_before_a_crash_needs_no_bytes_again(uploads):
    data = os.urandom(100)
    sha = hashlib.sha256(data).hexdigest()
    uploads.reserve(sha, 100)
    send(uploads, sha, 0, data)
    uploads.finish(sha)
    again = Uploads(uploads.folder, SystemDisk(), LARGEST)
    assert again.reserve(sha, 100).missing == ()
    assert again.finish(sha) == (uploads.path(sha), 100)


# -- what is thrown away --------------------------------------------------------------


def test_abandoned_uploads_go_while_the_controller_runs_but_are_looked_for_rarely(uploads):
    uploads.reserve(name(1), 10)
    data = uploads.folder / "incoming" / name(1) / "data"
    begun = data.stat().st_mtime
    uploads.tidy(begun + ABANDONED_S - 1)
    assert data.exists()
    uploads.tidy(begun + ABANDONED_S + 1)
    assert data.exists(), "it has looked a moment ago"
    uploads.tidy(begun + ABANDONED_S + TIDY_S)
    assert not data.parent.exists()
    with pytest.raises(NotFound):
        uploads.begin_part(name(1), 0, digest(b""))


def test_an_upload_that_goes_on_is_not_abandoned(uploads):
    uploads.reserve(name(1), 2000)
    data = uploads.folder / "incoming" / name(1) / "data"
    os.utime(data, (0, 0))
    send(uploads, name(1), 0, bytes(1000))
    uploads.tidy(data.stat().st_mtime + 1)
    assert data.exists()
