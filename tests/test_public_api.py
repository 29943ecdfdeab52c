# SPDX-License-Identifier: Apache-2.0
"""Public names and command-line flags, frozen: a change here is a change for users."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

from tests.fork_server import run_python

NAMES = {
    "oumi": ["train"],
    "oumitrain": ["train"],
    "oumi.train": ["train"],
    "oumi.core.train": ["train", "TrainResult"],
    "oumi.core.configs": [
        "BaseConfig", "OumiConfigError", "TrainingConfig", "JobConfig", "JobResources", "StorageMount", "ModelParams",
        "DataParams", "DatasetParams", "DatasetSplit", "DatasetSplitParams", "MixtureStrategy", "TrainTarget",
        "TrainingParams", "TrainerType", "SchedulerType", "MixedPrecisionDtype", "PeftParams", "PeftSaveMode",
        "LoraWeightInitialization", "FSDPParams", "ShardingStrategy", "BackwardPrefetch", "StateDictType",
        "AutoWrapPolicy", "GrpoParams", "ProfilerParams", "TelemetryParams",
    ],
    "oumi.core.configs.params.deepspeed_params": ["DeepSpeedParams", "ZeRORuntimeStage", "OffloadConfig"],
    "oumi.core.configs.params.gkd_params": ["GkdParams"],
    "oumi.core.configs.params.gold_params": ["GoldParams"],
    "oumi.core.configs.params.fsdp_params": ["ShardingStrategy"],
    "oumi.core.configs.params.profiler_params": ["ProfilerScheduleParams"],
    "oumi.core.datasets": [
        "DATASETS", "BaseMapDataset", "BaseIterableDataset", "BasePretrainingDataset", "BaseSftDataset",
        "BaseDpoDataset", "BaseExperimentalKtoDataset", "BaseExperimentalGrpoDataset", "BaseRubricDataset",
        "VisionLanguageSftDataset", "VisionLanguageDpoDataset",
    ],
    "oumi.core.registry": ["register", "register_dataset", "RegistryType", "REGISTRY"],
    "oumi.core.types.conversation": ["Conversation", "Message", "Role", "ContentItem", "Type"],
    "oumi.core.types": ["Conversation", "Message", "Role", "ContentItem", "Type"],
    "oumi.builders": [
        "build_tokenizer", "build_model", "build_peft_model", "build_chat_template", "build_optimizer",
        "build_lr_scheduler",
    ],
    "oumi.builders.lr_schedules": ["build_lr_scheduler"],
    "oumi.launcher": [
        "JobConfig", "JobResources", "StorageMount", "Launcher", "up", "run", "plan", "status", "stop", "down",
        "cancel", "logs", "get_cloud", "which_clouds",
    ],
    "oumi.core.launcher": [
        "BaseCloud", "BaseCluster", "JobStatus", "JobState", "LauncherError", "ClusterNotFoundError",
        "ClusterUnreachableError",
    ],
    "oumi.datasets": [
        "AlpacaDataset", "AlpacaEvalDataset", "TextSftJsonLinesDataset", "VLJsonlinesDataset", "PromptResponseDataset",
        "HuggingFaceDataset", "VisionDpoJsonlinesDataset",
    ],
    "oumi.core.models": ["BaseModel"],
    "oumi.models": ["CNNClassifier", "MLPEncoder"],
    "oumi.datasets.vision_language.vqav2_small": ["Vqav2SmallDataset"],
    "oumi.datasets.grpo.letter_count": ["LetterCountGrpoDataset"],
    "oumi.performance.telemetry": ["TelemetryTracker"],
}  # fmt: skip

FLAGS = {
    "train": {"--config", "--list", "--nproc-per-node", "--verbose"},
    "plan": {"--config", "--json", "--world-size", "--gpus-per-node", "--device"},
    "config check": set(),
    "config show": {"--set-only"},
    "config schema": {"--kind"},
    "data preview": {"--config", "--split", "--rows", "--full", "--json"},
    "data stats": {"--config", "--json"},
    "data validate": {"--config"},
    "quickstart": {"--output-dir", "--seed", "--max-steps"},
    "chat": {"--system", "--max-new-tokens", "--temperature"},
    "infer": {"--interactive", "--config", "--input", "--output", "--system", "--max-new-tokens", "--temperature"},
    "eval": {
        "--data",
        "--config",
        "--exact-match",
        "--reference",
        "--max-new-tokens",
        "--tasks",
        "--limit",
        "--num-fewshot",
        "--output",
    },
    "export": {"--output", "--format", "--dtype"},
    "launch": set(),
    "launch up": {
        "--config",
        "--cluster",
        "--detach",
        "--output-filepath",
        "--dry-run",
        "--idle-minutes-to-autostop",
        "--slots",
    },
    "launch run": {"--config", "--cluster", "--detach", "--output-filepath"},
    "launch plan": {"--config", "--cluster"},
    "launch status": {"--cloud", "--cluster", "--id"},
    "launch queue": {"--cloud", "--cluster"},
    "launch logs": {"--cloud", "--cluster", "--job-id", "--follow", "--output-filepath"},
    "launch stop": {"--cloud", "--cluster"},
    "launch down": {"--cloud", "--cluster"},
    "launch cancel": {"--cloud", "--cluster", "--id"},
    "launch init": {"--config", "--cloud", "--device", "--output"},
    "launch which": set(),
    "env": {"--json"},
    "": {"--version", "--log-level", "--install-completion", "--show-completion"},
}


@pytest.mark.parametrize("module", NAMES)
def test_public_names_are_where_they_are_documented(module: str) -> None:
    namespace = importlib.import_module(module)
    assert [name for name in NAMES[module] if not hasattr(namespace, name)] == []


@pytest.mark.parametrize("command", FLAGS)
def test_flags_are_those_that_are_frozen(command: str) -> None:
    text = run_python("-m", "oumi", *command.split(), "--help", COLUMNS="200", TERM="dumb", NO_COLOR="1").stdout
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - {"--help"} >= FLAGS[command]
    shown = set(re.findall(r"^\W*\*?\s*(--[a-z][a-z-]*)", text, re.MULTILINE)) - {"--help"}
    assert shown <= FLAGS[command]


def test_train_takes_what_is_documented() -> None:
    train = importlib.import_module("oumi.core.train").train
    assert list(inspect.signature(train).parameters)[:4] == [
        "config", "additional_model_kwargs", "additional_trainer_kwargs", "verbose",
    ]  # fmt: skip
