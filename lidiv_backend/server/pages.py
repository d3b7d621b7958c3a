"""What the pages show, computed from the store and the registry; the templates see nothing else.

Every page is a few bounded queries: histograms of accepted masks that the database makes, the
latest runs, the versions that are kept.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from lidiv_backend.errors import LidivError
from lidiv_backend.learning.examples import GateExample, read_examples, read_picture
from lidiv_backend.learning.files import read_json
from lidiv_backend.learning.gate import LEAST_IMAGES, TOLERANCE, Comparison, Verdict
from lidiv_backend.learning.process import TRAINING
from lidiv_backend.learning.registry import (
    BASE,
    SHARED,
    ModelRegistry,
    UnknownVersionError,
    VersionEntry,
    channel_of,
)
from lidiv_backend.learning.runs import RunCause, RunQueue, RunState, TrainingRun
from lidiv_backend.learning.schema import SnapshotRow, now
from lidiv_backend.learning.store import Failure
from lidiv_backend.learning.usage import (
    Cost,
    cost_by_day,
    cost_by_version,
    cost_of_all,
    days_ago,
)
from lidiv_backend.learning.worker import StateFolders
from lidiv_backend.server.backend import Backend
from lidiv_backend.server.charts import (
    DailyChart,
    IntervalChart,
    LineChart,
    PairChart,
    SpreadStrip,
    daily_chart,
    interval_chart,
    line_chart,
    pair_chart,
    spread_strip,
)
from lidiv_backend.training.checkpoints import RunLog

#: So far back clicks are counted.
WINDOW_DAYS = 90
_RUNS = 20
_FAILURES = 50
_PROJECTS = 50
_PROBLEMS = 20
# A worker looks every few seconds; after so long something is wrong.
_PATIENCE = timedelta(minutes=1)
_LOG_BYTES = 4000
_LARGEST_NUMBER = 2**31 - 1
_CAUSES = {
    RunCause.ANNOTATIONS: "enough new annotations",
    RunCause.BUTTON: "somebody pressed the button",
    RunCause.COMMAND: "lidiv finetune",
}
_STAGES = {
    "": "begins",
    "snapshot": "freezes what was accepted, and fetches images",
    "training": "trains",
    "gate": "is compared with the model in use",
    "promotion": "is put in use",
}
_STATES = {
    RunState.QUEUED: "waits",
    RunState.RUNNING: "runs",
    RunState.DONE: "done",
    RunState.FAILED: "failed",
}


class NotThereError(LidivError):
    """There is no such page."""

    status = 404
    kind = "request"


class CannotStartError(LidivError):
    """A training cannot be started now."""

    status = 409
    kind = "training"


class ChangedMeanwhileError(LidivError):
    """What a form was made for is no longer so."""

    status = 409
    kind = "version"


@dataclass(frozen=True, kw_only=True)
class Training:
    """Whether a training can be started.

    Parameters
    ----------
    can_start
        Whether the button works.
    reason
        Why it does not; empty where it does.
    run
        The run that waits or is under way.
    hint
        What to expect.
    """

    can_start: bool
    reason: str
    run: int | None
    hint: str


@dataclass(frozen=True, kw_only=True)
class ChannelView:
    """A model that learns: that of all projects, or of a single one.

    Parameters
    ----------
    name
        As the registry calls it.
    title
        As people do.
    in_use
        Version in use; ``base`` for the preset.
    shown
        What to call it.
    back_to
        What a roll-back would put in use; None if there is nothing.
    accepted, new
        Accepted annotations: all, and those since the last run that was done.
    training
        Whether a training can be started.
    """

    name: str
    title: str
    in_use: str
    shown: str
    back_to: str | None
    accepted: int
    new: int
    training: Training


@dataclass(frozen=True, kw_only=True)
class ComparisonView:
    """What the gate measured on one data set.

    Parameters
    ----------
    title
        Which.
    images, objects
        How many.
    before, after
        Mean clicks of the model in use and of the candidate.
    mean, low, high
        The difference, and its 95 % interval.
    words
        What that means.
    interval, pairs
        As charts.
    """

    title: str
    images: int
    objects: int
    before: float
    after: float
    mean: float
    low: float
    high: float
    words: str
    interval: IntervalChart | None
    pairs: PairChart | None


@dataclass(frozen=True, kw_only=True)
class RunLine:
    """A training run, as a row.

    Parameters
    ----------
    number, channel, cause
        Which, for whom, and why.
    state, state_words
        Where it stands, for the style and for people.
    stage
        What it is at; empty unless it runs.
    created_at, minutes
        When it was asked for, and how long it took.
    outcome
        The verdict's first sentence, or why it failed.
    held_out
        What the gate measured on the images that are held out.
    candidate
        The version that came out.
    """

    number: int
    channel: str
    cause: str
    state: str
    state_words: str
    stage: str
    created_at: datetime
    minutes: float | None
    outcome: str
    held_out: ComparisonView | None
    candidate: str | None


@dataclass(frozen=True, kw_only=True)
class SnapshotView:
    """What a run learnt from.

    Parameters
    ----------
    digest
        Its name.
    train_images, train_masks, held_out_images, held_out_masks
        How many.
    problems
        What was left out: the first of them.
    more_problems
        How many further ones there are.
    """

    digest: str
    train_images: int
    train_masks: int
    held_out_images: int
    held_out_masks: int
    problems: tuple[str, ...]
    more_problems: int


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """A training run on its own page.

    Parameters
    ----------
    line
        As in the list.
    is_active
        Whether it waits or runs.
    warning
        Why it may not go on; empty if it does.
    progress
        How far it is, in words.
    began_with
        Version in use when it began.
    snapshot
        What it learnt from.
    message
        The verdict, or why it failed, in full.
    comparisons
        What the gate measured.
    loss, iou
        Curves of the training.
    examples
        Pictures of the images that are held out.
    settings
        Variable and value.
    log
        The end of what a failed process said.
    """

    line: RunLine
    is_active: bool
    warning: str
    progress: str
    began_with: str | None
    snapshot: SnapshotView | None
    message: str
    comparisons: tuple[ComparisonView, ...]
    loss: LineChart | None
    iou: LineChart | None
    examples: tuple[GateExample, ...]
    settings: tuple[tuple[str, str], ...]
    log: str


@dataclass(frozen=True, kw_only=True)
class VersionLine:
    """A version of the model, as a row.

    Parameters
    ----------
    version
        Its name; ``base`` for the preset.
    shown
        What to call it.
    added
        When it came out; None for the preset.
    channel, run
        What it was trained for, and by which run.
    in_use
        Titles of the channels that use it.
    pinned
        Whether it is kept whatever happens.
    held_out
        What the gate measured before it was put in use.
    cost
        Of the masks that were accepted with it.
    """

    version: str
    shown: str
    added: datetime | None
    channel: str
    run: int | None
    in_use: tuple[str, ...]
    pinned: bool
    held_out: ComparisonView | None
    cost: Cost | None


@dataclass(frozen=True, kw_only=True)
class VersionPage:
    """A version on its own page.

    Parameters
    ----------
    line
        As in the list.
    parent
        The version that it was trained from; None for the preset.
    snapshot
        What it learnt from.
    verdict
        The gate's words.
    comparisons
        What the gate measured.
    examples
        Pictures, by the run that made it.
    channels
        Where it can be put in use, and where it is.
    """

    line: VersionLine
    parent: str | None
    snapshot: SnapshotView | None
    verdict: str
    comparisons: tuple[ComparisonView, ...]
    examples: tuple[GateExample, ...]
    channels: tuple[ChannelView, ...]


@dataclass(frozen=True, kw_only=True)
class DayLine:
    """What the masks of a day cost."""

    day: date
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class VersionCost:
    """What the masks of a version cost; `page` names its page, if it has one."""

    version: str
    page: str | None
    cost: Cost
    strip: SpreadStrip


@dataclass(frozen=True, kw_only=True)
class UsageView:
    """Clicks per accepted mask.

    Parameters
    ----------
    days_back
        So far back.
    projects
        Those that can be chosen: whole name, and title.
    project
        The one that is chosen; None for all.
    total
        Of everything; None if nothing was accepted.
    chart
        Over time.
    days
        The latest first.
    versions
        The latest first.
    """

    days_back: int
    projects: tuple[tuple[str, str], ...]
    project: str | None
    total: Cost | None
    chart: DailyChart | None
    days: tuple[DayLine, ...]
    versions: tuple[VersionCost, ...]


@dataclass(frozen=True, kw_only=True)
class ProjectLine:
    """A project that connected itself."""

    title: str
    hostname: str
    connected_at: datetime
    accepted: int


@dataclass(frozen=True, kw_only=True)
class HomePage:
    """The page at ``/``.

    Parameters
    ----------
    release
        Version of LiDiv.
    preset
        What is served as long as nothing was promoted.
    is_ready, error
        Whether this process answers clicks, and why not.
    served
        Versions that it holds, the one in use first.
    shares
        Whether all projects learn into one model.
    channels, usage, latest, runs, versions, projects, failures
        The sections.
    """

    release: str
    preset: str
    is_ready: bool
    error: LidivError | None
    served: tuple[str, ...]
    shares: bool
    channels: tuple[ChannelView, ...]
    usage: UsageView
    latest: RunPage | None
    runs: tuple[RunLine, ...]
    versions: tuple[VersionLine, ...]
    projects: tuple[ProjectLine, ...]
    failures: tuple[Failure, ...]


class Pages:
    """Computes the pages, and does what their buttons say.

    Parameters
    ----------
    backend
        Of this process.
    """

    def __init__(self, backend: Backend) -> None:
        settings = backend.settings
        self._backend = backend
        self._store = backend.store
        self._learning = backend.learning
        self._queue = RunQueue(backend.store)
        self._registry = ModelRegistry(
            settings.state_folder, base=settings.preset, keep=backend.learning.keep
        )
        self._folders = StateFolders(state=settings.state_folder)

    # --- What is shown -----------------------------------------------------------------------

    def home(self, *, project: str | None = None) -> HomePage:
        """Compute the page at ``/``.

        Parameters
        ----------
        project
            Whose masks are counted; None for all.
        """
        engines = self._backend.engines
        runs = self._queue.runs(limit=_RUNS)
        titles = self._titles()
        judged = next((run for run in runs if run.verdict), None)
        return HomePage(
            release=importlib.metadata.version("lidiv-backend"),
            preset=self._preset_name(),
            is_ready=engines.is_ready,
            error=engines.error,
            served=engines.versions,
            shares=self._learning.shared,
            channels=self._channels(titles),
            usage=self._usage(project),
            latest=None if judged is None else self._run_page(judged, titles),
            runs=tuple(self._run_line(run, titles) for run in runs),
            versions=self._versions(titles),
            projects=tuple(
                ProjectLine(
                    title=_number_of(connection.project),
                    hostname=connection.hostname,
                    connected_at=connection.updated_at,
                    accepted=self._store.count_accepted(connection.project, since=None),
                )
                for connection in self._store.connections()[:_PROJECTS]
            ),
            failures=tuple(self._store.recent_failures(limit=_FAILURES)),
        )

    def run(self, number: int) -> RunPage:
        """Compute the page of a run.

        Raises
        ------
        NotThereError
            If there is none.
        """
        return self._run_page(self._find_run(number), self._titles())

    def picture(self, number: int, example: int, name: str) -> bytes:
        """Read a picture of a run's example, a JPEG.

        Raises
        ------
        NotThereError
            If there is none.
        """
        found = read_picture(self._folders.run(number), example, name)
        if found is None:
            raise NotThereError("There is no such picture.")
        return found

    def version(self, version: str) -> VersionPage:
        """Compute the page of a version.

        Raises
        ------
        UnknownVersionError
            If it is not kept.
        """
        self._registry.source(version)
        titles = self._titles()
        line = next(
            (line for line in self._versions(titles) if line.version == version),
            None,
        )
        if line is None:
            raise UnknownVersionError(f"There is no version '{version}' any more.")
        entry = next((e for e in self._registry.versions() if e.version == version), None)
        report: Mapping[str, Any] = {} if entry is None else entry.report
        own = str(report.get("channel", "")) or None
        verdict = _verdict(report.get("verdict"))
        channels = self._channels(titles)
        return VersionPage(
            line=line,
            parent=None if entry is None else str(report.get("parent") or "") or None,
            snapshot=self._snapshot(report.get("snapshot")),
            verdict="" if verdict is None else verdict.text,
            comparisons=_comparisons(verdict),
            examples=() if line.run is None else read_examples(self._folders.run(line.run)),
            channels=tuple(
                channel
                for channel in channels
                if own is None or channel.name == own or channel.in_use == version
            ),
        )

    # --- What is done ------------------------------------------------------------------------

    def start_training(self, channel: str) -> int:
        """Ask for a run, as `lidiv finetune --queue` does.

        Returns
        -------
        int
            Number of the run.

        Raises
        ------
        NotThereError
            If there is no such channel.
        CannotStartError
            If it cannot be started; the message says why.
        """
        view = self._channel(channel)
        if not view.training.can_start:
            raise CannotStartError(view.training.reason, remedy="Open the page again.")
        project = self._project_of(channel)
        return self._queue.enqueue(channel, RunCause.BUTTON, project=project).id

    def promote(self, channel: str, version: str, *, expected: str) -> None:
        """Put a version in use, as `lidiv models promote` does.

        Parameters
        ----------
        channel, version
            Where, and which.
        expected
            What was in use when the button was drawn.

        Raises
        ------
        NotThereError, UnknownVersionError
            If there is no such channel or version.
        WeightsError
            If it is damaged.
        ChangedMeanwhileError
            If something else was put in use meanwhile.
        """
        self._channel(channel)
        if not self._registry.promote(channel, version, expected=expected):
            raise _changed(self._registry.pointer(channel).version)

    def roll_back(self, channel: str, *, expected: str) -> str:
        """Put the version before in use again, as `lidiv models rollback` does; see `promote`.

        Returns
        -------
        str
            What is in use now.

        Raises
        ------
        BadRequestError
            If there is none before it that can be used.
        ChangedMeanwhileError
            If something else was put in use meanwhile.
        """
        self._channel(channel)
        version = self._registry.rollback(channel, expected=expected)
        if version is None:
            raise _changed(self._registry.pointer(channel).version)
        return version

    # --- Parts -------------------------------------------------------------------------------

    def _titles(self) -> dict[str, str]:
        """Channels that there are, with what people call them: the shared one first."""
        found = {SHARED: "all projects"} if self._learning.shared else {}
        for project in self._store.annotated_projects() if not self._learning.shared else ():
            found[channel_of(project)] = f"project {_number_of(project)}"
        for channel in self._registry.channels():
            found.setdefault(channel, _title_of(channel))
        return found

    def _channels(self, titles: Mapping[str, str]) -> tuple[ChannelView, ...]:
        return tuple(self._channel_view(channel, title) for channel, title in titles.items())

    def _channel(self, channel: str) -> ChannelView:
        titles = self._titles()
        if channel not in titles:
            raise NotThereError("There is no such model.", remedy="Open the page again.")
        return self._channel_view(channel, titles[channel])

    def _channel_view(self, channel: str, title: str) -> ChannelView:
        pointer = self._registry.pointer(channel)
        project = self._project_of(channel)
        learnt = self._queue.last(channel, state=RunState.DONE)
        counts = channel == SHARED or project is not None
        accepted = self._store.count_accepted(project, since=None) if counts else 0
        since = None if learnt is None else learnt.created_at
        new = self._store.count_accepted(project, since=since) if counts else 0
        return ChannelView(
            name=channel,
            title=title,
            in_use=pointer.version,
            shown=self._shown(pointer.version),
            back_to=next((v for v in pointer.history if self._is_kept(v)), None),
            accepted=accepted,
            new=new,
            training=self._training(channel, project, accepted=accepted, new=new),
        )

    def _training(self, channel: str, project: str | None, *, accepted: int, new: int) -> Training:
        last = self._queue.last(channel)
        if last is not None and last.state in (RunState.QUEUED, RunState.RUNNING):
            reason = f"Run {last.id} {'is under way' if last.owner else 'waits for a worker'}."
            return Training(can_start=False, reason=reason, run=last.id, hint="")
        reason = ""
        if self._learning.shared != (channel == SHARED):
            reason = (
                "All projects learn into one model here (LIDIV_LEARN_SHARED)."
                if self._learning.shared
                else "Projects learn by themselves here (LIDIV_LEARN_SHARED)."
            )
        elif not accepted:
            reason = "There are not enough annotations: none was accepted yet."
        after, pause_minutes = self._learning.thresholds(project)
        missing = after - new
        hint = (
            f"Starts by itself after {missing} more accepted annotation{'s' * (missing != 1)}."
            if missing > 0
            else "Enough for a run: a worker starts it by itself, at most every "
            f"{pause_minutes:g} minutes."
        )
        wanted = math.ceil(LEAST_IMAGES / self._learning.holdout) if self._learning.holdout else 0
        if accepted < wanted:
            hint += (
                f" The gate needs {LEAST_IMAGES} images that are held back before it can promote: "
                f"about {wanted} annotated ones."
            )
        return Training(can_start=not reason, reason=reason, run=None, hint="" if reason else hint)

    def _project_of(self, channel: str) -> str | None:
        """The project of a channel of its own; None for the shared one."""
        if channel == SHARED:
            return None
        projects = self._store.annotated_projects()
        return next((name for name in projects if channel_of(name) == channel), None)

    def _usage(self, project: str | None) -> UsageView:
        since = days_ago(WINDOW_DAYS)
        days = cost_by_day(self._store, since=since, project=project)
        versions = cost_by_version(self._store, since=since, project=project)
        latest = sorted(versions, key=lambda v: (versions[v].last_day, v), reverse=True)
        most = max((max(c.clicks.high, c.clicks.mean) for c in versions.values()), default=1.0)
        promotions = [
            (run.finished_at.astimezone(UTC).date(), f"{run.candidate} was put in use")
            for run in self._queue.runs(limit=_RUNS)
            if run.promoted and run.finished_at is not None
        ]
        projects = self._store.annotated_projects()[:_PROJECTS]
        preset = _preset_version(str(self._registry.base))
        return UsageView(
            days_back=WINDOW_DAYS,
            projects=tuple((name, _number_of(name)) for name in projects),
            project=project,
            total=cost_of_all(self._store, since=since, project=project),
            chart=daily_chart(days, promotions) if days else None,
            days=tuple(DayLine(day=day, cost=cost) for day, cost in sorted(days.items())[::-1]),
            versions=tuple(
                VersionCost(
                    version=version,
                    page=BASE if version == preset else version if self._is_kept(version) else None,
                    cost=versions[version],
                    strip=spread_strip(versions[version], most=max(2.0, most)),
                )
                for version in latest
            ),
        )

    def _versions(self, titles: Mapping[str, str]) -> tuple[VersionLine, ...]:
        costs = cost_by_version(self._store, since=days_ago(WINDOW_DAYS))
        lines = [self._version_line(entry, titles, costs) for entry in self._registry.versions()]
        preset = _preset_version(str(self._registry.base))
        in_use = [t for c, t in titles.items() if self._registry.pointer(c).version == BASE]
        lines.append(
            VersionLine(
                version=BASE,
                shown=f"the preset {self._preset_name()}",
                added=None,
                channel="",
                run=None,
                in_use=tuple(in_use),
                pinned=False,
                held_out=None,
                cost=costs.get(preset),
            )
        )
        return tuple(lines)

    def _version_line(
        self, entry: VersionEntry, titles: Mapping[str, str], costs: Mapping[str, Cost]
    ) -> VersionLine:
        verdict = _verdict(entry.report.get("verdict"))
        channel, run = entry.report.get("channel"), entry.report.get("run")
        return VersionLine(
            version=entry.version,
            shown=entry.version,
            added=datetime.fromtimestamp(entry.added, UTC),
            channel=titles.get(channel, _title_of(channel)) if isinstance(channel, str) else "",
            run=run if isinstance(run, int) else None,
            in_use=tuple(titles.get(name, _title_of(name)) for name in entry.in_use),
            pinned=entry.pinned,
            held_out=None if verdict is None else _held_out(verdict),
            cost=costs.get(entry.version),
        )

    def _find_run(self, number: int) -> TrainingRun:
        try:
            if number > _LARGEST_NUMBER:
                raise NotThereError(f"There is no training run {number}.")
            return self._queue.run(number)
        except LidivError as error:
            if error.status >= 500:
                raise
            raise NotThereError(error.message) from error

    def _run_line(self, run: TrainingRun, titles: Mapping[str, str]) -> RunLine:
        verdict = _verdict(run.verdict)
        state: str = run.state.value
        words = _STATES[run.state]
        if run.state is RunState.DONE:
            state = words = "promoted" if run.promoted else "kept"
        took = None
        if run.started_at is not None and run.finished_at is not None:
            took = (run.finished_at - run.started_at).total_seconds() / 60
        causes: Mapping[str, str] = {cause.value: text for cause, text in _CAUSES.items()}
        return RunLine(
            number=run.id,
            channel=titles.get(run.channel, _title_of(run.channel)),
            cause=causes.get(run.cause, run.cause),
            state=state,
            state_words=words,
            stage=_STAGES.get(run.stage, run.stage) if run.state is RunState.RUNNING else "",
            created_at=run.created_at,
            minutes=took,
            outcome=_first_sentence(run.message),
            held_out=None if verdict is None else _held_out(verdict),
            candidate=run.candidate,
        )

    def _run_page(self, run: TrainingRun, titles: Mapping[str, str]) -> RunPage:
        folder = self._folders.run(run.id)
        is_active = run.state in (RunState.QUEUED, RunState.RUNNING)
        loss, iou = _curves(folder)
        return RunPage(
            line=self._run_line(run, titles),
            is_active=is_active,
            warning=_warning(run),
            progress=_progress(run),
            began_with=run.base_version,
            snapshot=self._snapshot(run.snapshot),
            message=run.message,
            comparisons=_comparisons(_verdict(run.verdict)),
            loss=loss,
            iou=iou,
            examples=read_examples(folder),
            settings=_settings(folder),
            log=_end_of_log(folder) if run.state is RunState.FAILED else "",
        )

    def _snapshot(self, digest: object) -> SnapshotView | None:
        if not isinstance(digest, str):
            return None
        with self._store.reading() as session:
            row = session.get(SnapshotRow, digest)
            if row is None:
                return None
            return SnapshotView(
                digest=row.digest,
                train_images=row.train_images,
                train_masks=row.train_masks,
                held_out_images=row.held_out_images,
                held_out_masks=row.held_out_masks,
                problems=tuple(str(problem) for problem in row.problems[:_PROBLEMS]),
                more_problems=max(0, len(row.problems) - _PROBLEMS),
            )

    def _is_kept(self, version: str) -> bool:
        try:
            self._registry.source(version)
        except UnknownVersionError:
            return False
        return True

    def _shown(self, version: str) -> str:
        return f"the preset {self._preset_name()}" if version == BASE else version

    def _preset_name(self) -> str:
        return Path(self._registry.base).name


@functools.lru_cache(maxsize=4)
def _known_preset_version(base: str) -> str:
    # Imported here: it brings torch, which a server has anyway, but not every test.
    from lidiv_backend.model import load_model

    return load_model(base).version


def _preset_version(base: str) -> str:
    """Version of the preset; empty where it cannot be loaded, which the page says elsewhere."""
    try:
        return _known_preset_version(base)
    except LidivError:
        return ""


def _changed(in_use: str) -> ChangedMeanwhileError:
    return ChangedMeanwhileError(
        f"Nothing was changed: meanwhile {in_use} was put in use.",
        remedy="Open the page again, and see whether you still want it.",
    )


def _number_of(project: str) -> str:
    return project.partition(".")[0]


def _title_of(channel: str) -> str:
    if channel == SHARED:
        return "all projects"
    return f"project {_number_of(channel.removeprefix('project-'))}"


def _first_sentence(text: str) -> str:
    first, dot, _ = text.partition(". ")
    return first + dot.strip()


def _verdict(values: object) -> Verdict | None:
    """Read a verdict; one that this version cannot read is left out."""
    if not isinstance(values, Mapping) or not values:
        return None
    try:
        return Verdict.from_json(values)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _comparisons(verdict: Verdict | None) -> tuple[ComparisonView, ...]:
    if verdict is None:
        return ()
    parts = [_held_out(verdict)]
    if verdict.base is not None:
        parts.append(_compared(verdict.base, "What it must not forget", gate=False))
    return tuple(part for part in parts if part is not None)


def _held_out(verdict: Verdict) -> ComparisonView | None:
    if verdict.held_out is None:
        return None
    return _compared(verdict.held_out, "Your images that were held back", gate=True)


def _compared(comparison: Comparison, title: str, *, gate: bool) -> ComparisonView:
    difference = comparison.difference
    if difference.high < 0:
        words = f"The candidate needs fewer clicks to {comparison.goal}."
    elif difference.low > 0:
        words = f"The candidate needs more clicks to {comparison.goal}."
    elif gate:
        words = "No difference that could not be chance: the interval includes 0."
    elif difference.mean > TOLERANCE:
        words = f"More clicks than the {TOLERANCE:g} that are tolerated."
    else:
        words = "Not worse."
    return ComparisonView(
        title=title,
        images=comparison.images,
        objects=comparison.objects,
        before=comparison.in_use,
        after=comparison.candidate,
        mean=difference.mean,
        low=difference.low,
        high=difference.high,
        words=words,
        interval=interval_chart(difference.mean, difference.low, difference.high),
        pairs=pair_chart(comparison.per_image),
    )


def _warning(run: TrainingRun) -> str:
    if run.state is RunState.QUEUED and now() - run.created_at > _PATIENCE:
        return (
            "No worker has taken it up. `lidiv serve` starts one unless LIDIV_LEARN_WORKER is "
            "false; `lidiv worker` is one by itself. It does one run at a time."
        )
    if run.state is RunState.RUNNING and run.attempts > 1:
        return f"A worker ended while it was at it: this is attempt {run.attempts}."
    return ""


def _progress(run: TrainingRun) -> str:
    if run.state is not RunState.RUNNING or "step" not in run.progress:
        return ""
    told = f"step {run.progress['step']}"
    if isinstance(run.progress.get("seconds"), (int, float)):
        told += f", after {run.progress['seconds']:.0f} s"
    return told


def _curves(folder: Path) -> tuple[LineChart | None, LineChart | None]:
    """Loss, and IoU, over the steps of a run's training."""
    rows = RunLog(folder / TRAINING).rows()
    trained = [row for row in rows if "loss" in row]
    phases = list(dict.fromkeys(row.get("phase") for row in trained))
    # Phases count their steps from 1 each, so they are put behind one another.
    offsets: dict[Any, float] = {}
    end = 0.0
    for phase in phases:
        offsets[phase] = end
        end += max(float(row["step"]) for row in trained if row.get("phase") == phase)

    def curve(key: str, rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
        return [
            (offsets[row.get("phase")] + float(row["step"]), float(row[key]))
            for row in rows
            if key in row and row.get("phase") in offsets
        ]

    iou = {
        "the best of the proposals": curve("best", trained),
        "the one that is shown": curve("selected", trained),
    }
    return (
        line_chart({"loss": curve("loss", trained)}, from_zero=False),
        line_chart(iou, from_zero=False),
    )


def _settings(folder: Path) -> tuple[tuple[str, str], ...]:
    """How a run was done: variables and their values."""
    try:
        values = read_json(folder / "job.json")["settings"]
        items = sorted(values.items())
    except (LidivError, AttributeError, KeyError, TypeError):
        return ()
    names = {"base_data": "LIDIV_BASE_DATA"}
    return tuple(
        (names.get(name, f"LIDIV_LEARN_{name.upper()}"), "" if value is None else str(value))
        for name, value in items
    )


def _end_of_log(folder: Path) -> str:
    try:
        with (folder / "process.log").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
