"""Attention kernels, fp8 and compiled code on a CUDA device. Skipped, and said so, without one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanochat import attention_kernels, fp8
from nanochat.acceleration import Compiled, accelerate, missing_for_compiling
from nanochat.attention_backend import Trial, choose_backend
from nanochat.attention_kernels import BACKENDS
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW
from nanochat.presets import GPTConfig
from nanochat.schedule import Schedule

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch.device("cuda", 0)
FULL = GPTConfig(512, 256, 2, 2, 2, 256)
WINDOWED = replace(FULL, window_pattern="SL", short_window=128, qk_scale=1.2)
SHARED = replace(WINDOWED, n_kv_head=1)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
    pytest.mark.filterwarnings("default"),  # kernels and compiler say what they would rather have
]

needs_compiler = pytest.mark.skipif(
    bool(missing_for_compiling(os.environ, shutil.which)), reason="there is nothing to compile with"
)


@pytest.fixture(autouse=True)
def the_flash_kernel_is_torchs_own_again():
    yield
    attention_kernels.activate(None)


def capability():
    return torch.cuda.get_device_capability(CUDA)


def samples(count, length=512, vocab=256):
    ids = torch.randint(0, vocab, (count, length + 1), generator=torch.Generator().manual_seed(0)).to(CUDA)
    return ids[:, :-1], ids[:, 1:]


def built(config=FULL, attend=None):
    model = GPT(config, torch.bfloat16)
    model.init_weights(1)
    model.to(CUDA)
    if attend is not None:
        model.use_attention(attend)
    return model


def losses(model, net, steps=10):
    inputs, targets = samples(4)
    optimizer = MuonAdamW(model, model.config, inputs.numel())
    schedule = Schedule(token_budget=steps * inputs.numel(), batch_tokens=inputs.numel())
    found = []
    for step in range(steps):
        loss = net(inputs, targets)
        loss.backward()
        optimizer.step(schedule.at(step * inputs.numel()))
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("config", [FULL, WINDOWED, SHARED], ids=["full", "windows", "shared heads"])
@pytest.mark.parametrize("backend", BACKENDS["cuda"], ids=lambda backend: backend.name)
def test_a_backend_agrees_with_math_or_is_refused(backend, config):
    """What torch brings along must work from Ampere on; packages may be absent, and never silently wrong."""
    reason = Trial(config, CUDA, torch.bfloat16, 2, config.sequence_len).refusal(backend)
    if backend.name in ("flash", "efficient", "math") and capability() >= (8, 0):
        assert reason is None
    elif reason is not None:
        pytest.skip(f"{backend.name}: {reason}")


def test_what_is_chosen_is_no_slow_one():
    for config in (FULL, WINDOWED):
        choice = choose_backend(config, CUDA, torch.bfloat16)
        if capability() >= (8, 0):
            assert choice.backend.name in ("fa4", "fa3", "cudnn", "flash"), str(choice)
            assert choice.windows == ("native" if config is WINDOWED else "none")


@pytest.mark.parametrize("config", [FULL, WINDOWED], ids=["full", "windows"])
def test_whole_models_lose_alike_with_the_chosen_backend(config):
    choice = choose_backend(config, CUDA, torch.bfloat16)
    first, second = built(config, attention_kernels.math), built(config, choice.backend.attend)
    expected = losses(first, first)
    assert losses(second, second) == pytest.approx(expected, abs=0.03)
    assert expected[-1] < expected[0] - 0.3


def test_a_window_saves_the_memory_of_the_mask():
    """The flash kernel keeps no scores: a long input takes far less than with all of them."""
    config = replace(WINDOWED, sequence_len=8192)
    peaks = []
    for attend in (attention_kernels.flash, attention_kernels.math):
        model = built(config, attend)
        inputs, targets = samples(1, 8192)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(CUDA)
        model(inputs, targets).backward()
        peaks.append(torch.cuda.max_memory_allocated(CUDA))
    assert peaks[0] < peaks[1] / 2


def test_fp8_trains_close_to_bf16():
    if capability() < fp8.CAPABILITY:
        pytest.skip(f"fp8 needs compute capability {fp8.CAPABILITY}, this device has {capability()}")
    exact, rounded = built(), built()
    fast = accelerate(rounded, CUDA, fp8=True, compiled=False)
    assert fast.fp8_layers == 12
    expected, found = losses(exact, exact), losses(rounded, fast.net)
    assert found != expected
    assert found == pytest.approx(expected, abs=0.1)
    assert found[-1] < found[0] - 0.3


def test_fp8_products_are_near_the_exact_ones():
    if capability() < fp8.CAPABILITY:
        pytest.skip(f"fp8 needs compute capability {fp8.CAPABILITY}, this device has {capability()}")
    generator = torch.Generator(device=CUDA).manual_seed(0)
    x, weight, push = (
        torch.randn(shape, generator=generator, device=CUDA) for shape in ((512, 256), (1024, 256), (512, 1024))
    )
    x = x.bfloat16().requires_grad_()
    weight.requires_grad_()
    fp8.linear(x, weight).backward(push.bfloat16())
    assert x.grad is not None and weight.grad is not None and weight.grad.dtype == torch.float32
    for found, exact in ((x.grad, push @ weight), (weight.grad, push.t() @ x.float())):
        assert (found.float() - exact).norm() / exact.norm() < 0.1


@needs_compiler
@pytest.mark.parametrize("in_fp8", [False, True], ids=["bf16", "fp8"])
def test_training_is_compiled_and_new_weights_are_not_compiled_for(in_fp8):
    if in_fp8 and capability() < fp8.CAPABILITY:
        pytest.skip(f"fp8 needs compute capability {fp8.CAPABILITY}, this device has {capability()}")
    plain, model = built(WINDOWED), built(WINDOWED)
    fast = accelerate(model, CUDA, fp8=in_fp8)
    assert fast.compiled and isinstance(fast.net, Compiled)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    expected = losses(plain, plain)
    assert losses(model, fast.net) == pytest.approx(expected, abs=0.1 if in_fp8 else 0.05)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 1
    with torch.no_grad():
        for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
            parameter.copy_(other)
    losses(model, fast.net, steps=2)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


JOB = """
import torch
from torch._dynamo.utils import counters
from nanochat.acceleration import accelerate
from nanochat.gpt import GPT
from nanochat.presets import GPTConfig

device = torch.device("cuda", 0)
model = GPT(GPTConfig(512, 256, 2, 2, 2, 256), torch.bfloat16)
model.init_weights(1)
fast = accelerate(model.to(device), device)
assert fast.compiled, str(fast)
ids = torch.zeros(2, 512, dtype=torch.int64, device=device)
fast.net(ids, ids).backward()
found = {**counters["inductor"], **counters["aot_autograd"]}
print("hits", found.get("fxgraph_cache_hit", 0) + found.get("autograd_cache_hit", 0))
"""


@needs_compiler
def test_the_second_job_finds_what_the_first_has_compiled(tmp_path):
    from agent.launcher import compile_cache

    names = compile_cache(tmp_path, {})
    environment = {**{k: v for k, v in os.environ.items() if k not in names}, **names, "PYTHONPATH": str(ROOT)}
    hits = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", JOB], env=environment, capture_output=True, text=True, timeout=600
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        hits.append(int(done.stdout.split()[-1]))
    assert hits[0] == 0 and hits[1] > 0
    assert list((tmp_path / "inductor").iterdir())
