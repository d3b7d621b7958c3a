from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from lidiv_backend.errors import BadRequestError, WeightsError
from lidiv_backend.learning import files, registry
from lidiv_backend.learning.files import StorageError
from lidiv_backend.learning.registry import (
    BASE,
    SHARED,
    ModelRegistry,
    UnknownVersionError,
    channel_of,
)
from lidiv_backend.model import load_model
from tests.learning.conftest import MakeWeights


@pytest.fixture
def models(tmp_path: Path, make_weights: MakeWeights) -> ModelRegistry:
    return ModelRegistry(tmp_path / "state", base=make_weights(99), keep=2)


def add(models: ModelRegistry, make_weights: MakeWeights, *seeds: int) -> list[str]:
    versions = []
    for number, seed in enumerate(seeds):
        version = models.add(make_weights(seed), {"seed": seed})
        folder = Path(models.source(version))
        os.utime(folder, (1000 + number, 1000 + number))
        versions.append(version)
    return versions


def test_without_a_promotion_the_preset_is_in_use(models: ModelRegistry) -> None:
    assert models.pointer(SHARED).version == BASE
    assert models.source(BASE) == models.base
    assert models.versions() == []
    assert models.stamp(SHARED) == ()


def test_a_version_is_a_copy_that_the_trainer_cannot_change(
    models: ModelRegistry, make_weights: MakeWeights
) -> None:
    source = make_weights(1)
    version = models.add(source, {"gate": "better"})
    assert version == load_model(source).version
    shutil.rmtree(source)
    assert load_model(models.source(version)).version == version
    (entry,) = models.versions()
    assert (entry.version, entry.report, entry.in_use) == (version, {"gate": "better"}, ())


def test_the_same_weights_are_the_same_version(
    models: ModelRegistry, make_weights: MakeWeights
) -> None:
    source = make_weights(1)
    assert models.add(source, {"n": 1}) == models.add(source, {"n": 2})
    (entry,) = models.versions()
    assert entry.report == {"n": 1}


def test_damaged_weights_become_no_version(
    models: ModelRegistry, make_weights: MakeWeights
) -> None:
    source = make_weights(1)
    with (source / "f.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"oops")
    with pytest.raises(WeightsError):
        models.add(source, {})
    assert models.versions() == []


def test_promote_and_roll_back(models: ModelRegistry, make_weights: MakeWeights) -> None:
    first, second = add(models, make_weights, 1, 2)
    stamps = [models.stamp(SHARED)]
    for version in (first, second):
        assert models.promote(SHARED, version)
        assert models.pointer(SHARED).version == version
        stamps.append(models.stamp(SHARED))
    assert len(set(stamps)) == 3
    assert models.rollback(SHARED) == first
    assert models.rollback(SHARED) == BASE
    with pytest.raises(BadRequestError, match="no version to go back to"):
        models.rollback(SHARED)


def test_promoting_what_is_in_use_changes_nothing(
    models: ModelRegistry, make_weights: MakeWeights
) -> None:
    (version,) = add(models, make_weights, 1)
    models.promote(SHARED, version)
    models.promote(SHARED, version)
    assert models.pointer(SHARED).history == (BASE,)


def test_a_promotion_gives_way_to_what_a_person_did_meanwhile(
    models: ModelRegistry, make_weights: MakeWeights
) -> None:
    first, second = add(models, make_weights, 1, 2)
    models.promote(SHARED, first)
    assert not models.promote(SHARED, second, expected=BASE)
    assert models.pointer(SHARED).version == first
    assert models.promote(SHARED, second, expected=first)


def test_pressed_twice_at_once_it_goes_back_once(
    models: ModelRegistry, make_weights: MakeWeights
) -> None:
    first, second = add(models, make_weights, 1, 2)
    for version in (first, second):
        models.promote(SHARED, version)
    # Both pages were drawn while the second was in use.
    assert models.rollback(SHARED, expected=second) == first
    assert models.rollback(SHARED, expected=second) is None
    assert models.pointer(SHARED).version == first
    assert models.rollback(SHARED, expected=first) == BASE


def test_going_back_passes_over_versions_that_are_gone(
    models: ModelRegistry, make_weights: MakeWeights
) -> None:
    first, second, third = add(models, make_weights, 1, 2, 3)
    for version in (first, second, third):
        models.promote(SHARED, version)
    shutil.rmtree(models.source(second))
    assert models.rollback(SHARED) == first


def test_what_is_damaged_is_never_put_in_use(
    models: ModelRegistry, make_weights: MakeWeights
) -> None:
    (version,) = add(models, make_weights, 1)
    (Path(models.source(version)) / "f.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError):
        models.promote(SHARED, version)
    assert models.pointer(SHARED).version == BASE


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".part-x", "base", "nowhere", "\x00"])
def test_names_lead_nowhere_else(models: ModelRegistry, name: str) -> None:
    if name != BASE:
        with pytest.raises(UnknownVersionError):
            models.promote(SHARED, name)
    with pytest.raises(UnknownVersionError):
        models._folder(name) if name != "nowhere" else models.source(name)


