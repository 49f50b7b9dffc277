"""What it costs to decode and encode messages with our codec, msgspec and pydantic, and how strict each of them is.

    PYTHONPATH=. python benchmarks/wire_codec.py

msgspec and pydantic are left out where they are not installed. Their types are made of the annotations of
`curtail.wire`, so that every way checks the same bounds. *plain* is the library by itself; *strict* adds what
it lacks of the contract: repeated keys, numbers that are not finite when sent, and errors in the words of ours.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
import json
import math
import re
import statistics
import subprocess
import sys
import time
import types
import typing
from typing import Annotated, Any

from curtail import wire
from curtail.errors import WireError
from curtail.wire import bounds, codec, limits

REPEATS = 9
SITES, REGIONS, EVENTS, HISTORY = 32, 8, 20, 96
HASH = "0123456789abcdef" * 4
PRINTABLE = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$"


# -- messages ---------------------------------------------------------------------


def messages() -> dict[str, Any]:
    """A heartbeat, a commit, and the status of a run of `SITES` sites in `REGIONS` regions."""
    power = wire.Power("m1", "nvml-total-energy+rapl", 3600.5, 3.6e6, 3.1e6, 5e5)
    beat = wire.Heartbeat(
        "a" * 32, "site-1", 3, "TRAINING", "train", "job-17", 912.5, "", "crew-1", 1, 4, power
    )  # fmt: skip
    commit = wire.CommitRequest(
        "site-1", 3, "job-17", 41, 40, HASH, 100, 3200, 6_553_600, HASH, "int8", "", 3.1, 3.05, 3.0, 299.5, True
    )
    return {"heartbeat": beat, "commit": commit, "status": status()}


def status() -> wire.Status:
    """A snapshot as `curtail status --watch` reads it."""
    costs = wire.CostsStatus(95.5, 14.25, 31.0, 2024.5, 468.25, 120.0, 7)
    regions = tuple(
        wire.RegionStatus(f"region-{n}", 45.25 + n, 100.0, 12.5, "trace", True, "below the threshold",
                          tuple(40.0 + n + k / 7 for k in range(HISTORY)), 5000.0)
        for n in range(REGIONS)
    )  # fmt: skip
    sites = tuple(
        wire.SiteStatus(f"site-{n}", f"region-{n % REGIONS}", "TRAINING", "train", True, "below the threshold", 41, 57,
                        3.05 + n / 100, 51_234.5, 12_345_678, 0.75, 3.25, 1.125, costs)
        for n in range(SITES)
    )  # fmt: skip
    events = tuple(wire.EventStatus(n, 1.7e9 + n, "round", f"round {n} merged 4 contributions") for n in range(EVENTS))
    names = tuple(site.site for site in sites)
    return wire.Status(
        wire.PROTOCOL, "r1", "d20", "RUNNING", 1.7e9, 1.69e9, 1.0, "FEDERATED", 1.69e9, "32 sites are open",
        {"FEDERATED": 86400.5, "SOLE": 120.25}, 10**9, 10**10, 40, 40,
        wire.RoundStatus(41, "OPEN", 40, names, (), 12.5), 9.75, 3.125, HASH,
        wire.EnergyStatus(120.5, 3.25, 5.5, 0.25, 97.5, 11.0, 0.0), regions, sites, events, False,
    )  # fmt: skip


# -- the libraries ----------------------------------------------------------------


def as_library_type(hint: Any, scalar: Any, nested: Any) -> Any:
    """The annotated type of a field with a library's notes in place of ours.

    Args: scalar: makes the type of a number or text with its bound. nested: makes that of a message in it.
    """
    kind, bound = bounds.split(hint)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return nested(kind)
    if origin in (types.UnionType, typing.Union):
        return functools.reduce(lambda a, b: a | b, (as_library_type(one, scalar, nested) for one in inner))
    if origin is tuple:
        return tuple[as_library_type(inner[0], scalar, nested), ...]
    if origin is dict:
        return dict[as_library_type(inner[0], scalar, nested), as_library_type(inner[1], scalar, nested)]
    return kind if bound is None else scalar(kind, bound)


def fault_at(kind: Any, path: list[str | int], body: Any) -> WireError:
    """The error that ours gives for the value at `path` of `body`, which a library refused."""
    hint, value, where = kind, body, kind.__name__
    for step in path:
        inner, _ = bounds.split(hint)
        options = [option for option in typing.get_args(inner) if option is not type(None)]
        if typing.get_origin(inner) in (types.UnionType, typing.Union):
            inner = options[0]
        hint = bounds.annotations_of(inner)[step] if isinstance(step, str) else options[0]
        value, where = value[step], f"{where}.{step}" if isinstance(step, str) else f"{where}[{step}]"
    for option, bound in bounds.leaves(hint):
        if type(value) is option or (option is float and type(value) is int):
            return WireError(f"{where}: {bound.fault(value) if bound else 'it is not allowed'}")
    wanted = " or ".join(option.__name__ for option, _ in bounds.leaves(hint) if option is not type(None))
    given = {dict: "an object", list: "a list", type(None): "null"}.get(type(value), type(value).__name__)
    return WireError(f"{where}: {wanted} is needed, not {given}")


def check_finite(value: Any, fields: Any) -> None:
    """Refuse what both libraries send as null. Raises: WireError: a number is NaN or infinite."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise WireError("a number is not finite")
    elif isinstance(value, tuple):
        for entry in value:
            check_finite(entry, fields)
    elif isinstance(value, dict):
        for entry in value.values():
            check_finite(entry, fields)
    elif not isinstance(value, (int, str, type(None))):
        check_finite(fields(value), fields)


