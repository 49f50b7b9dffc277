"""Contributions of one round -> the next version: mean, outer step, files.

`outer_step` is pure: arrays in, arrays out, one tensor at a time. Run as
`python -m controller.aggregate SPEC RESULT` it works on files, in a process of
its own, so that the API never waits for arithmetic. The controller applies to
its own weights exactly the quantised bytes it broadcasts, therefore its copy
and every site's copy are bit-equal. Deltas have the sign of a gradient: base
minus local. Sources: DiLoCo (arXiv 2311.08105) for the outer step.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curtail.disk import Disk, SystemDisk
from curtail.errors import CheckpointError, CurtailError
from nanochat import checkpoint, delta, weights

OUTLIER = 5.0
"""A delta whose norm is this many times the round's median is refused (lowcomm 5.4)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One committed contribution."""

    site: str
    path: str
    codec: str  # weights, int8, fp32
    tokens: int
    digest: str  # of the weights, when codec is "weights"


@dataclass(frozen=True, slots=True)
class MergeSpec:
    """Everything a merge needs, by value and by path."""

    round: int
    version: int  # to be made
    base: str  # folder of the base version
    out: str  # empty folder to fill
    parts: tuple[Part, ...]
    codec: str  # of the broadcast
    outer_lr: float
    outer_momentum: float
    tokens: int  # global tokens before this round
    created: str


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge made. `accepted` is empty if every contribution was refused; then there are no files."""

    accepted: tuple[str, ...]
    refused: dict[str, str]  # site -> why
    digest: str = ""
    weights: str = ""  # SHA-256 of the file
    weights_size: int = 0
    updates: str = ""  # SHA-256 of the broadcast delta, or ""
    updates_size: int = 0


def outer_step(
    deltas: Sequence[tuple[np.ndarray, float]], velocity: np.ndarray | None, lr: float, momentum: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """One tensor's outer step: what to subtract from the base, and the new velocity.

    mean = sum(w d); u' = momentum u + mean; step = lr (mean + momentum u'), as
    torch.optim.SGD(nesterov=True). Without momentum there is no velocity.

    Args: deltas: (values float32, weight) of each contribution; the weights sum to 1.
    """
    mean = deltas[0][0] * np.float32(deltas[0][1])
    for values, weight in deltas[1:]:
        mean += values * np.float32(weight)
    if momentum == 0.0:
        return mean * np.float32(lr), None
    velocity = mean if velocity is None else np.float32(momentum) * velocity + mean
    return np.float32(lr) * (mean + np.float32(momentum) * velocity), velocity


def outliers(norms: Mapping[str, float]) -> dict[str, str]:
    """Sites whose delta must not be merged, each with the reason; not finite, or far from the others."""
    refused = {site: "its delta is not finite" for site, norm in norms.items() if not math.isfinite(norm)}
    usual = [norm for norm in norms.values() if math.isfinite(norm)]
    if len(usual) >= 3:
        median = statistics.median(usual)
        for site, norm in norms.items():
            if math.isfinite(norm) and norm > OUTLIER * median > 0:
                refused[site] = f"its delta's norm {norm:.3g} is over {OUTLIER:g} times the median {median:.3g}"
    return refused


def merge(spec: MergeSpec, disk: Disk) -> MergeResult:
    """Fill `spec.out` with the next version: model, meta, broadcast delta, velocity.

    Raises: CurtailError: the base is damaged or the disk is full; nothing is half true then, since
        the folder becomes a version only when it is published.
    """
    meta, base = checkpoint.read_checkpoint(Path(spec.base), verify=False)
    if len(spec.parts) == 1 and spec.parts[0].codec == "weights":
        return _pass_through(spec, meta, base, disk)
    shapes = {name: array.shape for name, array in base.items()}
    encoded, norms, refused = {}, {}, {}
    for part in spec.parts:
        try:
            encoded[part.site] = delta.read_delta(Path(part.path), shapes)
            norms[part.site] = delta.norm(delta.decode(encoded[part.site]))
        except CurtailError as error:
            refused[part.site] = str(error)
    refused |= outliers(norms)
    accepted = [part for part in spec.parts if part.site not in refused]
    if not accepted:
        return MergeResult((), refused)
    # One contributor: its own result as it is. Momentum is for averages of several.
    lr, momentum = (spec.outer_lr, spec.outer_momentum) if len(accepted) > 1 else (1.0, 0.0)
    old_velocity = _velocity(Path(spec.base)) if momentum else {}
    total = sum(part.tokens for part in accepted)
    streams = [(delta.decode(encoded[part.site]), part.tokens / total) for part in accepted]
    step: dict[str, np.ndarray] = {}
    velocity: dict[str, np.ndarray] = {}
    for name in sorted(base):
        values = []
        for stream, weight in streams:
            found, array = next(stream)
            assert found == name, "decode yields every name of the model in order"
            values.append((array, weight))
        step[name], moved = outer_step(values, old_velocity.get(name), lr, momentum)
        if moved is not None:
            velocity[name] = moved
    broadcast = delta.encode(step, spec.codec)
    new = delta.apply_update(base, delta.decode(broadcast))
    out = Path(spec.out)
    delta.write_delta(out / "update.safetensors", broadcast, disk, "VERSION_UPDATE")
    if velocity:
        weights.write_weights(out / "velocity.safetensors", velocity, disk, "VERSION_VELOCITY")
    written = checkpoint.write_checkpoint(out, new, _meta(spec, meta, total, ""), disk)
    return _result(spec, [part.site for part in accepted], refused, written.weights_digest)


def _pass_through(
    spec: MergeSpec, meta: checkpoint.CheckpointMeta, base: Mapping[str, np.ndarray], disk: Disk
) -> MergeResult:
    """LOCAL: the sole contributor's exact weights are the next version."""
    part = spec.parts[0]
    try:
        own = weights.read_weights(Path(part.path), {name: array.shape for name, array in base.items()})
        if not delta.all_finite(own):
            raise CheckpointError("its weights are not finite")
        found = weights.digest(own)
        if found != part.digest:
            raise CheckpointError(f"its weights have digest {found[:12]}, it said {part.digest[:12]}")
    except CurtailError as error:
        return MergeResult((), {part.site: str(error)})
    written = checkpoint.write_checkpoint(Path(spec.out), own, _meta(spec, meta, part.tokens, found), disk)
    return _result(spec, [part.site], {}, written.weights_digest)


