"""Fetching a published data set: from a stand-in host on loopback that cuts, lies and refuses, and from a folder."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curtail.__main__ import run as curtail
from curtail.commands.data import fetch as fetching
from curtail.commands.data import mirrors
from curtail.commands.data.fetch import fetch
from curtail.commands.data.mirrors import Folder, Hub, check_address, plain
from curtail.commands.data.progress import FetchStopped, TransferProgress
from curtail.errors import AuthError, CurtailError, DataError, DiskError, NotFound, Refused, Unreachable, UsageError
from curtail.system.disk import SystemDisk
from nanochat.dataset import Shards, import_texts, iterate_texts, read_shards
from nanochat.hub_datasets import SETS, PublishedSet, published_set

DISK = SystemDisk()
TINY = PublishedSet("tiny", "someone/tiny", 4)
ON_HUB = re.compile(r"/datasets/[\w-]+/[\w-]+/resolve/main/(.+)")


def shard(number: int, rows: int = 40) -> bytes:
    texts = [f"shard {number}, document {row}: é {row * 7919 % 1000}" for row in range(rows)]
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file)
    return file.getvalue()


def foreign(table: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(table), file)
    return file.getvalue()


class StandIn(http.server.ThreadingHTTPServer):
    """The hub, and a host of plain files; `faults` are taken one per GET of a name, `busy` one per HEAD of any."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {TINY.shard_name(number): shard(number) for number in range(5)}
        self.faults: dict[str, list[Any]] = {}
        self.busy: list[int] = []
        self.gets: list[tuple[str, str]] = []  # name and Range
        self.asked: list[tuple[str, str, Any]] = []  # method, path, headers
        self.headers: dict[str, str] = {}
        self.ranges = self.sizes = True
        self.released = threading.Event()  # ends a stall

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(http.server.BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(self.server.busy.pop(0) if self.server.busy else None)

    def do_GET(self) -> None:
        name = self._name()
        self.server.gets.append((name, self.headers.get("Range", "")))
        self._answer(self.server.faults[name].pop(0) if self.server.faults.get(name) else None)

    def _name(self) -> str:
        found = ON_HUB.fullmatch(self.path)
        return found[1] if found else self.path.strip("/")

    def _answer(self, fault: int | str | None) -> None:
        host, wanted = self.server, self.headers.get("Range", "")
        host.asked.append((self.command, self.path, self.headers))
        data = host.files.get(self._name())
        if isinstance(fault, int) or data is None:
            self.send_response(fault if isinstance(fault, int) else 404)
            self.send_header("Retry-After", "7")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first = 0
        if wanted and host.ranges:
            first = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if host.sizes:
            self.send_header("Content-Length", str(max(0, len(data) - first)))
        self.send_header("ETag", tag(data, on_hub="/resolve/" in self.path))
        if "/resolve/" in self.path:
            self.send_header("X-Repo-Commit", "c" * 40)
        for key, value in host.headers.items():
            self.send_header(key, value)
        self.end_headers()
        body = data[first:]
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if fault else body)
            if fault == "stall":
                self.server.released.wait(60)


def tag(data: bytes, on_hub: bool = False) -> str:
    """The ETag of the stand-in: the hub's is the SHA-256."""
    return f'"{(hashlib.sha256 if on_hub else hashlib.md5)(data).hexdigest()}"'


@pytest.fixture
def host() -> Iterator[StandIn]:
    with StandIn() as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of the library, which only count."""
    taken: list[float] = []
    monkeypatch.setattr("time.sleep", taken.append)
    return taken


class Waits(threading.Event):
    """A `stop` whose waiting only counts."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        return self.is_set()


class Fetcher:
    """`fetch` from a host of plain files, with waiting that only counts."""

    def __init__(self, url: str, out: Path) -> None:
        self.url, self.out = url, out
        self.stop = Waits()
        self.shown = io.StringIO()

    def __call__(self, count: int = 2, parallel: int = 2, published: PublishedSet = TINY) -> Shards:
        source = Hub(published.repository, self.url, self.stop)
        show = TransferProgress(count + 1, self.stop, self.shown)
        return fetch(published, count, self.out, source, disk=DISK, show=show, stop=self.stop, parallel=parallel)


