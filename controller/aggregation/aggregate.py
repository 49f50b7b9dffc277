"""Merges the contributions of one round into the files of the next version, streaming.

Runs as `python -m controller.aggregation.aggregate SPEC RESULT` in a separate
process, so that the API never waits for arithmetic. Weights are never completely
in memory: pieces of about a million values are read from mapped files and computed
by two threads. A third thread hashes and writes them in order, so that equal
contributions give equal bytes. The controller applies exactly the quantised bytes
that it broadcasts, so its copy and the sites' copies are bit-identical.
`controller.aggregation.outer_step` makes the decisions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from controller.aggregation.blockwise import Arrays, Inputs, Piece, as_rows, compute, in_order, pieces
from controller.aggregation.outer_step import (
    MergeResult,
    MergeSpec,
    Part,
    outliers,
    per_root_token,
    plan,
    result_to_json,
    shares,
    spec_from_json,
)
from curtail.errors import CheckpointError, CurtailError
from curtail.system.disk import Disk, SystemDisk, disk_error, file_sha256
from curtail.system.home_files import UPDATE_FILE
from nanochat import checkpoint, codecs, delta, weights
from nanochat.tensorfile import TensorFile, release

VELOCITY_FILE, RESIDUAL_FILE = "velocity.safetensors", "residual.safetensors"


def merge(spec: MergeSpec, disk: Disk) -> MergeResult:
    """Write the next version to `spec.out`: model, meta, broadcast update, velocity, residual.

    Raises: CurtailError: the base is damaged or the disk is full. The run is unaffected, because
        the folder becomes a version only when it is published.
    """
    meta, base = checkpoint.read_checkpoint(Path(spec.base), verify=False)
    if len(spec.parts) == 1 and spec.parts[0].codec == "weights":
        return _pass_through(spec, meta, base, disk)
    encoded, norms, refused = _examine(spec, {name: array.shape for name, array in base.items()})
    refused |= outliers(spec, norms)
    accepted = [part for part in spec.parts if part.site not in refused]
    if not accepted:
        return MergeResult((), refused)
    step = plan(spec, accepted)
    inputs = Inputs(
        base,
        [(encoded[part.site], share) for part, share in zip(accepted, shares(accepted), strict=True)],
        _kept(spec, VELOCITY_FILE, base) if step.momentum else {},
        _kept_residual(spec, base),
        step,
        spec.codec,
    )
    digest, file_hash = _write(Path(spec.out), inputs, disk)
    if step.keep_velocity:
        _carry_over(spec, disk)
    checkpoint.write_checkpoint(
        Path(spec.out), None, _meta(spec, meta, sum(part.tokens for part in accepted), digest), disk
    )
    return _result(spec, accepted, refused, digest, file_hash, norms)


# -- checking the contributions ------------------------------------------------------


def _examine(spec: MergeSpec, shapes: weights.Shapes) -> tuple[dict[str, Arrays], dict[str, float], dict[str, str]]:
    """The usable contributions, their norms, and why the others are refused. Reads every value once."""
    encoded: dict[str, Arrays] = {}
    norms: dict[str, float] = {}
    refused: dict[str, str] = {}
    for part in spec.parts:
        try:
            if part.tokens <= 0 or part.weight <= 0:
                raise CheckpointError(f"it has {part.tokens} tokens and weight {part.weight:g}")
            if part.codec not in codecs.CODECS:
                raise CheckpointError(f"its codec is {part.codec}, which cannot be averaged")
            arrays = delta.open_delta(Path(part.path), shapes, part.codec)
            total = math.fsum(in_order(partial(_look, arrays), delta.names(arrays)))
            encoded[part.site], norms[part.site] = arrays, math.sqrt(total) if math.isfinite(total) else math.inf
        except CurtailError as error:
            refused[part.site] = str(error)
    return encoded, norms, refused


def _look(arrays: Arrays, name: str) -> float:
    found = delta.check_values(arrays, name)
    release(codecs.parts_in(arrays, name)[1])
    return found if math.isfinite(found) else math.inf


def _kept(spec: MergeSpec, file: str, base: Arrays) -> Arrays:
    path = Path(spec.base) / file
    return weights.read_weights(path, {name: array.shape for name, array in base.items()}) if path.exists() else {}


def _kept_residual(spec: MergeSpec, base: Arrays) -> Arrays:
    """The residual of the last broadcast, if this merge can use it."""
    wanted = {
        name: array.shape
        for name, array in base.items()
        if delta.has_residual(codecs.form_of(name, array.shape, spec.codec))
    }
    path = Path(spec.base) / RESIDUAL_FILE
    return delta.open_delta(path, wanted, "int8") if wanted and path.exists() else {}


# -- files ---------------------------------------------------------------------------


class _Hashes:
    """The digest and the SHA-256 of a weights file, computed while it is written in order."""

    def __init__(self, header: bytes) -> None:
        self.file, self.content = hashlib.sha256(header), hashlib.sha256()

    def add(self, base: Arrays, piece: Piece, rows: np.ndarray) -> None:
        if piece.first:
            self.content.update(weights.digest_line(piece.name, base[piece.name]))
        data = weights.array_bytes(rows)
        self.content.update(data)
        self.file.update(data)


def _write(out: Path, inputs: Inputs, disk: Disk) -> tuple[str, str]:
    """Compute and write all files except the meta. Returns: the digest of the weights, and their file's SHA-256."""
    base = inputs.base
    with ExitStack() as stack:
        update = stack.enter_context(
            TensorFile(out / UPDATE_FILE, _layout(base, inputs.codec), disk, "VERSION_UPDATE", {"format": delta.FORMAT})
        )
        files = [update]
        velocity = residual = None
        if inputs.plan.momentum:
            velocity = TensorFile(out / VELOCITY_FILE, _plain(base), disk, "VERSION_VELOCITY")
            files.append(stack.enter_context(velocity))
        if lossy := _lossy(base, inputs.codec):
            residual = TensorFile(
                out / RESIDUAL_FILE, _layout(lossy, "int8"), disk, "VERSION_RESIDUAL", {"format": delta.FORMAT}
            )
            files.append(stack.enter_context(residual))
        model = stack.enter_context(TensorFile(out / checkpoint.MODEL_FILE, _plain(base), disk, "CHECKPOINT_MODEL"))
        files.append(model)
        hashes = _Hashes(model.header)
        for made in in_order(lambda piece: compute(inputs, piece), pieces(base)):
            piece = made.piece
            _put(model, piece, {piece.name: made.model})
            _put(update, piece, made.update)
            if velocity is not None and made.velocity is not None:
                _put(velocity, piece, {piece.name: made.velocity})
            if residual is not None:
                _put(residual, piece, made.residual)
            hashes.add(base, piece, made.model)
            if piece.last:
                _let_go(inputs, piece.name)
        for file in files:
            file.publish()
    return hashes.content.hexdigest(), hashes.file.hexdigest()


