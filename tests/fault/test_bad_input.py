"""What people get wrong: one clear line on stderr, an exit code that is not 0, and nothing lost.

No job starts here: the one controller that runs has a region that is never curtailed.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import socket
import subprocess
import threading

import pytest

from controller.files.versions import Versions
from controller.home import home as homes
from controller.store import Store
from curtail.config import load_config
from curtail.system.clock import SystemClock

pytestmark = pytest.mark.fault

USAGE, NOT_FOUND, NOT_ALLOWED, UNREACHABLE, FAILURE, CONFLICT = 2, 3, 4, 5, 1, 7


def complaint(done, code):
    """The one line of a command that was refused with `code`."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == code, done.stderr
    assert len(lines) == 1 and lines[0].startswith("curtail: "), done.stderr
    assert done.stdout == ""
    return lines[0].removeprefix("curtail: ")


def contents(folder):
    """Hash of every file below `folder`, but for the lock, which holds nothing."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def idle(module_fleet):
    """A controller that runs and whose region is never curtailed, with one agent that waits."""
    module_fleet.write_run()
    module_fleet.write_trace([(3600, "")])
    module_fleet.start_controller()
    module_fleet.start_agent("a", "A")
    module_fleet.until("the agent has joined", lambda status: len(status.sites) == 1)
    return module_fleet


@pytest.fixture(scope="module")
def begun(module_fleet, tmp_path_factory):
    """A home in which a run has begun and no process runs; to be copied, not used."""
    module_fleet.write_run()
    config, folder = load_config(module_fleet.run_file), tmp_path_factory.mktemp("begun") / "home"
    folder.mkdir()
    store = Store(folder / "state.db")
    store.open()
    try:
        homes.begin_or_continue(
            folder, config, homes.load_data(config), store, Versions(folder / "versions"), module_fleet.START,
            SystemClock(),
        )  # fmt: skip
    finally:
        store.close()
    return folder


@pytest.fixture
def home(begun, tmp_path):
    """A copy of the begun run's home."""
    return shutil.copytree(begun, tmp_path / "home", symlinks=True)


@pytest.fixture
def start(command, module_fleet, tmp_path):
    """start(home=..., ...) runs `curtail controller start` that must be refused."""
    module_fleet.write_run()
    module_fleet.write_trace([(3600, "")])

    def run(home=tmp_path / "new", run_file=module_fleet.run_file, unit="g/kWh", trace=module_fleet.trace_file, port=0,
            flags=()):  # fmt: skip
        return command(
            "controller", "start", run_file, "--home", home, "--trace", trace, "--unit", unit, "--speed", 60,
            "--port", port, "--no-announce", *flags, seconds=60,
        )  # fmt: skip

    return run


@pytest.fixture
def join(command, tmp_path):
    """join(url, ...) runs `curtail agent join` that must be refused."""

    def run(url, site="x", region="A", home=tmp_path / "agent", flags=(), **variables):
        return command(
            "agent", "join", url, "--site", site, "--region", region, "--home", home, *flags, seconds=60, **variables
        )

    return run


