"""What a run does in a process of its own: ``python -m lidiv_backend.learning.process FOLDER``.

It trains, measures and writes what came out; it touches neither the database nor the versions. It
takes few threads and steps back behind serving; when memory runs out the kernel ends it before
anything else; and it ends with the worker that started it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lidiv_backend.errors import LidivError
from lidiv_backend.learning.files import StorageError, read_json, write_json
from lidiv_backend.learning.settings import LearningSettings

if TYPE_CHECKING:
    from lidiv_backend.predictor import Predictor
    from lidiv_backend.records import ImageSet

_JOB, _RESULT, _STAGE = "job.json", "result.json", "stage"
#: Subfolder of the trainer's, with its log.
TRAINING = "training"
#: Exit status of a process that could not even write down how it ended.
UNWRITABLE = os.EX_IOERR
_PR_SET_PDEATHSIG = 1
# torch, OpenCV and the allocators below them each say it in words of their own.
_NO_MEMORY = re.compile(
    r"(allocate|enough|out of|insufficient) memory|bad_alloc|map segment", re.IGNORECASE
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# With less than this left, whatever failed to write failed for that.
_FULL_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run shall do.

    Parameters
    ----------
    in_use
        Folder of weights or preset to begin with and to compare with.
    base
        Folder of weights or preset to stay near.
    vault, snapshots
        Folders.
    snapshot
        Digest of what to learn from.
    earlier
        Digest of what was learnt from before; None if nothing was.
    settings
        How.
    """

    in_use: str
    base: str
    vault: str
    snapshots: str
    snapshot: str
    earlier: str | None
    settings: LearningSettings

    def write(self, folder: Path) -> None:
        """Write it into the folder of a run."""
        write_json(folder / _JOB, asdict(self) | {"settings": self.settings.model_dump()})

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Read what `write` wrote.

        Raises
        ------
        StorageError
            If it is missing or damaged.
        """
        values = read_json(folder / _JOB)
        return cls(**{**values, "settings": LearningSettings(**values["settings"])})


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to.

    Parameters
    ----------
    weights
        Folder of the candidate's weights; None where it failed.
    verdict
        The gate's, as JSON; empty where it failed.
    error
        Why it failed; empty if it did not.
    seconds
        How long its parts took, and the time of the processors likewise; of this attempt.
    """

    weights: str | None
    verdict: Mapping[str, Any]
    error: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)


def read_outcome(folder: Path) -> Outcome | None:
    """Read what a run came to; None if it did not come to an end."""
    if not (folder / _RESULT).exists():
        return None
    try:
        return Outcome(**read_json(folder / _RESULT))
    except (StorageError, TypeError):
        return None


def forget_outcome(folder: Path) -> None:
    """Delete what an earlier attempt came to."""
    for name in (_RESULT, _STAGE):
        (folder / name).unlink(missing_ok=True)


def stage_of(folder: Path) -> str:
    """What a run's process is at: ``training`` or ``gate``."""
    return "gate" if (folder / _STAGE).exists() else "training"


def work(folder: Path) -> Outcome:
    """Train and measure; goes on where an earlier call stopped.

    Parameters
    ----------
    folder
        Of the run, with its job.

    Returns
    -------
    Outcome
        It is also written into the folder.
    """
    done = read_outcome(folder)
    if done is not None and not done.error:
        return done
    try:
        outcome = _work(folder, Job.read(folder))
    except Exception as error:
        if not isinstance(error, LidivError):
            traceback.print_exc()
        outcome = Outcome(weights=None, verdict={}, error=_told(error, folder))
    write_json(folder / _RESULT, asdict(outcome))
    return outcome


def _told(error: Exception, folder: Path) -> str:
    """Why a run failed, in words that somebody can do something about."""
    if isinstance(error, LidivError):
        return str(error)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return (
            "There was not enough memory for the training. Give the machine more, or raise "
            "LIDIV_LEARN_MEMORY_BYTES if it is set."
        )
    if getattr(error, "errno", None) in _NO_ROOM or shutil.disk_usage(folder).free < _FULL_BYTES:
        return "There is no room left for the training's files. Make room in LIDIV_STATE."
    return (
        f"Something unexpected happened: {type(error).__name__}. "
        f"{folder / 'process.log'} says more."
    )


