"""The model on a CUDA device: bf16 compute over fp32 master weights, and nccl. Skipped, and said so, without one."""

from __future__ import annotations

import pytest
import torch

from nanochat.distributed import choose_device, compute_dtype
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW
from nanochat.presets import preset
from nanochat.schedule import Schedule

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


def batches(count: int, device: torch.device):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 512, (count, 4, 65), generator=generator)
    return [(rows[:, :-1].to(device), rows[:, 1:].to(device)) for rows in ids]


def losses(device: torch.device, dtype: torch.dtype, steps: int = 8) -> list[float]:
    config = preset("d2-test")
    model = GPT(config, dtype)
    model.init_weights(1)
    model.to(device)
    optimizer = MuonAdamW(model, config, 4 * 64)
    schedule = Schedule(token_budget=steps * 256, batch_tokens=256)
    found = []
    inputs, targets = batches(1, device)[0]
    for step in range(steps):
        loss = model(inputs, targets)
        loss.backward()
        optimizer.step(schedule.at(step * 256))
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_compute_is_bf16_and_master_weights_are_fp32():
    device = choose_device("cuda")
    assert compute_dtype(device) is torch.bfloat16
    model = GPT(preset("d2-test"), compute_dtype(device))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_loss_falls_on_cuda_as_on_the_cpu():
    cpu = losses(torch.device("cpu"), torch.float32)
    cuda = losses(choose_device("cuda"), torch.bfloat16)
    assert cuda[-1] < cuda[0]
    assert cuda == pytest.approx(cpu, abs=0.05)


def test_logits_do_not_look_ahead_on_cuda():
    device = choose_device("cuda")
    model = GPT(preset("d2-test"), torch.bfloat16)
    model.init_weights(1)
    model.to(device)
    inputs, _ = batches(1, device)[0]
    changed = inputs.clone()
    changed[:, 40:] = 1
    with torch.no_grad():
        before, after = model(inputs), model(changed)
    torch.testing.assert_close(before[:, :40], after[:, :40])
