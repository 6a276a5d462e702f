"""Exports of a model of the paper's size against copying its bytes: seconds, and memory beyond the model's shard.

Every export runs in a process of its own, which says when it began to work, so that imports do not count. The rival is
`cp -r` of the same folder and a flush of what it wrote, which an export ends with as well; both read what is cached.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mify.bench.rows import Row
from mify.bench.suite import Options

KINDS = {"export-hf": "hf", "export-fp8": "fp8"}
QUICK_LAYERS = 2

_EXPORT = """
import json, resource, sys, time
source, out, kind = sys.argv[1:]
from mify.export.hf import export_hf
from mify.export.quantized import export_quantized
from mify.loading import open_weights

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before, started, cpu = peak(), time.perf_counter(), time.process_time()
weights = open_weights(source)
if kind == "hf":
    export_hf(weights, out)
else:
    export_quantized(weights, out, kind)
print(json.dumps({"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu,
                  "memory": peak() - before}))
"""


def measure(options: Options, case: str) -> list[Row]:
    """Seconds of the export against the copy, in turns, the least of each; and its memory."""
    kind = KINDS[case]
    with tempfile.TemporaryDirectory(prefix="mify-export-") as name:
        folder = Path(name)
        size = _model(folder / "source", options)
        best: dict[str, float] = {}
        memory = 0.0
        for _ in range(1 if options.quick else max(2, options.rounds // 2)):
            for what, seconds in (("copy", _copied(folder)), ("export", (told := _exported(folder, kind))["seconds"])):
                best[what] = min(best.get(what, seconds), seconds)
            best["cpu"] = min(best.get("cpu", told["cpu"]), told["cpu"])
            memory = max(memory, told["memory"])
    note = f"{size / 1e9:.2f} GB in bf16{' (2 of 32 layers)' if options.quick else ''}; {best['cpu']:.1f} CPU seconds"

    def row(metric: str, value: float, unit: str, **more: Any) -> Row:
        target = options.targets.find("eval", case, metric)
        return Row.measured("eval", case, "mify", metric, value, unit, repro=options.repro(case), target=target, **more)

    return [
        row("time", best["export"], "s", rival="cp -r", rival_value=best["copy"], note=note),
        row("memory beyond the program's", memory / 1e9, "GB"),
    ]


def _model(folder: Path, options: Options) -> int:
    """Writes mify-2.5b with random weights as a Hugging Face folder; its bytes."""
    import torch

    from mify.config import model_config
    from mify.export.conventions import Conventions
    from mify.export.hf import export_hf
    from mify.export.weights import Weights, tensor_shapes

    config = model_config("mify-2.5b")
    if options.quick:
        config = replace(config, num_layers=QUICK_LAYERS)
    generator = torch.Generator().manual_seed(options.seed)
    shapes = tensor_shapes(config)
    longest = max(shape[0] * shape[-1] if len(shape) > 1 else shape[0] for shape in shapes.values())
    pool = (torch.randn(1 << 20, generator=generator) * 0.02).to(torch.bfloat16)
    pool = pool.repeat(-(-longest // len(pool)))

    class Random(Weights):
        def __init__(self) -> None:
            self.config, self.tokenizer, self.source = config, None, "random"
            self.conventions = Conventions()

        def tensor(self, name: str) -> torch.Tensor:
            shape = shapes[name]
            count = shape[0] * (shape[1] if len(shape) > 1 else 1)
            return pool[:count].view(shape)

        def dtype(self, name: str) -> torch.dtype:
            return torch.bfloat16

    export_hf(Random(), folder)
    return sum(file.stat().st_size for file in folder.iterdir())


def _copied(folder: Path) -> float:
    place = folder / "copy"
    started = time.perf_counter()
    subprocess.run(["cp", "-r", str(folder / "source"), str(place)], check=True)
    for file in place.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    seconds = time.perf_counter() - started
    shutil.rmtree(place)
    return seconds


def _exported(folder: Path, kind: str) -> dict[str, float]:
    out = folder / "out"
    command = [sys.executable, "-c", _EXPORT, str(folder / "source"), str(out), kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    shutil.rmtree(out, ignore_errors=True)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told