def _meta(spec: MergeSpec, base: checkpoint.CheckpointMeta, tokens: int, digest: str) -> checkpoint.CheckpointMeta:
    return dataclasses.replace(
        base, version=spec.version, tokens=spec.tokens + tokens, weights_digest=digest, created=spec.created
    )


def _velocity(folder: Path) -> dict[str, np.ndarray]:
    path = folder / "velocity.safetensors"
    return dict(weights.read_weights(path)) if path.exists() else {}


def _result(spec: MergeSpec, accepted: list[str], refused: dict[str, str], digest: str) -> MergeResult:
    out = Path(spec.out)
    model, update = out / checkpoint.MODEL_FILE, out / "update.safetensors"
    has_update = update.exists()
    return MergeResult(
        tuple(accepted),
        refused,
        digest,
        weights.file_sha256(model),
        model.stat().st_size,
        weights.file_sha256(update) if has_update else "",
        update.stat().st_size if has_update else 0,
    )


def spec_to_json(spec: MergeSpec) -> str:
    """The form in which a spec is handed to the process."""
    return json.dumps(dataclasses.asdict(spec))


def spec_from_json(text: str) -> MergeSpec:
    """The inverse of `spec_to_json`."""
    value = json.loads(text)
    parts = tuple(Part(**part) for part in value.pop("parts"))
    return MergeSpec(parts=parts, **value)


def result_from_json(text: str) -> MergeResult:
    """The result a process left."""
    value = json.loads(text)
    return MergeResult(accepted=tuple(value.pop("accepted")), **value)


def main(argv: Sequence[str]) -> int:
    """Merge as the file argv[0] says and leave the result in argv[1]."""
    disk = SystemDisk()
    try:
        result = merge(spec_from_json(Path(argv[0]).read_text()), disk)
    except CurtailError as error:
        print(f"merge: {error}", file=sys.stderr)
        return error.exit_code
    disk.replace("MERGE_RESULT", Path(argv[1]), json.dumps(dataclasses.asdict(result)).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
