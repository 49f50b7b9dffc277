"""Attention backends: each computes what the plain one does, and one that does not is refused with its reason."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from doubles import TickingClock

from curtail.commands.train import run
from curtail.errors import ConfigError
from nanochat import attention_kernels
from nanochat.acceleration import Accelerated, Compiled, accelerate, missing_for_compiling
from nanochat.attention_backend import choose_backend
from nanochat.attention_kernels import BACKENDS, MATH, NAMES, SDPA, Backend
from nanochat.gpt import GPT, Cache
from nanochat.presets import GPTConfig
from nanochat.throughput import BenchOptions, NotMeasured, Speed, measure_backends

CPU = torch.device("cpu")
FULL = GPTConfig(32, 100, 2, 2, 2, 32)
WINDOWED = GPTConfig(32, 100, 3, 4, 2, 32, window_pattern="SSL", short_window=8, qk_scale=1.2)


def choose(table, config=FULL, asked="auto", dtype=torch.float32):
    return choose_backend(config, CPU, dtype, asked, table=table)


def refused(backend, config=FULL):
    """Why the backend is refused when a working one comes after it."""
    choice = choose([backend, SDPA], config)
    assert choice.backend is SDPA
    return dict(choice.refused)[backend.name]


def raising(*_):
    raise RuntimeError("no kernel image is available\nfor this device")


def short_by_one(q, k, v, window, scale):
    return attention_kernels.plain(q, k, v, window - 1, scale)


def backwards_nan(q, k, v, window, scale):
    y = attention_kernels.plain(q, k, v, window, scale)
    y.register_hook(lambda grad: grad * float("nan"))
    return y


class Backwards(torch.autograd.Function):
    """The right output with a wrong gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.1