class Ours:
    """`curtail.wire.codec`."""

    parts: tuple[Any, ...] = (codec,)

    def decode(self, kind: Any, body: bytes) -> Any:
        return wire.decode(kind, body)

    def encode(self, message: Any) -> bytes:
        return wire.encode(message)

    def own(self, message: Any) -> Any:
        return message


class Msgspec:
    """msgspec by itself: `Struct`s that forbid unknown fields, and `Meta`."""

    def __init__(self) -> None:
        import msgspec

        self.msgspec = msgspec
        self.type_of = functools.cache(self._type_of)
        self.decoder_of = functools.cache(lambda kind: msgspec.json.Decoder(self.type_of(kind)))

    def _type_of(self, kind: Any) -> Any:
        fields = [(n, as_library_type(h, self._scalar, self.type_of)) for n, h in bounds.annotations_of(kind).items()]
        return self.msgspec.defstruct(kind.__name__, fields, frozen=True, forbid_unknown_fields=True)

    def _scalar(self, kind: Any, bound: bounds.Bound) -> Any:
        meta = self.msgspec.Meta
        if isinstance(bound, (bounds.Whole, bounds.Real)):
            return Annotated[kind, meta(ge=bound.low, le=bound.high)]
        if isinstance(bound, bounds.Text):
            form = f"^(?:{bound.form})\\Z" if bound.form else PRINTABLE
            return Annotated[kind, meta(max_length=bound.longest, pattern=form)]
        return kind

    def decode(self, kind: Any, body: bytes) -> Any:
        return self.decoder_of(kind).decode(body)

    def encode(self, message: Any) -> bytes:
        return self.msgspec.json.encode(message)

    def own(self, message: Any) -> Any:
        return self.msgspec.convert(json.loads(wire.encode(message)), self.type_of(type(message)))


class StrictMsgspec(Msgspec):
    """msgspec as the contract needs it."""

    parts = (as_library_type, fault_at, check_finite, Msgspec)

    def decode(self, kind: Any, body: bytes) -> Any:
        try:
            value = codec._DECODER.decode(body.decode("utf-8"))  # for repeated keys
        except (ValueError, RecursionError) as error:
            raise WireError(f"{kind.__name__}: the body is no valid JSON") from error
        try:
            return self.decoder_of(kind).decode(body)
        except self.msgspec.DecodeError as error:
            raise self._said(kind, value, str(error)) from None

    def _said(self, kind: Any, value: Any, error: str) -> WireError:
        text, _, place = error.partition(" - at `$")
        path = [int(n) if n else name for name, n in re.findall(r"\.(\w+)|\[(\d+)\]", place)]
        where = kind.__name__ + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
        if "unknown field" in text:
            name = text.partition("`")[2].rpartition("`")[0]
            return WireError(f"{where}: unknown field {limits.clean(name, 64)!r}")
        if "missing required" in text:
            name = text.partition("`")[2].rpartition("`")[0]
            return WireError(f"{where}: field {name!r} is missing")
        return fault_at(kind, path, value)

    def encode(self, message: Any) -> bytes:
        check_finite(message, self.msgspec.structs.astuple)
        return self.msgspec.json.encode(message)


