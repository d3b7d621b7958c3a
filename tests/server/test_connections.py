"""What the settings say of images reaches what fetches them."""

from __future__ import annotations

import pytest

from lidiv_backend.labelstudio.images import FetchLimits
from lidiv_backend.server import connections
from lidiv_backend.server.settings import Settings


def test_who_allows_more_time_for_an_image_allows_more_before_the_first_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[FetchLimits] = []
    monkeypatch.setattr(connections, "ImageSource", lambda *, limits, **_: seen.append(limits))
    connections.image_source(Settings())
    connections.image_source(Settings(image_seconds=1200))
    usual, patient = seen
    default = FetchLimits()
    assert (usual.read_seconds, usual.total_seconds) == (
        default.read_seconds,
        default.total_seconds,
    )
    assert (patient.read_seconds, patient.total_seconds) == (300, 1200)
