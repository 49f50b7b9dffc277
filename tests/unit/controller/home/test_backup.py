"""A backup is the run at one moment, whole and checked; restored, it goes on, and nothing counts twice in it."""

from __future__ import annotations

import errno
import io
import json
import shutil
import tarfile
import threading
from pathlib import Path

import pytest

from controller.home import archive, backup, home, restore
from controller.home.data_ledger import inspect_store
from controller.store import Store, reading, sqlite_file
from curtail import __main__ as entry
from curtail.errors import AuthError, CurtailError, DataError, DiskError, NotFound, Refused, UsageError
from curtail.system.disk import file_sha256


@pytest.fixture
def trained(world):
    """Two versions, and a contribution that waits for its merge."""
    world.ready("a", "job-a"), world.ready("b", "job-b", "B")
    first = world.checkout("a", "job-a").assignment
    assert world.checkout("b", "job-b").kind == "wait"
    world.commit("a", "job-a", first, steps=2)
    work = {site: world.checkout(site, f"job-{site}").assignment for site in ("a", "b")}
    world.commit("a", "job-a", work["a"], steps=3)
    world.work = work["b"]
    return world


def save(world, target, secrets=False):
    return backup.backup(world.home, target, secrets)


def restored(world, world_class, source):
    """The controller that goes on from a backup, in another folder, at the same moment of time."""
    folder = world.home / "restored"
    restore.restore(source, folder, world.clock)
    again = world_class(folder)
    again.clock, again.source = world.clock, world.source
    again.store.call(lambda tx: home.relocate(tx, folder, again.versions))
    again.start()
    return again


