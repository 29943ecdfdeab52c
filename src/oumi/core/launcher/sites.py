# SPDX-License-Identifier: Apache-2.0
"""The table of sites: clusters with a scheduler, each a row of settings."""

from __future__ import annotations

from dataclasses import dataclass

from oumi.core.launcher.schedulers import PBS, SLURM, Scheduler


@dataclass(frozen=True)
class Site:
    """A cluster, or a kind of them. Accounts and paths of a project come from the job's own lines for the scheduler."""

    scheduler: Scheduler
    host: str = ""
    """Machine on which jobs are submitted; without it the cluster's name is `user@host`, or the scheduler is here."""
    queues: tuple[str, ...] = ()
    """The cluster's name is `queue.user`; the first one is the default."""
    options: tuple[str, ...] = ("--nodes={nodes}", "--ntasks-per-node=1")
    """Options of the scheduler, with `{nodes}` and `{queue}`."""
    node: str = ""
    """What each node has, where jobs get whole nodes."""
    folder: str = '"$HOME"/oumi_launcher'
    """Where jobs are uploaded to, in terms of a shell there; `{account}` is the one of the job."""


SITES = {
    "slurm": Site(SLURM),
    "frontier": Site(
        SLURM,
        host="frontier.olcf.ornl.gov",
        queues=("batch", "extended"),
        options=("--nodes={nodes}", "--ntasks-per-node=1", "--partition={queue}"),
        node="8 GPUs (4 MI250X)",
        # Nodes cannot write to home directories.
        folder='/lustre/orion/{account}/scratch/"$USER"/oumi_launcher',
    ),
    "perlmutter": Site(
        SLURM,
        host="perlmutter.nersc.gov",
        queues=(
            "regular", "debug", "debug_preempt", "interactive", "jupyter", "overrun", "preempt", "premium", "realtime",
            "shared", "shared_interactive", "shared_overrun",
        ),
        options=(
            "--nodes={nodes}", "--ntasks-per-node=1", "--qos={queue}", "--constraint=gpu", "--gpus-per-node=4",
        ),
        node="4 A100 GPUs",
        folder='"${{SCRATCH:-$HOME}}"/oumi_launcher',
    ),
    "polaris": Site(
        PBS,
        host="polaris.alcf.anl.gov",
        queues=("prod", "debug", "debug-scaling", "demand", "preemptable"),
        options=("-l select={nodes}:system=polaris", "-l place=scatter", "-q {queue}", "-r y"),
        node="4 A100 GPUs",
    ),
}  # fmt: skip
"""Clouds by name."""
