from __future__ import annotations

import stat
from pathlib import Path

import pytest

from lidiv_backend.demo.credentials import FILE_NAME, load_or_create
from lidiv_backend.errors import LidivError


def test_made_once_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    made = load_or_create(folder)
    assert load_or_create(folder) == made
    assert len(made.token) == 40
    assert int(made.token, 16) >= 0
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]


def test_readable_by_its_owner_only(tmp_path: Path) -> None:
    load_or_create(tmp_path)
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_each_folder_has_its_own(tmp_path: Path) -> None:
    first, second = (load_or_create(tmp_path / name) for name in "ab")
    assert first.token != second.token
    assert first.password != second.password
    assert first.webhook_secret != second.webhook_secret


def test_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"email": 3')
    with pytest.raises(LidivError, match="Delete the folder"):
        load_or_create(tmp_path)