def _put(file: TensorFile, piece: Piece, arrays: Arrays) -> None:
    for key, rows in arrays.items():
        file.write(key, piece.rows.start, rows)


def _let_go(inputs: Inputs, name: str) -> None:
    arrays = [inputs.base[name], *(codecs.parts_in(encoded, name)[1] for encoded, _ in inputs.deltas)]
    if inputs.velocity:
        arrays.append(inputs.velocity[name])
    if inputs.residual and name + codecs.ENDINGS["int8"] in inputs.residual:
        arrays.append(codecs.parts_in(inputs.residual, name)[1])
    for array in arrays:
        release(array)


def _plain(base: Arrays) -> weights.Layout:
    return {name: (np.float32, array.shape) for name, array in base.items()}


def _layout(base: Arrays, codec: str) -> weights.Layout:
    layout: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {}
    for name, array in base.items():
        layout |= codecs.parts_of(name, array.shape, codecs.form_of(name, array.shape, codec))
    return layout


def _lossy(base: Arrays, codec: str) -> dict[str, np.ndarray]:
    return {n: a for n, a in base.items() if delta.has_residual(codecs.form_of(n, a.shape, codec))}


def _carry_over(spec: MergeSpec, disk: Disk) -> None:
    """Copy the base's velocity, if it has one, to the new version."""
    old, new = Path(spec.base) / VELOCITY_FILE, Path(spec.out) / VELOCITY_FILE
    if not old.exists():
        return
    temp = new.with_name(f".{new.name}.copy.tmp")
    try:
        shutil.copyfile(old, temp)
    except OSError as error:
        raise disk_error("write", new, error) from error
    disk.publish("VERSION_VELOCITY", temp, new)


