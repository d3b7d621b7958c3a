"""The Dockerfile, as far as it can be checked without an engine."""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

from tests.deploy.known import known_variables

ROOT = Path(__file__).parents[2]


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile in order: name and arguments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def final_stage() -> list[tuple[str, str]]:
    found = instructions()
    last = max(place for place, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def environment() -> dict[str, str]:
    words = [word for name, rest in final_stage() if name == "ENV" for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def test_everything_that_is_copied_exists_and_is_in_the_context() -> None:
    allowed = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = [
        source
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in allowed), source


def test_the_final_stage_is_not_root_and_installs_nothing() -> None:
    stage = final_stage()
    users = [rest for name, rest in stage if name == "USER"]
    assert users == ["10001:10001"]
    # Whatever needs a package manager or the network happened in a stage that is left behind.
    for name, rest in stage:
        assert name != "ADD"
        if name == "RUN":
            assert not re.search(r"\b(apt-get|pip|curl|wget|gcc)\b", rest)


def test_the_image_sets_only_variables_that_are_read() -> None:
    ours = {name for name in environment() if name.startswith("LIDIV_")}
    assert ours >= {"LIDIV_CACHE", "LIDIV_STATE", "LIDIV_WEIGHTS"}
    assert ours <= known_variables()


def test_encoders_come_out_of_the_image_and_state_goes_into_the_volume() -> None:
    stage, values = final_stage(), environment()
    copied = {rest.split()[-1] for name, rest in stage if name == "COPY"}
    assert {values["LIDIV_CACHE"], values["LIDIV_WEIGHTS"]} <= copied
    assert ("VOLUME", values["LIDIV_STATE"]) in stage


def test_the_health_check_asks_where_the_server_listens() -> None:
    (check,) = [rest for name, rest in final_stage() if name == "HEALTHCHECK"]
    port = environment()["LIDIV_BIND"].rpartition(":")[2]
    assert f"'127.0.0.1', {port}" in check
    assert "'/health'" in check
