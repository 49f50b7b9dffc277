"""The contract: strict in both directions."""

from __future__ import annotations

import json

import pytest

from curtail import wire
from curtail.errors import WireError

BEAT = wire.Heartbeat("agent", "site", 1, "IDLE", "paused", None, None, "")


def test_every_message_survives_the_wire():
    assignment = wire.Assignment(3, 2, "d", "update", "b", 0, 64, 7.5, 100, 10, "int8", 2, 4, True, 1.5, 2.0)
    for message in (BEAT, assignment, wire.CheckoutReply("train", "", 0.0, assignment), wire.Ack(True)):
        assert wire.decode(type(message), wire.encode(message)) == message


def test_a_heartbeat_carries_what_the_meter_counted_or_nothing():
    power = wire.Power("m", "rapl", 2.0, 10.0, None, 10.0)
    beat = wire.Heartbeat("agent", "site", 1, "IDLE", "paused", None, 5.0, "", power=power)
    assert wire.decode(wire.Heartbeat, wire.encode(beat)) == beat
    body = json.loads(wire.encode(beat))
    del body["power"]["joules"]
    with pytest.raises(WireError, match=r"power.*'joules' is missing"):
        wire.decode(wire.Heartbeat, json.dumps(body))


def test_a_whole_number_is_taken_where_a_float_is_due():
    body = json.loads(wire.encode(wire.CheckoutReply("wait", "", 0.5, None)))
    body["retry_s"] = 1
    assert wire.decode(wire.CheckoutReply, json.dumps(body)).retry_s == 1.0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"fence": "1"}, "Heartbeat.fence: int is needed, not str"),
        ({"fence": True}, "Heartbeat.fence: int is needed, not bool"),
        ({"fence": 1.5}, "Heartbeat.fence: int is needed, not float"),
        ({"job": 3}, "Heartbeat.job: str is needed, not int"),
        ({"extra": 1}, "Heartbeat: unknown field 'extra'"),
        ({"watts": "1"}, "Heartbeat.watts: float is needed, not str"),
    ],
)
def test_a_wrong_field_is_named(change, sentence):
    body = {**json.loads(wire.encode(BEAT)), **change}
    with pytest.raises(WireError, match=sentence.replace(".", r"\.")):
        wire.decode(wire.Heartbeat, json.dumps(body))


def test_a_missing_field_is_named():
    body = json.loads(wire.encode(BEAT))
    del body["site"]
    with pytest.raises(WireError, match="field 'site' is missing"):
        wire.decode(wire.Heartbeat, json.dumps(body))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"ok": NaN}', b"[" * 5000])
def test_garbage_is_a_wire_error(body):
    with pytest.raises(WireError):
        wire.decode(wire.Ack, body)


def test_a_number_that_is_not_finite_is_never_sent():
    with pytest.raises(WireError, match="not finite"):
        wire.encode(wire.CheckoutReply("wait", "", float("nan"), None))
    with pytest.raises(WireError):
        wire.decode(wire.CheckoutReply, b'{"kind":"wait","reason":"","retry_s":1e999,"assignment":null}')
