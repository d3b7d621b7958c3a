"""From a request of Label Studio to predictions: the engine, the images and the clicks together."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lidiv_backend.caching import BoundedCache
from lidiv_backend.errors import BadRequestError
from lidiv_backend.labelstudio.beginnings import (
    Beginning,
    Beginnings,
    InteractionKey,
    Keeper,
    start_from_region,
)
from lidiv_backend.labelstudio.boxes import start_in_box
from lidiv_backend.labelstudio.config import (
    ImageTags,
    LabelConfig,
    Target,
    UnknownLabelError,
    parse_label_config,
)
from lidiv_backend.labelstudio.engine import Engine, Engines
from lidiv_backend.labelstudio.images import KEPT_SECONDS, Connection, ImageSource
from lidiv_backend.labelstudio.interaction import NOTHING, Interactions, Showing, Start
from lidiv_backend.labelstudio.options import ProjectOptions
from lidiv_backend.labelstudio.replies import Prediction, Region
from lidiv_backend.labelstudio.requests import PredictRequest, Task
from lidiv_backend.labelstudio.results import (
    PlacedClick,
    Prompt,
    read_boxes,
    read_prompts,
    read_task_prompts,
)
from lidiv_backend.observing import click_dropped, stage
from lidiv_backend.turns import LatestClicks, OvertakenError, require_not_overtaken

# Of so many images is known which embedding is theirs.
_MAX_IMAGES = 10_000
# So many interactions are got ready for.
_MAX_AWAITED = 64

#: Told of a task that failed while others went on, or in the background.
FailureReport = Callable[[Exception, int | None], None]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A region that was shown, and how it came about.

    Parameters
    ----------
    region_id
        The region's id, by which an accepted region finds its clicks.
    key
        The interaction.
    prompt
        The clicks, in order, after those that the interaction began with.
    showing
        The proposals, which of them is shown, and which clicks meant "next proposal".
    model_version
        Of the weights.
    height, width
        Of the image, in pixels.
    interactive
        False where Label Studio asked for a whole batch.
    beside
        True for an alternative, or another rectangle's mask, that is shown beside the answer.
    """

    region_id: str
    key: InteractionKey
    prompt: Prompt
    showing: Showing
    model_version: str
    height: int
    width: int
    interactive: bool
    beside: bool = False


class Recorder(Protocol):
    """Keeps what was answered."""

    def pinned_version(self, key: InteractionKey) -> str | None:
        """Find the model version that an interaction began with; None if it is new."""

    def keep_answer(self, answer: Answer) -> None:
        """Keep an answer; one with the same region id is replaced."""

    def prompts_of(self, project: str, region_id: str) -> tuple[PlacedClick, ...]:
        """Give the prompts that led to a region; none if it is not from here."""


class Background(Protocol):
    """Runs what nobody waits for."""

    def submit(self, work: Callable[[], None]) -> bool:
        """Take on work, or return False if there is too much of it already."""


@dataclass(frozen=True, kw_only=True)
class _Solved:
    """What the engine made of one prompt."""

    prompt: Prompt
    start: Start
    showing: Showing
    height: int
    width: int


