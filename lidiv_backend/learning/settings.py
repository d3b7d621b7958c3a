"""Settings of learning, from the environment.

======================================  ==========================================================
variable                                what it says
======================================  ==========================================================
``LIDIV_LEARN_SHARED``                  whether all projects learn into one model, or each into its
                                        own, which begins with the preset; true
``LIDIV_LEARN_ENGINES``                 of how many projects that learn by themselves a server
                                        process keeps the models in memory; 3
``LIDIV_LEARN_AFTER``                   so many newly accepted annotations start a run; 20
``LIDIV_LEARN_PAUSE_MINUTES``           least time between the starts of two such runs; 60
``LIDIV_LEARN_PROJECTS``                other thresholds for single projects, by their numbers:
                                        ``{"7": {"after": 5, "pause_minutes": 10}}``. Where all
                                        learn together, such a project starts a run of its own
                                        accord, too
``LIDIV_LEARN_MINUTES``                 time for the training of a run; the gate comes on top; 6
``LIDIV_LEARN_STEPS``                   optimiser steps of a run; 300
``LIDIV_LEARN_RATE``                    learning rate; 1.5e-3
``LIDIV_LEARN_ANCHOR``                  weight of the penalty for leaving the base weights; 1e-4
``LIDIV_LEARN_BLEND``                   how far the weights go from the base weights to those that
                                        training came to, 0 to 1; 0.6, and at most 0.35 where the
                                        base weights do not know what they were trained on, so that
                                        the new ones answer on all images
``LIDIV_LEARN_HOLDOUT``                 share of the images that is held out; 0.25
``LIDIV_LEARN_THREADS``                 CPU threads of a run; half of the cores
``LIDIV_LEARN_NICE``                    how far a run steps back behind serving, 0 to 19; 10
``LIDIV_LEARN_MEMORY_BYTES``            memory that a run may take; 0 for no limit
``LIDIV_LEARN_KEEP``                    versions that are kept besides those in use; 5
``LIDIV_LEARN_SEED``                    of everything random; 0
``LIDIV_LEARN_DEVICE``                  ``cpu``, ``cuda``, ...; chosen if not given
``LIDIV_LEARN_GATE_IMAGES``             images of a set that the gate measures at most; 32
``LIDIV_LEARN_GATE_OBJECTS``            objects of an image that it measures at most; 5
``LIDIV_LEARN_RECONCILE_MINUTES``       time between two comparisons with Label Studio; 15
``LIDIV_LEARN_POLL_SECONDS``            time between two looks of an idle worker; 2
``LIDIV_LEARN_LEASE_SECONDS``           a worker that shows no sign of life for so long counts as
                                        dead, and its run is taken over; 90
``LIDIV_LEARN_KEEP_EVENTS_DAYS``        webhook events are kept so long; what they said stays; 30
``LIDIV_LEARN_KEEP_CLICKS_DAYS``        answers to clicks are kept so long on tasks that nobody
                                        annotated; those on annotated tasks stay; 90
``LIDIV_LEARN_WORKER``                  whether gunicorn starts a worker beside the server; `lidiv
                                        serve` says so unless told otherwise
``LIDIV_BASE_DATA``                     data set that must not be forgotten, such as
                                        ``shards:/data/train``; replayed, and asked by the gate
======================================  ==========================================================
"""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from lidiv_backend.errors import LidivError

_PREFIX = "LIDIV_LEARN_"


class LearningSettingsError(LidivError):
    """A setting of learning is wrong."""

    kind = "settings"


class Thresholds(BaseModel):
    """When a project's annotations start a run.

    Parameters
    ----------
    after
        So many newly accepted annotations; as for all projects if None.
    pause_minutes
        Least time between the starts of two runs; as for all projects if None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    after: int | None = Field(default=None, gt=0)
    pause_minutes: float | None = Field(default=None, ge=0)


class LearningSettings(BaseSettings):
    """Settings of learning; see the module for what each says."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, frozen=True, extra="ignore", populate_by_name=True
    )

    shared: bool = True
    engines: int = Field(default=3, gt=0)
    after: int = Field(default=20, gt=0)
    pause_minutes: float = Field(default=60.0, ge=0)
    projects: dict[str, Thresholds] = Field(default_factory=dict)
    minutes: float = Field(default=6.0, gt=0)
    steps: int = Field(default=300, gt=0)
    rate: float = Field(default=1.5e-3, gt=0)
    anchor: float = Field(default=1e-4, ge=0)
    blend: float = Field(default=0.6, gt=0, le=1)
    holdout: float = Field(default=0.25, ge=0, le=1)
    threads: int = Field(default_factory=lambda: max(1, (os.cpu_count() or 1) // 2), gt=0)
    nice: int = Field(default=10, ge=0, le=19)
    memory_bytes: int = Field(default=0, ge=0)
    keep: int = Field(default=5, ge=1)
    seed: int = Field(default=0, ge=0)
    device: str | None = None
    gate_images: int = Field(default=32, gt=0)
    gate_objects: int = Field(default=5, gt=0)
    reconcile_minutes: float = Field(default=15.0, gt=0)
    poll_seconds: float = Field(default=2.0, gt=0)
    lease_seconds: float = Field(default=90.0, gt=0)
    keep_events_days: float = Field(default=30.0, gt=0)
    keep_clicks_days: float = Field(default=90.0, gt=0)
    worker: bool = False
    base_data: str = Field(default="", validation_alias="LIDIV_BASE_DATA")

    def thresholds(self, project: str | None) -> tuple[int, float]:
        """Say what starts a run for a project.

        Parameters
        ----------
        project
            As Label Studio sends it; None for all of them together.

        Returns
        -------
        after : int
            So many newly accepted annotations.
        pause_minutes : float
            Least time between the starts of two runs.
        """
        own = self.own_thresholds(project)
        if own is None:
            return self.after, self.pause_minutes
        return (
            self.after if own.after is None else own.after,
            self.pause_minutes if own.pause_minutes is None else own.pause_minutes,
        )

    def own_thresholds(self, project: str | None) -> Thresholds | None:
        """Find the thresholds that a project has for itself; None if it has none."""
        if project is None:
            return None
        return self.projects.get(project) or self.projects.get(project.partition(".")[0])

    @classmethod
    def from_environment(cls) -> LearningSettings:
        """Read the environment.

        Raises
        ------
        LearningSettingsError
            If a setting is wrong; the message names it.
        """
        try:
            return cls()
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = "_".join(str(part) for part in first["loc"]).upper()
            raise LearningSettingsError(
                f"{_PREFIX}{where}: {first['msg']}.", remedy="Correct the environment variable."
            ) from error
        except SettingsError as error:
            raise LearningSettingsError(
                f"{_PREFIX}PROJECTS is no JSON object.",
                remedy='Write {"7": {"after": 5, "pause_minutes": 10}}.',
            ) from error