@pytest.fixture
def fetcher(host: StandIn, tmp_path: Path, naps: list[float], monkeypatch: pytest.MonkeyPatch) -> Fetcher:
    monkeypatch.setattr(mirrors, "PIECE", 64)
    return Fetcher(host.url, tmp_path / "out")


def command(out: Path, host: StandIn, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`curtail data fetch` of one shard as a process of its own: the library reads its variables when it starts."""
    return subprocess.run(
        [sys.executable, "-m", "curtail", "data", "fetch", "--dataset", "fineweb-edu", "-n", "1", "--out", str(out)],
        env={**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": host.url, **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


# -- the whole command -----------------------------------------------------


def test_the_result_is_a_data_set_with_the_pinned_validation_shard(host: StandIn, fetcher: Fetcher) -> None:
    shards = fetcher(3)
    assert [s.name for s in shards.training] == ["shard_00000.parquet", "shard_00001.parquet", "shard_00002.parquet"]
    assert shards.validation.name == "shard_00004.parquet"
    assert read_shards(fetcher.out) == shards
    texts = list(iterate_texts(fetcher.out, "validation"))
    assert texts[0].startswith("shard 4, document 0") and len(texts) == shards.validation.documents == 40
    assert shards.validation.bytes == sum(len(text.encode()) for text in texts)
    assert shards.training[0].sha256 == hashlib.sha256(host.files["shard_00000.parquet"]).hexdigest()
    names = sorted(path.name for path in fetcher.out.iterdir())
    assert names == ["fetch.json", *(f"shard_0000{n}.parquet" for n in (0, 1, 2, 4)), "shards.json"]
    assert fetcher.shown.getvalue().count("\n") == 4 and "(4 of 4)" in fetcher.shown.getvalue()


def test_the_command_fetches_from_a_mirror_and_its_result_can_be_used(
    host: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.files = {name: shard(n, 400) for n, name in ((0, "shard_00000.parquet"), (1, "shard_01822.parquet"))}
    out = tmp_path / "shards"
    arguments = ["data", "fetch", "--dataset", "fineweb-edu", "-n", "1", "--out", str(out), "--mirror", host.url + "/"]
    assert curtail(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 shards of fineweb-edu, 800 documents" in printed and "shard_01822.parquet is for validation" in printed
    assert curtail(["tokenizer", "train", str(out), "--vocab-size", "300", "--out", str(tmp_path / "t")]) == 0
    for packing in ("stream", "bestfit"):
        prepare = ["data", "prepare", str(out), "--tokenizer", str(tmp_path / "t"), "--sequence-len", "32"]
        assert curtail([*prepare, "--out", str(tmp_path / packing), "--packing", packing]) == 0
    assert "tokens were cropped" in capsys.readouterr().out


def test_more_shards_later_fetch_only_those_that_are_missing(host: StandIn, fetcher: Fetcher) -> None:
    fetcher(1)
    host.gets.clear()
    shards = fetcher(3)
    assert sorted(name for name, _ in host.gets) == ["shard_00001.parquet", "shard_00002.parquet"]
    assert fetcher(3) == shards == read_shards(fetcher.out) and len(host.gets) == 2
    assert len(fetcher(2).training) == 2 and (fetcher.out / "shard_00002.parquet").exists()


# -- the hub ---------------------------------------------------------------


def test_the_hub_is_asked_at_its_endpoint_without_token_or_telemetry(host: StandIn, tmp_path: Path) -> None:
    host.files = {name: shard(n) for n, name in ((0, "shard_00000.parquet"), (1, "shard_01822.parquet"))}
    done = command(tmp_path / "out", host, tmp_path / "home", HF_TOKEN="")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 2 and "(2 of 2)" in done.stderr  # no bar, no warning
    assert {path for _, path, _ in host.asked} == {
        f"/datasets/karpathy/fineweb-edu-100b-shuffle/resolve/main/{name}" for name in host.files
    }
    for _, _, headers in host.asked:
        assert "Authorization" not in headers
        assert re.fullmatch(r"curtail/[\d.]+; hf_hub/[\d.]+; python/[\d.]+", headers["User-Agent"])
    host.asked.clear()
    shutil.rmtree(tmp_path / "out")
    assert command(tmp_path / "out", host, tmp_path / "home", HF_TOKEN="hf_secret").returncode == 0
    assert {headers["Authorization"] for _, _, headers in host.asked} == {"Bearer hf_secret"}


def test_a_mirror_never_gets_the_token_of_the_hub(
    host: StandIn, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetcher(1)
    assert host.asked and not any("Authorization" in headers for _, _, headers in host.asked)


def test_without_network_shards_come_from_the_cache_of_the_hub_or_the_remedy_is_named(
    host: StandIn, tmp_path: Path
) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    done = command(out, host, home, HF_HUB_OFFLINE="1")
    assert done.returncode == 3 and done.stderr.count("\n") == 1, done.stderr
    assert "HF_HUB_OFFLINE is set" in done.stderr and "--offline" in done.stderr
    cache = home / "hub" / "datasets--karpathy--fineweb-edu-100b-shuffle"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("c" * 40)
    (cache / "snapshots" / ("c" * 40)).mkdir(parents=True)
    for number, name in enumerate(("shard_00000.parquet", "shard_01822.parquet")):
        (cache / "snapshots" / ("c" * 40) / name).write_bytes(shard(number))
    done = command(out, host, home, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert len(list(iterate_texts(out, "train"))) == 40 and not host.asked


def test_an_endpoint_that_is_no_address_is_one_line(host: StandIn, tmp_path: Path) -> None:
    done = command(tmp_path / "out", host, tmp_path / "home", HF_ENDPOINT="ftp://x")
    assert done.returncode == 2 and "not the address of a mirror" in done.stderr and done.stderr.count("\n") == 1


def test_help_does_not_load_the_library() -> None:
    code = "import sys; from curtail.__main__ import run; run(['data', 'fetch', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "--mirror" in done.stdout and "huggingface_hub" not in done.stdout.split()


# -- faults ----------------------------------------------------------------


def test_a_cut_connection_goes_on_where_it_stopped(host: StandIn, fetcher: Fetcher, naps: list[float]) -> None:
    host.faults["shard_00000.parquet"] = ["cut", "cut", "cut"]
    fetcher(1)
    size = len(host.files["shard_00000.parquet"])
    starts = [int(wanted[6:-1]) if wanted else 0 for name, wanted in host.gets if name == "shard_00000.parquet"]
    assert len(starts) == 4 and starts[0] == 0 and starts == sorted(set(starts))
    assert all(start + 64 >= size - (size >> n) for n, start in enumerate(starts))  # half of the rest came each time
    assert naps == [1, 1, 1]


def test_another_process_goes_on_with_what_a_killed_one_left(host: StandIn, fetcher: Fetcher) -> None:
    fetcher.out.mkdir()
    data = host.files["shard_00000.parquet"]
    part = fetcher.out / "shard_00000.parquet.part"
    for left in (data[:100], data):
        part.write_bytes(left)
        part.with_name(part.name + ".etag").write_text(tag(data).strip('"'))
        host.gets.clear()
        fetcher(1)
        asked = [wanted for name, wanted in host.gets if name == "shard_00000.parquet"]
        assert asked == ([f"bytes={len(left)}-"] if left != data else [])
        assert (fetcher.out / "shard_00000.parquet").read_bytes() == data and not part.exists()
        shutil.rmtree(fetcher.out)
        fetcher.out.mkdir()


def test_a_fetch_that_is_killed_in_the_middle_of_a_shard_keeps_what_it_has(host: StandIn, tmp_path: Path) -> None:
    draw = random.Random(0)
    data = foreign({"text": [draw.randbytes(40_000).hex() for _ in range(50)]})
    host.files = {"shard_00000.parquet": shard(0), "shard_01822.parquet": data}
    host.faults["shard_01822.parquet"] = ["stall"]
    part = tmp_path / "out" / "shard_01822.parquet.part"
    killed = subprocess.Popen(
        [sys.executable, "-m", "curtail", "data", "fetch", "--dataset", "fineweb-edu", "-n", "1",
         "--out", str(tmp_path / "out"), "--mirror", host.url],
        env={**os.environ, "HF_HOME": str(tmp_path)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size):
            assert time.monotonic() < deadline and killed.poll() is None
            time.sleep(0.02)
    finally:
        killed.kill()
        killed.wait()
        host.released.set()
    kept = part.stat().st_size
    assert mirrors.PIECE <= kept < len(data)
    host.gets.clear()
    fetching.run(fetching.FetchOptions("fineweb-edu", 1, tmp_path / "out", host.url, None, 1))
    assert host.gets == [("shard_01822.parquet", f"bytes={kept}-"), ("shard_00000.parquet", "")]


def test_a_part_of_another_file_is_not_continued(host: StandIn, fetcher: Fetcher) -> None:
    fetcher.out.mkdir()
    part = fetcher.out / "shard_00000.parquet.part"
    right = tag(host.files["shard_00000.parquet"]).strip('"')
    for stored, left in (("other", b"x" * 50), ("", b"y" * 50), (right, b"z" * 100_000)):
        part.write_bytes(left)
        part.with_name(part.name + ".etag").write_text(stored)
        fetcher(1)
        assert (fetcher.out / "shard_00000.parquet").read_bytes() == host.files["shard_00000.parquet"]
        (fetcher.out / "shard_00000.parquet").unlink()


@pytest.mark.parametrize("sizes", [True, False])
def test_a_host_without_ranges_or_sizes_starts_over(sizes: bool, host: StandIn, fetcher: Fetcher) -> None:
    host.ranges, host.sizes = False, sizes
    host.faults["shard_00001.parquet"] = ["cut"]
    fetcher(2)
    assert (fetcher.out / "shard_00001.parquet").read_bytes() == host.files["shard_00001.parquet"]
    assert len([name for name, _ in host.gets if name == "shard_00001.parquet"]) == 2


def test_a_host_that_always_cuts_at_the_same_place_is_given_up(host: StandIn, fetcher: Fetcher) -> None:
    host.ranges = False
    host.faults["shard_00004.parquet"] = ["cut"] * 99
    with pytest.raises(Unreachable, match="always breaks off"):
        fetcher(1)
    assert not (fetcher.out / "shards.json").exists() and len(host.gets) < 10


def test_a_busy_host_is_asked_again_when_it_wants(host: StandIn, fetcher: Fetcher, naps: list[float]) -> None:
    host.busy = [503, 429, 500]
    fetcher(1)
    assert [round(nap) for nap in naps] == [8, 8, 8]  # its 7 s, and one more
    host.faults["shard_00001.parquet"] = [503, 503]
    fetcher(2)
    assert fetcher.stop.waits == [1, 2] and "answers 503; again in 2 s" in fetcher.shown.getvalue()


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [(404, NotFound, r"is not there \(404\)"), (403, AuthError, r"may not be read \(403\)"), (401, AuthError, "401"),
     (418, Unreachable, "answers 418")],
)  # fmt: skip
def test_a_refusal_is_one_line_at_once(
    status: int, kind: type[CurtailError], says: str, host: StandIn, fetcher: Fetcher, naps: list[float]
) -> None:
    host.busy = [status]
    with pytest.raises(kind, match=says) as caught:
        fetcher(1)
    assert "--mirror" in str(caught.value) and not naps and not fetcher.stop.waits and not host.gets


def test_one_missing_shard_ends_the_others_and_what_is_there_is_kept(host: StandIn, fetcher: Fetcher) -> None:
    del host.files["shard_00002.parquet"]
    with pytest.raises(NotFound, match="shard_00002"):
        fetcher(3, parallel=1)
    assert (fetcher.out / "shard_00001.parquet").exists() and not (fetcher.out / "shards.json").exists()
    host.files["shard_00002.parquet"] = shard(2)
    host.gets.clear()
    fetcher.stop.clear()
    fetcher(3)
    assert [name for name, _ in host.gets] == ["shard_00002.parquet"]


def test_nobody_there_is_one_line(fetcher: Fetcher, naps: list[float]) -> None:
    fetcher.url = "http://me:secret@127.0.0.1:9"
    with pytest.raises(Unreachable, match="refused") as caught:
        fetcher(1)
    assert naps == [1, 2, 4, 8, 8] and "--offline" in str(caught.value) and "secret" not in str(caught.value)


def test_a_disk_that_fills_up_is_said_so(host: StandIn, fetcher: Fetcher) -> None:
    fetcher.out.mkdir()
    part = fetcher.out / "shard_00004.parquet.part"
    part.symlink_to("/dev/full")
    part.with_name(part.name + ".etag").write_text(tag(host.files["shard_00004.parquet"]).strip('"'))
    with pytest.raises(DiskError, match=r"cannot write .*shard_00004\.parquet\.part: No space left"):
        fetcher(1)
    assert not fetcher.stop.waits


# -- what arrives is checked -----------------------------------------------


def test_a_size_other_than_the_promised_one_is_never_accepted(host: StandIn, fetcher: Fetcher) -> None:
    host.headers = {"X-Linked-Size": "12345"}
    with pytest.raises(Unreachable, match="should be of size 12345"):
        fetcher(1)
    assert not list(fetcher.out.glob("*.parquet")) and fetcher.stop.waits == [1, 2, 3, 4, 5, 6]


def test_a_hash_other_than_the_promised_one_is_never_accepted(host: StandIn, fetcher: Fetcher) -> None:
    host.headers = {"X-Linked-ETag": f'"{"0" * 64}"'}
    with pytest.raises(DataError, match="a hash that differs from its host's"):
        fetcher(1)
    assert not list(fetcher.out.glob("*.parquet*"))
    host.headers = {"X-Linked-ETag": tag(host.files["shard_00004.parquet"], on_hub=True)}
    with pytest.raises(DataError, match=r"shard_00000\.parquet arrived with a hash that differs"):
        fetcher(1)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<html>please log in</html>", "not an intact parquet file"),
        (shard(0)[:-20], "not an intact parquet file"),
        (foreign({"body": ["x"]}), "has no column `text`, only: body"),
        (foreign({"text": [1, 2]}), "does not contain strings"),
        (foreign({"text": pa.array([], pa.string())}), "is empty"),
        (foreign({"text": pa.array([None, ""], pa.string())}), "has no text"),
        (foreign({"text": pa.array([b"\xff"], pa.binary()).view(pa.string())}), "not an intact parquet file"),
    ],
)
def test_what_is_no_shard_of_text_is_refused_by_its_address(
    data: bytes, says: str, host: StandIn, fetcher: Fetcher
) -> None:
    host.files["shard_00000.parquet"] = data
    with pytest.raises(DataError, match=says) as caught:
        fetcher(1)
    assert f"{host.url}/shard_00000.parquet" in caught.value.message
    assert not list(fetcher.out.glob("shard_00000*"))


def test_a_damaged_shard_is_fetched_again_and_a_changed_source_is_refused(host: StandIn, fetcher: Fetcher) -> None:
    shards = fetcher(1)
    path = fetcher.out / "shard_00000.parquet"
    path.write_bytes(b"damaged")
    assert fetcher(1) == shards and path.read_bytes() == host.files["shard_00000.parquet"]
    assert "does not match its hash" in fetcher.shown.getvalue()
    path.unlink()
    host.files["shard_00000.parquet"] = shard(7)
    with pytest.raises(DataError, match="differs from its first fetch"):
        fetcher(1)
    assert not path.exists() and read_shards(fetcher.out) == shards


def test_a_folder_with_another_data_set_is_left_alone(host: StandIn, fetcher: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    import_texts([tmp_path / "a.txt", tmp_path / "b.txt"], fetcher.out, disk=DISK)
    with pytest.raises(DataError, match="holds another data set, not tiny"):
        fetcher(1)
    shutil.rmtree(fetcher.out)
    fetcher(1)
    with pytest.raises(DataError, match="holds tiny, not other"):
        fetcher(1, published=PublishedSet("other", "someone/other", 4))
    (fetcher.out / "fetch.json").unlink()  # a copy that lost its record is known by its list
    host.gets.clear()
    fetcher(1)
    assert not host.gets and json.loads((fetcher.out / "fetch.json").read_text())["dataset"] == "tiny"
    (fetcher.out / "fetch.json").write_text("{")
    with pytest.raises(DataError, match="truncated or not valid"):
        fetcher(1)


def test_a_full_disk_is_known_before_the_first_byte(
    host: StandIn, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DiskError, match="the shards need about"):
        fetcher(2)
    assert not host.gets


def test_two_fetches_into_one_folder_do_not_mix(host: StandIn, fetcher: Fetcher) -> None:
    with fetching._alone(fetcher.out), pytest.raises(Refused, match="another fetch runs"):
        fetcher(1)
    assert not host.gets
    fetcher(1)


# -- a folder as the source ------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "disk"
    made.mkdir()
    for number in (0, 1, 4):
        (made / TINY.shard_name(number)).write_bytes(shard(number))
    return made


def from_folder(folder: Path, out: Path, count: int = 2) -> Shards:
    stop = threading.Event()
    return fetch(TINY, count, out, Folder(folder), disk=DISK, show=TransferProgress(3, stop, io.StringIO()), stop=stop)


def test_a_folder_is_linked_or_copied(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = from_folder(folder, tmp_path / "linked")
    assert (tmp_path / "linked" / "shard_00000.parquet").samefile(folder / "shard_00000.parquet")
    assert from_folder(folder, folder) == shards  # in place

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("curtail.commands.data.mirrors.os.link", refuse)
    assert from_folder(folder, tmp_path / "copied") == shards
    assert not (tmp_path / "copied" / "shard_00000.parquet").samefile(folder / "shard_00000.parquet")


def test_a_shard_that_a_folder_lacks_or_holds_changed_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"shard_00002\.parquet is not there, and 1 more"):
        from_folder(folder, tmp_path / "out", 4)
    from_folder(folder, tmp_path / "out")
    (tmp_path / "out" / "shard_00001.parquet").unlink()
    (folder / "shard_00001.parquet").unlink()
    (folder / "shard_00001.parquet").write_bytes(shard(8))
    with pytest.raises(DataError, match="differs from its first fetch"):
        from_folder(folder, tmp_path / "out")


# -- small parts -----------------------------------------------------------


def test_the_published_sets_are_those_of_nanochat() -> None:
    assert {name: (s.training_shards, s.validation_name) for name, s in SETS.items()} == {
        "fineweb-edu": (1822, "shard_01822.parquet"),
        "climbmix": (6542, "shard_06542.parquet"),
    }
    assert {s.repository for s in SETS.values()} == {
        "karpathy/fineweb-edu-100b-shuffle", "karpathy/climbmix-400b-shuffle"
    }  # fmt: skip
    for wrong in (lambda: published_set("x"), lambda: TINY.names(0), lambda: TINY.names(5), lambda: TINY.shard_name(5)):
        with pytest.raises(UsageError):
            wrong()


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["-n", "1823"], 2, "1822 training shards, not 1823"),
        (["-n", "1", "--mirror", "ftp://x"], 2, "not the address of a mirror"),
        (["-n", "1", "--mirror", "http://127.0.0.1:9", "--offline", "."], 2, "are two sources"),
        (["-n", "1", "--offline", "/no/where"], 3, "there is no folder /no/where"),
        (["-n", "1", "--offline", "."], 3, "shard_01822.parquet is not there, and 1 more shards are missing"),
    ],
)
def test_wrong_flags_are_one_line(
    flags: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert curtail(["data", "fetch", "--dataset", "fineweb-edu", "--out", "out", *flags]) == code
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_addresses_are_checked_and_never_shown_with_a_password() -> None:
    check_address("https://host/folder/")
    for wrong in ("", "host", "ftp://host", "http://", "http://host:x", "http://[::1"):
        with pytest.raises(UsageError):
            check_address(wrong)
    assert plain("https://me:secret@host/a@b") == "https://host/a@b"


def test_a_stop_ends_a_download_between_two_pieces_and_between_two_tries(host: StandIn, fetcher: Fetcher) -> None:
    source = Hub(TINY.repository, fetcher.url, fetcher.stop)
    part = fetcher.out.with_name("x.part")
    show = TransferProgress(1, fetcher.stop, fetcher.shown)
    fetcher.stop.set()
    with pytest.raises(FetchStopped):
        source.bring("shard_00000.parquet", part, show)
    assert part.stat().st_size == 0
    host.faults["shard_00000.parquet"] = [500]
    with pytest.raises(FetchStopped):
        source.bring("shard_00000.parquet", part, show)
    assert len(host.gets) == 2


def test_a_terminal_gets_bars_and_everything_else_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for screen, bars in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", screen)
        show = TransferProgress(2, threading.Event())
        with show.bar_class("shard_00000.parquet")(total=1_000_000, disable=None, mininterval=0) as bar:
            bar.update(500_000)
            show.say("a line [that] stays")
        show.done("shard_00000.parquet", 1_000_000)
        assert "a line [that] stays\n" in screen.getvalue() and "1.0 MB (1 of 2)\n" in screen.getvalue()
        assert ("50%" in screen.getvalue()) == bars
