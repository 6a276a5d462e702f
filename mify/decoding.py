"""What generation keeps on the device: keys and values of fixed size, and a decode step that a CUDA graph can hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mify.kernels import gqa_attention, gqa_decode, launch

if TYPE_CHECKING:
    from mify.model import Model


class KVCache:
    """Keys and values of every layer in tensors of fixed size and address.

    Args:
        model: whose cache it is. batch: sequences. capacity: tokens per sequence, prompt and continuation.
    """

    def __init__(self, model: Model, batch: int, capacity: int) -> None:
        config, weight = model.config, model.head_weight
        shape = (config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim)
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.zeros_like(self.keys)
        self.capacity = capacity
        self.lengths = torch.zeros(batch, dtype=torch.int32, device=weight.device)
        # Where the tokens of the next pass go: (T,) sequence and place in it.
        self.rows = torch.zeros(0, dtype=torch.int64, device=weight.device)
        self.columns = self.rows
        self.prefill = True

    def write_prompts(self, lengths: list[int]) -> None:
        """Says that the next forward pass carries whole prompts of these lengths, packed."""
        device = self.lengths.device
        counts = torch.tensor(lengths, device=device)
        self.rows = torch.repeat_interleave(torch.arange(len(lengths), device=device), counts, output_size=sum(lengths))
        self.columns = torch.cat([torch.arange(n, device=device) for n in lengths])
        self.lengths = counts.to(torch.int32)
        self.prefill = True

    def begin_decoding(self) -> None:
        """Says that from now on every forward pass carries one more token of each sequence."""
        self.rows = torch.arange(self.lengths.shape[0], device=self.lengths.device)
        self.columns = torch.zeros_like(self.rows)
        self.prefill = False

    def write_next(self) -> None:
        """Makes room for the next token of each sequence, in place. A full sequence overwrites its last token."""
        self.columns.copy_(self.lengths).clamp_(max=self.capacity - 1)
        self.lengths.add_(1).clamp_(max=self.capacity)

    def keep(self, rows: Tensor) -> None:
        """Keeps only these sequences, in this order."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.lengths = self.lengths[rows]

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, impl: str
    ) -> Tensor:
        """Stores k and v (T, Hkv, D) of one layer and returns the attention of q (T, Hq, D) over all that is stored."""
        self.keys[layer, self.rows, self.columns] = k
        self.values[layer, self.rows, self.columns] = v
        if self.prefill:
            return gqa_attention(q, k, v, cu_seqlens, max_seqlen, impl=impl)
        return gqa_decode(q, self.keys[layer], self.values[layer], self.lengths, impl=impl)


class DecodeStep:
    """One more token of every sequence of a cache: the model and its logits, on tensors that never move.

    Args:
        model, cache: the prompts have been written. graph: capture the step in a CUDA graph and replay that: its
            hundreds of launches become one, which is what a small batch waits for.
    """

    def __init__(self, model: Model, cache: KVCache, *, graph: bool) -> None:
        self._model, self._cache = model, cache
        batch, device = cache.lengths.shape[0], cache.lengths.device
        self._tokens = torch.zeros(batch, dtype=torch.int64, device=device)
        self._bounds = torch.arange(batch + 1, dtype=torch.int32, device=device)
        cache.begin_decoding()
        self._step = self._run
        if graph:
            lengths = cache.lengths.clone()
            with launch.on(lengths):
                self._step = captured(self._run, lambda: cache.lengths.copy_(lengths))

    def __call__(self, tokens: Tensor) -> Tensor:
        """The logits (B, V) behind `tokens` (B,), the newest of each sequence. The next call may overwrite them."""
        self._tokens.copy_(tokens)
        return self._step()

    def _run(self) -> Tensor:
        self._cache.write_next()
        hidden = self._model(self._tokens, self._cache.columns, self._bounds, 1, self._cache)
        return self._model.logits(hidden)


def captured(run: Callable[[], Tensor], restore: Callable[[], object]) -> Callable[[], Tensor]:
    """`run` as a CUDA graph.

    Args:
        run: reads and writes tensors that stay where they are. restore: undoes what a run has changed; it is run a few
            times first, since kernels are compiled and memory is found at the first call.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
            restore()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay
