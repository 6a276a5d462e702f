"""Writes modelopt-fp8/ from source/, with NVIDIA's own exporter, in an environment of its own.

pip install "nvidia-modelopt[hf]==0.47.0" && python make_modelopt.py
"""

from __future__ import annotations

from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent

if __name__ == "__main__":
    model = AutoModelForCausalLM.from_pretrained(HERE / "source", dtype=torch.bfloat16).eval()
    tokens = torch.arange(48)[None]
    model = mtq.quantize(model, mtq.FP8_DEFAULT_CFG, forward_loop=lambda quantized: quantized(tokens))
    export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=HERE / "modelopt-fp8")