class Pydantic:
    """pydantic by itself: strict frozen models that forbid extra fields."""

    def __init__(self) -> None:
        import pydantic

        self.pydantic = pydantic
        self.type_of = functools.cache(self._type_of)
        self.adapter_of = functools.cache(lambda kind: pydantic.TypeAdapter(self.type_of(kind)))

    def _type_of(self, kind: Any) -> Any:
        fields = {
            n: (as_library_type(h, self._scalar, self.type_of), ...) for n, h in bounds.annotations_of(kind).items()
        }
        config = self.pydantic.ConfigDict(
            strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
        )
        return self.pydantic.create_model(kind.__name__, __config__=config, **fields)

    def _scalar(self, kind: Any, bound: bounds.Bound) -> Any:
        if isinstance(bound, (bounds.Whole, bounds.Real)):
            return Annotated[kind, self.pydantic.Field(ge=bound.low, le=bound.high)]
        if isinstance(bound, bounds.Text):
            form = f"^(?:{bound.form})$" if bound.form else PRINTABLE
            return Annotated[kind, self.pydantic.Field(max_length=bound.longest, pattern=form)]
        return kind

    def decode(self, kind: Any, body: bytes) -> Any:
        return self.adapter_of(kind).validate_json(body)

    def encode(self, message: Any) -> bytes:
        return message.__pydantic_serializer__.to_json(message)

    def own(self, message: Any) -> Any:
        return self.adapter_of(type(message)).validate_json(wire.encode(message))


class StrictPydantic(Pydantic):
    """pydantic as the contract needs it."""

    parts = (as_library_type, fault_at, check_finite, Pydantic)

    def decode(self, kind: Any, body: bytes) -> Any:
        try:
            value = codec._DECODER.decode(body.decode("utf-8"))  # for repeated keys
        except (ValueError, RecursionError) as error:
            raise WireError(f"{kind.__name__}: the body is no valid JSON") from error
        try:
            return self.adapter_of(kind).validate_json(body)
        except self.pydantic.ValidationError as error:
            raise self._said(kind, value, error.errors(include_url=False)) from None

    def _said(self, kind: Any, value: Any, errors: list[Any]) -> WireError:
        first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
        path = [step for step in first["loc"] if isinstance(step, int) or re.fullmatch("[a-z_0-9]+", step)]
        where = kind.__name__ + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path[:-1])
        if first["type"] == "extra_forbidden":
            return WireError(f"{where}: unknown field {limits.clean(str(first['loc'][-1]), 64)!r}")
        if first["type"] == "missing":
            return WireError(f"{where}: field {path[-1]!r} is missing")
        return fault_at(kind, path, value)

    def encode(self, message: Any) -> bytes:
        check_finite(message, lambda model: tuple(model.__dict__.values()))
        return message.__pydantic_serializer__.to_json(message)


# -- measuring --------------------------------------------------------------------


def each_us(call: Any, *args: Any) -> float:
    """Median of `REPEATS` means, microseconds of CPU time of one call."""
    began, count = time.process_time(), 0
    while time.process_time() - began < 0.05:
        call(*args)
        count += 1
    means = []
    for _ in range(REPEATS):
        began = time.process_time()
        for _ in range(count):
            call(*args)
        means.append((time.process_time() - began) / count)
    return statistics.median(means) * 1e6


def damaged() -> dict[str, bytes]:
    """Heartbeats that the contract does not allow, one for each rule."""
    good = json.loads(wire.encode(messages()["heartbeat"]))
    less = {name: value for name, value in good.items() if name != "site"}
    changes: dict[str, Any] = {
        "unknown key": {"extra": 1}, "bool as int": {"fence": True}, "float as int": {"fence": 1.0},
        "text as int": {"fence": "1"}, "int too large": {"crew_rank": 64}, "int beyond 64 bits": {"fence": 10**30},
        "real too small": {"watts": -1.0}, "not a name": {"site": "a/b"}, "name and a newline": {"site": "a\n"},
        "text too long": {"note": "x" * 5000}, "control character": {"note": "\x1b[2J"},
        "right to left mark": {"note": "\u202e"}, "half a character": {"note": "\ud800"},
        "no object": {"power": [1]}, "deep in a message": {"power": good["power"] | {"joules": -1.0}},
        "null": {"state": None},
    }  # fmt: skip
    bodies = {what: json.dumps(good | change).encode() for what, change in changes.items()}
    text = json.dumps(good)
    return bodies | {
        "missing key": json.dumps(less).encode(),
        "missing key that has a default": json.dumps({k: v for k, v in good.items() if k != "crew"}).encode(),
        "key twice": text.replace('"fence": 3', '"fence": 2, "fence": 3').encode(),
        "NaN": text.replace("912.5", "NaN").encode(),
        "1e999": text.replace("912.5", "1e999").encode(),
        "nested too deep": b'{"agent":' + b"[" * 20_000,
        "UTF-16": text.encode("utf-16"),
    }


