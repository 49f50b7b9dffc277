"""Large files leave the disk beside the store's thread."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from controller.aggregation import process
from controller.files import trash
from controller.files.trash import Trash
from controller.files.uploads import Uploads
from curtail.errors import DiskError
from curtail.system.disk import SystemDisk

NAME = "1" * 64
Usage = namedtuple("Usage", "total used free")


def test_a_name_is_free_at_once_and_the_room_when_the_thread_has_come_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(trash, "STEP", 1000)
    gone = Trash(tmp_path / "removed")
    for content in (b"x" * 4500, b"y"):
        (tmp_path / "file").write_bytes(content)
        gone.take(tmp_path / "file")
        assert not (tmp_path / "file").exists()
    gone.wait()
    assert list((tmp_path / "removed").iterdir()) == []


def test_a_folder_goes_with_all_that_is_in_it(tmp_path):
    gone = Trash(tmp_path / "removed")
    (tmp_path / "v000001" / "inner").mkdir(parents=True)
    (tmp_path / "v000001" / "inner" / "file").write_bytes(b"x")
    gone.take(tmp_path / "v000001")
    assert not (tmp_path / "v000001").exists()
    gone.wait()
    assert list((tmp_path / "removed").iterdir()) == []


def test_a_file_with_another_name_and_what_a_link_leads_to_stay_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(trash, "STEP", 2)
    (tmp_path / "file").write_bytes(b"content")
    os.link(tmp_path / "file", tmp_path / "other")
    (tmp_path / "link").symlink_to("other")
    trash.free(tmp_path / "file")
    trash.free(tmp_path / "link")
    assert (tmp_path / "other").read_bytes() == b"content"


def test_what_a_crash_left_is_freed_by_the_next_controller(tmp_path):
    (tmp_path / "removed").mkdir()
    (tmp_path / "removed" / "file.0123").write_bytes(b"x")
    uploads = Uploads(tmp_path / "blobs", SystemDisk(), 1000)
    uploads.purge(0.0)
    uploads._removals.wait()
    assert list((tmp_path / "removed").iterdir()) == []


def test_a_file_that_cannot_be_removed_is_noted_and_nothing_fails(tmp_path, monkeypatch, caplog):
    def refuse(*paths):
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setattr(os, "rename", refuse)
    Trash(tmp_path / "removed").take(tmp_path / "file")
    assert "cannot delete" in caplog.text and "Read-only" in caplog.text
    Trash(tmp_path / "removed").take(tmp_path / "not there")


def test_a_full_disk_refuses_an_upload_only_when_all_that_was_removed_is_freed(tmp_path, monkeypatch):
    uploads = Uploads(tmp_path / "blobs", SystemDisk(), 1000)
    uploads.folder.mkdir()
    uploads.path(NAME).write_bytes(b"x")
    uploads.remove(NAME)

    def usage(path):
        return Usage(0, 0, 0 if list((tmp_path / "removed").iterdir()) else 1 << 40)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert uploads.reserve("2" * 64, 10).missing == (0,)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 0))
    with pytest.raises(DiskError, match="the upload needs 10"):
        uploads.reserve("3" * 64, 10)


def test_a_merge_stands_back_for_the_api():
    code = "import os; print(os.nice(0))"
    told = subprocess.run(
        [sys.executable, "-c", code], preexec_fn=process._beneath(os.getpid()), capture_output=True, text=True
    )
    assert int(told.stdout) == min(19, os.nice(0) + process.NICE)
