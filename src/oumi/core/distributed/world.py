# SPDX-License-Identifier: Apache-2.0
"""The processes of a run: which of them this is, and what they do together."""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed

from oumi.core.distributed.rendezvous import Place, meet
from oumi.core.distributed.traffic import Traffic
from oumi.core.distributed.watchdog import Watchdog, is_agreed_end
from oumi.core.errors import OtherRankError
from oumi.core.log import logger
from oumi.core.plan.sharding import BUCKET_BYTES
from oumi.core.system import host
from oumi.core.system.exits import end_with_launcher

Result = TypeVar("Result")
_CAUSE_S = 3.0
"""How long a rank waits to learn why a collective operation failed."""


@dataclass(frozen=True)
class World:
    """One process (a rank) of a run, and what all of its processes do together. With one process nothing is sent."""

    rank: int
    size: int
    local_rank: int
    """Rank among the processes of this machine."""
    local_size: int
    """How many processes of the run this machine has."""
    device: torch.device
    traffic: Traffic = field(default_factory=Traffic)
    """The collective operations of a pass over a model that is divided over the ranks."""

    @classmethod
    @contextmanager
    def start(cls, timeout_minutes: float | None = None) -> Iterator[World]:
        """Yields this process's place among the processes of the run, as a launcher such as torchrun tells it.

        Args:
            timeout_minutes: How long a rank waits for the others; None is the default of torch.

        Raises:
            ConfigError: The launcher's variables contradict each other, or another rank cannot be reached.
            OtherRankError: Another rank failed while this one waited for it.
        """
        place = Place.read()
        device = torch.device(host.describe_host().device)
        # On a CPU the ranks of a machine share its cores.
        num_threads = max(1, host.num_cpus() // (place.local_size if device.type == "cpu" else 1))
        if torch.get_num_threads() > num_threads:
            torch.set_num_threads(num_threads)
        if place.size == 1:
            if device.type == "cuda" and not os.environ.get("WORLD_SIZE") and torch.cuda.device_count() > 1:
                note = "this run has one process for %d GPUs: oumi train --nproc-per-node auto starts one for each"
                logger.warning(note, torch.cuda.device_count())
            yield cls(rank=0, size=1, local_rank=0, local_size=1, device=device)
            return
        if device.type == "cuda":
            device = torch.device("cuda", place.local_rank)
            torch.cuda.set_device(device)
        # Counts and answers stay on the host, so that they do not wait for the device.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = None if timeout_minutes is None else timedelta(minutes=timeout_minutes)
        end_with_launcher()
        meeting = meet(place)
        with _failures_shared(place, Watchdog.start(place, meeting)):
            distributed.init_process_group(
                backend, store=meeting.store, rank=place.rank, world_size=place.size, timeout=timeout
            )
            try:
                yield cls(place.rank, place.size, place.local_rank, place.local_size, device)
            finally:
                distributed.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Returns True for the rank that writes files and prints."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the sums of values over all ranks."""
        if self.size == 1:
            return values
        sums = values.clone()
        distributed.all_reduce(sums)
        return sums

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replaces gradients by their sums over all ranks; a parameter without one counts as zero.

        The ranks talk once a step, after all their micro-batches: so they may differ in how these are cut, and a lack
        of memory on one of them is agreed upon before anything is sent.
        """
        if self.size == 1:
            return
        bucket: list[torch.Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if bucket and (
                bucket[0].dtype != parameter.grad.dtype
                or sum(gradient.nbytes for gradient in bucket) + parameter.grad.nbytes > BUCKET_BYTES
            ):
                _sum_bucket(bucket)
                bucket = []
            bucket.append(parameter.grad)
        _sum_bucket(bucket)

    def agree(self, answer: int) -> int:
        """Returns the worst, that is the largest, of the answers of all ranks."""
        if self.size == 1:
            return answer
        worst = torch.tensor(answer)
        distributed.all_reduce(worst, distributed.ReduceOp.MAX)
        return int(worst)

    def gather(self, value: Result) -> list[Result]:
        """Returns the values of all ranks, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def on_main(self, function: Callable[[], Result]) -> Result:
        """Returns on every rank what a function returns on the main one, where alone it is called.

        Raises:
            OtherRankError: On the other ranks, if the function raised; the main one raises what it raised.
        """
        if self.size == 1:
            return function()
        outcome: list[Any] = [None, "it was interrupted"]
        try:
            if self.is_main:
                outcome = [function(), None]
        except Exception as error:
            outcome[1] = str(error) or type(error).__name__
            raise
        finally:
            # Whatever happened: the other ranks would wait for ever.
            distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise OtherRankError(f"rank 0 stopped: {outcome[1]}")
        result: Result = outcome[0]
        return result

    def on_all(self, function: Callable[[], Result]) -> list[Result]:
        """Returns on every rank what a function returns on each of them, in their order.

        Raises:
            OtherRankError: On the ranks where the function did not raise, if it did on another.
        """
        result: Any = None
        problem: Exception | None = None
        try:
            result = function()
        except Exception as error:  # raised below, after the other ranks know
            problem = error
        outcomes = self.gather((result, problem and (str(problem) or type(problem).__name__)))
        if problem is not None:
            raise problem
        for rank, (_, message) in enumerate(outcomes):
            if message is not None:
                raise OtherRankError(f"rank {rank} stopped: {message}")
        return [value for value, _ in outcomes]

    @contextmanager
    def held_by_main(self, lock: AbstractContextManager[object]) -> Iterator[None]:
        """Holds a lock on the main rank, for all of them.

        Raises:
            OtherRankError: On the other ranks, if the main one did not get it.
        """
        with ExitStack() as stack:
            self.on_main(lambda: stack.enter_context(lock) and None)
            yield

    @contextmanager
    def run_first(self) -> Iterator[None]:
        """Runs a block on the main rank, then on the first rank of each other machine, then on the others.

        What the first ones leave in a cache is there for the others: that of the main rank if the machines share the
        cache, else that of their own machine.

        Raises:
            OtherRankError: On the other ranks, if an earlier one raised.
        """
        if self.size == 1:
            yield
            return
        num_turns = 2 if self.local_size == self.size else 3
        turn = 0 if self.is_main else num_turns - 1 if self.local_rank else 1
        for _ in range(turn):
            self._end_turn(False)
        is_done = False
        try:
            yield
            is_done = True
        finally:
            if turn < num_turns - 1:
                self._end_turn(not is_done)
        for _ in range(turn + 1, num_turns - 1):
            self._end_turn(False)

    def _end_turn(self, has_failed: bool) -> None:
        if self.agree(int(has_failed)) and not has_failed:
            raise OtherRankError("a rank that goes first stopped; its message tells why")


@contextmanager
def _failures_shared(place: Place, watchdog: Watchdog) -> Iterator[None]:
    """Tells the other ranks of an error that ends this one, and says of theirs what it was.

    Raises:
        OtherRankError: Another rank failed while this one waited for it.
    """
    try:
        yield
    except BaseException as error:
        if is_agreed_end(error):
            raise
        follows = isinstance(error, OtherRankError) or _is_of_collective(error)
        failure = watchdog.wait_for_failure(_CAUSE_S) if follows else None
        if failure is None:
            if not isinstance(error, OtherRankError):
                watchdog.fail(error)
            raise
        message = f"rank {place.rank}: stopped, since {failure}"
        raise OtherRankError(message, failure.rank, failure.exit_code) from error
    finally:
        watchdog.close()


def _is_of_collective(error: BaseException) -> bool:
    """Returns True if an error was raised within torch's communication between ranks."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, distributed.DistError) or "torch/distributed/" in Path(frame.f_code.co_filename).as_posix()


def _sum_bucket(gradients: list[torch.Tensor]) -> None:
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    sums = flat.split([gradient.numel() for gradient in gradients])
    for gradient, of_gradient in zip(gradients, sums, strict=True):
        gradient.copy_(of_gradient.view_as(gradient))


def seed_everything(seed: int, deterministic: bool, device: str) -> None:
    """Seeds Python, numpy and torch, so that the same command gives the same run: on a CPU always, or if asked for.

    Also chooses torch's operations for the whole process, see `determinism_restored`.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:  # cuBLAS adds in one order only where its workspace is of one size
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # On a CPU, threads would add the gradients of repeated rows in any order. One order takes no longer there, but
    # torch warns of operations that have none.
    torch.use_deterministic_algorithms(deterministic or device == "cpu", warn_only=not deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = deterministic  # type: ignore[attr-defined]


@contextmanager
def determinism_restored() -> Iterator[None]:
    """Restores on exit which operations torch chooses: code after a run may want the faster ones."""
    is_on, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fills_memory = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(is_on, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fills_memory  # type: ignore[attr-defined]
