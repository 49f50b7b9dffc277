"""Decoding of messages: what was encoded comes back, and whatever else comes is a `WireError` and nothing else.

A few cases per message in the suite; more with

    CURTAIL_FUZZ=20000 python -m pytest tests/property/test_wire_properties.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import typing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curtail import wire
from curtail.errors import WireError
from curtail.wire.bounds import Real, Text, Whole

COUNT = int(os.environ.get("CURTAIL_FUZZ", "15"))
fuzz = settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck))
MESSAGES = [pytest.param(kind, id=name) for name, kind in vars(wire).items() if dataclasses.is_dataclass(kind)]
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def values(hint, rule):
    """Any value that a field may hold."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return messages(hint)
    if origin is tuple:
        return st.lists(values(inner[0], rule), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text("abcé", max_size=5), values(inner[1], rule), max_size=2)
    if inner:
        return st.one_of(*(values(option, rule) for option in inner))
    if hint is type(None):
        return st.none()
    if hint is bool:
        return st.booleans()
    if hint is int:
        whole = rule if isinstance(rule, Whole) else Whole()
        return st.integers(whole.low, whole.high)
    if hint is float:
        real = rule if isinstance(rule, Real) else Real()
        return st.floats(real.low, real.high)
    if isinstance(rule, Text) and rule.form:
        return st.from_regex(rule.form, fullmatch=True, alphabet=st.characters(codec="ascii"))
    return st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)


def messages(kind):
    return st.builds(
        kind, **{name: values(hint, wire.bound_of(kind, name)) for name, hint in wire.hints_of(kind).items()}
    )


@pytest.mark.parametrize("kind", MESSAGES)
def test_what_was_encoded_comes_back(kind):
    @fuzz
    @given(message=messages(kind))
    def run(message):
        assert wire.decode(kind, wire.encode(message)) == message

    run()


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_with_something_else_in_it_decodes_or_is_a_wire_error(kind):
    @fuzz
    @given(message=messages(kind), name=st.sampled_from([*wire.hints_of(kind), "more"]), value=JSON)
    def run(message, name, value):
        body = json.loads(wire.encode(message)) | {name: value}
        try:
            found = wire.decode(kind, json.dumps(body))
        except WireError as error:
            assert len(str(error)) < 500
            str(error).encode()
        else:
            assert wire.decode(kind, wire.encode(found)) == found

    run()


@fuzz
@given(body=st.one_of(st.binary(max_size=200), st.text(max_size=100), JSON.map(json.dumps)))
def test_random_bodies_are_wire_errors(body):
    for kind in (wire.Heartbeat, wire.CheckoutReply, wire.Status, wire.RunInfo, wire.TokenList):
        with pytest.raises(WireError):
            wire.decode(kind, body)


@fuzz
@given(body=st.binary(max_size=100), at=st.integers(0, 10**6), cut=st.booleans())
def test_a_good_body_that_was_cut_or_overwritten_decodes_or_is_a_wire_error(body, at, cut):
    good = wire.encode(wire.Heartbeat("agent", "site", 1, "IDLE", "paused", None, 1.5, "note"))
    at %= len(good)
    damaged = good[:at] if cut else good[:at] + body + good[at + len(body) :]
    try:
        wire.decode(wire.Heartbeat, damaged)
    except WireError as error:
        str(error).encode()
