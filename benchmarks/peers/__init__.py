# SPDX-License-Identifier: Apache-2.0
"""The table of peers: their environments, options and references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

TORCH = "torch==2.13.0"
"""Exact, and installed first: a looser requirement may download gigabytes of another build."""
TECHNIQUES = ("allocator", "products", "fused_loss", "fused_layers", "flat")
"""What `OUMI_WITHOUT` can disable."""


@dataclass(frozen=True)
class Environment:
    """The environment of a peer."""

    packages: tuple[str, ...]
    without_dependencies: tuple[str, ...] = ()
    """Packages whose requirements conflict with this torch."""
    removed: tuple[str, ...] = ()
    """Dependencies of others that cannot be imported with this torch."""
    empty_modules: tuple[str, ...] = ()
    """Imported by the peer, but used only for sound and images."""
    reported: tuple[str, ...] = ("torch", "transformers")
    """Packages whose versions are in the result."""


@dataclass(frozen=True)
class Peer:
    """A row of the table."""

    title: str
    driver: str | None
    """The script in this folder; None runs the `oumi train` of this repository."""
    environment: str | None
    """None is the Python that runs the benchmark."""
    options: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    reference: str = "plain"
    """The reference whose losses it must reproduce."""
    divides_by_labels: bool = False
    """Divides a sum over targets by all labels, the first of each row included, as transformers 5.6 to 5.9 do."""
    base: str = "oumi"
    """The row that its times are compared with."""
    is_extra: bool = False
    """Runs only if it is selected."""
    num_ranks: int = 1
    """Processes, which divide the threads and the rows of a step; more than one need a driver."""
    note: str = ""


_TRL = ("transformers==5.23.0", "trl==1.16.0", "accelerate==1.15.0", "datasets==5.2.0")
_OF_TRL = ("torch", "transformers", "trl", "accelerate", "datasets")
ENVIRONMENTS = {
    "trl": Environment(_TRL, reported=_OF_TRL),
    # An environment of its own, since transformers takes longer to import where these can be found.
    "trl_peft": Environment(
        (*_TRL, "peft==0.21.2", "bitsandbytes==0.50.2"), reported=(*_OF_TRL, "peft", "bitsandbytes")
    ),
    "oumi09": Environment(
        (
            "transformers==5.9.0", "trl==1.4.0", "torchao==0.16.0", "accelerate==1.15.0", "datasets==4.8.5",
            "peft==0.19.1", "numpy<2.4", "omegaconf==2.4.0.dev4", "pandas<3", "pillow<12.4", "protobuf>=6.32",
            "pydantic<2.14", "aiohttp<3.14", "aiofiles<26", "backoff<2.3", "click<8.5", "httpx<1", "jsonlines",
            "jsonschema<5", "mlflow>=3.1", "pexpect<4.10", "posthog<8", "requests<3", "tensorboard<2.21", "tiktoken<1",
            "typer<0.25.2", "uvicorn<0.49", "wandb<0.26",
        ),
        without_dependencies=("oumi==0.9",),
        reported=("torch", "oumi", "transformers", "trl", "accelerate", "datasets"),
    ),
    "llamafactory": Environment(
        ("llamafactory==0.9.5", "transformers==5.6.0", "trl==0.24.0"),
        removed=("torchvision", "torchaudio"),
        empty_modules=("torchaudio",),
        reported=("torch", "llamafactory", "transformers", "accelerate", "datasets"),
    ),
    "litgpt": Environment(("litgpt==0.5.13", "requests"), reported=("torch", "litgpt", "lightning")),
}  # fmt: skip

_TUNED = {"gradient_checkpointing": False, "padding_free": True, "max_length": None, "optim": "adamw_torch_fused"}
_DENOMINATOR = "its losses are divided by labels, not by targets; corrected before they are compared"
PEERS = {
    "oumi": Peer("Oumi (this repository)", None, None),
    "plain": Peer("plain PyTorch loop, padded batches", "plain_torch.py", "trl", note="the reference"),
    "trl_stock": Peer(
        "TRL 1.16, defaults in fp32", "trl_sft.py", "trl", note="gradient checkpointing on, as is its default"
    ),
    "trl_tuned": Peer("TRL 1.16, tuned", "trl_sft.py", "trl", options=_TUNED),
    "oumi09_trl": Peer(
        "Oumi 0.9, TRL_SFT", "oumi_09.py", "oumi09", {"trainer_type": "TRL_SFT"}, divides_by_labels=True,
        note=_DENOMINATOR,
    ),
    "llamafactory": Peer(
        "LLaMA-Factory 0.9.5, tuned", "llama_factory.py", "llamafactory", {"disable_gradient_checkpointing": True},
        divides_by_labels=True, note=f"gradient checkpointing off; {_DENOMINATOR}; it saves the model at the end",
    ),
    "litgpt": Peer(
        "LitGPT 0.5.13", "lit_gpt.py", "litgpt", reference="plain_litgpt",
        note="another job, and held against a reference that does the same: a head of its own (its fine-tuning cannot "
        "tie it), gradients not clipped, one step of warm-up and a cosine; it saves the model at the end",
    ),
    "oumi_answers": Peer(
        "Oumi (this repository)", None, None, {"answers": True}, reference="plain_answers", base="oumi_answers"
    ),
    "plain_answers": Peer(
        "plain PyTorch loop, padded batches", "plain_torch.py", "trl", {"answers": True}, reference="plain_answers",
        base="oumi_answers", note="the reference",
    ),
    "oumi09_native": Peer(
        "Oumi 0.9, OUMI", "oumi_09.py", "oumi09", {"trainer_type": "OUMI"}, reference="plain_answers",
        base="oumi_answers", note="trains answers only: its collator has no other way",
    ),
    "oumi_trl_sft": Peer("Oumi (this repository), TRL_SFT", None, None, {"trainer_type": "TRL_SFT"}, is_extra=True),
    "oumi_hf": Peer("Oumi (this repository), HF", None, None, {"trainer_type": "HF"}, is_extra=True),
}  # fmt: skip
RANKS = {
    "oumi": Peer("Oumi (this repository), one rank", "oumi_ranks.py", None),
    "oumi_ddp": Peer("Oumi, DDP", "oumi_ranks.py", None, num_ranks=2),
    "oumi_full_shard": Peer(
        "Oumi, FULL_SHARD", "oumi_ranks.py", None, {"sharding_strategy": "FULL_SHARD"}, num_ranks=2
    ),
    "oumi_shard_grad_op": Peer(
        "Oumi, SHARD_GRAD_OP", "oumi_ranks.py", None, {"sharding_strategy": "SHARD_GRAD_OP"}, num_ranks=2
    ),
    "trl": Peer("TRL 1.16, tuned, one rank", "trl_sft.py", "trl", _TUNED),
    "trl_ddp": Peer(
        "TRL 1.16, tuned, DDP", "trl_sft.py", "trl", {**_TUNED, "ddp_find_unused_parameters": False}, num_ranks=2
    ),
}
"""Each with two threads in all."""
_ADAPTER = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
_OUR_ADAPTER = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_target_modules": ["all-linear"]}
_LORA = {"training": {"use_peft": True}, "peft": _OUR_ADAPTER}
_QLORA = {"training": {"use_peft": True}, "peft": {**_OUR_ADAPTER, "q_lora": True, "bnb_4bit_quant_type": "nf4"}}
_TRL_LORA = {**_TUNED, "adapter": _ADAPTER}
_TRL_QLORA = {**_TRL_LORA, "adapter_bits": 4}
_QLORA_NOTE = "adapters kept in float32 instead of bfloat16, as it would cast them"
ADAPTERS = {
    "lora": {
        "oumi": Peer("Oumi (this repository)", None, None, _LORA, reference="trl_lora"),
        "trl": Peer("TRL 1.16, tuned", "trl_sft.py", "trl_peft", _TRL_LORA, reference="trl_lora"),
    },
    "qlora": {
        "oumi": Peer("Oumi (this repository)", None, None, _QLORA, reference="trl_qlora"),
        "trl": Peer("TRL 1.16, tuned", "trl_sft.py", "trl_peft", _TRL_QLORA, reference="trl_qlora", note=_QLORA_NOTE),
    },
}
"""Fine-tuning of adapters that begin with the same numbers."""
_TRL_DPO = {"gradient_checkpointing": False, "max_length": None, "optim": "adamw_torch_fused"}
_BEFOREHAND = {"precompute_ref_log_probs": True}


def _native_dpo(peft: Mapping[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    """Returns the options of a run of ours that learns preferences."""
    training = {"method": "dpo", "trainer_kwargs": arguments, "use_peft": peft is not None}
    return {"training": training, "peft": peft or {}}


DPO = {
    "oumi": Peer("Oumi (this repository)", None, None, _native_dpo(), reference="trl_dpo"),
    "trl": Peer("TRL 1.16, tuned", "trl_dpo.py", "trl", _TRL_DPO, reference="trl_dpo"),
    "trl_stock": Peer(
        "TRL 1.16, defaults in fp32", "trl_dpo.py", "trl", reference="trl_dpo", is_extra=True,
        note="gradient checkpointing on, as is its default",
    ),
    "oumi_beforehand": Peer(
        "Oumi (this repository)", None, None, _native_dpo(**_BEFOREHAND), reference="trl_dpo", base="oumi_beforehand"
    ),
    "trl_beforehand": Peer(
        "TRL 1.16, tuned", "trl_dpo.py", "trl", {**_TRL_DPO, **_BEFOREHAND}, reference="trl_dpo",
        base="oumi_beforehand",
    ),
    "oumi_lora": Peer(
        "Oumi (this repository)", None, None, _native_dpo(_OUR_ADAPTER), reference="trl_dpo_lora", base="oumi_lora"
    ),
    "trl_lora": Peer(
        "TRL 1.16, tuned", "trl_dpo.py", "trl_peft", {**_TRL_DPO, "adapter": _ADAPTER}, reference="trl_dpo_lora",
        base="oumi_lora",
    ),
}  # fmt: skip
"""Preferences: with a copy of the model as reference, with its log-probabilities computed beforehand, and of LoRA.

