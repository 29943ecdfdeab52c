# SPDX-License-Identifier: Apache-2.0
"""`oumi launch`: starts jobs on this machine, on clusters and on clouds, and looks after them."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oumi.cli.config import EXTRA
from oumi.core import log

if TYPE_CHECKING:
    from oumi.core.configs import JobConfig
    from oumi.core.launcher import BaseCluster, JobStatus

launch_app = typer.Typer(no_args_is_help=True)

ConfigOption = Annotated[str, typer.Option("--config", "-c", help="Job file, recipe or oumi:// name.")]
ClusterOption = Annotated[str, typer.Option("--cluster", help="Name of the cluster.")]
AnyClusterOption = Annotated[str | None, typer.Option("--cluster", help="Name of the cluster.")]
CloudOption = Annotated[str | None, typer.Option("--cloud", help="Name of the cloud; all are searched without it.")]
DetachOption = Annotated[bool, typer.Option("--detach/--no-detach", "-d", help="Do not follow the job's output.")]
_SAME_STATE = ("queued", "completed", "canceled")
"""Words of clouds that say no more than ours."""
OutputOption = Annotated[
    Path | None, typer.Option("--output-filepath", help="Write the job's output to this file instead.")
]


@launch_app.callback()
def launch() -> None:
    """Start jobs here, on Slurm and on clouds, and look after them."""
    log.show_info()  # what is uploaded and started is logged, and seen before it is done


@launch_app.command(context_settings=EXTRA)
def up(
    context: typer.Context,
    config: ConfigOption,
    cluster: AnyClusterOption = None,
    detach: DetachOption = False,
    output_filepath: OutputOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would happen, and start nothing.")] = False,
    autostop: Annotated[
        int | None,
        typer.Option(
            "--idle-minutes-to-autostop", help="Stop idle machines of a cloud after so many minutes, 60 by default."
        ),
    ] = None,
    slots: Annotated[
        int | None, typer.Option(help="Local jobs of this cluster that run at once, from now on; 1 at first.")
    ] = None,
) -> None:
    """Create a cluster unless it exists, and run a job on it. Any key of the job can be overridden."""
    from oumi.launcher import LAUNCHER

    job = load_job(context, config)
    values = {"idle_minutes_to_autostop": autostop, "slots": slots}
    options = {name: value for name, value in values.items() if value is not None}
    if dry_run:
        show_plan(job, cluster, **options)
        return
    check_output(output_filepath, detach)  # before anything costs
    target, status = LAUNCHER.up(job, cluster, **options)
    follow(job.resources.cloud, target, status, output_filepath, detach)


@launch_app.command(context_settings=EXTRA)
def run(
    context: typer.Context,
    config: ConfigOption,
    cluster: ClusterOption,
    detach: DetachOption = False,
    output_filepath: OutputOption = None,
) -> None:
    """Run a job on a cluster that exists. Any key of the job can be overridden."""
    from oumi.launcher import LAUNCHER

    job = load_job(context, config)
    check_output(output_filepath, detach)
    status = LAUNCHER.run(job, cluster)
    target = LAUNCHER.get_cloud(job).get_cluster(cluster)
    assert target is not None, "it has just taken the job"
    follow(job.resources.cloud, target, status, output_filepath, detach)


@launch_app.command(context_settings=EXTRA)
def plan(context: typer.Context, config: ConfigOption, cluster: AnyClusterOption = None) -> None:
    """Show what `up` would do: steps, what is uploaded, the task or batch script, the price, and what is missing."""
    show_plan(load_job(context, config), cluster)


@launch_app.command(context_settings=EXTRA)
def init(
    context: typer.Context,
    config: Annotated[str, typer.Option("--config", "-c", help="Training config, recipe or oumi:// name.")],
    cloud: Annotated[str, typer.Option("--cloud", help="Where it runs.")],
    device: Annotated[
        str | None, typer.Option("--device", help="GPU, such as h100-80gb; by default the plan's.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="New job file; printed without.")] = None,
) -> None:
    """Write a job file that trains with a config, on the smallest GPUs that hold it. Any key can be overridden."""
    from oumi.cli.overrides import parse_overrides
    from oumi.core.errors import ConfigError
    from oumi.core.launcher.job_file import make_job_file

    if output is not None and output.exists():
        raise ConfigError(f"{output} exists; delete it, or name another file")
    text = make_job_file(config, parse_overrides(context.args), cloud, device, str(output or "job.yaml"))
    if output is None:
        typer.echo(text, nl=False)
        return
    create_file(output)
    output.write_text(text, encoding="utf-8")
    typer.echo(f"{output}: see what it would do with `oumi launch plan -c {output}`", err=True)


@launch_app.command()
def status(
    cloud: CloudOption = None,
    cluster: AnyClusterOption = None,
    job_id: Annotated[str | None, typer.Option("--id", "--job-id", help="Id of a job.")] = None,
) -> None:
    """Show clusters and their jobs."""
    from oumi.launcher import LAUNCHER

    clusters = LAUNCHER.jobs(cloud, cluster)
    show_jobs([(name, job) for name, _, jobs in clusters for job in jobs if job_id in (None, job.id)])
    for name, item, jobs in clusters:
        if not jobs and job_id is None:
            typer.echo(f"{name} {item.name()}: {', '.join(filter(None, [item.state(), 'no jobs']))}")


@launch_app.command()
def queue(cluster: ClusterOption, cloud: CloudOption = None) -> None:
    """Show the jobs of a cluster that wait or run, in their order."""
    from oumi.launcher import LAUNCHER

    by_cloud = LAUNCHER.status(cloud, cluster)
    show_jobs([(name, job) for name, jobs in by_cloud.items() for job in jobs if not job.done])


@launch_app.command()
def logs(
    cluster: ClusterOption,
    cloud: CloudOption = None,
    job_id: Annotated[str | None, typer.Option("--job-id", "--id", help="Id of the job; the last one without.")] = None,
    follow_output: Annotated[
        bool, typer.Option("--follow/--no-follow", "-f", help="Go on until the job ends.")
    ] = False,
    output_filepath: OutputOption = None,
) -> None:
    """Show the output of a job."""
    from oumi.launcher import LAUNCHER

    write_output(LAUNCHER.logs(cloud, cluster, job_id, follow_output), output_filepath)


@launch_app.command()
def stop(cluster: ClusterOption, cloud: CloudOption = None) -> None:
    """Stop the machines of a cluster and keep their disks; a cluster without such machines ends its jobs."""
    from oumi.launcher import LAUNCHER

    LAUNCHER.stop(cloud, cluster)
    typer.echo(f"stopped {cluster}")


@launch_app.command()
def down(cluster: ClusterOption, cloud: CloudOption = None) -> None:
    """Give a cluster back, with its disks, and end its jobs."""
    from oumi.launcher import LAUNCHER

    LAUNCHER.down(cloud, cluster)
    typer.echo(f"{cluster} is down")


@launch_app.command()
def cancel(
    cluster: ClusterOption,
    job_id: Annotated[str, typer.Option("--id", "--job-id", help="Id of the job.")],
    cloud: CloudOption = None,
) -> None:
    """End a job with all of its processes."""
    from oumi.launcher import LAUNCHER

    show_jobs([(cloud or "", LAUNCHER.cancel(job_id, cloud, cluster))])


@launch_app.command()
def which() -> None:
    """Show the names of the clouds."""
    from oumi.launcher import LAUNCHER

    typer.echo("\n".join(LAUNCHER.which_clouds()))


def load_job(context: typer.Context, name: str) -> JobConfig:
    """Returns the job of a file, with the overrides of the command line."""
    from oumi.cli.overrides import parse_overrides
    from oumi.core.configs import JobConfig
    from oumi.core.recipes import resolve_config

    return JobConfig.load(resolve_config(name, "job"), parse_overrides(context.args))


def show_plan(job: JobConfig, cluster: str | None, **options: object) -> None:
    """Prints what a launch would do."""
    from oumi.launcher import LAUNCHER

    launch_plan = LAUNCHER.plan(job, cluster, **options)
    typer.echo("\n".join(f"{number}. {step}" for number, step in enumerate(launch_plan.steps, 1)))
    if launch_plan.cost_per_hour is not None:
        typer.echo(f"price: ${launch_plan.cost_per_hour:.2f} an hour")
    for warning in launch_plan.warnings:
        typer.echo(f"! {warning}")
    for missing in launch_plan.missing:
        typer.echo(f"missing: {missing}")
    if launch_plan.script:
        typer.echo(f"\n{launch_plan.script}", nl=False)


def show_jobs(jobs: list[tuple[str, JobStatus]]) -> None:
    """Prints a table of jobs with the names of their clouds."""
    if not jobs:
        typer.echo("no jobs")
        return
    rows = [("cloud", "cluster", "id", "name", "state", "")]
    rows += [(cloud, job.cluster, job.id, job.name, _state(job), job.metadata) for cloud, job in jobs]
    # A name may contain anything, such as codes that clear a terminal.
    rows = [tuple(cell if cell.isprintable() else repr(cell) for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)]
        typer.echo("  ".join([*cells, row[-1]]).rstrip())


def _state(job: JobStatus) -> str:
    """Returns the state in our words, and in the cloud's where these say more."""
    word = job.status.lower()
    return job.state if word in (job.state, *_SAME_STATE) else f"{job.state} ({job.status})"


