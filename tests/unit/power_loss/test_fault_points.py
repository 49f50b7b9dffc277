"""kill -9 of the controller at every step of a commit, from the first part of the upload to the published version.

Each fault point is a place between two durable operations. A forked process
with a real store, real uploads and a real merge ends there at once, without
cleaning up; then a new controller starts on what is on disk.
"""

from __future__ import annotations

import base64
import hashlib
import os
import traceback
import warnings
from pathlib import Path

import pytest

from controller.files import uploads as blobs
from controller.files import versions
from controller.home.data_ledger import look
from controller.rounds.lifecycle import Member
from controller.service.service import Service
from controller.store import Transaction
from controller.store.rows import BlobRow
from curtail import wire
from curtail.system.disk import SystemDisk
from curtail.system.home_files import UPDATE_FILE

DIED = 9
PART = 4096
"""Bytes of a part here: the contributions of this model have two or more."""

BEFORE, AFTER = "before", "after"

POINTS = {
    "an upload is reserved": (AFTER, blobs.Uploads, "reserve"),
    "the first part is written, not safe": (BEFORE, os, "fsync"),
    "the first part is safe, not marked": (AFTER, os, "fsync"),
    "the first part is marked": (AFTER, blobs.PartFile, "finish"),
    "all parts are there, the whole is not checked": (BEFORE, blobs.Uploads, "finish"),
    "the whole is checked, not at its place": (BEFORE, SystemDisk, "publish", "BLOB"),
    "the file is at its place, no row names it": (AFTER, SystemDisk, "publish", "BLOB"),
    "the row of the file is written, not durable": (AFTER, Transaction, "put_blob"),
    "the upload is complete, the commit not begun": (BEFORE, Service, "commit"),
    "the commit is booked, not durable": (AFTER, Service, "commit"),
    "the commit is durable, the merge not asked for": (BEFORE, "merger", "start"),
    "the merge is asked for, not begun": (AFTER, "merger", "start"),
    "the update is written, not at its place": (BEFORE, SystemDisk, "publish", "VERSION_UPDATE"),
    "the update is at its place": (AFTER, SystemDisk, "publish", "VERSION_UPDATE"),
    "the weights are written, not at their place": (BEFORE, SystemDisk, "publish", "CHECKPOINT_MODEL"),
    "the weights are at their place": (AFTER, SystemDisk, "publish", "CHECKPOINT_MODEL"),
    "the facts of the version are not written": (BEFORE, SystemDisk, "replace", "CHECKPOINT_META"),
    "the facts of the version are written": (AFTER, SystemDisk, "replace", "CHECKPOINT_META"),
    "the merge is done, its result not taken": (BEFORE, Service, "_publish"),
    "the folder is complete, not at its place": (BEFORE, versions.Versions, "publish"),
    "the folder is at its place, not safe": (BEFORE, versions, "fsync_folder"),
    "the folder is at its place, no row names it": (AFTER, versions.Versions, "publish"),
    "the version is booked, not durable": (AFTER, Service, "_publish"),
    "the version is durable, its contributions not removed": (BEFORE, blobs.Uploads, "remove"),
    "one contribution is removed": (AFTER, blobs.Uploads, "remove"),
    "the oldest version is not removed": (BEFORE, versions.Versions, "remove"),
    "the oldest version is removed": (AFTER, versions.Versions, "remove"),
}
"""Name -> when, where, which operation, and its purpose if it has one. In the order of a commit."""

BOTH = [(kind, point) for kind in ("LOCAL", "FEDERATED") for point in POINTS]
CASES = [case for case in BOTH if case[0] == "FEDERATED" or "update" not in case[1]]  # a sole site has no update


def die_at(point, world):
    """From now on this process ends at `point`."""
    when, owner, name, *purpose = POINTS[point]
    owner = world.merger if owner == "merger" else owner
    original = getattr(owner, name)

    def dying(*args, **kwargs):
        here = not purpose or purpose[0] in args
        if here and when == BEFORE:
            os._exit(DIED)
        result = original(*args, **kwargs)
        if here:
            os._exit(DIED)
        return result

    setattr(owner, name, dying)


