"""`checkpoint import` and `checkpoint export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.program import checkpoint_app


class Form(StrEnum):
    """Forms that a checkpoint can be exported to."""

    NANOCHAT = "nanochat"
    SAFETENSORS = "safetensors"


@checkpoint_app.command("import")
def checkpoint_import(
    path: Annotated[Path, typer.Argument(help="nanochat's folder of a model, or its model_NNNNNN.pt.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint; made if missing.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Its tokenizer.json, or the folder; copied beside it.", show_default=False)
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="Which of several in the folder; by default the last.", show_default=False)
    ] = None,
    rope_base: Annotated[
        float | None, typer.Option(help="Base of the rotary positions; else inferred.", show_default=False)
    ] = None,
    qk_scale: Annotated[
        float | None, typer.Option(help="Factor on queries and keys; else inferred.", show_default=False)
    ] = None,
    softcap: Annotated[
        float | None, typer.Option(help="Bound of the logits; else inferred.", show_default=False)
    ] = None,
    short_window: Annotated[
        int | None, typer.Option(min=0, help="Tokens that S layers look back; else inferred.", show_default=False)
    ] = None,
) -> int:
    """Make a checkpoint of nanochat one of ours.

    Its files do not say which constants the model was trained with. They are inferred from the
    weights and printed; the last four options override them.
    """
    from curtail.commands.checkpoint.convert import import_checkpoint
    from nanochat.upstream_checkpoint import Given

    return import_checkpoint(path, out, tokenizer, step, Given(rope_base, qk_scale, softcap, short_window))


@checkpoint_app.command("export")
def checkpoint_export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint, such as HOME/versions/v000012.")],
    form: Annotated[
        Form, typer.Option("--format", help="nanochat: .pt and meta JSON; safetensors: one file, facts included.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the files; made if missing.")],
) -> int:
    """Write a checkpoint in a form that others read."""
    from curtail.commands.checkpoint.convert import export_checkpoint

    return export_checkpoint(checkpoint, form.value, out)