def refusal(way: Any, body: bytes) -> str | None:
    """How the way refuses a heartbeat, None if it takes it."""
    try:
        way.decode(wire.Heartbeat, body)
    except Exception as error:
        return str(error)
    return None


def unlike(way: Any) -> list[str]:
    """Messages that the way does not send byte by byte as ours does."""
    some = messages() | {"1e16": wire.EventStatus(1, 1e16, "x", ""), "é": wire.EventStatus(1, 0.0, "x", "é")}
    found = [name for name, one in some.items() if way.encode(way.own(one)) != wire.encode(one)]
    beat = way.own(wire.Heartbeat("a", "b", 1, "IDLE", "paused", None, 1.0, ""))
    try:
        nan = beat.model_copy(update={"watts": math.nan}) if hasattr(beat, "model_copy") else replaced(beat)
        found += [] if b"null" not in way.encode(nan) else ["NaN is sent as null"]
    except WireError:
        pass
    return found


def replaced(beat: Any) -> Any:
    """A heartbeat with a number that is not finite."""
    if dataclasses.is_dataclass(beat):
        return dataclasses.replace(beat, watts=math.nan)  # type: ignore[type-var]
    return type(beat)(**{name: getattr(beat, name) for name in beat.__struct_fields__} | {"watts": math.nan})


def start(way: str) -> tuple[float, float]:
    """Median CPU ms and MiB of memory of a fresh interpreter with the agent's client, ready to decode all three."""
    code = f"""
import sys, time; sys.path.insert(0, "benchmarks")
import agent.http.client, wire_codec
way = wire_codec.{way}()
for one in wire_codec.messages().values():
    way.decode(type(one), wire_codec.wire.encode(one))
print(time.process_time() * 1000, open("/proc/self/status").read().partition("VmHWM:")[2])
"""
    found = []
    for _ in range(REPEATS):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found.append([float(word) for word in done.stdout.split()[:2]])
    return statistics.median(ms for ms, _ in found), statistics.median(kib for _, kib in found) / 1024


def lines(way: Any) -> int:
    """Lines of code, without blank ones, that read, check and write messages this way."""
    return sum(bool(line.strip()) for part in (*way.parts, type(way)) for line in inspect.getsource(part).splitlines())


def main() -> None:
    """Print speed, strictness, lines, and what a process pays at its start."""
    kinds: list[Any] = [Ours]
    kinds += [Msgspec, StrictMsgspec] if importlib.util.find_spec("msgspec") else []
    kinds += [Pydantic, StrictPydantic] if importlib.util.find_spec("pydantic") else []
    ours, bodies = Ours(), damaged()
    sizes = {name: len(wire.encode(one)) for name, one in messages().items()}
    print("bytes:", sizes)
    for kind in kinds:
        way = kind()
        print(f"\n{kind.__name__}: {lines(way) if hasattr(way, 'parts') else '-'} lines")
        for name, one in messages().items():
            body, own = wire.encode(one), way.own(one)
            decode, encode = each_us(way.decode, type(one), body), each_us(way.encode, own)
            print(f"  {name}: decode {decode:.1f} us, encode {encode:.1f} us")
        refused = {what: refusal(way, body) for what, body in bodies.items()}
        print(f"  taken: {[what for what, said in refused.items() if said is None]}")
        other = [what for what, said in refused.items() if said is not None and said != refusal(ours, bodies[what])]
        print(f"  refused in other words: {len(other)} of {len(bodies)}: {other}")
        print(f"  sent in other bytes: {unlike(way)}")
        print("  start: {:.0f} ms, {:.1f} MiB".format(*start(kind.__name__)))


if __name__ == "__main__":
    main()
