"""Independent pieces of work on several processes of one machine, or on a Ray cluster; results do not depend on which."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import torch

from quasitile.errors import InputError
from quasitile.progress import set_quiet

Run = Callable[[Callable, Sequence[tuple]], Iterator[tuple[int, Any]]]


def alone(function: Callable, calls: Sequence[tuple]) -> Iterator[tuple[int, Any]]:
    """One after another in this process, on one core, as all others do it."""
    for number, arguments in enumerate(calls):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            result = function(*arguments)
        finally:
            torch.set_num_threads(threads)
        yield number, result


def _begin() -> None:
    torch.set_num_threads(1)
    set_quiet(True)


@contextmanager
def fan_out(workers: int, ray_address: str = "") -> Iterator[Run]:
    """A function that calls a module-level function with each tuple of arguments, and gives numbers and results as they come.

    Args:
        workers: Processes; 1 for this one.
        ray_address: Of a Ray cluster (`auto`, `local`, or host:port), instead; folders must be where its machines see them.

    Raises:
        InputError: Ray is wanted and not installed, or not there.
    """
    if ray_address:
        with _ray(ray_address, workers) as run:
            yield run
    elif workers == 1:
        yield alone
    else:
        pool = ProcessPoolExecutor(workers, _processes(), _begin)

        def in_processes(function: Callable, calls: Sequence[tuple]) -> Iterator[tuple[int, Any]]:
            numbers = {pool.submit(function, *arguments): number for number, arguments in enumerate(calls)}
            for future in as_completed(numbers):
                yield numbers[future], future.result()

        try:
            yield in_processes
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _processes() -> Any:
    """How processes are started: forked from one that has imported what they need, where the system can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["quasitile.compress.tasks"])
    return context


@contextmanager
def _ray(address: str, workers: int) -> Iterator[Run]:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("Ray is not installed; pip install 'quasitile[ray]', or leave `ray` empty") from error
    started = not ray.is_initialized()
    if started:
        local = {"num_cpus": workers} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False, **local)
        except (ConnectionError, ValueError) as error:
            line = (str(error).strip().splitlines() or ["no answer"])[0]
            raise InputError(f"there is no Ray cluster at {address} ({line}); start one, or leave `ray` empty") from error

    @ray.remote(num_cpus=1)
    def call(function: Callable, *arguments: Any) -> Any:
        _begin()
        return function(*arguments)

    def run(function: Callable, calls: Sequence[tuple]) -> Iterator[tuple[int, Any]]:
        numbers = {call.remote(function, *arguments): number for number, arguments in enumerate(calls)}
        waiting = list(numbers)
        while waiting:
            ready, waiting = ray.wait(waiting)
            for reference in ready:
                yield numbers[reference], ray.get(reference)

    try:
        yield run
    finally:
        if started:
            ray.shutdown()
