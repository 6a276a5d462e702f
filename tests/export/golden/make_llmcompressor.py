"""Writes llmcompressor-{fp8,int8,int4}/ from source/, in an environment of its own.

pip install llmcompressor==0.14.0.1 && python make_llmcompressor.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent


def scheme(kind: str) -> QuantizationScheme:
    found = preset_name_to_scheme({"fp8": "FP8_DYNAMIC", "int8": "W8A8", "int4": "W4A16"}[kind], ["Linear"])
    if kind == "int4":
        found.weights.group_size = 32
    return found


if __name__ == "__main__":
    for kind in ("fp8", "int8", "int4"):
        model = AutoModelForCausalLM.from_pretrained(HERE / "source", dtype=torch.bfloat16)
        recipe = QuantizationModifier(config_groups={"group_0": scheme(kind)}, ignore=["lm_head"])
        oneshot(model=model, recipe=recipe)
        model.save_pretrained(HERE / f"llmcompressor-{kind}", save_compressed=True)
