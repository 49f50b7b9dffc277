"""The tokenizer: ids, special tokens, and a file that is either intact or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rustbpe
from curtail.errors import DataError, DiskError, NotFound, UsageError
from curtail.system.disk import SystemDisk
from nanochat.tokenizer import FILE_NAME, SPECIALS, Tokenizer

TEXTS = ["the cat sat on the mat, the rat sat on the cat. " * 4, "naïve café 世界 12345\n\n\tdef f(x): return x's\r\n"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


def test_the_vocabulary_counts_the_special_tokens_and_bos_is_the_ninth_from_the_end(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 300
    assert tokenizer.bos_id == 291
    assert [tokenizer.decode([token]) for token in range(291, 300)] == list(SPECIALS)


def test_encoding_and_decoding_give_the_text_back(tokenizer: Tokenizer) -> None:
    for text in [*TEXTS, "", " ", "\x00", "🦀 unseen ünïcode ﷽", "a" * 5000]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_frequent_word_is_one_token(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(" the")) == 1


def test_the_name_of_a_special_token_in_a_text_is_plain_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|bos|>")
    assert max(ids) < tokenizer.bos_id
    assert tokenizer.decode([tokenizer.bos_id, *ids]) == "<|bos|><|bos|>"


def test_a_batch_gives_the_ids_of_each_text(tokenizer: Tokenizer) -> None:
    texts = [*TEXTS, "", " " * 250_000 + "x", "y"]
    assert tokenizer.encode_batch(texts, threads=2) == [tokenizer.encode(text) for text in texts]


def test_a_million_blanks_are_encoded(tokenizer: Tokenizer) -> None:
    text = "a" + " " * 1_000_000 + "x"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_lone_surrogate_becomes_a_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert Tokenizer.train(["ab\ud800 ab"], 266).ranks[-1] == b"ab"


def test_token_bytes_are_lengths_of_raw_bytes_and_zero_for_special_tokens(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.token_bytes()
    assert lengths[:256] == [1] * 256
    assert lengths[291:] == [0] * 9
    for text in TEXTS:
        assert sum(lengths[token] for token in tokenizer.encode(text)) == len(text.encode())


def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    for token in (-1, 300):
        with pytest.raises(DataError, match="outside the vocabulary"):
            tokenizer.decode([token])


def test_too_little_text_for_the_vocabulary_is_refused_and_the_remedy_names_the_most_possible() -> None:
    with pytest.raises(DataError) as caught:
        Tokenizer.train(["ab"], 5000)
    assert "at most 266" in str(caught.value)
    assert Tokenizer.train(["ab"], 266).vocab_size == 266


@pytest.mark.parametrize("size", [264, 65_537, 0, -1])
def test_a_vocabulary_that_does_not_fit_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="65536"):
        Tokenizer.train(TEXTS, size)


def test_threads_below_one_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError):
        tokenizer.encode_batch(["a"], threads=0)


def test_a_saved_tokenizer_loads_as_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    tokenizer.save(path, SystemDisk())
    loaded = Tokenizer.load(path)
    assert loaded == tokenizer
    assert loaded.digest == tokenizer.digest
    assert loaded.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_the_digest_depends_on_the_ranks_alone_and_not_on_the_order_of_texts(tokenizer: Tokenizer) -> None:
    assert Tokenizer.train(reversed(TEXTS), 300).digest == tokenizer.digest
    assert Tokenizer.train(TEXTS, 299).digest != tokenizer.digest
    assert len(tokenizer.digest) == 64


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no tokenizer at"):
        Tokenizer.load(tmp_path / FILE_NAME)


def test_saving_into_a_missing_folder_is_a_disk_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DiskError):
        tokenizer.save(tmp_path / "no" / FILE_NAME)


def test_a_truncated_file_is_refused_at_every_length(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    tokenizer.save(path)
    data = path.read_bytes()
    for length in [0, 1, 100, len(data) // 2, len(data) - 3]:
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match="truncated"):
            Tokenizer.load(path)


def _swap(content: dict[str, Any]) -> None:
    ranks = content["ranks"]
    ranks[290], ranks[289] = ranks[289], ranks[290]


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "not a tokenizer": lambda c: c.update(format="other"),
    "format version is 2": lambda c: c.update(version=2),
    "fields": lambda c: c.update(more=1),
    "wrong type": lambda c: c.update(pattern=1),
    "special tokens": lambda c: c["specials"].pop(),
    "base64": lambda c: c["ranks"].__setitem__(256, "?"),
    "single bytes": lambda c: c["ranks"].pop(3),
    "repeats": lambda c: c["ranks"].append(c["ranks"][256]),
    "two earlier ones": lambda c: c["ranks"].append("enp6enp6eg=="),
    "256 ranks|255 ranks": lambda c: c.update(ranks=c["ranks"][:255]),
    "regular expression": lambda c: c.update(pattern="("),
    "does not match its digest": lambda c: c["ranks"].pop(),
    "changed or damaged": lambda c: c.update(pattern="a"),
    "damaged|earlier ones": _swap,
}


@pytest.mark.parametrize("reason", CHANGES)
def test_a_changed_file_is_refused_with_its_name_and_the_reason(
    reason: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / FILE_NAME
    tokenizer.save(path)
    content = json.loads(path.read_text())
    CHANGES[reason](content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=reason) as caught:
        Tokenizer.load(path)
    assert str(path) in caught.value.message
    assert caught.value.remedy


def test_json_that_is_no_object_and_binary_files_are_refused(tmp_path: Path) -> None:
    for data in [b"[]", b"3", b"null", b"\x80\x04\x95pickle", b"\xff\xfe"]:
        (tmp_path / FILE_NAME).write_bytes(data)
        with pytest.raises(DataError):
            Tokenizer.load(tmp_path / FILE_NAME)


def test_the_trainer_refuses_arguments_of_no_sense() -> None:
    with pytest.raises(ValueError, match="vocab_size must be at least 256"):
        rustbpe.train(["a"], 255)
    with pytest.raises(ValueError, match="not a valid regular expression"):
        rustbpe.train(["a"], 300, "(")
    with pytest.raises(ValueError, match="text 1 holds a lone surrogate"):
        rustbpe.train(["a", "\ud800"], 300)
    with pytest.raises(TypeError, match="not one str"):
        rustbpe.train("abc", 300)
    with pytest.raises(TypeError, match="text 1 is of"):
        rustbpe.train(["a", b"b"], 300)  # type: ignore[list-item]


def test_an_error_of_the_texts_themselves_passes_through() -> None:
    def broken() -> Any:
        yield "a"
        raise DataError("shard 3 is damaged")

    with pytest.raises(DataError, match="shard 3"):
        rustbpe.train(broken(), 300)
