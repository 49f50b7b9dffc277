"""Best-fit packing: its rows, its files and manifest, and that stream packing stayed as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from curtail.errors import DataError, UsageError
from curtail.system.disk import SystemDisk
from nanochat.bestfit import BestFit, PackCount
from nanochat.dataset import iterate_texts
from nanochat.manifest import Manifest, SourceShard, TokenFile
from nanochat.pack import missing_files, prepare
from nanochat.stream import TokenStream
from nanochat.tokenizer import Tokenizer
from nanochat.train import StepBatches

DISK = SystemDisk()
T = 16


@pytest.fixture(scope="module")
def shards(small_shards: Callable[[int, int], Path]) -> Path:
    return small_shards(1500, 7)


@pytest.fixture(scope="module")
def tokenizer(shards: Path) -> Tokenizer:
    return Tokenizer.train(iterate_texts(shards), 330)


@pytest.fixture(scope="module")
def packed(shards: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokens")
    prepare(shards, tokenizer, out, disk=DISK, sequence_len=T, packing="bestfit", tokens_per_file=1000)
    return out


def documents_of(lengths: list[int]) -> list[list[int]]:
    """Documents that begin with 0 and can be told apart."""
    return [[0, *(10 * number + 1 for _ in range(length - 1))] for number, length in enumerate(lengths)]


def rows_of(lengths: list[int], row_len: int, buffer: int = 1000) -> tuple[list[list[int]], PackCount]:
    packer = BestFit(row_len, buffer)
    rows = [row for block in packer.rows(documents_of(lengths)) for row in block.tolist()]
    return rows, packer.count


def test_a_row_takes_the_longest_that_fits_and_crops_the_shortest() -> None:
    # 6 fits first, then 3; one is left of ten: of 20, 8 and 4 the shortest is cropped to one token.
    rows, count = rows_of([6, 20, 3, 8, 4], 10)
    assert rows[0] == [0, 31, 31, 31, 31, 31, 31, 31, 0, 21]
    assert rows[1] == [0, 1, 1, 1, 1, 1, 0, 41, 41, 41]
    assert rows[2] == [0, *[11] * 9]
    assert count == PackCount(documents=5, tokens=41, kept=30, cropped=11, left_over=0)
    assert count.cropped_share == 11 / 41


def test_of_equal_documents_the_earliest_goes_first() -> None:
    rows, _ = rows_of([5, 5, 5, 5], 10)
    assert rows == [[0, 1, 1, 1, 1, 0, 11, 11, 11, 11], [0, 21, 21, 21, 21, 0, 31, 31, 31, 31]]
    rows, count = rows_of([7, 7, 7], 3)
    assert [row[1] for row in rows] == [1, 11, 21] and count.cropped == 12


def test_only_documents_in_the_buffer_are_chosen_from() -> None:
    assert rows_of([4, 6, 10], 10, buffer=2)[0] == [[0, *[11] * 5, 0, 1, 1, 1], [0, *[21] * 9]]
    assert rows_of([4, 6, 10], 10, buffer=3)[0][0] == [0, *[21] * 9]
    assert rows_of([4, 6, 10], 10, buffer=1)[0] == [[0, 1, 1, 1, 0, *[11] * 5], [0, *[21] * 9]]


def test_what_makes_no_whole_row_is_left_over() -> None:
    assert rows_of([4, 5], 10) == ([], PackCount(2, 9, 0, 0, 9))
    assert rows_of([], 10) == ([], PackCount(0, 0, 0, 0, 0))
    assert PackCount(0, 0, 0, 0, 0).cropped_share == 0.0


def test_more_rows_than_one_block_come_in_order() -> None:
    packer = BestFit(4, 1)
    blocks = list(packer.rows([[0, n, n, n] for n in range(1000)]))
    assert [len(block) for block in blocks] == [256, 256, 256, 232]
    assert np.concatenate(blocks)[:, 1].tolist() == list(range(1000))


# -- files, manifest and samples -------------------------------------------


def test_every_sample_begins_with_bos_and_is_a_row_of_the_files(packed: Path, tokenizer: Tokenizer) -> None:
    manifest = Manifest.load(packed)
    assert manifest.packing == "bestfit"
    for part in ("train", "validation"):
        files = manifest.files_of(part)
        stream = TokenStream(packed, manifest, part)
        stream.verify()
        rows = np.concatenate([np.fromfile(packed / file.name, "<u2") for file in files]).reshape(-1, T + 1)
        assert stream.samples == manifest.samples(part) == len(rows)
        assert (rows[:, 0] == tokenizer.bos_id).all()
        assert all(np.array_equal(stream.sample(index), rows[index % len(rows)]) for index in range(2 * len(rows)))
        assert all(file.tokens % (T + 1) == 0 for file in files)
    assert {file.tokens for file in manifest.files_of("train")[:-1]} == {1000 // (T + 1) * (T + 1)}


def test_a_batch_is_its_samples_shifted_by_one_round_and_round(packed: Path) -> None:
    stream = TokenStream(packed, Manifest.load(packed))
    for start, stop in [(0, 1), (3, 120), (stream.samples - 2, stream.samples + 3), (5, 2 * stream.samples + 7)]:
        inputs, targets = stream.batch(start, stop)
        assert inputs.dtype == targets.dtype == np.int64 and inputs.shape == targets.shape == (stop - start, T)
        samples = np.stack([stream.sample(index) for index in range(start, stop)])
        assert np.array_equal(inputs, samples[:, :-1]) and np.array_equal(targets, samples[:, 1:])
    with pytest.raises(UsageError, match=r"range of samples .* is invalid"):
        stream.batch(3, 3)


@pytest.mark.parametrize("packing", ["stream", "bestfit"])
def test_training_resumes_exactly_at_any_sample_and_any_number_of_ranks(
    packing: str, shards: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prepare(shards, tokenizer, tmp_path, disk=DISK, sequence_len=T, packing=packing)
    stream = TokenStream(tmp_path, Manifest.load(tmp_path))

    def steps(start: int, stop: int, ranks: int) -> list[list[int]]:
        parts = [
            StepBatches(stream, start=start, stop=stop, batch_samples=12, device_batch=5, rank=rank, ranks=ranks)
            for rank in range(ranks)
        ]
        return [
            [int(token) for micro in each for _, targets in micro for token in targets.reshape(-1)]
            for each in zip(*parts, strict=True)
        ]

    whole = steps(0, 12 * 30, 1)
    assert len(whole) == 30 and len({tuple(step) for step in whole}) == 30
    for ranks in (2, 3, 4):
        assert steps(0, 12 * 30, ranks) == whole  # each step the same samples, whoever has which
    for first, second in permutations((1, 2, 4), 2):
        for at in (1, 11, 29):
            assert steps(0, 12 * at, first) + steps(12 * at, 12 * 30, second) == whole


def test_packing_twice_gives_the_same_digest_and_another_one_than_a_stream(
    shards: Path, tokenizer: Tokenizer, packed: Path, tmp_path: Path
) -> None:
    first = Manifest.load(packed)
    again = prepare(
        shards, tokenizer, tmp_path, disk=DISK, sequence_len=T, packing="bestfit", tokens_per_file=1000, threads=1
    )
    assert again == first and again.digest == first.digest
    assert missing_files(tmp_path, again) == ()
    one = prepare(shards, tokenizer, tmp_path, disk=DISK, sequence_len=T, packing="bestfit")
    whole, parts = TokenStream(tmp_path, one), TokenStream(packed, first)
    for mine, theirs in zip(whole.batch(0, whole.samples), parts.batch(0, parts.samples), strict=True):
        assert np.array_equal(mine, theirs)
    stream = prepare(shards, tokenizer, tmp_path, disk=DISK, sequence_len=T)
    assert len({stream.digest, one.digest, first.digest}) == 3


def test_what_was_cropped_is_told_for_each_part(shards: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    told: dict[str, PackCount] = {}
    manifest = prepare(
        shards, tokenizer, tmp_path, disk=DISK, sequence_len=T, packing="bestfit", on_packed=told.__setitem__
    )
    for part, count in told.items():
        texts = list(iterate_texts(shards, part))
        assert (count.documents, count.kept) == (len(texts), manifest.tokens(part))
        assert count.tokens == sum(1 + len(tokenizer.encode(text)) for text in texts)
        assert count.tokens == count.kept + count.cropped + count.left_over
        assert 0 < count.cropped_share < 1
    assert set(told) == {"train", "validation"}


# -- bad inputs ------------------------------------------------------------


def test_a_manifest_of_before_keeps_its_digest() -> None:
    shard, file = SourceShard("a.parquet", "1" * 64), TokenFile("train_00000.bin", "train", 100, "2" * 64, 200)
    manifest = Manifest(16, 330, "3" * 64, "stream", (shard,), (file,))
    assert manifest.digest == "4e99c068ae689d17e5c25fb218b137facbbe2ed3672c695c8fb880ae4e79dca8"
    assert Manifest.from_json(manifest.to_json()) == manifest and manifest.samples("train") == 6


def test_a_manifest_whose_files_hold_no_whole_rows_is_refused(packed: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(packed)
    with pytest.raises(DataError, match="does not have whole rows"):
        replace(manifest, sequence_len=T + 1)
    with pytest.raises(DataError, match="unknown packing 'rows'; known are 'stream' and 'bestfit'"):
        replace(manifest, packing="rows")


def test_too_little_text_for_one_row_and_an_unknown_packing_are_refused(
    shards: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"the train part has 0 tokens, but one sample needs 1000001"):
        prepare(shards, tokenizer, tmp_path, disk=DISK, sequence_len=1_000_000, packing="bestfit")
    assert not (tmp_path / "manifest.json").exists()
    with pytest.raises(UsageError, match="use stream or bestfit"):
        prepare(shards, tokenizer, tmp_path, disk=DISK, sequence_len=T, packing="best")


def test_tokens_outside_the_vocabulary_of_the_manifest_are_found(packed: Path) -> None:
    manifest = replace(Manifest.load(packed), vocab_size=300)
    with pytest.raises(DataError, match=r"has the token id 3\d\d, outside the manifest's vocabulary of 300"):
        TokenStream(packed, manifest).verify()
