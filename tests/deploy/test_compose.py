from __future__ import annotations

import importlib.resources
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from lidiv_backend.server.settings import Settings
from tests.deploy.known import known_variables

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = ("compose.yaml", "compose.scale.yaml")
#: Services that run our image.
OURS = ("backend", "backend-2", "worker")


def load(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / name).read_text()))


def with_defaults(value: str) -> str:
    """What Compose makes of a value where nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


@pytest.mark.parametrize("name", FILES)
def test_the_file_follows_the_published_schema(name: str) -> None:
    package = importlib.resources.files("check_jsonschema")
    schema = package / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.Draft7Validator(json.loads(schema.read_text())).validate(load(name))


@pytest.mark.parametrize("name", FILES)
def test_only_variables_that_are_read_are_set(name: str) -> None:
    ours = {
        variable
        for service, about in load(name)["services"].items()
        for variable in about.get("environment", {})
        if service in OURS or variable.startswith("LIDIV_")
    }
    assert ours
    assert ours <= known_variables()
    # What may be set from outside is named as what it becomes.
    asked = set(re.findall(r"\$\{(LIDIV_\w+)", (DEPLOY / name).read_text()))
    assert asked <= known_variables()


@pytest.mark.parametrize("service", ["backend", "backend-2"])
def test_the_defaults_are_settings_that_the_server_takes(
    service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment = dict(load(FILES[0])["services"]["backend"]["environment"])
    if service == "backend-2":
        environment |= load(FILES[1])["services"][service]["environment"]
    secrets = make_secrets(tmp_path)
    for name, value in environment.items():
        value = with_defaults(value).replace("/run/secrets", str(secrets))
        monkeypatch.setenv(name, value)
    settings = Settings.from_environment()
    assert settings.label_studio_url == "http://label-studio:8080"
    assert len(settings.webhook_secret.get_secret_value()) == 40
    assert settings.database.startswith("postgresql" if service == "backend-2" else "sqlite")


def make_secrets(folder: Path) -> Path:
    shutil.copy(DEPLOY / "make-secrets.sh", folder)
    subprocess.run([folder / "make-secrets.sh"], check=True, stdout=subprocess.DEVNULL)
    return folder / "secrets"


def test_secrets_are_made_once_and_are_those_that_the_files_name(tmp_path: Path) -> None:
    secrets = make_secrets(tmp_path)
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    make_secrets(tmp_path)
    assert {path.name: path.read_text() for path in secrets.iterdir()} == before
    assert secrets.stat().st_mode & 0o077 == 0
    assert before["database_password"] in before["database_url"]
    declared = {
        Path(about["file"]).name for name in FILES for about in load(name)["secrets"].values()
    }
    assert declared == set(before)
    used = {
        secret
        for name in FILES
        for about in load(name)["services"].values()
        for secret in about.get("secrets", [])
    }
    assert used == declared


def test_no_secret_is_written_into_a_file() -> None:
    for name in FILES:
        for about in load(name)["services"].values():
            for variable, value in about.get("environment", {}).items():
                if re.search("PASSWORD|TOKEN|SECRET|DATABASE_URL", variable):
                    assert variable.endswith("_FILE"), variable
                    assert value.startswith("/run/secrets/")


def test_what_must_last_is_in_named_volumes() -> None:
    for name in FILES:
        content = load(name)
        for about in content["services"].values():
            for volume in about.get("volumes", []):
                assert volume.partition(":")[0] in content["volumes"]
    assert "state:/var/lib/lidiv" in load(FILES[0])["services"]["backend"]["volumes"]


def test_nothing_is_published_beyond_this_machine_unless_asked() -> None:
    for name in FILES:
        for about in load(name)["services"].values():
            for port in about.get("ports", []):
                assert with_defaults(port).startswith("127.0.0.1:")


def test_the_backend_runs_with_little_rights() -> None:
    backend = load(FILES[0])["services"]["backend"]
    assert backend["read_only"] is True
    assert backend["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in backend["security_opt"]
    assert "privileged" not in backend


def test_label_studio_accepts_a_backend_at_a_private_address() -> None:
    environment = load(FILES[0])["services"]["label-studio"]["environment"]
    assert environment["ML_BLOCK_LOCAL_IP"] == "false"
    assert environment["SSRF_PROTECTION_ENABLED"] == "false"