def in_a_process(action):
    """The exit code of a forked process that carries out `action`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the store's threads of other tests are not used there
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hand_in(world, data, request):
    """A job uploads its contribution and commits it, as the HTTP face carries it out."""
    uploads, name = world.uploads, request.blob
    if world.store.call(lambda tx: tx.blob(name)) is None:
        for number in uploads.reserve(name, len(data)).missing:
            body = data[number * PART : (number + 1) * PART]
            check = base64.b64encode(hashlib.sha256(body).digest()).decode()
            with uploads.begin_part(name, number, f"sha-256=:{check}:") as part:
                part.write(body)
                part.finish()
        path, size = uploads.finish(name)
        world.store.call(lambda tx: tx.put_blob(BlobRow(name, str(path), size, "contribution")))
    who = world.who(request.site)
    return world.store.call(lambda tx: world.service.commit(tx, who, request))


def prepared(world, kind):
    """Two versions, and a round in which only a's contribution is missing; its bytes and its commit."""
    world.source.mci = {"A": 50.0, "B": 60.0}
    world.ready("a", "job-a")
    for _ in range(2):
        world.commit("a", "job-a", world.checkout("a", "job-a").assignment, steps=1)
    world.merger.automatic = False
    if kind == "FEDERATED":
        world.ready("b", "job-b", "B")
        theirs = world.checkout("b", "job-b").assignment
        work = world.checkout("a", "job-a").assignment
        world.commit("b", "job-b", theirs, steps=3)
    else:
        work = world.checkout("a", "job-a").assignment
    blob, digest = world.contribution(work, 0.25)
    data = world.uploads.path(blob).read_bytes()
    world.store.call(lambda tx: tx.drop_blob(blob))
    world.uploads.remove(blob)
    request = wire.CommitRequest(
        "a", world.who("a").fence, "job-a", work.round, work.base_version, work.base_digest, 5, 20, 160, blob,
        work.codec, digest, 4.0, 3.0, 2.0, 1.0, work.keep,
    )  # fmt: skip
    return data, request


def goes_on(world_class, home, kind, data, request, acknowledged):
    """A new controller starts on what is on disk: nothing is lost that was acknowledged, and nothing counts twice."""
    after = world_class(home, part_bytes=PART, keep_versions=2)
    try:
        after.merger.automatic = False
        found = look(home, weights=True)
        assert [problem for _, problem in found if problem] == []
        assert after.store.call(lambda tx: tx.latest_version()).version in (2, 3)
        mine = after.store.call(lambda tx: tx.member(request.round, "a"))
        if acknowledged.exists():
            assert mine.receipt == acknowledged.read_text()
            assert Member(mine.state) in (Member.COMMITTED, Member.MERGED)
        receipt = hand_in(after, data, request)  # the job knows no better than to send it again
        assert not mine.receipt or (receipt.receipt, receipt.repeated) == (mine.receipt, True)
        after.source.mci = {"A": 50.0, "B": 60.0}
        after.tick()
        after.merge()
        status = after.status()
        assert (status.version, status.tokens) == (3, 2 * 32 + 160 + (96 if kind == "FEDERATED" else 0))
        assert (after.versions.path(3) / UPDATE_FILE).exists() == (kind == "FEDERATED")
        assert [problem for _, problem in look(home, weights=True) if problem] == []
        assert after.store.call(lambda tx: tx.refused_in_a_row()) == 0
    finally:
        after.store.close()


@pytest.mark.parametrize(("kind", "point"), CASES, ids=[f"{kind}: {point}" for kind, point in CASES])
def test_a_controller_killed_at_any_step_of_a_commit_loses_and_doubles_nothing(world_class, tmp_path, kind, point):
    world = world_class(tmp_path, part_bytes=PART, keep_versions=2)
    data, request = prepared(world, kind)
    assert len(data) > PART
    world.store.close()
    acknowledged = Path(tmp_path, "acknowledged")

    def controller():
        again = world_class(tmp_path, part_bytes=PART, keep_versions=2)
        again.merger.automatic = False
        die_at(point, again)
        receipt = hand_in(again, data, request)
        acknowledged.write_text(receipt.receipt)
        again.merge()

    assert in_a_process(controller) == DIED
    goes_on(world_class, tmp_path, kind, data, request, acknowledged)


def test_without_a_fault_the_same_process_comes_to_its_end(world_class, tmp_path):
    world = world_class(tmp_path, part_bytes=PART, keep_versions=2)
    data, request = prepared(world, "FEDERATED")
    world.store.close()

    def controller():
        again = world_class(tmp_path, part_bytes=PART, keep_versions=2)
        again.merger.automatic = False
        hand_in(again, data, request)
        again.merge()
        assert again.status().version == 3

    assert in_a_process(controller) == 0