def follow(cloud: str, cluster: BaseCluster, status: JobStatus, output: Path | None, is_detached: bool) -> None:
    """Shows the output of a job until it ends, unless detached; exits as the job did, with 1 where that is unknown."""
    from oumi.core.errors import OumiError

    place = f"--cloud {cloud} --cluster {shlex.quote(cluster.name())} --job-id {shlex.quote(status.id)}"
    typer.echo(f"job {status.id} on {cluster.name()}: {_described(status)}", err=True)
    if is_detached:
        typer.echo(f"follow it with: oumi launch logs {place} -f", err=True)
        return
    try:
        last = _followed(cluster, status.id, output)
    except KeyboardInterrupt:
        typer.echo(f"\njob {status.id} goes on; end it with: oumi launch cancel {place}", err=True)
        raise
    except OumiError:  # such as a full disk here, or a connection that is lost
        typer.echo(f"job {status.id} is no longer followed; go on with: oumi launch logs {place} -f", err=True)
        raise
    if last is None:
        typer.echo(f"job {status.id} on {cluster.name()}: unknown, the cluster does not know it any more", err=True)
        raise typer.Exit(1)
    typer.echo(f"job {last.id} on {cluster.name()}: {_described(last)}", err=True)
    if last.state != "succeeded":
        raise typer.Exit(last.exit_code or 1)


