"""The steps of the Dockerfile by hand, where no engine is: in an empty folder, and then run.

Takes minutes and gigabytes. `LIDIV_REHEARSAL` names a folder to keep what was installed in; what is
there already is not installed again.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.deploy.test_image import ROOT, instructions

#: Folders of the image that the steps write to; they are moved under a folder of the test's.
_MOVED = re.compile(r"(?<![\w/])/(opt/venv|opt/lidiv|build|var/lib/lidiv)(?=[/\s:\"']|$)")
#: Who the image runs as.
_USER = "10001"
DRIVER = Path(__file__).with_name("image_driver.py")

pytestmark = pytest.mark.soak


@dataclass
class Image:
    """What the steps have made: files under a folder, and the last stage's environment."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)

    def moved(self, text: str) -> str:
        return _MOVED.sub(lambda found: f"{self.root}{found[0]}", text)


def perform(image: Image) -> None:
    """Do what the Dockerfile says, but for users, which would stay on this machine."""
    arguments: dict[str, str] = {}
    environments: dict[str, dict[str, str]] = {}
    stage, folder = "", image.root
    for name, rest in instructions():
        if name == "FROM":
            words = rest.split()
            stage = words[2] if len(words) > 2 else words[0]
            environments[stage] = dict(environments.get(words[0], {}))
            folder = image.root / "build" if words[0] in environments else image.root
        elif name == "ARG":
            key, _, value = rest.partition("=")
            arguments[key] = value.strip('"')
        elif name == "ENV":
            for word in shlex.split(rest):
                key, value = word.split("=", 1)
                known = arguments | _outside() | environments[stage]
                value = re.sub(r"\$\{?(\w+)\}?", lambda f: known.get(f[1], ""), value)  # noqa: B023
                environments[stage][key] = image.moved(value)
        elif name == "WORKDIR":
            folder = Path(image.moved(rest))
            folder.mkdir(parents=True, exist_ok=True)
        elif name == "COPY" and "--from" not in rest:
            *sources, target = rest.split()
            for source in sources:
                _copy(ROOT / source, folder / image.moved(target))
        elif name == "RUN":
            if "useradd" in rest:
                (image.root / "var/lib/lidiv").mkdir(parents=True, exist_ok=True, mode=0o700)
                continue
            subprocess.run(
                ["bash", "-euc", image.moved(rest)],
                cwd=folder,
                env=_outside() | arguments | environments[stage],
                check=True,
            )
        elif name == "CMD":
            image.command = list(json.loads(rest))
    image.environment = environments[stage]


def _outside() -> dict[str, str]:
    """What an engine would give: a path, and the way to the package index."""
    given = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("PIP_", "SSL_", "REQUESTS_")) or name.lower().endswith("_proxy")
    }
    base = Path(sys.base_prefix) / "bin"
    return given | {"PATH": f"{base}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent"}


def _copy(source: Path, target: Path) -> None:
    """Copy what git knows, which `.dockerignore` leaves of it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", str(source)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        inside = path.relative_to(source) if source.is_dir() else Path(path.name)
        place = target / inside
        if path.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def _reachable(base: Path) -> str:
    """Have the image's user reach the interpreter, as in the image, also where it is in a home."""
    hidden = [folder for folder in base.parents if not folder.stat().st_mode & 0o001]
    if not hidden:
        return ""
    return f"""
        mkdir /tmp/python
        mount --bind {base} /tmp/python
        mount -t tmpfs -o mode=0755 tmpfs {hidden[-1]}
        mkdir -p {base}
        mount --move /tmp/python {base}
        rmdir /tmp/python
    """


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    if os.geteuid() != 0:
        pytest.skip("only root may take the network away and become another user")
    kept = os.environ.get("LIDIV_REHEARSAL")
    # Not below /tmp, which the image has as a file system of its own.
    root = Path(kept or tempfile.mkdtemp(prefix="lidiv-image-", dir="/var/tmp"))
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o755)
    try:
        made = Image(root)
        perform(made)
        yield made
    finally:
        if not kept:
            shutil.rmtree(root, ignore_errors=True)


def test_what_the_steps_make_answers_without_any_network(image: Image) -> None:
    """As the user of the image, with a read-only root and no network but the loopback."""
    state = Path(image.environment["LIDIV_STATE"])
    shutil.chown(state, int(_USER), int(_USER))
    driver = image.root / "image_driver.py"
    shutil.copyfile(DRIVER, driver)
    isolated = f"""
        mount --make-rprivate /
        ip link set lo up
        mount -t tmpfs -o mode=1777 tmpfs /tmp
        {_reachable(Path(os.path.realpath(image.root / "opt/venv/bin/python")).parents[1])}
        mount --bind {state} {state}
        mount -o remount,bind,ro /
        cd {state}
        exec setpriv --reuid {_USER} --regid {_USER} --clear-groups --no-new-privs \
          --bounding-set=-all "$@"
    """
    told = subprocess.run(
        [
            *("unshare", "--net", "--mount", "bash", "-euc", isolated, "bash"),
            *(str(image.root / "opt/venv/bin/python"), str(driver), *image.command),
        ],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp"} | image.environment,  # noqa: S108
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr[-4000:]
    found = json.loads(told.stdout.splitlines()[-1])
    assert found["user"] == int(_USER)
    assert found["network"] is False
    assert found["read_only"] is True
    assert found["ready"]["status"] == "READY"
    assert found["health"][0] == 200
    assert found["click"] == 200
    assert found["rle"] > 50
    assert found["stopped"] == 0
    assert "Traceback" not in told.stderr


def test_nothing_that_compiles_was_left_behind(image: Image) -> None:
    """Wheels alone were installed, and no secrets or tests were copied."""
    packages = image.root / "opt/venv/lib"
    assert not list(packages.rglob("lidiv_backend/**/test_*.py"))
    assert list(packages.rglob("lidiv_backend/learning/migrations/versions/0001*.py"))
    for name in ("gcc", "cc", "c++", "make"):
        assert not (image.root / "opt/venv/bin" / name).exists()
