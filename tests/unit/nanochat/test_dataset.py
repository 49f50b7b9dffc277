"""Importing texts: what becomes a document, which part it goes to, what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curtail.errors import DataError, DiskError, NotFound, UsageError
from curtail.system.disk import SystemDisk
from nanochat.dataset import VALIDATION_NAME, ImportReport, import_texts, iterate_texts, read_shards
from nanochat.sources import CUT_CHARACTERS

DISK = SystemDisk()


def write_parquet(path: Path, texts: list[str | None], column: str = "text") -> Path:
    pq.write_table(pa.table({column: pa.array(texts, pa.string())}), path)
    return path


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def texts_of(folder: Path) -> list[str]:
    return [*iterate_texts(folder, "train"), *iterate_texts(folder, "validation")]


def numbered(count: int) -> list[str]:
    return [f"document {number}" for number in range(count)]


def imported(tmp_path: Path, *paths: Path, fraction: float = 0.01, most: int = 53_248) -> ImportReport:
    out = tmp_path / "shards"
    return import_texts(paths, out, disk=DISK, validation_fraction=fraction, documents_per_shard=most, overwrite=True)


def test_every_document_of_every_kind_of_file_comes_back_once(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("plain")
    (folder / "deep" / "b.md").write_bytes("\ufeffwith mark\r\nand é\n".encode())
    write_jsonl(folder / "c.jsonl", ["line 1", "line 2"])
    write_parquet(folder / "d.parquet", ["row 1", None, "row 2", "  "])
    report = imported(tmp_path, folder)
    expected = ["line 1", "line 2", "plain", "row 1", "row 2", "with mark\r\nand é\n"]
    assert sorted(texts_of(tmp_path / "shards")) == expected
    assert (report.files, report.documents, report.empty_documents, report.skipped) == (4, 6, 2, ())
    assert report.bytes == sum(len(text.encode()) for text in expected)


def test_files_that_are_no_text_are_left_out_and_reported(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "config").write_text("hidden")
    (folder / ".hidden").write_text("hidden")
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    (folder / "latin.txt").write_bytes(b"caf\xe9 au lait")
    (folder / "cut.txt").write_bytes("é".encode()[:1])
    write_jsonl(folder / "good.jsonl", numbered(3))
    report = imported(tmp_path, folder)
    assert report.documents == 3
    assert [(skip.path.name, skip.reason) for skip in report.skipped] == [
        ("cut.txt", "not UTF-8 text"),
        ("latin.txt", "not UTF-8 text"),
        ("picture.png", "binary (it has a zero byte)"),
    ]


def test_the_order_of_import_does_not_matter(tmp_path: Path) -> None:
    texts = numbered(500)
    first = imported(tmp_path, write_jsonl(tmp_path / "a.jsonl", texts), most=200)
    shuffled = random.Random(1).sample(texts, len(texts))
    half = [
        write_jsonl(tmp_path / "b.jsonl", shuffled[:250]),
        write_parquet(tmp_path / "c.parquet", list(shuffled[250:])),
    ]
    second = imported(tmp_path, *half, most=200)
    assert first.shards == second.shards
    assert [shard.documents for shard in first.shards.training][:2] == [200, 200]
    assert list(iterate_texts(tmp_path / "shards")) != sorted(iterate_texts(tmp_path / "shards"))


def test_the_validation_set_is_about_the_asked_fraction_and_stays_under_another_seed(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", numbered(2000))
    chosen, orders = [], []
    for seed in (1, 2):
        out = tmp_path / f"out{seed}"
        report = import_texts([source], out, disk=DISK, validation_fraction=0.1, seed=seed)
        assert 140 < report.shards.validation.documents < 260
        chosen.append(set(iterate_texts(out, "validation")))
        orders.append(list(iterate_texts(out)))
        assert not chosen[-1] & set(orders[-1])
    assert chosen[0] == chosen[1]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize("fraction", [0.0, 0.0001, 0.999999])
def test_neither_part_is_ever_empty(fraction: float, tmp_path: Path) -> None:
    for count in (2, 3, 20):
        report = imported(tmp_path, write_jsonl(tmp_path / "a.jsonl", numbered(count)), fraction=fraction)
        assert report.shards.validation.documents >= 1
        assert sum(shard.documents for shard in report.shards.training) >= 1
        assert sorted(texts_of(tmp_path / "shards")) == sorted(numbered(count))


def test_equal_documents_stay_in_one_part(tmp_path: Path) -> None:
    imported(tmp_path, write_jsonl(tmp_path / "a.jsonl", ["a", "b", "c"] * 40), fraction=0.5)
    out = tmp_path / "shards"
    assert not set(iterate_texts(out)) & set(iterate_texts(out, "validation"))
    assert len(texts_of(out)) == 120


def test_a_single_big_text_file_is_cut_into_documents_that_join_to_it(tmp_path: Path) -> None:
    text = "".join(f"paragraph {number} é.\n" + "\n" * (number % 2) for number in range(40_000))
    (tmp_path / "book.txt").write_text(text, encoding="utf-8", newline="")
    report = imported(tmp_path, tmp_path / "book.txt")
    pieces = texts_of(tmp_path / "shards")
    assert report.documents == len(pieces) > len(text) // (2 * CUT_CHARACTERS)
    assert sum(map(len, pieces)) == len(text)
    assert all(piece.endswith("\n\n") and len(piece) <= 2 * CUT_CHARACTERS and piece in text for piece in pieces)


def test_a_file_given_twice_is_read_once_and_a_data_set_is_not_imported_into_itself(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", numbered(5))
    for _ in range(2):
        assert imported(tmp_path, tmp_path / "a.jsonl", tmp_path, tmp_path / "a.jsonl").documents == 5


def test_a_shard_is_zstd_with_one_column_and_row_groups_of_1024(tmp_path: Path) -> None:
    imported(tmp_path, write_jsonl(tmp_path / "a.jsonl", numbered(3000)), fraction=0.0)
    metadata = pq.ParquetFile(tmp_path / "shards" / "shard_00000.parquet").metadata
    assert [metadata.row_group(group).num_rows for group in range(3)] == [1024, 1024, 951]
    column = metadata.row_group(0).column(0)
    assert (metadata.num_columns, column.path_in_schema, column.compression) == (1, "text", "ZSTD")


def test_half_a_surrogate_pair_in_json_becomes_a_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n\n{"text": "c"}\n')
    imported(tmp_path, tmp_path / "a.jsonl")
    assert sorted(texts_of(tmp_path / "shards")) == ["a\ufffdb", "c"]


def test_a_path_that_does_not_exist_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nothing\.txt does not exist"):
        imported(tmp_path, write_jsonl(tmp_path / "a.jsonl", numbered(3)), tmp_path / "nothing.txt")


def test_no_document_at_all_is_an_error_that_says_what_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    with pytest.raises(DataError, match="no document to import: give text"):
        imported(tmp_path, tmp_path / "texts")
    (tmp_path / "texts" / "a.bin").write_bytes(b"\0")
    with pytest.raises(DataError, match=r"1 files were skipped.*a\.bin: binary"):
        imported(tmp_path, tmp_path / "texts")


def test_a_single_document_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only one document"):
        imported(tmp_path, write_jsonl(tmp_path / "a.jsonl", ["same", "same"]))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"txt": "a"}', "no string under the key `text`"),
        (b'{"text": 3}', "no string"),
        (b'["text"]', "no string"),
    ],
)
def test_a_broken_jsonl_line_is_named_by_file_and_line(line: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"a\.jsonl, line 2: {reason}"):
        imported(tmp_path, tmp_path / "a.jsonl")


def test_parquet_files_that_hold_no_texts_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["x"], column="body")
    with pytest.raises(DataError, match=r"a\.parquet has no column `text`, only: body"):
        imported(tmp_path, path)
    pq.write_table(pa.table({"text": [1, 2]}), path)
    with pytest.raises(DataError, match="does not contain strings"):
        imported(tmp_path, path)
    with pytest.raises(DataError, match="is empty"):
        imported(tmp_path, write_parquet(path, []))
    for damaged in (b"", b"PAR1 not really", path.read_bytes()[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not an intact parquet file"):
            imported(tmp_path, path)


def test_a_failed_import_leaves_the_earlier_data_set_and_no_scratch(tmp_path: Path) -> None:
    good = imported(tmp_path, write_jsonl(tmp_path / "a.jsonl", numbered(9)))
    with pytest.raises(DataError):
        imported(tmp_path, write_jsonl(tmp_path / "b.jsonl", ["one"]))
    assert read_shards(tmp_path / "shards") == good.shards
    assert not list((tmp_path / "shards").glob(".*"))


def test_a_second_import_needs_to_be_asked_to_overwrite_and_leaves_no_old_shard(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", numbered(50))
    imported(tmp_path, source, most=10)
    with pytest.raises(DataError, match="already"):
        import_texts([source], tmp_path / "shards", disk=DISK)
    imported(tmp_path, source)
    names = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert names == ["shard_00000.parquet", "shards.json", VALIDATION_NAME]


def test_a_folder_that_cannot_be_written_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("a file in the way")
    with pytest.raises(DiskError, match="cannot write into"):
        imported(tmp_path, write_jsonl(tmp_path / "a.jsonl", numbered(3)))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_of_no_sense_is_refused(fraction: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        imported(tmp_path, tmp_path, fraction=fraction)


def test_a_damaged_or_missing_shard_is_found_before_it_is_read(tmp_path: Path) -> None:
    imported(tmp_path, write_jsonl(tmp_path / "a.jsonl", numbered(30)))
    shard = tmp_path / "shards" / "shard_00000.parquet"
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"shard_00000\.parquet does not match"):
        next(iterate_texts(tmp_path / "shards"))
    shard.unlink()
    with pytest.raises(DataError, match="is missing"):
        next(iterate_texts(tmp_path / "shards"))
    with pytest.raises(UsageError, match="no part"):
        next(iterate_texts(tmp_path / "shards", "test"))


def test_a_list_of_shards_of_another_form_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "shards"
    with pytest.raises(NotFound, match="no data set"):
        read_shards(out)
    imported(tmp_path, write_jsonl(tmp_path / "a.jsonl", numbered(30)))
    path = out / "shards.json"
    good = path.read_text()
    for old, new in [
        ("curtail-shards", "x"),
        ('"version": 1', '"version": 2'),
        ("shard_00000", "../shard_00000"),
        ('"documents": 29', '"documents": true'),
        ('"training"', '"trainings"'),
        ("{", "["),
        (good, good[:40]),
        (good, "[]"),
    ]:
        assert old in good
        path.write_text(good.replace(old, new, 1))
        with pytest.raises(DataError, match="truncated or not a list"):
            read_shards(out)


def test_progress_is_told_and_ends_with_the_whole(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    source = write_jsonl(tmp_path / "a.jsonl", numbered(1500))
    report = import_texts([source], tmp_path / "o", disk=DISK, on_progress=lambda *done: told.append(done))
    assert [documents for documents, _ in told] == [1024, 1500]
    assert told[-1] == (report.documents, report.bytes)
