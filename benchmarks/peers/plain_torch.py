# SPDX-License-Identifier: Apache-2.0
"""A plain PyTorch loop over transformers' Llama and padded batches: the reference that every loss is held against.

The option `answers` trains only the answers. `litgpt` does what LitGPT's fine-tuning does otherwise: a head
of its own, gradients that are not clipped, one step of warm-up, and a cosine.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from clock import Clock, load_job
from transformers import AutoModelForCausalLM, AutoTokenizer

IGNORED = -100


def main() -> None:
    """Trains the job's steps."""
    job = load_job()
    clock, options = Clock(job), job["options"]
    rows = tokenized(job)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    if options.get("litgpt"):
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=job["learning_rate"], weight_decay=0.0)
    for step in range(job["steps"]):
        for group in optimizer.param_groups:
            group["lr"] = job["learning_rate"] * (litgpt_share(step, job["steps"]) if options.get("litgpt") else 1)
        batch = padded(rows[step * job["batch"] : (step + 1) * job["batch"]])
        logits_BTV = model(input_ids=batch[0], attention_mask=batch[2]).logits[:, :-1]
        targets_BT = batch[1][:, 1:]
        loss = torch.nn.functional.cross_entropy(
            logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        loss = loss / (targets_BT != IGNORED).sum()
        loss.backward()
        if not options.get("litgpt"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.losses.append(loss.item())
        clock.step_ended()
    clock.write_result()


def litgpt_share(step: int, steps: int) -> float:
    """Returns the share of the learning rate at a step: one step of warm-up from nothing, then a cosine."""
    return 0.0 if step == 0 else (1 + math.cos(math.pi * (step - 1) / (steps - 1))) / 2


def tokenized(job: dict[str, Any]) -> list[tuple[list[int], int]]:
    """Returns the tokens of each row, and how many of them come before what is trained."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    only_answers = job["options"].get("answers")
    rows = []
    for line in Path(job["rows"]).read_text().splitlines():
        messages = json.loads(line)["messages"]
        parts = [tokenizer.apply_chat_template(messages, tokenize=False)]
        parts.append(tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True))
        tokens, prompt = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts)
        rows.append((tokens[: job["max_length"]], len(prompt) if only_answers else 0))
    return rows


def padded(rows: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns tokens, targets and mask of a batch [B, T]. An answer ends before the line break that closes its turn."""
    longest = max(len(tokens) for tokens, _ in rows)
    shape = (len(rows), longest)
    ids, targets, mask = torch.zeros(shape).long(), torch.full(shape, IGNORED), torch.zeros(shape).long()
    for i, (tokens, start) in enumerate(rows):
        end = len(tokens) - 1 if start else len(tokens)
        ids[i, : len(tokens)] = torch.tensor(tokens)
        targets[i, start:end] = ids[i, start:end]
        mask[i, : len(tokens)] = 1
    return ids, targets, mask


if __name__ == "__main__":
    main()
