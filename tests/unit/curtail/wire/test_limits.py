"""Every field of every request has its limits, and `decode` holds them: a clear error that names the field."""

from __future__ import annotations

import dataclasses
import json
import math
import typing

import pytest

from curtail import wire
from curtail.errors import WireError
from curtail.wire import bounds, limits
from curtail.wire.bounds import Real, Text, Utf8, Whole

REQUESTS = (
    wire.JoinRequest, wire.RenewRequest, wire.Heartbeat, wire.LeaveRequest, wire.CheckoutRequest, wire.Progress,
    wire.CommitRequest, wire.BlobOffer, wire.OverrideRequest, wire.TokenRequest,
    wire.TokenRevoke, wire.NodeRemove,
)  # fmt: skip
HASH = "0123456789abcdef" * 4


def messages():
    return {name: kind for name, kind in vars(wire).items() if dataclasses.is_dataclass(kind)}


def plain(hint):
    """The types that a field may have, but for None."""
    return [option for option in typing.get_args(hint) or (hint,) if option is not type(None)]


def example(kind):
    """A message with a good value in every field."""
    values = {}
    for name, hint in wire.hints_of(kind).items():
        rule, (option, *_) = wire.bound_of(kind, name), plain(hint)
        if dataclasses.is_dataclass(option):
            values[name] = example(option)
        elif option is bool:
            values[name] = False
        elif isinstance(rule, Text):
            values[name] = HASH if "SHA" in rule.said else "word"
        else:
            assert isinstance(rule, (Whole, Real)), name
            values[name] = option(max(rule.low, 1) if rule.high >= 1 else rule.low)
    return values


def refused(kind, **changes):
    with pytest.raises(WireError) as caught:
        wire.decode(kind, json.dumps(example(kind) | changes))
    return str(caught.value)


def parts(kind):
    """A request and the messages in it."""
    yield kind
    for hint in wire.hints_of(kind).values():
        for option in filter(dataclasses.is_dataclass, plain(hint)):
            yield from parts(option)


PARTS = tuple(part for kind in REQUESTS for part in parts(kind))


def fields(*options):
    return [
        pytest.param(kind, name, id=f"{kind.__name__}.{name}")
        for kind in PARTS
        for name, hint in wire.hints_of(kind).items()
        if plain(hint)[0] in options
    ]


BOUNDS = {int: Whole, float: Real, bool: type(None)}


def test_every_number_and_text_of_a_request_has_a_bound_of_its_type():
    for kind in PARTS:
        for name, hint in wire.hints_of(kind).items():
            if any(map(dataclasses.is_dataclass, plain(hint))):
                continue
            bound, options = wire.bound_of(kind, name), plain(hint)
            where = f"{kind.__name__}.{name}: annotate a bound, as curtail.wire.bounds has them"
            assert {(BOUNDS | {str: Text}).get(option) for option in options} == {type(bound)}, where
            assert bound not in (Whole(), Real()), f"{kind.__name__}.{name}: what is taken in needs limits of its own"


@pytest.mark.parametrize("kind", messages().values(), ids=messages())
def test_every_number_and_text_of_every_message_has_a_bound_of_its_type(kind):
    for name, annotated in wire.annotations_of(kind).items():
        for option, bound in bounds.leaves(annotated):
            if option in (int, float, str, bool):
                allowed = (Text, Utf8) if option is str else BOUNDS[option]
                assert isinstance(bound, allowed), f"{kind.__name__}.{name}: annotate a bound of curtail.wire.bounds"


@dataclasses.dataclass
class Unbounded:
    count: int
    texts: tuple[str, ...]


@pytest.mark.parametrize("body", ['{"count": 1, "texts": []}', "{}"])
def test_a_message_with_a_field_without_a_bound_cannot_be_decoded(body):
    with pytest.raises(TypeError, match=r"Unbounded\.count: <class 'int'> needs a bound"):
        wire.decode(Unbounded, body)
    assert list(bounds.leaves(wire.annotations_of(Unbounded)["texts"])) == [(str, None)]


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_good_message_passes(kind):
    assert isinstance(wire.decode(kind, json.dumps(example(kind))), kind)


@pytest.mark.parametrize(("kind", "name"), fields(int, float))
def test_a_number_outside_of_its_range_is_refused(kind, name):
    rule = wire.bound_of(kind, name)
    wrong = [-(10**25), 10**25, 2**63, -(2**63) - 1, 10**400]
    wrong += [rule.low - 1] if abs(rule.low) < 2**53 else []
    wrong += [rule.high + 1] if abs(rule.high) < 2**53 else []
    for number in wrong:
        if isinstance(rule, Real) and abs(number) <= rule.high and abs(number) <= -rule.low:
            continue
        assert f"{kind.__name__}.{name}: the number is" in refused(kind, **{name: number})