@pytest.fixture
def token(idle):
    """The flags that admit to the idle controller."""
    return ("--token-file", idle.home / "join-token")


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(options) mounts a file system of four megabytes, if this machine lets us."""
    mounted = []

    def mount(options="size=4m"):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "curtail-test", folder], capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    try:
        yield mount
    finally:
        for folder in mounted:
            subprocess.run(["umount", "-l", folder], check=False)


def fill(folder, leave=0):
    """Use up the file system, but for `leave` bytes."""
    with open(folder / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - leave))


# -- addresses --------------------------------------------------------------


def test_joining_where_nobody_listens_says_so(join, taken_port):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = complaint(join(f"http://127.0.0.1:{port}", CURTAIL_TOKEN="ct0.aa.bb"), UNREACHABLE)
    assert line.startswith(f"nobody answers at http://127.0.0.1:{port}")


@pytest.mark.parametrize(("code", "body"), [(404, b"<html>nothing here</html>"), (200, b'{"welcome": true}')])
def test_joining_what_is_no_controller_says_so(join, code, body):
    class Stranger(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            done = join(f"http://127.0.0.1:{server.server_address[1]}", CURTAIL_TOKEN="ct0.aa.bb")
        finally:
            server.shutdown()
            thread.join()
    assert done.returncode not in (0, None)
    assert complaint(done, done.returncode)


@pytest.mark.parametrize("url", ["nonsense", "http://192.0.2.1:8765", "ftp://127.0.0.1"])
def test_an_address_that_cannot_be_one_is_refused(join, url):
    assert url.split("/")[-1].split(":")[0] in complaint(join(url, CURTAIL_TOKEN="ct0.aa.bb"), USAGE)


def test_status_of_nobody_says_so(command):
    assert "http://127.0.0.1:9" in complaint(command("status", "http://127.0.0.1:9", "--json"), UNREACHABLE)


def test_a_port_in_use_is_named_and_no_home_is_made(start, taken_port, tmp_path):
    line = complaint(start(port=taken_port), FAILURE)
    assert f"127.0.0.1:{taken_port}" in line and "--port" in line
    assert not (tmp_path / "new").exists()


def test_listening_beyond_loopback_in_clear_is_refused(start, tmp_path):
    line = complaint(start(flags=("--host", "0.0.0.0", "--no-tls")), USAGE)
    assert "--no-tls at 0.0.0.0 would send credentials unencrypted" in line and "--insecure" in line
    assert not (tmp_path / "new").exists()


# -- who may join --------------------------------------------------------------


def test_a_wrong_token_is_refused(idle, join, tmp_path):
    for text in ("curtail1.0123456789abcdef.0123456789abcdef", "not-a-token"):
        line = complaint(join(idle.url, CURTAIL_TOKEN=text), NOT_ALLOWED)
        assert "token" in line and text not in line
    assert not (tmp_path / "agent" / "credential").exists()


def test_a_missing_token_is_asked_for(idle, join):
    assert "--token-file" in complaint(join(idle.url), NOT_ALLOWED)


def test_a_missing_token_file_is_named(idle, join, tmp_path):
    assert "no-token" in complaint(join(idle.url, flags=("--token-file", tmp_path / "no-token")), NOT_FOUND)


def test_an_unknown_region_is_refused_with_the_known_ones(idle, join, token):
    line = complaint(join(idle.url, region="NOWHERE", flags=token), NOT_FOUND)
    assert "'NOWHERE'" in line and "A, B" in line


def test_a_second_agent_in_the_same_home_is_refused(idle, join, token):
    line = complaint(join(idle.url, site="a", home=idle.folder / "home-a", flags=token), CONFLICT)
    assert f"process {idle.agents['a'].pid}" in line
    assert idle.agents["a"].running()


def test_a_site_of_another_agent_cannot_be_taken_over(idle, join, token):
    line = complaint(join(idle.url, site="a", flags=token), CONFLICT)
    assert "already served by another agent" in line
    assert idle.agents["a"].running()


# -- files -----------------------------------------------------------------------


def test_a_missing_trace_is_named(start, tmp_path):
    assert "no-trace.csv" in complaint(start(trace=tmp_path / "no-trace.csv"), NOT_FOUND)
    assert not (tmp_path / "new").exists()


def test_an_unknown_unit_is_refused_with_the_known_ones(start):
    line = complaint(start(unit="kg/MWh"), USAGE)
    assert "g/kWh" in line and "lb/MWh" in line


def test_a_trace_without_the_region_is_refused_with_its_columns(start, tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("point_time,X\n2026-03-01T10:00:00Z,1\n2026-03-01T10:05:00Z,1\n")
    assert "no column 'A': it has X" in complaint(start(trace=trace), FAILURE)


def test_a_missing_run_file_is_named(start, tmp_path):
    assert "no-run.toml" in complaint(start(run_file=tmp_path / "no-run.toml"), NOT_FOUND)


def test_an_unknown_key_of_the_run_file_is_named_with_the_likely_one(start, tmp_path, module_fleet):
    run_file = tmp_path / "run.toml"
    run_file.write_text(module_fleet.run_file.read_text().replace("batch_samples", "batch_sample"))
    line = complaint(start(run_file=run_file), USAGE)
    assert "[training]: unknown key 'batch_sample': did you mean batch_samples?" in line


def test_data_that_are_not_there_are_named(start, tmp_path, module_fleet):
    run_file = tmp_path / "run.toml"
    run_file.write_text(module_fleet.run_file.read_text().replace(str(module_fleet.data), "no-data"))
    assert "no-data" in complaint(start(run_file=run_file), NOT_FOUND)
    assert not (tmp_path / "new").exists()


# -- the controller's home ----------------------------------------------------------


def test_a_second_controller_on_the_same_home_is_refused(idle, start):
    assert "another controller already uses" in complaint(start(home=idle.home), CONFLICT)
    assert idle.status() is not None


def test_the_home_of_another_run_is_left_alone(start, home, tmp_path, module_fleet):
    run_file, before = tmp_path / "run.toml", contents(home)
    run_file.write_text(module_fleet.run_file.read_text().replace("seed = 7", "seed = 8"))
    line = complaint(start(home=home, run_file=run_file), USAGE)
    assert "[run] seed = 7, but the run file has 8" in line
    assert contents(home) == before


def test_a_store_that_is_no_database_is_left_alone(start, home):
    (home / "state.db").write_bytes(b"this is no database" * 1000)
    before = contents(home)
    assert f"{home / 'state.db'} is damaged" in complaint(start(home=home), FAILURE)
    assert contents(home) == before


def test_a_store_with_a_damaged_page_is_refused(start, home):
    store = home / "state.db"
    data = bytearray(store.read_bytes())
    for at in range(4096, len(data), 4096):
        data[at : at + 64] = os.urandom(64)
    store.write_bytes(data)
    assert "is damaged" in complaint(start(home=home), FAILURE)
    assert store.read_bytes() == bytes(data)


def test_damaged_weights_are_refused(start, home):
    path = home / "versions" / "v000000" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "version 0" in complaint(start(home=home), FAILURE)


def test_a_home_that_is_a_file_is_refused(start, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    assert str(file) in complaint(start(home=file), FAILURE)
    assert file.read_text() == "mine"


def test_a_read_only_home_is_refused(start, home, small_disk):
    disk = small_disk()
    shutil.copytree(home, disk / "home", symlinks=True)
    before = contents(disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    line = complaint(start(home=disk / "home"), FAILURE)
    assert "ead-only" in line or "readonly" in line
    assert "ead-only" in complaint(start(home=disk / "other"), FAILURE)
    assert contents(disk) == before


def test_a_full_disk_is_named_at_the_start_of_a_run(start, small_disk):
    disk = small_disk("size=1m")
    line = complaint(start(home=disk / "home"), FAILURE)
    assert "No space left" in line or "disk is full" in line


def test_a_run_on_a_full_disk_keeps_what_it_has(start, home, small_disk):
    disk = small_disk("size=16m")
    folder = shutil.copytree(home, disk / "home", symlinks=True)
    versions = contents(folder / "versions")
    fill(disk)
    line = complaint(start(home=folder), FAILURE)
    assert "No space left" in line or "disk is full" in line
    (disk / "filler").unlink()
    assert contents(folder / "versions") == versions
    store = Store(folder / "state.db")
    store.open()
    try:
        assert store.call(lambda tx: tx.ledger_problems()) == []
        assert store.call(lambda tx: tx.latest_version().version) == 0
    finally:
        store.close()


# -- the agent's home ----------------------------------------------------------------


def test_an_agents_home_that_is_a_file_is_refused(idle, join, token, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    assert str(file) in complaint(join(idle.url, home=file, flags=token), FAILURE)
    assert "/proc/curtail" in complaint(join(idle.url, home="/proc/curtail", flags=token), FAILURE)


def test_an_agents_home_on_a_full_or_read_only_disk_is_refused(idle, join, token, small_disk):
    disk = small_disk()
    fill(disk)
    line = complaint(join(idle.url, home=disk / "agent", flags=token), FAILURE)
    assert "No space left" in line
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert "ead-only" in complaint(join(idle.url, home=disk / "other", flags=token), FAILURE)
