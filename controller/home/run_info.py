"""What a job must know of the run, as the controller tells it."""

from __future__ import annotations

from controller.home import home as homes
from curtail.config import RunConfig
from curtail.wire import RunInfo
from nanochat import presets


def run_info(
    config: RunConfig, run: str, model: str, manifest: str, tokenizer: str, sequence_len: int, limit: int
) -> RunInfo:
    """What is fixed for the whole run.

    Args: run, model, manifest, tokenizer, sequence_len: as in the store's row of the run. limit: samples of its budget.
    """
    return RunInfo(
        run=run,
        name=config.run.name,
        seed=config.run.seed,
        preset=config.model.preset,
        model_config=dict(presets.to_dict(presets.from_json(model))),
        manifest=manifest,
        tokenizer=tokenizer,
        sequence_len=sequence_len,
        token_budget=limit * sequence_len,
        batch_samples=config.training.batch_samples,
        device_batch_samples=config.training.device_batch_samples,
        recipe=homes.recipe_for(config).to_json(),
        codec=config.rounds.codec,
        overlap=config.rounds.overlap,
        rewarm_steps=config.rounds.rewarm_steps,
        outage_s=config.rounds.upload_timeout,
    )