@pytest.mark.parametrize("name", ["saved", "saved.tar"])
def test_a_backup_while_the_store_is_open_holds_everything_its_rows_name(trained, tmp_path_factory, name):
    target = tmp_path_factory.mktemp("out") / name
    made = save(trained, target)
    latest = trained.store.call(lambda tx: tx.latest_version())
    (waiting,) = trained.store.call(lambda tx: tx.blobs_of_kind("contribution"))
    assert made.version == latest.version == 1 and f"blobs/{waiting.sha256}" in made.files
    assert {"state.db", "versions/v000001/model.safetensors", "versions/v000001/meta.json"} <= set(made.files)
    assert not [path for path in target.parent.iterdir() if path != target], "nothing is left beside it"
    assert not (trained.home / backup.HOLDING).exists()
    files = [target] if target.is_file() else [path for path in target.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    folder = target.parent / "restored"
    assert restore.restore(target, folder, trained.clock).files == made.files
    assert [problem for _, problem in inspect_store(folder, weights=True) if problem] == []


def test_a_restored_controller_goes_on_and_no_sample_counts_twice(trained, world_class, tmp_path_factory):
    target = tmp_path_factory.mktemp("out") / "saved.tar"
    save(trained, target)
    old_fence, old_work = trained.who("b").fence, trained.work
    # the lost future: the round is merged, another site comes, an agent joins anew, three more versions
    trained.commit("b", "job-b", trained.work, steps=1)
    assert trained.join("b").fence == old_fence + 1
    trained.ready("late", "job-late", "B")
    lost = trained.checkout("a", "job-a").assignment
    trained.commit("a", "job-a", lost, steps=2)
    future = trained.status()
    assert future.version >= 2 and future.tokens > 0
    credential = trained.join("b").credential

    again = restored(trained, world_class, target)
    try:
        status = again.status()
        assert (status.version, status.tokens) == (1, 64) and status.tokens < future.tokens
        assert any(e.kind == restore.EVENT and "at version 1, 64 tokens" in e.text for e in status.events)
        late_commit(again, "a", "job-a", lost)
        with pytest.raises(AuthError):
            again.authenticate(credential)
        with pytest.raises(ValueError, match="not enough values"):
            again.who("late")
        assert again.join("b").fence == old_fence + 1, "an agent that the backup does not know joins again"
        again.ready("late", "job-late", "B")
        for site, job, region in (("a", "job-a", "A"), ("b", "job-b2", "B")):
            again.tick()
            assert again.beat(site, job, "start").granted, region
        late_commit(again, "b", "job-b", old_work)
        for _ in range(4):
            for site, job in (("a", "job-a"), ("b", "job-b2"), ("late", "job-late")):
                reply = again.checkout(site, job)
                if reply.kind == "train":
                    again.commit(site, job, reply.assignment, steps=1)
                again.beat(site, job, "train"), again.tick(0.5)
            again.merge()
            again.check()
        after = again.status()
        assert after.version > 2 and after.tokens > 64 and after.tokens == sum(s.tokens for s in after.sites)
    finally:
        again.store.close()


def test_files_that_the_controller_removes_meanwhile_make_the_copy_begin_anew(trained, tmp_path, monkeypatch):
    copies, copy = [], sqlite_file.copy_file

    def copy_and_lose(source, target):
        copy(source, target)
        copies.append(target)
        if len(copies) == 1:  # the controller merges and prunes between the copy and the second names
            trained.commit("b", "job-b", trained.work, steps=1)
            shutil.rmtree(trained.versions.path(0))
            trained.store.call(lambda tx: tx.set_version(0, kept=0))

    monkeypatch.setattr(backup, "copy_file", copy_and_lose)
    made = save(trained, tmp_path.parent / f"{tmp_path.name}-saved")
    assert len(copies) == 2 and made.version == 2
    assert not any(name.startswith(("versions/v000000", "blobs/")) for name in made.files)


def test_a_held_file_outlives_its_removal(trained, tmp_path_factory, monkeypatch):
    held, write = [], archive.write

    def prune_and_write(target, fill):
        held.extend(sorted(path.name for path in (trained.home / backup.HOLDING).rglob("*") if path.is_file()))
        trained.versions.remove(0)
        for blob in trained.store.call(lambda tx: tx.blobs_of_kind("contribution")):
            trained.uploads.remove(blob.sha256)
        return write(target, fill)

    monkeypatch.setattr(backup, "write", prune_and_write)
    target = tmp_path_factory.mktemp("out") / "saved"
    made = save(trained, target)
    assert len(held) == len(made.files)
    restore.restore(target, target.parent / "restored", trained.clock)


def test_a_backup_while_the_store_is_written_to_is_one_moment(trained, tmp_path_factory):
    stop, count = threading.Event(), [0]

    def write():
        while not stop.is_set():
            count[0] += 1
            trained.store.call(lambda tx: (tx.add_event(count[0], 0.0, "x", "one"), tx.add_event(0.0, 0.0, "x", "two")))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        folder = tmp_path_factory.mktemp("out")
        for n in range(3):
            save(trained, folder / f"saved{n}")
    finally:
        stop.set()
        thread.join()
    for n in range(3):
        with reading(folder / f"saved{n}" / "state.db") as tx:
            texts = [event.text for event in tx.last_events(10**6) if event.kind == "x"]
        assert texts.count("one") == texts.count("two")


def test_secrets_are_in_it_only_when_asked_for_and_come_back_for_their_owner_only(trained, tmp_path_factory):
    (trained.home / "join-token").write_text("ct0.id.secret\n")
    (trained.home / "tls").mkdir()
    (trained.home / "tls" / "ca.key").write_text("key")
    out = tmp_path_factory.mktemp("out")
    assert not [name for name in save(trained, out / "plain").files if "secrets" in name]
    made = save(trained, out / "full.tar", secrets=True)
    assert {"secrets/join-token", "secrets/tls/ca.key"} <= set(made.files) and made.secrets
    restore.restore(out / "full.tar", out / "restored", trained.clock)
    for name in ("join-token", "tls/ca.key"):
        assert (out / "restored" / name).read_text() == (trained.home / name).read_text()
        assert (out / "restored" / name).stat().st_mode & 0o777 == 0o600
    restore.restore(out / "plain", out / "without", trained.clock)
    assert not (out / "without" / "join-token").exists()


def test_a_backup_is_not_written_over_another_nor_into_its_own_home_nor_without_room(
    trained, tmp_path_factory, monkeypatch
):
    out = tmp_path_factory.mktemp("out")
    (out / "there").mkdir()
    with pytest.raises(Refused, match="exists already"):
        save(trained, out / "there")
    with pytest.raises(UsageError, match="lies inside the folder"):
        save(trained, trained.home / "saved")
    with pytest.raises(UsageError, match="does not exist"):
        save(trained, out / "no" / "saved")
    with pytest.raises(NotFound, match="no store"):
        backup.backup(out / "there", out / "saved", False)
    monkeypatch.setattr(backup.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(DiskError, match="has only 5"):
        save(trained, out / "saved")
    assert [path.name for path in out.iterdir()] == ["there"]


def test_a_damaged_file_of_the_run_is_named_and_no_backup_is_left(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    weights = trained.versions.path(1) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"\0\1"[: 1 + (whole[-1] == 0)][-1:])
    with pytest.raises(DataError, match=r"v000001/model\.safetensors is damaged"):
        save(trained, out / "saved")
    weights.unlink()
    with pytest.raises(DataError, match=r"model\.safetensors is missing"):
        save(trained, out / "saved")
    assert list(out.iterdir()) == []


def change_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_restore_refuses_what_is_damaged_lacking_or_foreign_and_leaves_nothing(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    save(trained, out / "good")
    changes = {
        "damaged": (lambda f: change_byte(f / "versions/v000001/model.safetensors"), "is damaged"),
        "store": (lambda f: change_byte(f / "state.db"), r"state\.db .*is damaged"),
        "lacking": (lambda f: (f / "versions/v000001/meta.json").unlink(), "versions/v000001/meta.json is missing in"),
        "foreign": (lambda f: (f / "evil.sh").write_text("x"), "which is not allowed in a backup"),
        "manifest": (lambda f: (f / "manifest.json").write_text("{}"), "has no valid manifest"),
        "link": (lambda f: (f / ("0" * 64)).symlink_to("/etc/passwd"), "neither a file nor a folder"),
    }
    for name, (change, words) in changes.items():
        folder = shutil.copytree(out / "good", out / name)
        change(folder)
        with pytest.raises(CurtailError, match=words):
            restore.restore(folder, out / "new", trained.clock)
        assert not (out / "new").exists() and not list(out.glob(".*"))
    with pytest.raises(NotFound):
        restore.restore(out / "nothing", out / "new", trained.clock)


def test_a_restore_checks_that_the_rows_find_their_files_and_that_the_ledger_balances(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    made = save(trained, out / "good")

    def forge(name, change):
        """A backup whose hashes are right and whose content is not."""
        folder = shutil.copytree(out / "good", out / name)
        change(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"] = {
            p.relative_to(folder).as_posix(): {"sha256": file_sha256(p), "size": p.stat().st_size}
            for p in folder.rglob("*")
            if p.is_file() and p.name != "manifest.json"
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    def lose_tokens(folder):
        store = Store(folder / "state.db")
        store.open()
        store.call(lambda tx: tx.set_run(tokens=made.tokens + 32))
        store.close()

    (blob,) = [name for name in made.files if name.startswith("blobs/")]
    with pytest.raises(DataError, match=f"{blob} is missing in"):
        restore.restore(forge("a", lambda folder: (folder / blob).unlink()), out / "new", trained.clock)
    with pytest.raises(DataError, match=r"the ledger in .* is broken"):
        restore.restore(forge("b", lose_tokens), out / "new", trained.clock)


def late_commit(world, site, job, assignment):
    """What a job finished on a version that this controller does not have."""
    world.contribution = lambda *_: (world.upload(b"from the lost future"), "")
    with pytest.raises(Refused):
        world.commit(site, job, assignment, steps=1)
    del world.contribution


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "secrets/..", "versions/../../evil", "blobs/x", "secrets/.hidden"]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="which is not allowed in a backup"):
        archive.unpack(tmp_path / "evil.tar", tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []


def test_links_and_torn_tar_files_are_refused(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    with tarfile.open(out / "link.tar", "w") as tar:
        info = tarfile.TarInfo("state.db")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match="not a regular file"):
        restore.restore(out / "link.tar", out / "new", trained.clock)
    save(trained, out / "good.tar")
    whole = (out / "good.tar").read_bytes()
    for share in (0.2, 0.6, 0.9):
        (out / "torn.tar").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError):
            restore.restore(out / "torn.tar", out / "new", trained.clock)
    assert not (out / "new").exists()


def test_a_folder_with_something_in_it_is_never_restored_over(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    save(trained, out / "saved")
    (out / "full").mkdir()
    (out / "full" / "mine").write_text("x")
    for home_ in (out / "full", out / "saved" / "state.db"):
        with pytest.raises(Refused, match="is not empty"):
            restore.restore(out / "saved", home_, trained.clock)
    (out / "empty").mkdir()
    restore.restore(out / "saved", out / "empty", trained.clock)
    assert (out / "empty" / "state.db").is_file()


def test_a_backup_that_was_killed_is_cleared_and_two_at_once_are_refused(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    left = trained.home / backup.HOLDING / "versions"
    left.mkdir(parents=True)
    (left / "old").write_text("x")
    save(trained, out / "saved")
    assert not left.exists()
    with backup._holding(trained.home), pytest.raises(Refused, match="another backup"):
        save(trained, out / "second")


@pytest.mark.parametrize("name", ["saved", "saved.tar"])
def test_a_disk_that_fills_up_meanwhile_leaves_no_half_backup(trained, tmp_path_factory, name):
    out = tmp_path_factory.mktemp("out")

    class Full(io.BytesIO):
        def read(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

    def fill(sink):
        sink.add("state.db", 3, io.BytesIO(b"abc"))
        sink.add(f"blobs/{'0' * 64}", 3, Full())

    with pytest.raises(DiskError, match="No space left"):
        archive.write(out / name, fill)
    assert list(out.iterdir()) == []


def test_the_commands_say_what_was_saved_and_restored_and_how_to_go_on(trained, tmp_path_factory, capsys):
    out = tmp_path_factory.mktemp("out")
    words = ["controller", "backup", str(out / "saved.tar"), "--home", str(trained.home)]
    assert entry.run(words) == 0
    assert "run test at version 1, 64 tokens" in capsys.readouterr().out
    assert entry.run(words) == Refused.exit_code
    captured = capsys.readouterr()
    assert captured.out == "" and "exists already" in captured.err
    assert entry.run(["controller", "restore", str(out / "saved.tar"), "--home", str(out / "new")]) == 0
    text = capsys.readouterr().out
    assert "data ledger are sound" in text and f"--home {out / 'new'}" in text and "new join token" in text
    assert entry.run(["controller", "restore", str(out / "no"), "--home", str(out / "newer")]) == NotFound.exit_code