@pytest.mark.parametrize("config", [FULL, WINDOWED], ids=["full", "windows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS["cpu"], ids=lambda backend: backend.name)
def test_the_backends_of_a_cpu_work(backend, dtype, config):
    choice = choose(None, config, backend.name, dtype)
    assert choice.backend is backend and choice.refused == ()
    assert choice.windows == ("masked" if config is WINDOWED else "none")


def test_on_a_cpu_torch_chooses_as_ever():
    choice = choose(None)
    assert choice.backend.attend is attention_kernels.plain
    assert str(choice) == "attention: sdpa"


def test_one_that_raises_is_passed_over_with_its_first_line():
    assert refused(Backend("new", raising)) == "RuntimeError: no kernel image is available"


def test_one_that_cannot_be_activated_is_passed_over(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert "Error" in refused(Backend("fa4", attention_kernels.flash, windows=True, implementation="FA4"))
    assert "Unknown flash attention impl" in refused(Backend("fa9", attention_kernels.flash, implementation="FA9"))


def test_one_with_other_numbers_is_passed_over():
    wrong = Backend("wrong", lambda q, k, v, window, scale: attention_kernels.plain(q, k, v, window, 0.5))
    assert "the output, window 32 differs from math by" in refused(wrong)
    off = Backend("off", short_by_one, windows=True)
    assert "window 8 differs from math" in refused(off, WINDOWED)


def test_one_with_wrong_gradients_is_passed_over():
    scaled = Backend("scaled", lambda *a: Backwards.apply(attention_kernels.plain(*a)))
    assert refused(scaled).startswith("the gradient of the input, window 32 differs from math by ")


def test_one_with_gradients_that_are_not_finite_is_passed_over():
    assert refused(Backend("nan", backwards_nan)) == "the gradient of the input, window 32 is not finite"
    nothing = Backend("nothing", lambda q, k, v, window, scale: q * float("inf"))
    assert refused(nothing) == "the output, window 32 is not finite"


def test_the_choice_says_why_the_others_are_not_used():
    choice = choose([Backend("new", raising), MATH], WINDOWED)
    assert str(choice) == ("attention: math (windows: masked; not new: RuntimeError: no kernel image is available)")


def test_with_windows_a_backend_that_has_them_comes_first():
    plain, native = Backend("plain", attention_kernels.plain), Backend("native", attention_kernels.plain, windows=True)
    choice = choose([plain, native], WINDOWED)
    assert (choice.backend, choice.windows) == (native, "native")
    assert choose([plain, native]).backend is plain
    assert choose([plain, native], WINDOWED, "plain").windows == "masked"
    # a window that is no shorter than the input is none
    assert choose_backend(WINDOWED, CPU, torch.float32, length=8, table=[plain, native]).windows == "none"


def test_one_asked_for_by_name_is_used_or_refused():
    table = [SDPA, Backend("new", raising)]
    with pytest.raises(ConfigError, match="attention backend new does not work here: RuntimeError: no kernel"):
        choose(table, asked="new")
    with pytest.raises(ConfigError, match="no attention backend 'fast' for cpu") as caught:
        choose(table, asked="fast")
    assert caught.value.remedy == "use auto, sdpa, new"


def test_where_none_works_all_reasons_are_given():
    with pytest.raises(ConfigError, match=r"no attention backend works here: a: RuntimeError: .*; b: the output"):
        choose([Backend("a", raising), Backend("b", lambda q, *_: q * float("nan"))])


def test_the_fastest_come_first_and_math_last():
    assert NAMES == ("fa4", "fa3", "cudnn", "flash", "efficient", "math", "sdpa")
    assert all(table[-1] is MATH for table in BACKENDS.values())
    assert [b.name for b in BACKENDS["cuda"] if b.windows] == ["fa4", "fa3", "flash"]


def test_a_model_attends_with_what_it_was_given_but_for_its_cache():
    model = GPT(WINDOWED)
    model.init_weights(1)
    ids = torch.arange(12)[None]
    calls = []

    def counted(q, k, v, window, scale):
        calls.append(window)
        return attention_kernels.math(q, k, v, window, scale)

    expected = model(ids)
    model.use_attention(counted)
    torch.testing.assert_close(model(ids), expected)
    assert calls == [8, 8, 32]
    with torch.inference_mode():
        cache = Cache(WINDOWED)
        torch.testing.assert_close(model(ids[:, :7], cache=cache)[:, -1], expected[:, 6].detach())
        for at in range(7, 12):
            last = model(ids[:, at : at + 1], cache=cache)[:, -1]
        torch.testing.assert_close(last, expected[:, 11].detach())
    assert len(calls) == 3


def test_flash_is_called_with_whole_heads_and_its_own_windows(monkeypatch):
    """The operator has no CPU form: what it is asked for is compared, with the same formula behind it."""
    asked = []

    def operator(q, k, v, *rest, scale, window_size_left, window_size_right):
        asked.append((tuple(q.shape), tuple(k.shape), rest, window_size_left, window_size_right))
        window = window_size_left if window_size_left >= 0 else 10**6
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return (attention_kernels.plain(q, k, v, window, scale).transpose(1, 2),)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", operator)
    flash = Backend("flash", attention_kernels.flash, windows=True)
    assert choose([flash], WINDOWED).windows == "native"
    q, k = (1, 32, 4, 8), (1, 32, 2, 8)
    assert asked[0] == (q, k, (None, None, 32, 32, 0.0, False, False), 8, 0)
    assert asked[1] == (q, k, (None, None, 32, 32, 0.0, True, False), -1, -1)


def test_cudnn_gets_whole_layers_only(monkeypatch):
    asked = []

    def operator(q, k, v, bias, log_sum, dropout, causal, debug, scale):
        asked.append((bias, log_sum, dropout, causal, debug))
        return (attention_kernels.plain(q, k, v, q.size(2), scale),)

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", operator)
    assert choose([Backend("cudnn", attention_kernels.cudnn)], WINDOWED).windows == "masked"
    assert asked == [(None, True, 0.0, True, False)]


# -- compilation -------------------------------------------------------------


def test_nothing_is_compiled_on_a_cpu_unless_asked(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("nobody asked for this")

    monkeypatch.setattr(torch, "compile", forbidden)
    model = GPT(FULL)
    fast = accelerate(model, CPU)
    assert fast.net is model and not fast.compiled and str(fast) == "attention: sdpa"
    asked = accelerate(model, CPU, compiled=True)  # not before the first pass
    assert asked.compiled and isinstance(asked.net, Compiled)
    with pytest.raises(AssertionError, match="nobody asked"):
        asked.net(torch.zeros(1, 4, dtype=torch.int64))


def test_a_model_is_compiled_once_at_its_first_pass(monkeypatch):
    made = []

    def compile(model, dynamic):
        made.append(dynamic)
        return lambda *inputs: ("compiled", *inputs)

    monkeypatch.setattr(torch, "compile", compile)
    model = GPT(FULL)
    net = Compiled(model)
    assert made == []
    net.eval()
    assert not model.training and next(iter(net.parameters())) is next(model.parameters())
    assert [net(1), net(2, 3)] == [("compiled", 1), ("compiled", 2, 3)] and made == [False]


def test_a_model_can_be_traced_with_its_attention():
    """Through the front of the compiler only: what comes behind needs a C++ compiler and minutes."""
    config = replace(WINDOWED, n_embd=256)
    model = GPT(config)
    model.init_weights(1)
    model.use_attention(attention_kernels.math)
    ids = torch.arange(32)[None]
    traced = torch.compile(model, dynamic=False, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(ids, ids), model(ids, ids))


@pytest.mark.parametrize(
    ("environment", "programs", "package", "missing"),
    [
        ({}, {"gcc"}, True, ""),
        ({"CC": "/opt/cc"}, set(), True, ""),
        ({}, set(), True, "there is no C compiler (cc, gcc, clang or $CC)"),
        ({}, {"cc"}, False, "the package triton is not installed"),
    ],
)
def test_what_compiling_needs(environment, programs, package, missing):
    def which(name):
        return name if name in programs else None

    assert missing_for_compiling(environment, which, lambda name: object() if package else None) == missing


def test_what_a_model_runs_with_is_one_line():
    choice = choose([Backend("new", raising), SDPA])
    fast = Accelerated(GPT(FULL), choice, 8, True, "")
    assert str(fast).endswith("available), fp8 in 8 matrices, compiled at the first pass")
    assert str(replace(fast, fp8_layers=0, compiled=False, not_compiled="no C compiler")).endswith(
        "available), not compiled: no C compiler"
    )


# -- the benchmark -----------------------------------------------------------


def test_every_backend_is_measured_or_says_why_not(monkeypatch):
    monkeypatch.setitem(BACKENDS, "cpu", (Backend("new", raising), MATH))
    asked = BenchOptions(steps=1, batch_samples=2, device_batch_samples=1, threads=1, device="cpu", fused_loss=False)
    refusal, math = measure_backends(FULL, asked, TickingClock())
    assert isinstance(refusal, NotMeasured) and isinstance(math, Speed)
    assert refusal.attention == "new" and "no kernel image" in refusal.reason
    assert (math.attention, math.windows, math.loss, math.fp8) == ("math", "none", "plain", False)
    assert (math.tok_s, math.device_batch_samples) == (64.0, 1)


def bench(**changes):
    asked = BenchOptions(steps=1, batch_samples=2, threads=1, device="cpu", **changes)
    return run.run_bench(
        preset="d2-test",
        depth=None,
        vocab_size=1,
        sequence_len=1,
        asked=asked,
        as_json=changes.get("attention") == "all",
    )


def test_the_benchmark_of_all_backends_is_a_table(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_FX_GRAPH_CACHE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert bench(attention="all") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "d2-test" and [row["attention"] for row in found["rows"]] == ["sdpa", "math"]
    found["rows"].append({"attention": "fa4", "reason": "is not here"})
    lines = run._rows(found["model"], found["rows"]).splitlines()
    assert (
        len(lines) == 4
        and lines[1].split()[:2] == ["sdpa", "none"]
        and lines[3].split(maxsplit=1) == ["fa4", "is not here"]
    )
    assert bench() == 0
    assert "attention sdpa; not compiled; loss fused" in capsys.readouterr().out
    assert run.cache_folder({"XDG_CACHE_HOME": "/c"}).as_posix() == "/c/curtail"
    assert run.cache_folder({"XDG_CACHE_HOME": "relative"}).parts[-2:] == (".cache", "curtail")
