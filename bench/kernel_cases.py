"""The configurations of Triton kernels that are compiled ahead of time: for the static table and the tests."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mify.bench.static import KernelReport, compile_triton


@dataclass(frozen=True, slots=True)
class TritonCase:
    """A `@triton.jit` function at one configuration.

    Args:
        module, function: where it is.
        signature: argument → type, in the order of the function's.
        constants: constexpr arguments.
        aligned: integer arguments that are multiples of 16.
    """

    name: str
    module: str
    function: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 3
    notes: Mapping[str, str] = field(default_factory=dict)

    def compile(self, architecture: int) -> KernelReport:
        kernel = getattr(importlib.import_module(self.module), self.function)
        return compile_triton(
            kernel,
            self.signature,
            self.constants,
            architecture=architecture,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            aligned=self.aligned,
        )


_STRIDES = ("q_batch", "q_head", "k_page", "k_slot", "k_head", "v_page", "v_slot", "v_head")

GQA_DECODE_TRITON = TritonCase(
    name="gqa_decode 32/8/128 paged",
    module="mify.kernels.attention.gqa_decode_triton",
    function="_part_kernel",
    signature={
        **dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), "*bf16"),
        **dict.fromkeys(("lengths_ptr", "table_ptr"), "*i32"),
        **dict.fromkeys(("k_scale_ptr", "v_scale_ptr", "rows_ptr", "statistics_ptr"), "*fp32"),
        **dict.fromkeys((*_STRIDES, "table_row", "num_pages", "capacity"), "i32"),
        "scale_log2": "fp32",
    },
    constants={
        "KV_HEADS": 8, "GROUP": 4, "PAGE_SIZE": 64, "NUM_SPLITS": 16, "D": 128, "BLOCK_G": 16, "BLOCK_N": 64,
        "PAGED": True, "SCALED": False,
    },
    aligned=_STRIDES,
)  # fmt: skip

TRITON_CASES: tuple[TritonCase, ...] = (GQA_DECODE_TRITON,)
