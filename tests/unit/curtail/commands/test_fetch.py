"""Fetching a published data set: from a stand-in host on loopback that cuts, lies and refuses, and from a folder."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curtail.__main__ import run as curtail
from curtail.commands.data import fetch as fetching
from curtail.commands.data.download import check_address, connect, download, pause_s, plain
from curtail.commands.data.fetch import fetch
from curtail.commands.data.mirrors import Folder, Host
from curtail.commands.data.progress import Bars, Lines, transfers
from curtail.errors import AuthError, CurtailError, DataError, DiskError, NotFound, Refused, Unreachable, UsageError
from curtail.system.disk import SystemDisk
from nanochat.dataset import Shards, import_texts, iterate_texts, read_shards
from nanochat.hub_datasets import SETS, PublishedSet, published_set

DISK = SystemDisk()
TINY = PublishedSet("tiny", "http://127.0.0.1:1", 4)


def shard(number: int, rows: int = 40) -> bytes:
    texts = [f"shard {number}, document {row}: é {row * 7919 % 1000}" for row in range(rows)]
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file)
    return file.getvalue()


class StandIn(http.server.ThreadingHTTPServer):
    """A host of files; `faults` are taken one per GET of a name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {TINY.shard_name(number): shard(number) for number in range(5)}
        self.faults: dict[str, list[Any]] = {}
        self.gets: list[tuple[str, str]] = []  # name and Range
        self.headers: dict[str, str] = {}
        self.ranges = self.sizes = self.head = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(http.server.BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        data = self.server.files.get(self.path.strip("/"))
        self.send_response(200 if data and self.server.head else 405)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()

    def do_GET(self) -> None:
        host, name = self.server, self.path.strip("/")
        wanted = self.headers.get("Range", "")
        host.gets.append((name, wanted))
        fault = host.faults[name].pop(0) if host.faults.get(name) else None
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Retry-After", "7")
            self.end_headers()
            return
        data = host.files.get(name)
        if data is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        first = 0
        if wanted and host.ranges and self.headers.get("If-Range", tag) == tag:
            first = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
            self.send_response(206 if first < len(data) else 416)
            place = f"{first}-{len(data) - 1}" if first < len(data) else "*"
            self.send_header("Content-Range", f"bytes {place}/{len(data)}")
        else:
            self.send_response(200)
        if host.sizes:
            self.send_header("Content-Length", str(max(0, len(data) - first)))
        self.send_header("ETag", tag)
        for key, value in host.headers.items():
            self.send_header(key, value)
        self.end_headers()
        body = data[first:]
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)


@pytest.fixture
def host() -> Iterator[StandIn]:
    with StandIn() as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


class Fetcher:
    """`fetch` from the stand-in, with waiting that only counts."""

    def __init__(self, url: str, out: Path) -> None:
        self.url, self.out = url, out
        self.waits: list[float] = []
        self.shown = io.StringIO()

    def __call__(self, count: int = 2, parallel: int = 2, published: PublishedSet = TINY) -> Shards:
        stop = threading.Event()
        with connect() as http, Lines(count + 1, self.shown) as show:
            source = Host(http, self.url, stop, self.waits.append)
            return fetch(published, count, self.out, source, disk=DISK, show=show, stop=stop, parallel=parallel)


@pytest.fixture
def fetcher(host: StandIn, tmp_path: Path) -> Fetcher:
    return Fetcher(host.url, tmp_path / "out")


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


# -- faults ----------------------------------------------------------------


def test_a_cut_connection_goes_on_where_it_stopped(host: StandIn, fetcher: Fetcher) -> None:
    host.faults["shard_00000.parquet"] = ["cut", "cut", "cut"]
    fetcher(1)
    size = len(host.files["shard_00000.parquet"])
    starts = [int(wanted[6:-1]) if wanted else 0 for name, wanted in host.gets if name == "shard_00000.parquet"]
    assert starts[0] == 0 and starts == sorted(set(starts)) and size <= 2 * starts[1] + 1 < 2 * starts[3] < 2 * size
    assert fetcher.waits == [0.5] * 3  # each try brought some bytes
    assert "again in 0.5 s" in fetcher.shown.getvalue()


