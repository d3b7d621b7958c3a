"""Methods x data sets x protocols x seeds, over images in parallel, resumable."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from lidiv_backend.devices import machine
from lidiv_backend.errors import BadRequestError, LidivError
from lidiv_backend.evaluation.datasets import open_data_set
from lidiv_backend.evaluation.methods import MethodSpec, describe, load_method, version_of
from lidiv_backend.evaluation.protocols import (
    ClickProtocol,
    Method,
    ProtocolSettings,
    run_object,
)
from lidiv_backend.evaluation.results import (
    Contents,
    DataSetEntry,
    Entry,
    MethodEntry,
    Problem,
    Result,
    ResultLog,
    RunKey,
    SettingsEntry,
    read_results,
)
from lidiv_backend.records import ImageSet, choose_images

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Parameters
    ----------
    methods
        Which methods; their labels differ.
    data_sets
        As `open_data_set` reads them.
    settings
        One entry for each protocol.
    seeds
        Of the ``sampled`` protocol; ``centre`` runs once.
    limit
        At most so many images of each set, spread evenly over it; None for all.
    data
        Folder in which benchmarks are looked for; LIDIV_DATA if None.
    split
        Part of the sets that have parts.
    """

    methods: tuple[MethodSpec, ...]
    data_sets: tuple[str, ...]
    settings: tuple[ProtocolSettings, ...] = (ProtocolSettings(),)
    seeds: tuple[int, ...] = (0,)
    limit: int | None = None
    data: Path | None = None
    split: str | None = None


