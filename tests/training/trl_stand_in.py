"""TRL's own loss code on a model of ours: its trainers' methods are called on an object that holds what they read.

Nothing of a loss is rewritten here. A trainer of TRL wants data sets, an accelerator and a tokenizer of Hugging Face,
none of which enters its loss.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mify.config import ModelConfig
from mify.model import Model


class Accelerator:
    """One process on a CPU."""

    device = torch.device("cpu")
    num_processes = 1
    is_main_process = True

    def gather(self, value: Any) -> Any:
        return value

    gather_for_metrics = gather

    def reduce(self, value: Tensor, reduction: str = "sum") -> Tensor:
        return value

    def autocast(self) -> Any:
        return torch.autocast("cpu", enabled=False)


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float64, vocab_size: int = 97) -> Model:
    """Two layers, with weights large enough that log-probabilities differ."""
    config = ModelConfig("trl-test", 2, 32, 4, 2, 8, 48, vocab_size, 64, tie_embeddings=False)
    model = Model(config, seed=seed, impl="gqa=ref,norm=ref,rope=ref,glu=ref,linear_ce=ref")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model.to(dtype)


def as_llama(model: Model, temperature: float = 1.0) -> Any:
    """The same weights in `transformers`' Llama, with TRL's output layer."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    shape = model.config
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_query_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.rms_norm_eps,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=shape.tie_embeddings,
        attn_implementation="eager",
    )
    other = LlamaForCausalLM(config).to(next(model.parameters()).dtype)
    other.load_state_dict(model.state_dict())
    add_fused_lm_head(other, temperature=temperature, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    return other.train()


def dpo_trainer(llama: Any, **changes: Any) -> SimpleNamespace:
    """What `DPOTrainer._compute_loss` reads of itself."""
    values = {
        "accelerator": Accelerator(),
        "aux_loss_enabled": False,
        "model": llama,
        "ld_alpha": None,
        "precompute_ref_logps": True,
        "f_divergence_type": "reverse_kl",
        "loss_types": ["sigmoid"],
        "loss_weights": [1.0],
        "beta": 0.1,
        "label_smoothing": 0.0,
        "use_weighting": False,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "args": SimpleNamespace(),
    }
    return SimpleNamespace(**(values | changes))


def grpo_trainer(llama: Any, **changes: Any) -> SimpleNamespace:
    """What `GRPOTrainer._compute_loss` reads of itself."""
    from trl import GRPOTrainer

    values = {
        "accelerator": Accelerator(),
        "aux_loss_enabled": False,
        "model": llama,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "loss_type": "dapo",
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "use_vllm": False,
        "vllm_importance_sampling_correction": True,
        "max_completion_length": 16,
        "current_gradient_accumulation_steps": 1,
        "_entropy_bonus_enabled": False,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "args": SimpleNamespace(
            use_bias_correction_kl=False, delta=None, per_device_train_batch_size=8, steps_per_generation=1
        ),
    }
    trainer = SimpleNamespace(**(values | changes))
    method = GRPOTrainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: method(trainer, *a, **k)
    return trainer


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Of gradients, as a share of their largest where that is above 1."""
    assert ours.keys() == theirs.keys()
    scale = max(1.0, *(float(value.abs().max()) for value in theirs.values()))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours) / scale