def test_another_process_goes_on_with_what_a_killed_one_left(host: StandIn, fetcher: Fetcher) -> None:
    fetcher.out.mkdir()
    data = host.files["shard_00000.parquet"]
    part = fetcher.out / "shard_00000.parquet.part"
    for left in (data[:100], data):
        part.write_bytes(left)
        part.with_name(part.name + ".etag").write_text(f'"{hashlib.md5(data).hexdigest()}"')
        host.gets.clear()
        fetcher(1)
        assert ("shard_00000.parquet", f"bytes={len(left)}-") in host.gets
        assert (fetcher.out / "shard_00000.parquet").read_bytes() == data and not part.exists()
        shutil.rmtree(fetcher.out)
        fetcher.out.mkdir()


def test_a_part_of_another_file_is_not_continued(host: StandIn, fetcher: Fetcher) -> None:
    fetcher.out.mkdir()
    part = fetcher.out / "shard_00000.parquet.part"
    for tag, left in (('"other"', b"x" * 50), ("", b"y" * 100_000), ('W/"weak"', b"z" * 60)):
        part.write_bytes(left)
        part.with_name(part.name + ".etag").write_text(tag)
        fetcher(1)
        assert (fetcher.out / "shard_00000.parquet").read_bytes() == host.files["shard_00000.parquet"]
        (fetcher.out / "shard_00000.parquet").unlink()


@pytest.mark.parametrize("sizes", [True, False])
def test_a_host_without_ranges_or_sizes_starts_over(sizes: bool, host: StandIn, fetcher: Fetcher) -> None:
    host.ranges, host.sizes, host.head = False, sizes, False
    host.faults["shard_00001.parquet"] = ["cut"]
    fetcher(2)
    assert (fetcher.out / "shard_00001.parquet").read_bytes() == host.files["shard_00001.parquet"]
    assert len([name for name, _ in host.gets if name == "shard_00001.parquet"]) == 2


def test_a_host_that_always_cuts_at_the_same_place_is_given_up(host: StandIn, fetcher: Fetcher) -> None:
    host.ranges = False
    host.faults["shard_00004.parquet"] = ["cut"] * 99
    with pytest.raises(Unreachable, match="check the network"):
        fetcher(1)
    assert fetcher.waits == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert not (fetcher.out / "shards.json").exists()


def test_a_busy_host_is_asked_again_when_it_wants(host: StandIn, fetcher: Fetcher) -> None:
    host.faults["shard_00004.parquet"] = [503, 429, 500]
    fetcher(1)
    assert fetcher.waits == [7.0, 7.0, 7.0]


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [(404, NotFound, r"is not there \(404\)"), (403, AuthError, r"may not be read \(403\)"), (401, AuthError, "401"),
     (418, Unreachable, "answers 418")],
)  # fmt: skip
def test_a_refusal_is_one_line_at_once(
    status: int, kind: type[CurtailError], says: str, host: StandIn, fetcher: Fetcher
) -> None:
    host.faults["shard_00004.parquet"] = [status]
    with pytest.raises(kind, match=says) as caught:
        fetcher(1)
    assert "--mirror" in str(caught.value) and not fetcher.waits and len(host.gets) == 1


def test_one_missing_shard_ends_the_others_and_what_is_there_is_kept(host: StandIn, fetcher: Fetcher) -> None:
    del host.files["shard_00002.parquet"]
    with pytest.raises(NotFound, match="shard_00002"):
        fetcher(3, parallel=1)
    assert (fetcher.out / "shard_00001.parquet").exists() and not (fetcher.out / "shards.json").exists()
    host.files["shard_00002.parquet"] = shard(2)
    host.gets.clear()
    fetcher(3)
    assert [name for name, _ in host.gets] == ["shard_00002.parquet"]