@pytest.mark.parametrize(("kind", "name"), fields(int, float))
def test_what_is_no_number_is_refused_and_a_truth_value_is_none(kind, name):
    for wrong in (True, "1", [], {}, [1]):
        assert f"{kind.__name__}.{name}: " in refused(kind, **{name: wrong})
    for text in ("NaN", "Infinity", "-Infinity", "1e999"):
        body = json.dumps(example(kind) | {name: "@"}).replace('"@"', text)
        with pytest.raises(WireError):
            wire.decode(kind, body)


@pytest.mark.parametrize(("kind", "name"), fields(str))
def test_a_text_that_is_too_long_or_holds_control_characters_is_refused_and_not_repeated(kind, name):
    rule = wire.bound_of(kind, name)
    for wrong in ("x" * (rule.longest + 1), "secret\x00", "secret\x1b[2J", "\ud800", "secret\u202e", "a\x7f", 1, True):
        message = refused(kind, **{name: wrong})
        assert f"{kind.__name__}.{name}: " in message and "secret" not in message and "xx" not in message


@pytest.mark.parametrize("name", ["", "../etc", "a/b", "a b", "a\n", "é", "a" * 65, "%2e", "a\\b", "-" * 65])
def test_a_name_of_a_site_has_letters_digits_dots_dashes_and_underscores_only(name):
    assert "letters, digits" in refused(wire.JoinRequest, site=name) or len(name) > 64


@pytest.mark.parametrize("name", ["../" * 21 + "a", "A" * 64, "0" * 63, "0" * 64 + "\n", "g" * 64, ""])
def test_a_hash_has_64_lower_case_hex_digits(name):
    assert "BlobOffer.sha256" in refused(wire.BlobOffer, sha256=name)


def test_a_field_that_comes_twice_is_refused():
    with pytest.raises(WireError, match="no valid JSON"):
        wire.decode(wire.Ack, b'{"ok": true, "ok": false}')


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_json_is_utf_8(encoding):
    with pytest.raises(WireError):
        wire.decode(wire.Ack, '{"ok": true}'.encode(encoding))


@pytest.mark.parametrize(
    "body",
    [
        b'{"ok":' * 20_000, b"[" * 60_000, b"[" * 60_000 + b"]" * 60_000, b'{"a":' * 9000 + b"1" + b"}" * 9000,
        b'{"ok": ' + b"9" * 60_000 + b"}", b'{"ok": -' + b"9" * 5000 + b"}", b'{"ok": 1' + b"0" * 4000 + b"}",
        b'{"ok": true, "' + b"x" * 60_000 + b'": 1}', b'{"ok": "\\ud800"}', b'{"\\ud800": 1}', b"\xc0\x80", b"null",
    ],
    ids=lambda body: body[:12].decode("latin-1"),
)  # fmt: skip
def test_hostile_json_is_a_short_wire_error(body):
    with pytest.raises(WireError) as caught:
        wire.decode(wire.Ack, body)
    assert len(str(caught.value)) < 300
    str(caught.value).encode()


def test_the_keys_and_the_number_of_entries_of_an_object_are_bounded():
    info = wire.RunInfo("run", "n", 1, "p", {}, HASH, "t", 8, 100, 4, 4, "{}", "int8", False, 20, 600.0)
    good = json.loads(wire.encode(info))
    with pytest.raises(WireError, match="a key"):
        wire.decode(wire.RunInfo, json.dumps(good | {"model_config": {"x" * 300: 1}}))
    with pytest.raises(WireError, match="entries"):
        wire.decode(wire.RunInfo, json.dumps(good | {"model_config": {str(n): 1 for n in range(100_001)}}))
    with pytest.raises(WireError, match="entries"):
        wire.decode(wire.BlobStatus, json.dumps({"sha256": HASH, "size": 1, "part_bytes": 1,
                                                 "missing": [0] * 100_001, "complete": False}))  # fmt: skip


def test_what_is_cleaned_passes_and_keeps_what_can_be_read():
    for text in ("a\x00b\x1b[2Jc", "x" * 10_000, "\ud800", "line\nline\ttab", "gCO₂/kWh é 世"):
        cleaned = limits.clean(text)
        Text(bounds.MAX_NOTE).check(cleaned, "x")
    assert limits.clean("line\nline\ttab é 世") == "line\nline\ttab é 世"
    assert limits.clean("a\x00b") == "a\ufffdb" and limits.clean("abcdef", 3) == "ab…"


def test_the_limits_of_the_store_hold_what_passes():
    assert bounds.LARGEST < 2**63 and math.isfinite(Real().high)


def test_a_loss_that_a_job_may_report_may_stand_in_a_status():
    for name, message in (("loss", "SiteStatus"), ("loss_first", "Status"), ("loss_last", "Status")):
        assert wire.bound_of(getattr(wire, message), name) == wire.bound_of(wire.Progress, "loss")
