"""`curtail tokenizer eval`: bytes per token, beside peers that are there and without those that are not."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import tiktoken

from curtail.__main__ import run as curtail
from curtail.errors import DataError
from nanochat import tokenizer_eval
from nanochat.sample_texts import SAMPLE_TEXTS
from nanochat.tokenizer import Tokenizer, cached_encoding
from nanochat.tokenizer_eval import OWN, evaluate_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(SAMPLE_TEXTS.values(), 600)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def bytes_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2 is here and has one token for each byte; cl100k is not here."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    peer = tiktoken.Encoding("gpt2", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr(tokenizer_eval, "cached_encoding", {"gpt2": peer, "cl100k_base": None}.__getitem__)


@pytest.mark.usefixtures("bytes_peer")
def test_a_score_is_bytes_by_tokens(tokenizer: Tokenizer) -> None:
    score = evaluate_tokenizer(tokenizer, {"a": "abc é\r\n", "b": "x"})
    assert score.vocab_sizes == {OWN: 600, "gpt2": 256} and score.missing == ("cl100k",)
    a, b = score.texts
    assert (a.name, a.bytes, a.tokens["gpt2"], a.tokens[OWN]) == ("a", 8, 8, len(tokenizer.encode("abc é\r\n")))
    assert a.bytes_per_token("gpt2") == 1.0 and b.bytes_per_token(OWN) == 1.0 and b.gain("gpt2") == 0.0
    assert a.gain("gpt2") == 8 / a.tokens[OWN] - 1


def test_peers_that_are_not_on_this_machine_are_missing_and_the_network_is_not_asked(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    for cache in (str(tmp_path), ""):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", cache)
        assert evaluate_tokenizer(tokenizer, {"a": "abc"}).missing == ("gpt2", "cl100k")


def test_a_peer_is_read_from_the_cache_and_tiktoken_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import base64
    import hashlib

    import tiktoken.load
    import tiktoken.registry

    address = "https://example.invalid/tiny.tiktoken"
    text = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
    (tmp_path / hashlib.sha1(address.encode()).hexdigest()).write_bytes(text)

    def tiny() -> dict[str, object]:
        ranks = tiktoken.load.load_tiktoken_bpe(address, hashlib.sha256(text).hexdigest())
        return {"name": "tiny", "pat_str": r"[\s\S]", "mergeable_ranks": ranks, "special_tokens": {}}

    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setattr(tiktoken.registry, "ENCODING_CONSTRUCTORS", {"tiny": tiny})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    before = tiktoken.load.read_file
    found = cached_encoding("tiny")
    assert found is not None and found.encode_ordinary("ab") == [97, 98]
    assert tiktoken.load.read_file is before
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    next(tmp_path.iterdir()).write_bytes(b"damaged")
    assert cached_encoding("tiny") is None and tiktoken.load.read_file is before


@pytest.mark.usefixtures("bytes_peer")
def test_the_command_prints_a_table_of_the_own_texts_and_given_ones(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "mine.txt").write_bytes(b"one\r\ntwo\r\n")
    assert curtail(["tokenizer", "eval", str(tmp_path), "--text", str(tmp_path / "mine.txt")]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("bytes per token; 600 token ids")
    assert [line.split()[0] for line in lines[1:]] == ["text", *SAMPLE_TEXTS, str(tmp_path / "mine.txt")]
    assert len({len(line) for line in lines[1:]}) == 1 and lines[1].endswith("gpt2 (256)")
    assert "1.00 (+" in lines[2]
    assert captured.err == "cl100k is left out: tiktoken has no copy of its files on this machine\n"


@pytest.mark.usefixtures("bytes_peer")
def test_the_command_prints_json(tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    assert curtail(["tokenizer", "eval", str(tmp_path / "tokenizer.json"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["tokenizer"] == tokenizer.digest and values["missing"] == ["cl100k"]
    assert values["vocab_sizes"] == {"own": 600, "gpt2": 256}
    for text in values["texts"]:
        size = len(SAMPLE_TEXTS[text["name"]].encode())
        assert text["bytes"] == size == text["tokens"]["gpt2"]
        assert text["bytes_per_token"] == {"own": size / text["tokens"]["own"], "gpt2": 1.0}


def test_the_own_texts_are_a_page_each() -> None:
    assert list(SAMPLE_TEXTS) == ["news", "code", "mathematics", "science"]
    assert all(1000 < len(text.encode()) < 3000 for text in SAMPLE_TEXTS.values())
    compile(SAMPLE_TEXTS["code"], "code", "exec")


@pytest.mark.parametrize(
    ("name", "data", "code", "says"),
    [
        ("no.txt", None, 3, "there is no text"),
        ("latin.txt", b"caf\xe9", 1, "is not UTF-8 text"),
        ("empty.txt", b"", 1, "is empty"),
    ],
)
def test_a_text_that_cannot_be_measured_is_named(
    name: str, data: bytes | None, code: int, says: str, tokenizer: Tokenizer, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tokenizer.save(tmp_path / "tokenizer.json")
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert curtail(["tokenizer", "eval", str(tmp_path), "--text", str(tmp_path / name)]) == code
    captured = capsys.readouterr()
    assert says in captured.err and name in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_a_tokenizer_that_loses_text_is_refused() -> None:
    lossy = Tokenizer(tuple(bytes([byte]) for byte in range(256)), r"[a-z]+")
    with pytest.raises(DataError, match="does not reproduce the text a"):
        evaluate_tokenizer(lossy, {"a": "abc 123"})