def test_nobody_there_is_one_line(tmp_path: Path) -> None:
    nobody = Fetcher("http://127.0.0.1:9", tmp_path / "out")
    with pytest.raises(Unreachable, match="refused"):
        nobody(1)
    assert nobody.waits == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]


# -- what arrives is checked -----------------------------------------------


def test_a_size_other_than_the_promised_one_is_never_accepted(host: StandIn, fetcher: Fetcher) -> None:
    host.headers = {"X-Linked-Size": "12345"}
    with pytest.raises(Unreachable, match="of 12345 bytes came"):
        fetcher(1)
    assert not list(fetcher.out.glob("*.parquet"))


def test_a_hash_other_than_the_promised_one_is_never_accepted(host: StandIn, fetcher: Fetcher) -> None:
    host.headers = {"X-Linked-ETag": f'"{"0" * 64}"'}
    with pytest.raises(DataError, match="another hash than its host names"):
        fetcher(1)
    assert not list(fetcher.out.glob("*.parquet*"))
    host.headers = {"X-Linked-ETag": f'"{hashlib.sha256(host.files["shard_00004.parquet"]).hexdigest()}"'}
    with pytest.raises(DataError, match=r"shard_00000\.parquet arrived with another hash"):
        fetcher(1)


def foreign(table: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(table), file)
    return file.getvalue()


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
    with pytest.raises(DataError, match="is not what it was at the first fetch"):
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
        fetcher(1, published=PublishedSet("other", "http://127.0.0.1:1", 4))
    (fetcher.out / "fetch.json").unlink()  # a copy that lost its record is known by its list
    host.gets.clear()
    fetcher(1)
    assert not host.gets and json.loads((fetcher.out / "fetch.json").read_text())["dataset"] == "tiny"
    (fetcher.out / "fetch.json").write_text("{")
    with pytest.raises(DataError, match="truncated or of another form"):
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
    with fetching._alone(fetcher.out), pytest.raises(Refused, match="another fetch is at work"):
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
    with Lines(3, io.StringIO()) as show:
        return fetch(TINY, count, out, Folder(folder), disk=DISK, show=show, stop=threading.Event())


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
    with pytest.raises(DataError, match="not what it was at the first fetch"):
        from_folder(folder, tmp_path / "out")


# -- small parts -----------------------------------------------------------


def test_the_published_sets_are_those_of_nanochat() -> None:
    assert {name: (s.training_shards, s.validation_name) for name, s in SETS.items()} == {
        "fineweb-edu": (1822, "shard_01822.parquet"),
        "climbmix": (6542, "shard_06542.parquet"),
    }
    assert all(s.address.startswith("https://") and s.address.endswith("/resolve/main") for s in SETS.values())
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
    assert check_address("https://host/folder/") == "https://host/folder"
    for wrong in ("", "host", "ftp://host", "http://", "http://host:x", "http://[::1"):
        with pytest.raises(UsageError):
            check_address(wrong)
    assert plain("https://me:secret@host/a@b") == "https://host/a@b"


def test_pauses_grow_and_a_stop_ends_a_download(host: StandIn, tmp_path: Path) -> None:
    assert [pause_s(n) for n in range(1, 8)] == [0.5, 1, 2, 4, 8, 8, 8]
    for answers in ([True], [False, True]):
        with connect() as http, pytest.raises(CurtailError, match="was stopped"):
            download(
                http, f"{host.url}/shard_00000.parquet", tmp_path / "x.part", sleep=lambda s: None,
                stopped=lambda left=answers: left.pop(0), at=lambda have, size: None, say=print,
            )  # fmt: skip


def test_a_terminal_gets_bars_and_everything_else_gets_lines() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    with transfers(2, screen) as show:
        assert isinstance(show, Bars)
        for have in (0, 500_000, 1_000_000):
            show.at("shard_00000.parquet", have, 1_000_000)
        show.say("a line [that] stays")
        show.done("shard_00000.parquet", 1_000_000)
    assert "a line [that] stays" in screen.getvalue() and "1.0 MB (1 of 2)" in screen.getvalue()
    assert isinstance(transfers(2, io.StringIO()), Lines)
