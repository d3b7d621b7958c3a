"""Recorded clicks in a file of their own."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from lidiv_backend.clicks import Click
from lidiv_backend.errors import DataError
from lidiv_backend.evaluation.recorded import read_interactions, write_interactions
from lidiv_backend.evaluation.replay import Interaction
from tests import tiny


def interactions() -> list[Interaction]:
    rgb = tiny.photo(20, 30)
    masks = [np.zeros((20, 30), bool) for _ in range(2)]
    masks[0][3:9, 4:20] = masks[1][10:, :5] = True
    return [
        Interaction(
            name=f"7.1/5/{number}",
            rgb=rgb,
            clicks=(Click(x=5.25, y=4), Click(x=0, y=19, positive=False)),
            accepted=mask,
            project="7.1",
            label=label,
        )
        for number, (mask, label) in enumerate(zip(masks, ("Cell", ""), strict=True))
    ]


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "clicks.zip"
    assert write_interactions(path, interactions()) == 2
    for found, wanted in zip(read_interactions(path), interactions(), strict=True):
        for name in ("name", "clicks", "project", "label"):
            assert getattr(found, name) == getattr(wanted, name)
        np.testing.assert_array_equal(found.rgb, wanted.rgb)
        np.testing.assert_array_equal(found.accepted, wanted.accepted)
    # One image, two masks and the list; nothing is left aside.
    assert len(zipfile.ZipFile(path).namelist()) == 4
    assert [entry.name for entry in path.parent.iterdir()] == ["clicks.zip"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clicks.zip"
    with pytest.raises(DataError, match="holds no recorded clicks"):
        list(read_interactions(path))
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match="holds no recorded clicks"):
        list(read_interactions(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("interactions.jsonl", '{"format": 2}\n')
    with pytest.raises(DataError, match="another format"):
        list(read_interactions(path))
    write_interactions(path, interactions())
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content if name.endswith("l") else b"no picture")
    with pytest.raises(DataError, match="is no picture"):
        list(read_interactions(path))
