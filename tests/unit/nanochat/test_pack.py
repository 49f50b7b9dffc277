"""Packing: the stream of tokens, its manifest, and samples out of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curtail.errors import CurtailError, DataError, DiskError, NotFound, UsageError
from curtail.system.disk import SystemDisk
from nanochat.dataset import iterate_texts
from nanochat.pack import Manifest, TokenStream, missing_files, prepare
from nanochat.tokenizer import Tokenizer

DISK = SystemDisk()
T = 16


@pytest.fixture(scope="module")
def shards(small_shards: Callable[[int, int], Path]) -> Path:
    return small_shards(120, 17)


@pytest.fixture(scope="module")
def tokenizer(shards: Path) -> Tokenizer:
    return Tokenizer.train(iterate_texts(shards), 330)


@pytest.fixture(scope="module")
def packed(shards: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokens")
    prepare(shards, tokenizer, out, disk=DISK, sequence_len=T, tokens_per_file=501)
    return out


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    """A copy of the packed folder, to be damaged."""
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def expected_stream(shards: Path, tokenizer: Tokenizer, part: str) -> list[int]:
    stream: list[int] = []
    for text in iterate_texts(shards, part):
        stream += [tokenizer.bos_id, *tokenizer.encode(text)]
    return stream


@pytest.mark.parametrize("part", ["train", "validation"])
def test_the_files_are_bos_and_tokens_of_each_document_without_gaps(
    part: str, shards: Path, tokenizer: Tokenizer, packed: Path
) -> None:
    manifest = Manifest.load(packed)
    files = manifest.files_of(part)
    data = b"".join((packed / file.name).read_bytes() for file in files)
    stream = expected_stream(shards, tokenizer, part)
    assert np.frombuffer(data, "<u2").tolist() == stream
    assert manifest.tokens(part) == len(stream)
    assert manifest.samples(part) == (len(stream) - 1) // T
    assert {file.tokens for file in files[:-1]} <= {501}


def test_the_manifest_names_tokenizer_and_shards_and_the_tokenizer_lies_beside_it(
    shards: Path, tokenizer: Tokenizer, packed: Path
) -> None:
    manifest = Manifest.load(packed)
    listed = json.loads((shards / "shards.json").read_text())
    hashes = [entry["sha256"] for entry in [*listed["training"], listed["validation"]]]
    assert [shard.sha256 for shard in manifest.shards] == hashes
    assert (manifest.vocab_size, manifest.tokenizer) == (330, tokenizer.digest)
    assert Tokenizer.load(packed / "tokenizer.json") == tokenizer


def test_samples_follow_the_stream_across_files_and_go_round(shards: Path, tokenizer: Tokenizer, packed: Path) -> None:
    manifest = Manifest.load(packed)
    stream = TokenStream(packed, manifest)
    expected = expected_stream(shards, tokenizer, "train")
    assert stream.samples == manifest.samples("train") > 100
    for index in range(stream.samples):
        sample = stream.sample(index)
        assert sample.dtype == np.uint16
        assert sample.tolist() == expected[index * T : index * T + T + 1]
        assert np.array_equal(stream.sample(index + 3 * stream.samples), sample)


def test_a_batch_is_its_samples_shifted_by_one(packed: Path) -> None:
    stream = TokenStream(packed, Manifest.load(packed))
    turns = [(0, 1), (3, 9), (stream.samples - 2, stream.samples + 3), (5, 2 * stream.samples + 7)]
    for start, stop in turns:
        inputs, targets = stream.batch(start, stop)
        assert inputs.dtype == targets.dtype == np.int64
        assert inputs.shape == targets.shape == (stop - start, T)
        for row, index in enumerate(range(start, stop)):
            sample = stream.sample(index)
            assert np.array_equal(inputs[row], sample[:-1]) and np.array_equal(targets[row], sample[1:])


def test_impossible_ranges_of_samples_are_refused(packed: Path) -> None:
    stream = TokenStream(packed, Manifest.load(packed), "validation")
    for start, stop in [(0, 0), (-1, 3), (5, 4)]:
        with pytest.raises(UsageError, match=r"range of samples .* is invalid"):
            stream.batch(start, stop)
    with pytest.raises(UsageError):
        stream.sample(-1)


def test_preparing_twice_gives_the_same_digest_and_file_lengths_do_not_change_samples(
    shards: Path, tokenizer: Tokenizer, packed: Path, tmp_path: Path
) -> None:
    first = Manifest.load(packed)
    again = prepare(shards, tokenizer, tmp_path, disk=DISK, sequence_len=T, tokens_per_file=501, threads=1)
    assert again == first and again.digest == first.digest
    assert [path.name for path in sorted(tmp_path.iterdir())] == [path.name for path in sorted(packed.iterdir())]
    one = prepare(shards, tokenizer, tmp_path, disk=DISK, sequence_len=T)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.json",
        "tokenizer.json",
        "train_00000.bin",
        "validation_00000.bin",
    ]
    whole, parts = TokenStream(tmp_path, one), TokenStream(packed, first)
    for mine, theirs in zip(whole.batch(0, whole.samples), parts.batch(0, parts.samples), strict=True):
        assert np.array_equal(mine, theirs)
    assert one.digest != first.digest


def test_intact_files_verify_and_none_is_missing(packed: Path) -> None:
    manifest = Manifest.load(packed)
    TokenStream(packed, manifest).verify()
    assert missing_files(packed, manifest) == ()


def test_changed_short_and_absent_files_are_found_by_name(copy: Path) -> None:
    manifest = Manifest.load(copy)
    first, second, third = manifest.files_of("train")[:3]
    data = bytearray((copy / first.name).read_bytes())
    data[7] ^= 1
    (copy / first.name).write_bytes(data)
    stream = TokenStream(copy, manifest)
    with pytest.raises(DataError, match=r"train_00000\.bin does not match"):
        stream.verify()
    (copy / second.name).write_bytes(b"12")
    (copy / third.name).unlink()
    assert missing_files(copy, manifest) == (first, second, third)
    with pytest.raises(DataError, match=r"train_00001\.bin is missing or not 1002 bytes long"):
        TokenStream(copy, manifest)


def test_too_little_text_for_one_sample_is_refused_and_leaves_no_manifest(
    shards: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"the train part has \d+ tokens, but one sample needs 1000001"):
        prepare(shards, tokenizer, tmp_path, disk=DISK, sequence_len=1_000_000)
    assert not (tmp_path / "manifest.json").exists()


def test_numbers_of_no_sense_and_missing_folders_are_refused(
    shards: Path, tokenizer: Tokenizer, packed: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError):
        prepare(shards, tokenizer, tmp_path, disk=DISK, sequence_len=0)
    with pytest.raises(NotFound, match="no data set"):
        prepare(tmp_path, tokenizer, tmp_path, disk=DISK, sequence_len=T)
    with pytest.raises(NotFound, match=r"no manifest\.json"):
        Manifest.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot write into"):
        prepare(shards, tokenizer, tmp_path / "file", disk=DISK, sequence_len=T)
    with pytest.raises(UsageError, match="no part"):
        TokenStream(packed, Manifest.load(packed), "test")


class FullDisk(SystemDisk):
    """Has no room for one kind of write."""

    def __init__(self, op: str) -> None:
        self.op = op

    def publish(self, op: str, temp: Path, path: Path) -> None:
        self._check(op)
        super().publish(op, temp, path)

    def replace(self, op: str, path: Path, data: bytes, mode: int = 0o644) -> None:
        self._check(op)
        super().replace(op, path, data, mode)

    def _check(self, op: str) -> None:
        if op == self.op:
            raise DiskError("full")


@pytest.mark.parametrize("op", ["TOKENS", "TOKENIZER", "MANIFEST"])
def test_a_full_disk_leaves_the_data_that_were_there_and_of_new_ones_nothing(
    op: str, shards: Path, tokenizer: Tokenizer, copy: Path
) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    for out in (copy, copy / "new"):
        with pytest.raises(DiskError):
            prepare(shards, tokenizer, out, disk=FullDisk(op), sequence_len=T)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_what_a_killed_run_left_is_swept(shards: Path, tokenizer: Tokenizer, copy: Path) -> None:
    (copy / ".packing").mkdir()
    (copy / ".packing" / ".train.tmp").write_bytes(b"half")
    prepare(shards, tokenizer, copy, disk=DISK, sequence_len=T)
    assert not (copy / ".packing").exists()


def test_a_manifest_goes_through_json_unchanged(packed: Path) -> None:
    manifest = Manifest.load(packed)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert replace(manifest, sequence_len=17).digest != manifest.digest


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "not a manifest": lambda c: c.update(format="other"),
    "format version 2": lambda c: c.update(version=2),
    "truncated, or its fields": lambda c: c.update(more=1),
    "its fields are": lambda c: c.pop("tokenizer"),
    "fields are not": lambda c: c.update(sequence_len=True),
    "are not those": lambda c: c["files"][0].update(tokens="3"),
    "not those of": lambda c: c["files"].append(3),
    "those of a manifest": lambda c: c["shards"][0].update(more=1),
    "out of range": lambda c: c.update(sequence_len=0),
    "vocabulary size is out of range": lambda c: c.update(vocab_size=65_537),
    "packing 'best-fit'": lambda c: c.update(packing="best-fit"),
    "not a SHA-256": lambda c: c.update(tokenizer="abc"),
    "that is not a SHA-256": lambda c: c["files"][0].update(sha256="A" * 64),
    "twice": lambda c: c["files"].append(c["files"][0]),
    "unknown part": lambda c: c["files"][0].update(part="test"),
    "is inconsistent": lambda c: c["files"][0].update(tokens=3),
    "entry for '../x.bin'": lambda c: c["files"][0].update(name="../x.bin"),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_a_manifest_of_another_form_is_refused_with_the_reason(reason: str, copy: Path) -> None:
    content = json.loads((copy / "manifest.json").read_text())
    CHANGES[reason](content)
    (copy / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=reason) as caught:
        Manifest.load(copy)
    assert "manifest.json" in caught.value.message


def test_a_truncated_manifest_is_refused(packed: Path) -> None:
    text = (packed / "manifest.json").read_bytes()
    for part in (b"", text[:50], b"[]", b"\xff"):
        with pytest.raises(CurtailError):
            Manifest.from_json(part)


def test_progress_is_told_per_part(shards: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    told: dict[str, int] = {}
    manifest = prepare(shards, tokenizer, tmp_path, disk=DISK, sequence_len=T, on_progress=told.__setitem__)
    assert told == {part: manifest.tokens(part) for part in ("train", "validation")}


def test_data_modules_do_not_import_torch() -> None:
    import subprocess

    code = "import sys, nanochat.pack; print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
