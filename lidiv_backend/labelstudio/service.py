"""From a request of Label Studio to predictions: the engine, the images and the clicks together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from lidiv_backend.errors import BadRequestError
from lidiv_backend.labelstudio.config import ImageTags, LabelConfig, parse_label_config
from lidiv_backend.labelstudio.engine import Engine, Engines
from lidiv_backend.labelstudio.images import Connection, ImageSource
from lidiv_backend.labelstudio.interaction import Interactions, Showing
from lidiv_backend.labelstudio.replies import Prediction, Region
from lidiv_backend.labelstudio.requests import PredictRequest, Task
from lidiv_backend.labelstudio.results import Prompt, read_prompts, read_task_prompts
from lidiv_backend.observing import stage

#: Told of a task that failed while others went on, or in the background.
FailureReport = Callable[[Exception, int | None], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class InteractionKey:
    """What all requests of one interaction have in common.

    Parameters
    ----------
    project
        As Label Studio sends it.
    task
        Number of the task; None if the request did not say.
    first_click
        Id of the first point.
    """

    project: str
    task: int | None
    first_click: str


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
        The clicks, in order.
    showing
        The proposals, which of them is shown, and which clicks meant "next proposal".
    model_version
        Of the weights.
    height, width
        Of the image, in pixels.
    interactive
        False where Label Studio asked for a whole batch.
    """

    region_id: str
    key: InteractionKey
    prompt: Prompt
    showing: Showing
    model_version: str
    height: int
    width: int
    interactive: bool


class Recorder(Protocol):
    """Keeps what was answered."""

    def pinned_version(self, key: InteractionKey) -> str | None:
        """Find the model version that an interaction began with; None if it is new."""

    def keep_answer(self, answer: Answer) -> None:
        """Keep an answer; one with the same region id is replaced."""


class Background(Protocol):
    """Runs what nobody waits for."""

    def submit(self, work: Callable[[], None]) -> bool:
        """Take on work, or return False if there is too much of it already."""


@dataclass(frozen=True, kw_only=True)
class _Solved:
    """What the engine made of one prompt."""

    prompt: Prompt
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
    background
        Embeds the images of tasks that nobody has clicked on yet.
    memo_bytes
        What remembered proposals may take.
    """

    def __init__(
        self,
        *,
        engines: Engines,
        images: ImageSource,
        recorder: Recorder,
        background: Background,
        memo_bytes: int = 256_000_000,
    ) -> None:
        self._engines = engines
        self._images = images
        self._recorder = recorder
        self._background = background
        self._interactions = Interactions(max_bytes=memo_bytes)

    def predict(
        self, request: PredictRequest, connection: Connection | None, *, failed: FailureReport
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
            prompts = read_prompts(request.params.context.result, config)
            first = self._interactive(
                request.project, request.tasks[0], prompts, config, connection
            )
            return [(first,), *(((self._empty(),)) for _ in request.tasks[1:])]
        return [
            self._batch_item(request.project, task, config, connection, failed)
            for task in request.tasks
        ]

    def _empty(self) -> Prediction:
        return Prediction(model_version=self._engines.version)

    def _interactive(
        self,
        project: str,
        task: Task,
        prompts: tuple[Prompt, ...],
        config: LabelConfig,
        connection: Connection | None,
    ) -> Prediction:
        if not prompts:
            return self._empty()
        prompt = prompts[-1]
        key = _key(project, task, prompt)
        pinned = self._recorder.pinned_version(key) if len(prompt.clicks) > 1 else None
        engine = self._engines.pinned(pinned)
        solved = self._solve(engine, task, prompt, config, connection)
        if solved.showing.shown is None:
            return Prediction(model_version=engine.version)
        region = self._region(engine, key, solved, interactive=True)
        return Prediction(model_version=engine.version, regions=(region,))

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
                ranked = _Solved(
                    prompt=item.prompt, showing=shown, height=item.height, width=item.width
                )
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
        height, width = image.height, image.width
        if prompt.size is not None and prompt.size != (height, width):
            raise BadRequestError(
                f"Label Studio shows the image as {prompt.size[1]} x {prompt.size[0]} pixels, but "
                f"its file has {width} x {height}.",
                remedy="Reload the page; the file may have been replaced.",
            )
        clicks = [click.in_pixels(height=height, width=width) for click in prompt.clicks]
        showing = self._interactions.replay(engine, image, clicks)
        return _Solved(prompt=prompt, showing=showing, height=height, width=width)

    def _embed(
        self, engine: Engine, task: Task, tags: ImageTags, connection: Connection | None
    ) -> Any:
        address = task.data.get(tags.data_key)
        if not isinstance(address, str):
            raise BadRequestError(
                f"The task has no image under {tags.data_key!r} in its data.",
                remedy=f"The label config's image {tags.name!r} takes it from there; check both.",
            )
        return engine.embed(self._images.rgb(address, connection, task=task.id))

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
        self, engine: Engine, key: InteractionKey, solved: _Solved, *, interactive: bool
    ) -> Region:
        shown = solved.showing.proposals[solved.showing.index]
        with stage("encode"):
            region = Region.of_mask(
                shown.mask,
                id=_region_id(key, solved, engine.version, interactive=interactive),
                target=solved.prompt.target,
                score=shown.score,
                text=solved.showing.text,
            )
        self._recorder.keep_answer(
            Answer(
                region_id=region.id,
                key=key,
                prompt=solved.prompt,
                showing=solved.showing,
                model_version=engine.version,
                height=solved.height,
                width=solved.width,
                interactive=interactive,
            )
        )
        return region


def _key(project: str, task: Task, prompt: Prompt) -> InteractionKey:
    return InteractionKey(project=project, task=task.id, first_click=prompt.clicks[0].id)


def _region_id(key: InteractionKey, solved: _Solved, version: str, *, interactive: bool) -> str:
    """Name an answer after what it answers, so that a request sent twice is one answer."""
    content = repr((key, solved.prompt, solved.showing.index, version, interactive))
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
