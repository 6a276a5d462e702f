"""mify-2.5b in the engine on a GPU, for `mify bench decode`."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mify.config import ModelConfig
from mify.hardware import GpuSpec, gpu_spec

if TYPE_CHECKING:
    from mify.engine import Engine
    from mify.model import Model


class Loaded:
    """A model on the GPU, its linear weights and its cache in one of `decode_cost.FORMATS`."""

    def __init__(self, model: Model, formats: str) -> None:
        self.model, self._formats = model, formats

    def engine(self, batch: int, tokens: int) -> Engine:
        """An engine with room for `batch` requests of so many tokens each."""
        import torch

        from mify.engine import Engine

        kv_dtype = torch.float8_e4m3fn if self._formats == "fp8" else None
        return Engine(
            self.model, max_sequences=batch, kv_tokens=batch * (tokens + 32), kv_dtype=kv_dtype, step_tokens=8192
        )

    def rate(self, prompts: Sequence[Sequence[int]], new: int) -> float:
        """New tokens a second, from the first prompt in to the last token out; the second of two runs."""
        from mify.engine import Request, SamplingParams

        engine = self.engine(len(prompts), len(prompts[0]) + new)
        requests = [Request(prompt, SamplingParams(new, stop_ids=())) for prompt in prompts]
        seconds = 0.0
        for _ in range(2):  # the first captures
            start = time.perf_counter()
            results = engine.run(requests)
            seconds = time.perf_counter() - start
            if any(len(result.tokens) != new for result in results):
                raise RuntimeError("a request ended early")
        del engine
        _free()
        return len(prompts) * new / seconds

    def latency(self, prompt: Sequence[int], new: int) -> tuple[float, float]:
        """Seconds to the first token, and from token to token, medians of five runs."""
        from mify.engine import Request, SamplingParams

        engine = self.engine(1, len(prompt) + new)
        first, between = [], []
        for _ in range(6):
            start = time.perf_counter()
            times = [time.perf_counter() for _ in engine.submit(Request(prompt, SamplingParams(new, stop_ids=())))]
            first.append(times[0] - start)
            between.append((times[-1] - times[0]) / (len(times) - 1))
        return statistics.median(first[1:]), statistics.median(between[1:])

    def free(self) -> None:
        """Gives the memory back."""
        self.__dict__.clear()
        _free()


def loaded(config: ModelConfig, formats: str) -> Loaded:
    """The model with random weights."""
    import torch

    from mify.model import Model
    from mify.quantization.linear import quantize_linears

    with torch.device("cuda"):
        model = Model(config).to(torch.bfloat16).eval()
    if formats == "fp8":
        quantize_linears(model)
    return Loaded(model, formats)


def spec() -> GpuSpec:
    """The peaks of this GPU."""
    import torch

    return gpu_spec(torch.cuda.get_device_name())


def vllm(model: Any, prompts: Sequence[Sequence[int]], new: int, formats: str) -> float | None:
    """vLLM's rate on the same weights in bf16 (it quantizes them itself); None where it is not installed."""
    from mify.bench import decode_rivals

    if not decode_rivals.installed("vllm") or formats != "bf16":
        return None
    return decode_rivals.vllm_rate(model, prompts, new, fp8=False)


def _free() -> None:
    import torch

    gc.collect()
    torch.cuda.empty_cache()