def test_channels_are_apart(models: ModelRegistry, make_weights: MakeWeights) -> None:
    first, second = add(models, make_weights, 1, 2)
    own = channel_of("7.1795328789")
    assert own == "project-7.1795328789"
    models.promote(SHARED, first)
    models.promote(own, second)
    assert models.channels() == [own, SHARED]
    assert {e.version: e.in_use for e in models.versions()} == {first: (SHARED,), second: (own,)}
    odd = channel_of("../../etc")
    models.promote(odd, first)
    assert odd in models.channels()
    assert channel_of("x") != channel_of("y")


def test_the_last_versions_are_kept(models: ModelRegistry, make_weights: MakeWeights) -> None:
    names = add(models, make_weights, 1, 2, 3, 4, 5, 6, 7)
    # In use, the one before it, pinned and protected ones stay besides the last two.
    models.promote(SHARED, names[0])
    models.promote(SHARED, names[1])
    models.pin(names[2])
    assert models.prune(protected=[names[3]]) == [names[4]]
    assert {entry.version for entry in models.versions()} == {*names} - {names[4]}
    models.unpin(names[2])
    assert models.prune() == [names[3], names[2]]


def test_a_copy_of_the_state_knows_which_versions_are_old(
    models: ModelRegistry, make_weights: MakeWeights, tmp_path: Path
) -> None:
    names = add(models, make_weights, 1, 2, 3, 4)
    added = {entry.version: entry.added for entry in models.versions()}
    # As from an archive: everything is new, and in another order.
    copied = ModelRegistry(tmp_path / "copy", base=models.base, keep=2)
    for name in reversed(names):
        shutil.copytree(models.source(name), tmp_path / "copy" / "models" / name)
        (tmp_path / "copy" / "models" / name).touch()
    assert {entry.version: entry.added for entry in copied.versions()} == added
    assert set(copied.prune()) == {*names[:2]}


def test_what_a_crash_left_behind_is_no_version(
    models: ModelRegistry, make_weights: MakeWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (version,) = add(models, make_weights, 1)
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "copyfile", full)
        with pytest.raises(StorageError, match="No space left"):
            models.add(make_weights(2), {})
    left = Path(models.source(version)).parent / ".part-left"
    left.mkdir()
    assert [entry.version for entry in models.versions()] == [version]
    models.prune()
    assert not left.exists()
    assert models.add(make_weights(2), {}) != version


def test_a_pointer_that_cannot_be_written_stays_as_it_was(
    models: ModelRegistry, make_weights: MakeWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = add(models, make_weights, 1, 2)
    models.promote(SHARED, first)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(StorageError):
            models.promote(SHARED, second)
    assert models.pointer(SHARED).version == first
    assert models.promote(SHARED, second)


def test_readers_see_the_old_or_the_new_and_nothing_between(
    models: ModelRegistry, make_weights: MakeWeights
) -> None:
    versions = set(add(models, make_weights, 1, 2))
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(models.pointer(SHARED).version)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(10):
            for version in versions:
                models.promote(SHARED, version)
    finally:
        done.set()
        reader.join()
    assert seen <= versions | {BASE}


def test_a_pointer_of_nonsense_is_told(models: ModelRegistry, tmp_path: Path) -> None:
    path = tmp_path / "state" / "channels" / "shared.json"
    path.parent.mkdir(parents=True)
    for content in ("[]", "{", '{"version": "x"}'):
        path.write_text(content)
        with pytest.raises(StorageError):
            models.pointer(SHARED)
    assert registry.BASE == "base"
