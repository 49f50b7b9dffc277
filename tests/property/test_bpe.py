"""The trainer against the obvious one, and the scanner against the pattern it stands for."""

from __future__ import annotations

import os
import random
import sysconfig
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
import regex  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

import rustbpe
from nanochat.tokenizer import Tokenizer

DEPTH = int(os.environ.get("CURTAIL_EXAMPLES", "60"))
# Upstream's possessive `?+` and `++` are the same in the `regex` module.
PATTERN = regex.compile(rustbpe.SPLIT_PATTERN)

# Few letters make ties, overlaps and long runs; the rest makes every alternative of the pattern matter.
few_letters = st.text(alphabet="ab ", max_size=60)
TELLING = "aSsLlVvEeRe'\u2019\u017f 129²Ⅷ.!-\t\n\r\x0b\x85\u2028\u3000éßш\u05d9世🦀\u0301"
telling = st.text(alphabet=TELLING, max_size=80)
# Only characters that Python knows: a newer Unicode version may make a letter of what was none.
known = st.characters(exclude_categories=("Cs", "Cn"))
any_text = st.one_of(few_letters, telling, st.text(alphabet=known, max_size=60))


def obvious_bpe(texts: Iterable[str], merges: int) -> list[bytes]:
    """Counts every pair anew before every merge; the smallest of the most frequent pairs wins."""
    counts = Counter(word.encode() for text in texts for word in PATTERN.findall(text))
    words = {word: list(word) for word in counts}
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < 256 + merges:
        pairs: Counter[tuple[int, int]] = Counter()
        for word, ids in words.items():
            for pair in pairwise(ids):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        for ids in words.values():
            at = 0
            while at + 1 < len(ids):
                if (ids[at], ids[at + 1]) == best:
                    ids[at : at + 2] = [len(tokens)]
                at += 1
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return tokens


def trained(texts: Iterable[str], merges: int) -> list[bytes]:
    ranked = rustbpe.train(texts, 256 + merges)
    assert [rank for _, rank in ranked] == list(range(len(ranked)))
    return [token for token, _ in ranked]


@settings(max_examples=DEPTH, deadline=None)
@given(st.lists(any_text, max_size=12), st.integers(0, 60))
def test_the_merges_are_those_of_the_obvious_trainer(texts: list[str], merges: int) -> None:
    assert trained(texts, merges) == obvious_bpe(texts, merges)


@settings(max_examples=DEPTH, deadline=None)
@given(st.lists(st.text(alphabet="ab", max_size=200), min_size=1, max_size=4))
def test_long_runs_of_two_letters_merge_like_the_obvious_trainer(texts: list[str]) -> None:
    assert trained(texts, 80) == obvious_bpe(texts, 80)


def test_merges_on_real_sources_are_those_of_the_obvious_trainer() -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [(library / name).read_text("utf-8") for name in ("this.py", "bisect.py", "keyword.py", "abc.py")]
    texts.append("Ünïcödé, 世界世界 и снова и снова 🦀🦀🦀🦀 \u017f's don't WE'LL 2026-11-22\r\n\r\n   \t end")
    assert trained(texts, 400) == obvious_bpe(texts, 400)


@settings(max_examples=DEPTH, deadline=None)
@given(st.lists(any_text, max_size=12), st.randoms(use_true_random=False))
def test_the_merges_depend_on_neither_order_nor_grouping(texts: list[str], shuffle: random.Random) -> None:
    mixed = shuffle.sample(texts, len(texts))
    assert trained(iter(mixed), 40) == trained(texts, 40)
    assert trained(texts * 2, 40) == trained(texts, 40)


@settings(max_examples=5 * DEPTH, deadline=None)
@given(st.one_of(any_text, telling))
def test_the_scanner_cuts_like_the_pattern(text: str) -> None:
    assert rustbpe.split(text) == PATTERN.findall(text)


@settings(max_examples=DEPTH, deadline=None)
@given(telling)
def test_another_pattern_cuts_like_the_regex_module(text: str) -> None:
    pattern = r"\p{L}+|\s?\p{N}|[^\p{L}]"
    assert rustbpe.split(text, pattern) == regex.findall(pattern, text)


def test_the_scanner_cuts_the_standard_library_like_the_pattern() -> None:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:40]:
        text = path.read_text("utf-8")
        assert rustbpe.split(text) == PATTERN.findall(text), path


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = Path(random.__file__).read_text("utf-8") + "don't we'll Ünïcödé 世界 и снова \r\n\n  x" * 3
    return Tokenizer.train([text], 700)


def obvious_encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Per word: join the neighbours with the lowest rank, the leftmost first, while there are any."""
    ranks = {token: rank for rank, token in enumerate(tokenizer.ranks)}
    encoded = []
    for word in PATTERN.findall(text):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            joins = [(ranks[a + b], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
            if not joins:
                break
            at = min(joins)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        encoded += [ranks[part] for part in parts]
    return encoded


@settings(max_examples=2 * DEPTH, deadline=None)
@given(any_text)
def test_encoding_applies_the_merges_in_order_and_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == obvious_encode(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert max(ids, default=0) < tokenizer.bos_id


@settings(max_examples=DEPTH, deadline=None)
@given(st.lists(any_text, max_size=5))
def test_a_tokenizer_knows_its_training_words_as_the_trainer_left_them(texts: list[str]) -> None:
    ranks = trained(texts, 30)
    assert len(set(ranks)) == len(ranks)
    tokenizer = Tokenizer.train(texts, len(ranks) + 9)
    assert [tokenizer.encode(token.decode()) for token in ranks[256:] if _is_text(token)] == [
        [rank] for rank, token in enumerate(ranks[256:], start=256) if _is_text(token)
    ]


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True