class PredictionService:
    """Answers `/predict`.

    Parameters
    ----------
    engines
        The models.
    images
        Fetches the tasks' images.
    recorder
        Keeps what was answered.
    keeper
        Keeps rectangles, and what interactions began with.
    background
        Embeds the images of tasks that nobody has clicked on yet.
    memo_bytes
        What remembered proposals may take: half of it those of clicks, a quarter each those of
        rectangles and the regions that are refined.
    """

    def __init__(
        self,
        *,
        engines: Engines,
        images: ImageSource,
        recorder: Recorder,
        keeper: Keeper,
        background: Background,
        memo_bytes: int = 160_000_000,
    ) -> None:
        self._engines = engines
        self._images = images
        self._recorder = recorder
        self._background = background
        self._latest = LatestClicks()
        self._interactions = Interactions(max_bytes=memo_bytes // 2)
        self._beginnings = Beginnings(keeper, max_bytes=memo_bytes // 4)
        self._box_starts: BoundedCache[tuple[str, str, str], Start] = BoundedCache(
            max_bytes=memo_bytes // 4
        )
        # What shows, for what gets ready for the next click.
        self._awaited: BoundedCache[InteractionKey, Showing] = BoundedCache(
            max_bytes=_MAX_AWAITED, max_age=KEPT_SECONDS
        )
        # Model and image -> key of the embedding: a click neither fetches nor decodes again.
        self._embedded: BoundedCache[tuple[str, ...], str] = BoundedCache(
            max_bytes=_MAX_IMAGES, max_age=KEPT_SECONDS
        )

    def with_engines(self, engines: Engines) -> PredictionService:
        """The same service with other models; what is remembered is shared, and tells them apart.

        Parameters
        ----------
        engines
            The models of one project.
        """
        other = copy.copy(self)
        other._engines = engines
        return other

    def predict(
        self,
        request: PredictRequest,
        connection: Connection | None,
        *,
        failed: FailureReport,
        options: ProjectOptions = ProjectOptions(),  # noqa: B008 - frozen
    ) -> list[tuple[Prediction, ...]]:
        """Answer a request.

        Parameters
        ----------
        request
            With a context: an annotator is waiting. Without: a batch.
        connection
            The Label Studio that asks.
        failed
            Told of tasks of a batch that failed, also later on in the background.
        options
            What the project asks for; batches are not concerned.

        Returns
        -------
        list of tuple of Prediction
            For each task, worst first; never an empty tuple. For an annotator exactly one.

        Raises
        ------
        LidivError
            If an annotator's click cannot be answered, or nothing can be answered at all. One bad
            task does not fail a batch.
        """
        config = parse_label_config(request.label_config)
        if request.params.context is not None:
            first = self._newest(request, config, connection, options, failed)
            return [(first,), *(((self._empty(),)) for _ in request.tasks[1:])]
        return [
            self._batch_item(request.project, task, config, connection, failed)
            for task in request.tasks
        ]

    def _empty(self) -> Prediction:
        return Prediction(model_version=self._engines.version)

    def _newest(
        self,
        request: PredictRequest,
        config: LabelConfig,
        connection: Connection | None,
        options: ProjectOptions,
        failed: FailureReport,
    ) -> Prediction:
        """Answer a click, unless the annotator clicks again while it waits."""
        # All results of a region in progress are sent again with each new one.
        ids = [each.id for each in request.params.context.result] if request.params.context else []
        if not ids or not ids[0]:
            return self._interactive(request, config, connection, options, failed)
        key = (request.project, request.tasks[0].id, ids[0])
        try:
            with self._latest.answering(key, len(set(ids))):
                return self._interactive(request, config, connection, options, failed)
        except OvertakenError:
            # Label Studio drops it: the newer answer is the one that counts.
            click_dropped()
            return self._empty()

    def _interactive(
        self,
        request: PredictRequest,
        config: LabelConfig,
        connection: Connection | None,
        options: ProjectOptions,
        failed: FailureReport,
    ) -> Prediction:
        project, task = request.project, request.tasks[0]
        results = request.params.context.result if request.params.context else ()
        prompts = read_prompts(results, config)
        boxes: tuple[Prompt, ...] = ()
        if options.rectangles and not prompts:
            boxes = read_boxes(results, config)
            self._beginnings.keep_boxes(project, task, boxes)
        if not prompts and not boxes:
            return self._empty()
        if prompts:
            prompt = prompts[-1]
            key = _key(project, task, prompt)
            pinned = self._recorder.pinned_version(key) if len(prompt.clicks) > 1 else None
            engine = self._engines.pinned(pinned)
            image = self._embed(engine, task, config.image(prompt.target.to_name), connection)
            beginning = self._beginnings.of(
                key, task, prompt, options, height=image.height, width=image.width
            )
            boxes = beginning.others
            start = self._start(engine, project, image, beginning)
            # The overlay shows all at once, and so also those that take longer.
            grown = bool(options.overlay) and not boxes
            solved = [self._follow(engine, image, prompt, start, grown=grown)]
            self._get_ready(engine, image, key, solved[0].showing)
        else:
            engine = self._engines.current()
            image = self._embed(engine, task, config.image(boxes[0].target.to_name), connection)
            solved = []
        for box in boxes:
            start = self._start(engine, project, image, Beginning(box=box))
            # What was clicked on comes last, and therefore on top.
            solved.insert(-1 if prompts else len(solved), self._follow(engine, image, box, start))
        regions = []
        for number, each in enumerate(solved, start=1):
            if each.showing.shown is None:
                continue
            key = _key(project, task, each.prompt)
            # Alternatives of several objects at once would be a mess.
            if len(solved) == 1:
                regions += self._overlay(key, engine, each, config, options, failed)
            is_beside = number < len(solved)
            regions.append(self._region(engine, key, each, interactive=True, beside=is_beside))
        return Prediction(model_version=engine.version, regions=tuple(regions))

    def _get_ready(self, engine: Engine, image: Any, key: InteractionKey, showing: Showing) -> None:
        """Prepare for the next click while the annotator looks at the mask."""
        shown = showing.shown
        if shown is None:
            return
        self._awaited.put(key, showing, size=1)

        def prepare() -> None:
            # It may have waited until the next click was there.
            if self._awaited.get(key) is showing:
                engine.prepare(image, showing.prompts, shown.mask)

        self._background.submit(prepare)

    def _overlay(
        self,
        key: InteractionKey,
        engine: Engine,
        solved: _Solved,
        config: LabelConfig,
        options: ProjectOptions,
        failed: FailureReport,
    ) -> list[Region]:
        """The proposals that are not showing, under helper labels, worst first."""
        ranks = [
            rank for rank in range(len(solved.showing.proposals)) if rank != solved.showing.index
        ]
        regions = []
        for rank, label in zip(ranks, options.overlay, strict=False):
            try:
                target = config.image(solved.prompt.target.to_name).target(label)
            except UnknownLabelError as error:
                # The mask that is meant is shown nevertheless.
                failed(error, key.task)
                continue
            ranked = replace(solved, showing=replace(solved.showing, index=rank))
            regions.append(
                self._region(engine, key, ranked, interactive=True, target=target, beside=True)
            )
        return regions[::-1]

    def _start(self, engine: Engine, project: str, image: Any, beginning: Beginning) -> Start:
        """Find what an interaction begins with, for an engine and an image of its."""
        if beginning.box is not None and beginning.box.box is not None:
            _check_size(beginning.box, image)
            box = beginning.box.box.in_pixels(height=image.height, width=image.width)
            return self._box_starts.get_or_compute(
                (image.key, engine.version, repr(box)),
                lambda: start_in_box(engine, image, box),
                size_of=lambda start: start.showing().nbytes,
            )
        if beginning.region is not None:
            clicks = self._recorder.prompts_of(project, beginning.region.id)
            return start_from_region(beginning.region, clicks)
        return NOTHING

    def _batch_item(
        self,
        project: str,
        task: Task,
        config: LabelConfig,
        connection: Connection | None,
        failed: FailureReport,
    ) -> tuple[Prediction, ...]:
        try:
            prompts = read_task_prompts(task, config)
        except Exception as error:
            failed(error, task.id)
            return (self._empty(),)
        if not prompts:
            self._background.submit(lambda: self._embed_ahead(task, config, connection, failed))
            return (self._empty(),)
        engine = self._engines.current()
        try:
            solved = [self._solve(engine, task, prompt, config, connection) for prompt in prompts]
            return self._alternatives(engine, project, task, solved)
        # Whatever is wrong with one task, the others of the batch get their answers.
        except Exception as error:
            failed(error, task.id)
            return (self._empty(),)

    def _alternatives(
        self, engine: Engine, project: str, task: Task, solved: list[_Solved]
    ) -> tuple[Prediction, ...]:
        """One prediction for each rank, worst first: Label Studio prefills with the last."""
        solved = [item for item in solved if item.showing.proposals]
        ranks = max((len(item.showing.proposals) for item in solved), default=0)
        predictions = []
        for rank in reversed(range(ranks)):
            regions = []
            for item in solved:
                index = min(rank, len(item.showing.proposals) - 1)
                shown = Showing(
                    prompts=item.showing.prompts,
                    proposals=item.showing.proposals,
                    index=index,
                    cycling=item.showing.cycling,
                )
                ranked = replace(item, showing=shown)
                key = _key(project, task, item.prompt)
                regions.append(self._region(engine, key, ranked, interactive=False))
            # Predictions of one version replace each other; the best bears the version's own name.
            suffix = f" proposal {rank + 1}" if rank else ""
            predictions.append(
                Prediction(model_version=engine.version + suffix, regions=tuple(regions))
            )
        return tuple(predictions) or (self._empty(),)

    def _solve(
        self,
        engine: Engine,
        task: Task,
        prompt: Prompt,
        config: LabelConfig,
        connection: Connection | None,
    ) -> _Solved:
        image = self._embed(engine, task, config.image(prompt.target.to_name), connection)
        return self._follow(engine, image, prompt, NOTHING)

    def _follow(
        self, engine: Engine, image: Any, prompt: Prompt, start: Start, *, grown: bool = False
    ) -> _Solved:
        _check_size(prompt, image)
        height, width = image.height, image.width
        clicks = [click.in_pixels(height=height, width=width) for click in prompt.clicks]
        showing = self._interactions.replay(engine, image, clicks, start, grown=grown)
        return _Solved(prompt=prompt, start=start, showing=showing, height=height, width=width)

    def _embed(
        self, engine: Engine, task: Task, tags: ImageTags, connection: Connection | None
    ) -> Any:
        address = task.data.get(tags.data_key)
        if not isinstance(address, str):
            raise BadRequestError(
                f"The task has no image under {tags.data_key!r} in its data.",
                remedy=f"The label config's image {tags.name!r} takes it from there; check both.",
            )
        key = (engine.version, *self._images.key(address, connection, task=task.id))
        known = self._embedded.get(key)
        image = None if known is None else engine.find(known)
        if image is None:
            image = engine.embed(self._images.rgb(address, connection, task=task.id))
            self._embedded.put(key, image.key, size=1)
        require_not_overtaken()
        return image

    def _embed_ahead(
        self,
        task: Task,
        config: LabelConfig,
        connection: Connection | None,
        failed: FailureReport,
    ) -> None:
        try:
            engine = self._engines.current()
            for tags in config.images:
                if tags.data_key in task.data:
                    self._embed(engine, task, tags, connection)
        except Exception as error:
            failed(error, task.id)

    def _region(
        self,
        engine: Engine,
        key: InteractionKey,
        solved: _Solved,
        *,
        interactive: bool,
        target: Target | None = None,
        beside: bool = False,
    ) -> Region:
        shown = solved.showing.proposals[solved.showing.index]
        with stage("encode"):
            region = Region.of_mask(
                shown.mask,
                id=_region_id(key, solved, engine.version, interactive=interactive),
                target=target or solved.prompt.target,
                score=shown.score,
                text=", from ".join(filter(None, (solved.showing.text, solved.start.note))),
            )
        self._recorder.keep_answer(
            Answer(
                region_id=region.id,
                key=key,
                prompt=_with_start(solved),
                showing=solved.showing,
                model_version=engine.version,
                height=solved.height,
                width=solved.width,
                interactive=interactive,
                beside=beside,
            )
        )
        return region


def _key(project: str, task: Task, prompt: Prompt) -> InteractionKey:
    return InteractionKey(project=project, task=task.id, first_click=prompt.id)


def _check_size(prompt: Prompt, image: Any) -> None:
    if prompt.size is not None and prompt.size != (image.height, image.width):
        raise BadRequestError(
            f"Label Studio shows the image as {prompt.size[1]} x {prompt.size[0]} pixels, but "
            f"its file has {image.width} x {image.height}.",
            remedy="Reload the page; the file may have been replaced.",
        )


def _with_start(solved: _Solved) -> Prompt:
    """The prompt with what it began with as clicks: they were given to the model, too."""
    began = tuple(
        PlacedClick.of_pixels(click, height=solved.height, width=solved.width)
        for click in solved.start.clicks
    )
    return replace(solved.prompt, clicks=(*began, *solved.prompt.clicks))


def _region_id(key: InteractionKey, solved: _Solved, version: str, *, interactive: bool) -> str:
    """Name an answer after what it answers, so that a request sent twice is one answer."""
    content = repr(
        (key, solved.prompt, solved.start.key, solved.showing.index, version, interactive)
    )
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