# -- exact weights of a site that trains alone ---------------------------------------


def _pass_through(spec: MergeSpec, meta: checkpoint.CheckpointMeta, base: Arrays, disk: Disk) -> MergeResult:
    """LOCAL: the only member's exact weights become the next version, if they pass the checks."""
    part = spec.parts[0]
    try:
        own = weights.read_weights(Path(part.path), {name: array.shape for name, array in base.items()})
    except CurtailError as error:
        return MergeResult((), {part.site: str(error)})
    out = Path(spec.out)
    with TensorFile(out / checkpoint.MODEL_FILE, _plain(base), disk, "CHECKPOINT_MODEL") as model:
        hashes, total = _Hashes(model.header), 0.0
        for piece, rows, squares in in_order(lambda piece: _moved(base, own, piece), pieces(base)):
            total += squares
            _put(model, piece, {piece.name: rows})
            hashes.add(base, piece, rows)
            if piece.last:
                release(base[piece.name])
                release(own[piece.name])
        norms = {part.site: math.sqrt(total) if math.isfinite(total) else math.inf}
        digest, file_hash = hashes.content.hexdigest(), hashes.file.hexdigest()
        refused = outliers(spec, norms)
        if digest != part.digest:
            refused = {part.site: f"its weights have digest {digest[:12]}, not {part.digest[:12]} as it said"}
        if refused:
            return MergeResult((), refused)
        model.publish()
    checkpoint.write_checkpoint(out, None, _meta(spec, meta, part.tokens, digest), disk)
    return _result(spec, [part], {}, digest, file_hash, norms)


def _moved(base: Arrays, own: Arrays, piece: Piece) -> tuple[Piece, np.ndarray, float]:
    """Rows of the new weights, and the sum of squares of their change; not finite if the weights are not."""
    new, old = as_rows(own[piece.name])[piece.rows], as_rows(base[piece.name])[piece.rows]
    with np.errstate(over="ignore", invalid="ignore"):
        return piece, new, delta.norm({piece.name: old - new}) ** 2


def _meta(spec: MergeSpec, base: checkpoint.CheckpointMeta, tokens: int, digest: str) -> checkpoint.CheckpointMeta:
    return dataclasses.replace(
        base, version=spec.version, tokens=spec.tokens + tokens, weights_digest=digest, created=spec.created
    )


def _result(
    spec: MergeSpec,
    accepted: Sequence[Part],
    refused: dict[str, str],
    digest: str,
    file_hash: str,
    norms: Mapping[str, float],
) -> MergeResult:
    out = Path(spec.out)
    update = out / UPDATE_FILE
    has_update = update.exists()
    return MergeResult(
        tuple(part.site for part in accepted),
        refused,
        digest,
        file_hash,
        (out / checkpoint.MODEL_FILE).stat().st_size,
        file_sha256(update) if has_update else "",
        update.stat().st_size if has_update else 0,
        {part.site: per_root_token(norms[part.site], part.tokens) for part in accepted},
    )


def main(argv: Sequence[str]) -> int:
    """Run the merge of the spec file argv[0] and write the result to argv[1]."""
    disk = SystemDisk()
    try:
        result = merge(spec_from_json(Path(argv[0]).read_text()), disk)
    except CurtailError as error:
        print(f"merge: {error}", file=sys.stderr)
        return error.exit_code
    disk.replace("MERGE_RESULT", Path(argv[1]), result_to_json(result).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
