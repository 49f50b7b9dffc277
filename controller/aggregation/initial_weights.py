"""Creates version 0, the initial weights of a run, from its seed.

Runs as `python -m controller.aggregation.initial_weights SPEC` in a separate process,
because building a model needs torch, which the controller itself never imports.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from curtail.errors import CurtailError
from curtail.system.disk import SystemDisk


def make(folder: Path, preset: str, model: dict[str, object], seed: int, tokenizer: str, manifest: str) -> None:
    """Write a checkpoint with freshly initialised weights to `folder`, which exists and is empty."""
    from nanochat import checkpoint, presets, weights
    from nanochat.gpt import GPT

    config = presets.from_dict(model)
    gpt = GPT(config)
    gpt.init_weights(seed)
    meta = checkpoint.CheckpointMeta(
        preset=preset,
        model_config=config,
        tokens=0,
        version=0,
        weights_digest="",
        tokenizer_digest=tokenizer,
        manifest_digest=manifest,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    checkpoint.write_checkpoint(folder, weights.from_model(gpt), meta, SystemDisk())


def main(argv: Sequence[str]) -> int:
    """Create the checkpoint that the JSON object argv[0] describes."""
    spec = json.loads(argv[0])
    try:
        make(Path(spec.pop("folder")), **spec)
    except CurtailError as error:
        print(f"genesis: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
