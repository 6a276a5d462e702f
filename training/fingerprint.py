"""What tells a model's weights apart, sharded or not."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


@torch.no_grad()
def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of the parameters; all ranks of a sharded model call it."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        gather = getattr(parameter, "full_tensor", None)
        whole = (gather() if gather else parameter).detach().cpu().contiguous()
        digest.update(f"{name}:{whole.dtype}:{tuple(whole.shape)}\n".encode())
        digest.update(whole.view(torch.uint8).numpy().data)
    return digest.hexdigest()
