"""Tokens as text: what is one, and that a mistake is noticed before anything is sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.auth import credentials
from curtail.errors import AuthError
from curtail.security.token import Token, parse_token

PINNED = credentials.new_token("ab" * 32)


def test_a_token_is_read_as_it_was_written():
    assert parse_token(f"  {PINNED}\n") == PINNED and str(PINNED).startswith("ct1." + "ab" * 32)
    assert parse_token("ct0.abc.secret") == Token("abc", "secret")


@given(st.integers(0, len(str(PINNED)) - 1), st.sampled_from("0123456789abcdefxZ. -"))
def test_any_single_wrong_character_is_noticed(place, character):
    text = str(PINNED)
    changed = text[:place] + character + text[place + 1 :]
    if changed != text:
        with pytest.raises(AuthError):
            parse_token(changed)


def test_a_token_that_was_cut_says_how_many_characters_are_missing():
    with pytest.raises(AuthError, match="has 100 characters instead of 151"):
        parse_token(str(PINNED)[:100])


def test_neither_errors_nor_repr_show_a_secret():
    for wrong in (str(PINNED)[:-1], str(PINNED)[:-1] + "x", PINNED.secret, f"ct9.{PINNED.secret}"):
        with pytest.raises(AuthError) as caught:
            parse_token(wrong)
        assert PINNED.secret[:16] not in str(caught.value)
    assert PINNED.secret not in repr(PINNED)
