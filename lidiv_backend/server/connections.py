"""The Label Studio that a project belongs to."""

from __future__ import annotations

import logging

from pydantic import SecretStr

from lidiv_backend.labelstudio.images import Connection, FetchLimits, ImageSource
from lidiv_backend.labelstudio.options import ProjectOptions, read_options
from lidiv_backend.learning.store import Store, StoreError
from lidiv_backend.server.settings import Settings

_LOG = logging.getLogger(__name__)


def find_connection(settings: Settings, store: Store, project: str) -> Connection | None:
    """Find the Label Studio that a project belongs to; None if that is not known."""
    try:
        stored = store.connection(project)
    except StoreError as error:
        _LOG.error("The connection of a project cannot be looked up. %s", error)
        stored = None
    if settings.label_studio_url:
        token = settings.label_studio_token
        if not token.get_secret_value() and stored is not None:
            token = SecretStr(stored.access_token)
        return Connection(url=settings.label_studio_url, token=token, configured=True)
    if stored is None or not stored.hostname:
        return None
    return Connection(url=stored.hostname, token=SecretStr(stored.access_token))


def find_options(store: Store, project: str) -> ProjectOptions:
    """Find what a project asks for; the defaults if that is not known."""
    try:
        stored = store.connection(project)
    except StoreError as error:
        _LOG.error("The options of a project cannot be looked up. %s", error)
        return ProjectOptions()
    return read_options(stored.extra_params)[0] if stored is not None else ProjectOptions()


def image_source(settings: Settings) -> ImageSource:
    """Make what fetches images, with the limits of the settings."""
    return ImageSource(
        allowed_hosts=settings.allowed_image_hosts,
        limits=FetchLimits(
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_pixels,
            # As usual, a quarter of it: who allows more has storage that is slow to answer at all.
            read_seconds=settings.image_seconds / 4,
            total_seconds=settings.image_seconds,
        ),
        cache_bytes=settings.image_bytes,
        ca_bundle=str(settings.ca_bundle) if settings.ca_bundle else None,
    )