def _work(folder: Path, job: Job) -> Outcome:
    # Imported here: libraries of models read their threads from the environment.
    import cv2
    import torch

    from lidiv_backend.learning import gate
    from lidiv_backend.learning.examples import draw_examples
    from lidiv_backend.learning.finetune import TuningData, finetune
    from lidiv_backend.learning.photographs import photographs
    from lidiv_backend.learning.snapshot import SnapshotSet, read_snapshot
    from lidiv_backend.learning.vault import Vault
    from lidiv_backend.model import load_model
    from lidiv_backend.predictor import Predictor
    from lidiv_backend.training.data import open_image_set

    settings = job.settings
    torch.set_num_threads(settings.threads)
    cv2.setNumThreads(settings.threads)
    snapshots, vault = Path(job.snapshots), Vault(Path(job.vault))
    snapshot = read_snapshot(snapshots, job.snapshot)
    earlier: frozenset[str] = frozenset()
    if job.earlier is not None:
        before = read_snapshot(snapshots, job.earlier)
        earlier = frozenset(mask.name for image in before.images for mask in image.masks)
    spec, device = settings.base_data, settings.device
    replayed: ImageSet | None
    if spec:
        base = gate.BaseSet(
            images=open_image_set(spec, split="val"), about="the base set", required=True
        )
        replayed = open_image_set(spec, split="train")
    else:
        preset = Predictor.from_pretrained(job.base, device=device)
        base, replayed = photographs(preset, folder / "photographs", images=settings.gate_images)
    data = TuningData(snapshot=snapshot, earlier=earlier, vault=vault, base=replayed)
    clock = _Clock()
    weights = finetune(
        load_model(job.in_use), load_model(job.base), data, settings, folder / TRAINING
    )
    clock.note("training")
    (folder / _STAGE).touch()
    candidate = Predictor.from_pretrained(weights, device=device)
    in_use = Predictor.from_pretrained(job.in_use, device=device)
    held_out = SnapshotSet(snapshot.part(held_out=True), vault, name="held out")
    verdict = gate.judge(
        candidate,
        in_use,
        held_out=held_out,
        base=base,
        images=settings.gate_images,
        objects=settings.gate_objects,
    )
    told = tell_scope(candidate, held_out, images=settings.gate_images)
    verdict = replace(verdict, text=f"{verdict.text}{told}")
    clock.note("gate")
    draw_examples(candidate, in_use, held_out, folder)
    clock.note("examples")
    return Outcome(weights=str(weights), verdict=verdict.to_json(), seconds=clock.seconds)


def tell_scope(candidate: Predictor, held_out: ImageSet, *, images: int) -> str:
    """Say on how many held-out images a candidate answers.

    Parameters
    ----------
    candidate
        The model.
    held_out
        Images; those that cannot be read do not count.
    images
        At most so many.

    Returns
    -------
    str
        A sentence; empty if the candidate answers on any image.
    """
    if candidate.model.elsewhere is None:
        return ""
    covered = []
    for index in range(min(len(held_out), images)):
        try:
            covered.append(candidate.embed(held_out[index].rgb).covered)
        except LidivError:
            continue
    return (
        f" It answers on {sum(covered)} of {len(covered)} held-out images, and leaves others than "
        "those like what it learnt from to the weights that LiDiv came with."
    )


class _Clock:
    """Notes how long the parts of a run took, in seconds, and how much of that was computing."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic(), time.process_time()

    def note(self, part: str) -> None:
        """Note what was done since the last call."""
        now = time.monotonic(), time.process_time()
        self.seconds[part] = round(now[0] - self._last[0], 1)
        self.seconds[f"{part} CPU"] = round(now[1] - self._last[1], 1)
        self._last = now


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that bound the threads of numeric libraries."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def main(argv: Sequence[str]) -> int:
    """Do the run in a folder.

    Parameters
    ----------
    argv
        The folder, and the number of the process to end with; its parent if not given.
    """
    folder = Path(argv[0])
    parent = int(argv[1]) if len(argv) > 1 else os.getppid()
    end_with_parent(signal.SIGKILL, parent)
    settings = Job.read(folder).settings
    os.nice(settings.nice)
    _be_ended_first()
    if settings.memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (settings.memory_bytes, settings.memory_bytes))
    with (folder / "lock").open("w") as lock:
        # Where the parent's death could not be asked for, an earlier one may still be at it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.getppid() != parent:
            return 1
        try:
            outcome = work(folder)
        except StorageError as error:
            print(error, file=sys.stderr)
            return UNWRITABLE
        except KeyboardInterrupt:
            return 130
    return 1 if outcome.error else 0


def end_with_parent(number: signal.Signals, parent: int) -> None:
    """Let the kernel send this process a signal when its parent ends, where it can.

    Parameters
    ----------
    number
        The signal.
    parent
        Number of the parent's process. If that has ended already, the signal comes at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def _be_ended_first() -> None:
    """Let the kernel choose this process when memory runs out, where it can."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