def settings_hash(settings: ProtocolSettings, version: str) -> str:
    """Name everything that decides a run's outcome and is not in its key."""
    text = json.dumps({**asdict(settings), "version": version}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def evaluate(
    plan: Plan, folder: Path, *, jobs: int = 1, resume: bool = False, quiet: bool = False
) -> Contents:
    """Run a plan and keep every finished object.

    Parameters
    ----------
    plan
        What to measure.
    folder
        Where `results.jsonl` goes. With ``resume``, runs that it holds of the same settings are
        not repeated, and runs of other methods, sets, protocols and seeds stay beside the new.
    jobs
        Processes; with 1 all happens in this one.
    resume
        Go on with a folder that holds results.
    quiet
        Show no progress bar.

    Returns
    -------
    Contents
        All that the folder holds.

    Raises
    ------
    LidivError
        If a method or a data set cannot be opened, or the folder holds results and ``resume`` is
        not set. A bad image or a method's failure on one object is kept as a `Problem` instead.
    """
    before = read_results(folder)
    if before.results and not resume:
        raise BadRequestError(
            f"{folder} already holds results.", remedy="Add --resume or write to another folder."
        )
    # Opened here first, so that a typing error is answered before hours of work.
    data_sets = [_describe_data_set(spec, plan) for spec in plan.data_sets]
    for what, names in (
        ("methods", [spec.label for spec in plan.methods]),
        ("data sets", [entry.name for entry in data_sets]),
    ):
        if len(set(names)) < len(names):
            raise BadRequestError(
                f"Two {what} are called alike: {', '.join(names)}.",
                remedy="Write label=method, or measure them into different folders.",
            )
    methods = [_describe_method(spec) for spec in plan.methods]
    tasks = [
        (number, entry.spec, index)
        for number in range(len(plan.methods))
        for entry in data_sets
        for index in choose_images(entry.images, plan.limit)
    ]
    worker = _Worker(plan, frozenset((result.key, result.settings) for result in before.results))
    with (
        ResultLog(folder) as results_log,
        tqdm(total=len(tasks), unit="image", disable=quiet, smoothing=0.05) as bar,
    ):
        described: list[Entry] = [
            *methods,
            *data_sets,
            *(
                SettingsEntry(
                    method=method.label,
                    data_set=data_set.name,
                    protocol=settings.protocol.value,
                    settings=settings_hash(settings, method.version),
                )
                for method in methods
                for data_set in data_sets
                for settings in plan.settings
            ),
        ]
        known: list[Entry] = [*before.methods, *before.data_sets, *before.settings]
        results_log.append(entry for entry in described if entry not in known)
        for method, entries in worker.run_all(tasks, jobs):
            results_log.append(entries)
            bar.set_postfix_str(plan.methods[method].label, refresh=False)
            bar.update()
    return read_results(folder)


def _describe_data_set(spec: str, plan: Plan) -> DataSetEntry:
    found = _image_set(spec, plan.split, plan.data)
    return DataSetEntry(
        name=found.name,
        spec=spec,
        split=plan.split,
        data=None if plan.data is None else str(plan.data),
        images=len(found),
    )


def _describe_method(spec: MethodSpec) -> MethodEntry:
    method = _method(spec)
    return MethodEntry(
        label=spec.label,
        source=spec.source,
        longest_side=spec.longest_side,
        version=version_of(method),
        about=describe(method),
        machine=machine(),
    )


def measure(
    method: Method,
    data_set: ImageSet,
    *,
    label: str,
    settings: Sequence[ProtocolSettings] = (ProtocolSettings(),),
    seeds: Sequence[int] = (0,),
    indices: Sequence[int] | None = None,
    done: frozenset[tuple[RunKey, str]] = frozenset(),
) -> Iterator[Result | Problem]:
    """Measure one method on the objects of a data set, in this process.

    Parameters
    ----------
    method
        What is measured.
    data_set
        Its images; one that cannot be used is a `Problem`.
    label
        What the method is called in the results.
    settings
        One entry for each protocol.
    seeds
        Of the ``sampled`` protocol.
    indices
        Which images; all if not given.
    done
        Runs to leave out.

    Yields
    ------
    Result or Problem
        Image by image. A method's failure on an object is a `Problem`, too.
    """
    version = version_of(method)
    hashes = {chosen: settings_hash(chosen, version) for chosen in settings}
    for index in range(len(data_set)) if indices is None else indices:
        try:
            image = data_set[index]
        except LidivError as error:
            yield Problem(data_set=data_set.name, image=f"image {index + 1}", reason=str(error))
            continue
        for reason in image.problems:
            yield Problem(data_set=data_set.name, image=image.name, reason=reason)
        runs = [
            (target, chosen, key)
            for target in image.objects
            for chosen in settings
            for seed in (seeds if chosen.protocol is ClickProtocol.SAMPLED else (0,))
            if (
                key := RunKey(
                    method=label,
                    data_set=data_set.name,
                    protocol=chosen.protocol.value,
                    image=image.name,
                    object=target.name,
                    seed=seed,
                ),
                hashes[chosen],
            )
            not in done
        ]
        embedding, embed_seconds = None, 0.0
        for target, chosen, key in runs:
            try:
                if embedding is None:
                    started = time.perf_counter()
                    embedding = method.embed(image.rgb)
                    embed_seconds = time.perf_counter() - started
                trace = run_object(
                    method,
                    embedding,
                    target,
                    settings=chosen,
                    seed=key.seed,
                    identity=f"{key.data_set}/{key.image}",
                    embed_seconds=embed_seconds,
                )
            # A defect of one method must not end a study that has run for hours: it is counted,
            # shown, and makes the command fail at its end.
            except Exception as error:
                log.warning("%s failed on %s: %s", label, target.name, traceback.format_exc())
                yield Problem(
                    data_set=data_set.name,
                    image=image.name,
                    method=label,
                    object=target.name,
                    protocol=key.protocol,
                    seed=key.seed,
                    settings=hashes[chosen],
                    reason=repr(error),
                    defect=not isinstance(error, LidivError),
                )
                continue
            yield Result(
                key=key,
                settings=hashes[chosen],
                version=version,
                index=index,
                height=image.rgb.shape[0],
                width=image.rgb.shape[1],
                area=int(np.count_nonzero(target.mask)),
                trace=trace,
            )


_Item = tuple[int, str, int]


class _Worker:
    """Does single images of a plan, here or in processes of its own."""

    def __init__(self, plan: Plan, done: frozenset[tuple[RunKey, str]]) -> None:
        self.plan = plan
        self.done = done

    def run(self, item: _Item) -> tuple[int, list[Result | Problem]]:
        """Do one image: number of the method, spec of the set, index of the image."""
        number, data_set, index = item
        spec = self.plan.methods[number]
        entries = measure(
            _method(spec),
            _image_set(data_set, self.plan.split, self.plan.data),
            label=spec.label,
            settings=self.plan.settings,
            seeds=self.plan.seeds,
            indices=[index],
            done=self.done,
        )
        return number, list(entries)

    def run_all(
        self, items: Sequence[_Item], jobs: int
    ) -> Iterator[tuple[int, list[Result | Problem]]]:
        """Do images in so many processes, and give each as it is finished."""
        if jobs <= 1:
            yield from map(self.run, items)
            return
        # The parent only validated the methods; the processes hold their own.
        _method.cache_clear()
        threads = max(1, (os.cpu_count() or 1) // jobs)
        with _threads_of_children(threads):
            pool = ProcessPoolExecutor(
                jobs,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_process,
                initargs=(self, threads),
            )
            left = iter(items)
            try:
                # Few are handed out at a time: a set may have a hundred thousand.
                waiting = {pool.submit(_run_here, item) for item in islice(left, 2 * jobs)}
                while waiting:
                    finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    waiting |= {
                        pool.submit(_run_here, item) for item in islice(left, len(finished))
                    }
                    for future in finished:
                        yield future.result()
            except BrokenProcessPool as error:
                raise LidivError(
                    "A process of the evaluation was killed, perhaps for lack of memory.",
                    remedy="Run the same command with --resume and fewer --jobs.",
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


_here: _Worker | None = None


def _start_process(worker: _Worker, threads: int) -> None:
    global _here
    _here = worker
    # Ctrl+C reaches all processes. These end at once and silently: only the parent writes, so
    # nothing is lost but the images in hand.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def _run_here(item: _Item) -> tuple[int, list[Result | Problem]]:
    if _here is None:
        raise RuntimeError("the process was not started by _start_process")
    return _here.run(item)


@contextmanager
def _threads_of_children(threads: int) -> Iterator[None]:
    """Bound the threads of libraries that read the environment when they are loaded."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@lru_cache(maxsize=1)
def _method(spec: MethodSpec) -> Method:
    return load_method(spec)


@lru_cache(maxsize=16)
def _image_set(spec: str, split: str | None, data: Path | None) -> ImageSet:
    return open_data_set(spec, split=split, data=data)
