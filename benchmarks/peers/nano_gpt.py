# SPDX-License-Identifier: Apache-2.0
"""nanoGPT's recipe, reimplemented as a plain PyTorch loop: its model, batches, schedule and optimizer.

nanoGPT is no package that could be installed, so this is not its code. `fused` in the options takes the fused AdamW,
which nanoGPT takes on a GPU only. As it does where it measures, the loop writes weights and the optimizer's state every
so many steps, and what that takes is not part of a step.

Shape letters: B rows, T tokens, H heads, E size of a head, d hidden size, V vocabulary.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from clock import load_job, peak_bytes
from torch import nn


class Attention(nn.Module):
    """Causal attention whose queries, keys and values come from one product."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)

    def forward(self, x_BTd: torch.Tensor) -> torch.Tensor:
        """Returns the attention output of each token [B, T, d]."""
        B, T, d = x_BTd.shape
        parts = self.c_attn(x_BTd).split(d, dim=2)
        query_BHTE, key_BHTE, value_BHTE = (part.view(B, T, self.num_heads, -1).transpose(1, 2) for part in parts)
        mixed_BHTE = F.scaled_dot_product_attention(query_BHTE, key_BHTE, value_BHTE, is_causal=True)
        mixed_BTd: torch.Tensor = self.c_proj(mixed_BHTE.transpose(1, 2).contiguous().view(B, T, d))
        return mixed_BTd


class Mlp(nn.Module):
    """Two products with a GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.c_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BTd: torch.Tensor) -> torch.Tensor:
        """Returns the features of each token [B, T, d]."""
        mixed_BTd: torch.Tensor = self.c_proj(F.gelu(self.c_fc(x_BTd)))
        return mixed_BTd


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside the stream."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, bias=False)
        self.attn = Attention(width, num_heads)
        self.ln_2 = nn.LayerNorm(width, bias=False)
        self.mlp = Mlp(width)

    def forward(self, x_BTd: torch.Tensor) -> torch.Tensor:
        """Returns the stream after the block [B, T, d]."""
        x_BTd = x_BTd + self.attn(self.ln_1(x_BTd))
        return x_BTd + self.mlp(self.ln_2(x_BTd))


class Gpt(nn.Module):
    """GPT-2 without biases; its parts bear the names that GPT-2's weights have everywhere."""

    def __init__(self, recipe: dict[str, Any], num_tokens: int) -> None:
        super().__init__()
        width, num_layers = recipe["width"], recipe["num_layers"]
        self.wte = nn.Embedding(num_tokens, width)
        self.wpe = nn.Embedding(recipe["block"], width)
        self.h = nn.ModuleList(Block(width, recipe["num_heads"]) for _ in range(num_layers))
        self.ln_f = nn.LayerNorm(width, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                scale = math.sqrt(2 * num_layers) if name.endswith("c_proj.weight") else 1
                # Smaller where layers add up, as in GPT-2.
                nn.init.normal_(weight, std=0.02 / scale)

    def forward(self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Returns the mean cross-entropy over all positions."""
        x_BTd = self.wte(tokens_BT) + self.wpe(torch.arange(tokens_BT.shape[1]))
        for block in self.h:
            x_BTd = block(x_BTd)
        logits_BTV = F.linear(self.ln_f(x_BTd), self.wte.weight)
        return F.cross_entropy(logits_BTV.view(-1, logits_BTV.shape[-1]), targets_BT.view(-1))


def main() -> None:
    """Trains the job's steps."""
    job = load_job()
    recipe = job["recipe"]
    torch.manual_seed(job["seed"])
    text = Path(job["text"]).read_text(encoding="utf-8")
    places = {letter: i for i, letter in enumerate(job["letters"])}
    data = np.array([places[letter] for letter in text], dtype=np.uint16)
    model = Gpt(recipe, len(places))
    optimizer = make_optimizer(model, recipe, bool(job["options"].get("fused")))
    model.train()
    walls, cpus, losses, first_step_ended = [], [], [], 0.0
    for step in range(recipe["num_steps"]):
        began = time.perf_counter(), time.process_time()
        losses.append(take_step(model, optimizer, data, learning_rate(step, recipe), recipe))
        walls.append(time.perf_counter() - began[0])
        cpus.append(time.process_time() - began[1])
        first_step_ended = first_step_ended or time.monotonic()
        if (step + 1) % job["save_every"] == 0:  # after the clock was read: saving is no part of a step
            checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(checkpoint, Path(job["out"]) / f"checkpoint-{step + 1}.pt")
            print(f"step {step + 1}: loss {losses[-1]:.4f}", flush=True)
    result = {"walls_s": walls, "cpus_s": cpus, "losses": losses, "peak_bytes": peak_bytes()}
    result |= {"first_step_ended": first_step_ended, "versions": {"torch": torch.__version__}}
    Path(job["result"]).write_text(json.dumps(result))


def take_step(
    model: Gpt, optimizer: torch.optim.Optimizer, data: np.ndarray[Any, Any], rate: float, recipe: dict[str, Any]
) -> float:
    """Takes one optimizer step on random windows of the text, and returns its loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = model(*windows(data, recipe["batch"], recipe["block"]))
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe["max_grad_norm"])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    value: float = loss.item()
    return value


def windows(data: np.ndarray[Any, Any], batch: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns tokens and the tokens that follow them [B, T], from anywhere in the text."""
    starts = torch.randint(len(data) - block, (batch,)).tolist()
    rows_BT = torch.stack([torch.from_numpy(data[i : i + block + 1].astype(np.int64)) for i in starts])
    return rows_BT[:, :-1].contiguous(), rows_BT[:, 1:].contiguous()


def learning_rate(step: int, recipe: dict[str, Any]) -> float:
    """Returns the learning rate of a step (from 0): linear warm-up, then a cosine down to the minimum."""
    highest, lowest, warmup = recipe["learning_rate"], recipe["min_learning_rate"], recipe["warmup_steps"]
    if step < warmup:
        return float(highest * (step + 1) / (warmup + 1))
    share = (step - warmup) / (recipe["num_steps"] - warmup)
    return float(lowest + (highest - lowest) * (1 + math.cos(math.pi * share)) / 2)


def make_optimizer(model: Gpt, recipe: dict[str, Any], is_fused: bool) -> torch.optim.Optimizer:
    """Returns AdamW that decays matrices and embeddings alone."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": recipe["weight_decay"]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate, betas = recipe["learning_rate"], tuple(recipe["betas"])
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=is_fused or None)


if __name__ == "__main__":
    main()