TRL's `padding_free` is not among the options: release 1.16 ignores it."""
REFERENCES = {
    "trl_dpo": DPO["trl"],
    "trl_dpo_lora": DPO["trl_lora"],
    "trl_lora": ADAPTERS["lora"]["trl"],
    "trl_qlora": ADAPTERS["qlora"]["trl"],
    "plain": PEERS["plain"],
    "plain_answers": PEERS["plain_answers"],
    "plain_litgpt": Peer("reference for LitGPT", "plain_torch.py", "trl", {"litgpt": True}, reference="plain_litgpt"),
}


def ablations() -> dict[str, Peer]:
    """Returns Oumi as it is, and with each of its techniques disabled."""
    peers = {"oumi": PEERS["oumi"]}
    for name in TECHNIQUES:
        peers[f"without_{name}"] = Peer(f"Oumi without {name}", None, None, variables={"OUMI_WITHOUT": name})
    return peers


def before_and_now(checkout: Path) -> dict[str, Peer]:
    """Returns Oumi as it is, and the source of an older checkout in the same environment."""
    older = Peer("Oumi (older checkout)", None, None, variables={"PYTHONPATH": str(checkout.absolute() / "src")})
    answers = replace(older, options={"answers": True}, reference="plain_answers", base="oumi_answers")
    now = {name: PEERS[name] for name in ("oumi", "oumi_answers")}
    return {"oumi": now["oumi"], "before": older, "oumi_answers": now["oumi_answers"], "before_answers": answers}
