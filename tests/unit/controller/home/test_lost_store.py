"""A folder with versions of a run, but without the store that knows them: nothing may begin anew in it."""

from __future__ import annotations

import pytest

from controller.files.versions import Versions
from controller.home import home as homes
from controller.home.data_ledger import inspect_store
from curtail import __main__ as entry
from curtail.commands.doctor import folder
from curtail.errors import CheckpointError, CurtailError


@pytest.fixture(params=["missing", "empty"])
def lost(request, tmp_path):
    """The folder of a run whose store is gone, or a file without content, as some file systems leave it."""
    (tmp_path / "versions" / "v000012").mkdir(parents=True)
    if request.param == "empty":
        (tmp_path / "state.db").touch()
    return tmp_path


def test_no_controller_begins_over_the_versions_of_a_run_whose_store_is_lost(lost):
    before = sorted(lost.rglob("*"))
    with pytest.raises(CurtailError, match=r"has v000012 of a run, but its store .* is (missing|empty)") as refused:
        homes.lock(lost)
    assert "restore a backup" in str(refused.value)
    assert sorted(set(lost.rglob("*")) - {lost / "lock"}) == before


def test_the_folder_is_not_held_by_the_refusal_and_can_be_used_once_the_store_is_back(lost):
    with pytest.raises(CurtailError):
        homes.lock(lost)
    (lost / "state.db").write_bytes(b"a store")
    homes.lock(lost).close()


def test_a_new_folder_and_one_whose_first_start_was_killed_are_begun(tmp_path):
    homes.lock(tmp_path / "new").close()
    (tmp_path / "killed" / "versions" / "v000000").mkdir(parents=True)
    homes.lock(tmp_path / "killed").close()


def test_doctor_and_every_command_that_reads_say_that_it_is_lost(lost, capsys):
    with pytest.raises(CurtailError, match="has v000012 of a run"):
        folder.state(lost)
    with pytest.raises(CurtailError, match=r"empty|there is no store"):
        inspect_store(lost, weights=False)
    assert entry.run(["token", "create", "--home", str(lost)]) in (1, 3)
    assert "v000012" in (said := capsys.readouterr().err) or "there is no run" in said


@pytest.mark.parametrize("files", [(), ("meta.json",), ("meta.json", "model.safetensors")])
def test_a_version_whose_files_are_gone_or_empty_is_damaged_and_a_backup_is_the_remedy(tmp_path, files):
    folder_of_it = tmp_path / "versions" / "v000003"
    folder_of_it.mkdir(parents=True)
    for name in files:
        (folder_of_it / name).touch()
    with pytest.raises(CheckpointError, match=r"version 3 in .*v000003 is damaged: .*: restore the folder from"):
        Versions(tmp_path / "versions").verify(3, "digest")


def test_doctor_says_that_a_file_is_no_folder(tmp_path):
    file = tmp_path / "run.toml"
    file.touch()
    (finding,) = folder.state(file)
    assert finding.level.value == "fail" and "is a file" in finding.found
