"""Data that do not fit: shards, tokens, model and each other. One sentence each, that says what to do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agent.http.client import Control
from agent.job.data_cache import fetch_data
from controller.home.home import load_data, model_for
from curtail.config import RunConfig, parse_config
from curtail.errors import ConfigError, CurtailError, DataError
from curtail.system.clock import SystemClock
from curtail.system.disk import SystemDisk
from nanochat.dataset import import_texts, iterate_texts, read_shards
from nanochat.manifest import MANIFEST_NAME, Manifest
from nanochat.pack import prepare
from nanochat.stream import TokenStream
from nanochat.tokenizer import Tokenizer

DISK = SystemDisk()
T, VOCABULARY = 64, 512  # as d2-test
WORDS = "".join(chr(97 + n * n % 26) + " " * (n % 5 == 0) for n in range(2000)).split()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    lines = [
        json.dumps({"text": f"document {n}: " + " ".join(f"{n * k:x} {WORDS[n * k % 97]}" for k in range(60))})
        for n in range(200)
    ]
    (folder / "a.jsonl").write_text("\n".join(lines))
    import_texts([folder], folder / "shards", disk=DISK, validation_fraction=0.1)
    return folder / "shards"


def made(shards: Path, out: Path, vocabulary: int = VOCABULARY, length: int = T, packing: str = "stream") -> Path:
    tokenizer = Tokenizer.train(iterate_texts(shards), vocabulary)
    prepare(shards, tokenizer, out, disk=DISK, sequence_len=length, packing=packing)
    return out


def run_with(data: Path, batch: int = 4) -> RunConfig:
    return parse_config(
        {
            "run": {"name": "x"},
            "model": {"preset": "d2-test"},
            "data": {"path": str(data)},
            "training": {"token_budget": 100_000, "batch_samples": batch},
            "regions": {"A": {"power_train": "1 W", "power_idle": "1 W"}},
        }
    )


# -- shards ----------------------------------------------------------------


def replace_shard(shards: Path, out: Path, table: pa.Table) -> None:
    """A copy of the data set whose first shard is another file, with the right hash."""
    out.mkdir()
    for path in shards.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    pq.write_table(table, out / "shard_00000.parquet")
    old = read_shards(shards).training[0].sha256
    new = hashlib.sha256((out / "shard_00000.parquet").read_bytes()).hexdigest()
    (out / "shards.json").write_text((out / "shards.json").read_text().replace(old, new))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (pa.table({"text": pa.array([], pa.string())}), "is empty: leave it out or fetch it again"),
        (pa.table({"body": ["x"]}), "has no column `text`, only: body"),
        (pa.table({"text": [1.5]}), "does not contain strings"),
    ],
)
def test_an_empty_or_foreign_shard_is_named(table: pa.Table, says: str, shards: Path, tmp_path: Path) -> None:
    replace_shard(shards, tmp_path / "s", table)
    for use in (lambda: list(iterate_texts(tmp_path / "s")), lambda: made(tmp_path / "s", tmp_path / "out")):
        with pytest.raises(DataError, match=says) as caught:
            use()
        assert "shard_00000.parquet" in str(caught.value)


def test_a_shard_with_another_hash_stops_the_packing_and_leaves_no_manifest(shards: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(iterate_texts(shards), VOCABULARY)
    replace_shard(shards, tmp_path / "s", pa.table({"text": ["x"]}))
    pq.write_table(pa.table({"text": ["y"]}), tmp_path / "s" / "shard_00000.parquet")
    for packing in ("stream", "bestfit"):
        with pytest.raises(DataError, match=r"shard_00000\.parquet does not match its hash"):
            prepare(tmp_path / "s", tokenizer, tmp_path / "out", disk=DISK, sequence_len=T, packing=packing)
        assert not (tmp_path / "out" / MANIFEST_NAME).exists()


# -- data and run ----------------------------------------------------------


@pytest.mark.parametrize("packing", ["stream", "bestfit"])
def test_data_that_fit_are_taken_with_either_packing(packing: str, shards: Path, tmp_path: Path) -> None:
    data = load_data(run_with(made(shards, tmp_path, packing=packing)))
    assert model_for(run_with(tmp_path), data.manifest).sequence_len == T
    assert data.manifest.samples("train") == TokenStream(tmp_path, data.manifest).samples


def test_another_vocabulary_or_longer_samples_than_the_models_are_refused(shards: Path, tmp_path: Path) -> None:
    config = run_with(tmp_path)
    with pytest.raises(ConfigError, match="with 400 ids, but the preset d2-test has 512: train the tokenizer"):
        model_for(config, Manifest.load(made(shards, tmp_path / "v", vocabulary=400)))
    with pytest.raises(ConfigError, match="samples of 4096 tokens"):
        model_for(config, Manifest.load(made(shards, tmp_path / "l", length=4096)))


def test_less_data_than_a_batch_is_refused(shards: Path, tmp_path: Path) -> None:
    config = run_with(made(shards, tmp_path, packing="bestfit"), batch=1_000_000)
    with pytest.raises(DataError, match="a batch needs 1000000: import more text, or lower"):
        load_data(config)


# -- the way to the sites --------------------------------------------------


class Blobs:
    """A controller that has files by their hashes."""

    def __init__(self, folder: Path) -> None:
        files = [path.read_bytes() for path in folder.iterdir()]
        self.held = {hashlib.sha256(data).hexdigest(): data for data in files}
        self.sent = 0

    def control(self) -> Control:
        return Control(httpx.Client(transport=httpx.MockTransport(self.answer), base_url="http://127.0.0.1:1"), "c")

    def answer(self, request: httpx.Request) -> httpx.Response:
        data = self.held[request.url.path.rsplit("/", 1)[1]]
        self.sent += len(data)
        return httpx.Response(200, content=data)


@pytest.mark.parametrize("packing", ["stream", "bestfit"])
def test_an_agent_fetches_either_packing_by_hash_and_reads_the_same_samples(
    packing: str, shards: Path, tmp_path: Path
) -> None:
    data = made(shards, tmp_path / "data", packing=packing)
    digest = hashlib.sha256((data / MANIFEST_NAME).read_bytes()).hexdigest()
    blobs = Blobs(data)

    def fetch() -> Path:
        return fetch_data(
            blobs.control(), digest, tmp_path / "cache", DISK, SystemClock(), lambda: False, lambda line: None
        )

    stream, own = TokenStream(fetch(), Manifest.load(fetch())), TokenStream(data, Manifest.load(data))
    assert all((a == b).all() for a, b in zip(stream.batch(0, 20), own.batch(0, 20), strict=True))
    assert (
        blobs.sent == sum(file.size for file in own.manifest.files_of("train")) + (data / MANIFEST_NAME).stat().st_size
    )


def test_a_manifest_of_an_unknown_packing_is_refused_by_an_agent(shards: Path, tmp_path: Path) -> None:
    data = made(shards, tmp_path / "data")
    text = (data / MANIFEST_NAME).read_text().replace('"packing": "stream"', '"packing": "tomorrow"')
    (data / MANIFEST_NAME).write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(CurtailError, match="the unknown packing 'tomorrow'; known are 'stream' and 'bestfit'"):
        fetch_data(
            Blobs(data).control(), digest, tmp_path / "c", DISK, SystemClock(), lambda: False, lambda line: None
        )  # fmt: skip
