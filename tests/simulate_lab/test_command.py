from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import pytest

from lidiv_backend.cli import main
from lidiv_backend.errors import BadRequestError
from lidiv_backend.simulate_lab import command
from lidiv_backend.simulate_lab.day import read_day
from tests import tiny

ROOT = Path(__file__).parents[2]
LABEL_STUDIO = ROOT / ".venv-labelstudio"


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["--data", "folder:/somewhere/nuclei", *words])


def test_a_folder_holds_one_day(tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    command._begin(folder, arguments())
    (folder / "work.json").write_text("{}")
    command._begin(folder, arguments("--minutes", "5"))
    assert (folder / "work.json").exists()
    with pytest.raises(BadRequestError, match="holds another day"):
        command._begin(folder, arguments("--poison"))
    command._begin(folder, arguments("--poison", "--again"))
    assert not (folder / "work.json").exists()


def test_the_command_is_told_without_anybodys_folders() -> None:
    assert command._words(arguments("--poison")) == (
        "lidiv simulate-lab --data folder:nuclei --poison"
    )
    assert command._words(arguments("--held-back", "20", "--folder", "/home/me/lab")) == (
        "lidiv simulate-lab --data folder:nuclei --held-back 20"
    )
    assert command._words(arguments("--data", "textures")) == "lidiv simulate-lab --data textures"


def test_each_kind_of_day_has_its_section() -> None:
    assert command._section(arguments()) == "simulated lab"
    assert command._section(arguments("--poison")) == "poisoned lab"
    assert command._section(arguments("--data", "textures")) == "simulated textures"


def test_without_label_studio_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["simulate-lab", "--data", "folder:x", "--label-studio-environment", str(tmp_path)]
    assert main(words) == 1
    assert "lidiv demo --prepare" in capsys.readouterr().err


def painted_folder(folder: Path, count: int) -> None:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    images = tiny.PaintedSet(length=count)
    for number in range(count):
        image = images[number]
        labels = np.zeros(image.rgb.shape[:2], np.uint16)
        for value, item in enumerate(image.objects, start=1):
            labels[item.mask] = value
        name = f"{number:02d}.png"
        cv2.imwrite(str(folder / "images" / name), image.rgb[..., ::-1])
        cv2.imwrite(str(folder / "masks" / name), labels)


@pytest.mark.soak
@pytest.mark.parametrize("poison", [False, True])
def test_a_day_with_a_real_label_studio(tmp_path: Path, poison: bool) -> None:
    """Clicks, webhooks, a run that starts by itself, a verdict, and numbers."""
    if not (LABEL_STUDIO / "bin" / "label-studio").exists():
        pytest.skip(f"Label Studio is not in {LABEL_STUDIO}: run `make test-browser`.")
    painted_folder(tmp_path / "data", 12)
    tiny.saved(tmp_path / "weights")
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(2)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = [str(probe.getsockname()[1]) for probe in probes]
    words = [
        *(sys.executable, "-m", "lidiv_backend.cli", "simulate-lab", "--quick"),
        *("--data", f"folder:{tmp_path / 'data'}", "--folder", str(tmp_path / "lab")),
        *("--label-studio-environment", str(LABEL_STUDIO)),
        *("--port-label-studio", ports[0], "--port-backend", ports[1]),
        *(["--poison"] if poison else ["--picture", str(tmp_path / "picture.png")]),
    ]
    environment = {**os.environ, "LIDIV_PRESET": str(tmp_path / "weights")}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    day = read_day(tmp_path / "lab" / "day.json")
    assert (day.images, day.objects, day.cause) == (6, 12, "annotations")
    assert day.message
    assert (day.clicks > 0) == (not poison)
    assert (tmp_path / "picture.png").exists() == (not poison)
