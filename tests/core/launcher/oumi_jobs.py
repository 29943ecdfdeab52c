# SPDX-License-Identifier: Apache-2.0
"""Job files with the traits of those that Oumi ships, in the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

CLOUDS = {"gcp": 112, "polaris": 18, "lambda": 12, "slurm": 3, "frontier": 1, "perlmutter": 1}
ACCELERATORS = {
    "A100:4": 53, "A100:1": 32, "A100:8": 11, "A100-80GB:4": 9, "A100-80GB:8": 8, "A100": 3, "A100:2": 2,
    "A100-80GB": 2, "H100:8": 2, "A100-80GB:2": 1, "A100-80GB-SXM:8": 1,
}  # fmt: skip
ENVS = {
    "OUMI_RUN_NAME": (123, "llama8b.sft"), "WANDB_PROJECT": (120, "oumi-train"),
    "MODEL_CHECKPOINT_DIR": (28, "/output/model"), "TOKENIZERS_PARALLELISM": (9, False),
    "PYTORCH_CUDA_ALLOC_CONF": (6, "expandable_segments:True"), "HF_DATASETS_TRUST_REMOTE_CODE": (3, True),
    "RAY_ENABLE_RECORD_ACTOR_TASK_LOGGING": (2, 0), "TEST_ENV_VARIABLE": (2, 1e-05), "REPO": (1, "openai-community"),
}  # fmt: skip
DIRECTIVES = {
    "polaris": "#PBS -l walltime=01:00:00\n#PBS -l filesystems=home:eagle\n#PBS -A community_ai\n",
    "frontier": "#SBATCH -A lrn081\n#SBATCH -t 02:00:00\n",
    "perlmutter": "#SBATCH --account=m1234\n#SBATCH --time=01:00:00\n",
    "slurm": "#SBATCH --partition=gpus\n",
}
NODES = {1: 137, 2: 6, 20: 1, 10: 1, 6: 1, 4: 1}
RUNS = {
    'oumi distributed torchrun -m oumi train -c {config} --training.run_name "${{OUMI_RUN_NAME}}"': 83,
    "oumi evaluate -c {config}": 31,
    "./scripts/polaris/jobs/launcher.sh -m ddp": 18,
    "oumi train -c {config}": 10,
    "vllm serve $MODEL & wait": 2,
    "oumi distributed accelerate launch --config_file a.yaml -m oumi train -c {config}": 2,
    "accelerate launch -m oumi train": 1,
}  # fmt: skip


def jobs() -> Iterator[dict[str, Any]]:
    """Yields 147 jobs as their YAML would be read."""
    clouds, nodes, runs, accelerators = (
        _spread(table) for table in (CLOUDS, NODES, RUNS, {**ACCELERATORS, None: 147 - sum(ACCELERATORS.values())})
    )
    for number in range(147):
        cloud = clouds[number]
        resources: dict[str, Any] = {"cloud": cloud}
        if accelerators[number]:
            resources["accelerators"] = accelerators[number]
        if number < 123:
            resources["use_spot"] = number % 3 == 0 and cloud == "gcp"
        if number < 95:
            resources["disk_size"] = 100 + number
        job: dict[str, Any] = {
            "name": f"job-{number}", "resources": resources, "working_dir": ".",
            "setup": 'set -e\npip install uv && uv pip install --system "oumi[gpu]"\n',
            "run": f"set -e\nsource ./configs/sky_init.sh\n{runs[number].format(config='train.yaml')}\n",
        }  # fmt: skip
        job["setup"] = DIRECTIVES.get(cloud, "") + job["setup"]
        envs = {name: value for name, (count, value) in ENVS.items() if number < count}
        if number < 133:
            job["envs"] = envs or {"INFERENCE_CONFIG": "infer.yaml"}
        if number < 121:
            job["file_mounts"] = {"~/.netrc": "~/.netrc"}
            if number < 55:
                job["file_mounts"]["~/.cache/huggingface/token"] = "~/.cache/huggingface/token"
        if nodes[number] != 1 or number < 49:
            job["num_nodes"] = nodes[number]
        if cloud not in ("gcp", "lambda") and number % 2:
            job["user"] = "me"
        if number == 0:
            job["storage_mounts"] = {"/output": {"source": "gs://oumi-dev", "store": "gcs"}}
            resources["disk_tier"] = "high"
        yield job


def _spread(table: dict[Any, int]) -> list[Any]:
    """Returns 147 values with the counts of a table, in an order that mixes them with those of other tables."""
    values = [value for value, count in table.items() for _ in range(count)]
    assert len(values) == 147, table
    # A step without a common divisor with 147 reaches each value once; tables of other lengths get another step.
    step = {7: 23, 6: 1, 12: 58}.get(len(table), 44)
    return [values[(number * step) % 147] for number in range(147)]