def _followed(cluster: BaseCluster, job_id: str, output: Path | None) -> JobStatus | None:
    """Shows the output of a job, and returns its status when it has ended; None if the cluster has forgotten it."""
    from oumi.core.launcher import NoOutputError

    try:
        write_output(cluster.logs(job_id), output)
    except NoOutputError as error:
        typer.echo(f"{error}; waiting for the end of job {job_id}", err=True)
    pause_s = 0.1
    # What a cloud shows may end before the job; a state that it does not know may stay so for ever.
    while (job := cluster.get_job(job_id)) is not None and not job.done and job.state != "unknown":
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 10)
    return job


def _described(job: JobStatus) -> str:
    return f"{_state(job)}, {job.metadata}" if job.metadata else _state(job)


def write_output(pieces, path: Path | None) -> None:  # type: ignore[no-untyped-def]  # an iterator of text
    """Writes output as it comes, to the console or to a file."""
    if path is None:
        for piece in pieces:
            typer.echo(piece, nl=False)
        return
    from oumi.core.system.filesystem import storage_errors

    create_file(path)
    with storage_errors(path), path.open("w", encoding="utf-8") as file:
        for piece in pieces:
            file.write(piece)
            file.flush()


def check_output(path: Path | None, is_detached: bool) -> None:
    """Creates the file for the output of a job, if any; raises ConfigError if nothing would be written to it."""
    from oumi.core.errors import ConfigError

    if path is not None and is_detached:
        raise ConfigError("--output-filepath: --detach does not follow the output; leave out one of them")
    create_file(path)


def create_file(path: Path | None) -> None:
    """Creates a file, if any, and leaves one that exists as it is; raises OutputError if it cannot be written."""
    from oumi.core.errors import OutputError

    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from None
