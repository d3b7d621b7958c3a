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

from lidiv_backend.learning.settings import LearningSettings
from lidiv_backend.server.settings import Settings
from tests.deploy.known import known_variables

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = ("compose.yaml", "compose.scale.yaml")
#: Services that run our image.
OURS = ("backend", "backend-2", "worker")


class ComposeLoader(yaml.SafeLoader):
    """Knows Compose's tag for a list of which an earlier file's entries are taken back."""


def nothing(_: ComposeLoader, __: yaml.Node) -> list[Any]:
    return []


ComposeLoader.add_constructor("!reset", nothing)


def load(name: str) -> dict[str, Any]:
    return dict(yaml.load((DEPLOY / name).read_text(), ComposeLoader))  # noqa: S506


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


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("service", OURS)
def test_the_defaults_are_settings_that_the_server_and_the_worker_take(
    service: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = load(FILES[0])["services"]
    environment = dict(first.get(service, first["backend"])["environment"])
    if name == FILES[1]:
        environment |= load(FILES[1])["services"][service]["environment"]
    secrets = make_secrets(tmp_path)
    for variable, value in environment.items():
        if value is not None:  # passed on where it is set outside
            value = with_defaults(value).replace("/run/secrets", str(secrets))
            monkeypatch.setenv(variable, value)
    settings = Settings.from_environment()
    assert settings.label_studio_url == "http://label-studio:8080"
    if service != "worker":  # which gets no webhooks
        assert len(settings.webhook_secret.get_secret_value()) == 40
        assert settings.basic_auth_user == "label-studio"
        assert len(settings.basic_auth_password.get_secret_value()) == 40
    assert settings.database.startswith("postgresql" if name == FILES[1] else "sqlite")
    # A service of its own learns.
    assert LearningSettings.from_environment().worker is False


@pytest.mark.parametrize("name", FILES)
def test_server_and_worker_agree_on_every_setting_of_learning(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(FILES[0])["services"]
    services = OURS if name == FILES[1] else ("backend", "worker")
    environments = {
        service: dict(first.get(service, first["backend"])["environment"])
        | (load(name)["services"][service]["environment"] if name == FILES[1] else {})
        for service in services
    }
    for field, about in LearningSettings.model_fields.items():
        if field == "worker":  # is what they differ in
            continue
        variable = str(about.validation_alias or f"LIDIV_LEARN_{field.upper()}")
        # Taken from outside, or passed on where there is no fixed default.
        (value,) = {environment[variable] for environment in environments.values()}
        assert value is None or re.fullmatch(rf"\$\{{{variable}:-[^{{}}]*\}}", value), variable
    own = LearningSettings.from_environment()
    for variable, value in environments["worker"].items():
        if value is not None and re.match("LIDIV_(LEARN|BASE)_", variable):
            monkeypatch.setenv(variable, with_defaults(value))
    # The defaults of the program.
    assert LearningSettings.from_environment() == own


@pytest.mark.parametrize("variable", ["LIDIV_CA_BUNDLE", "LIDIV_IMAGE_SECONDS"])
def test_server_and_worker_fetch_images_alike(variable: str) -> None:
    services = load(FILES[0])["services"]
    (value,) = {services[service]["environment"][variable] for service in ("backend", "worker")}
    assert value.startswith(f"${{{variable}:-")


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


def test_what_operators_must_set_can_be_set() -> None:
    listed = (DEPLOY.parent / "SECURITY.md").read_text().partition("## What operators must set")[2]
    wanted = set(re.findall(r"`(LIDIV_\w+?)(?:=\w+)?`", listed.partition("\n## ")[0]))
    assert {"LIDIV_BASIC_AUTH_USER", "LIDIV_PROXIES"} <= wanted
    environment = load(FILES[0])["services"]["backend"]["environment"]
    for variable in wanted:
        from_outside = environment.get(variable, "").startswith(f"${{{variable}:-")
        assert from_outside or f"{variable}_FILE" in environment, variable
    # With replicas the balancer is told of further proxies, too.
    services = load(FILES[1])["services"]
    for service in ("backend", "backend-2", "balancer"):
        assert services[service]["environment"]["LIDIV_PROXIES"] == "${LIDIV_PROXIES:-1}"


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


@pytest.mark.parametrize("service", ["backend", "worker"])
def test_our_services_run_with_little_rights(service: str) -> None:
    about = load(FILES[0])["services"][service]
    assert about["read_only"] is True
    assert about["user"] == "10001:10001"
    assert about["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in about["security_opt"]
    assert about["mem_limit"]
    assert about["pids_limit"]
    assert "privileged" not in about
    # What is changed on top takes nothing of it back.
    changed = load(FILES[1])["services"][service]
    assert not {"read_only", "user", "cap_drop", "cap_add", "security_opt"} & set(changed)


def test_the_second_replica_is_like_the_first_and_hidden_behind_the_balancer() -> None:
    services = load(FILES[1])["services"]
    assert services["backend-2"]["extends"] == {"file": FILES[0], "service": "backend"}
    assert services["backend-2"]["environment"] == services["backend"]["environment"]
    # Where the page of one replica was is that of both.
    (port,) = load(FILES[0])["services"]["backend"]["ports"]
    assert services["balancer"]["ports"] == [port.replace("}:9090", "}:8080")]
    assert services["backend"]["ports"] == services["backend-2"]["ports"] == []
    assert services["balancer"]["read_only"] is True
    assert services["balancer"]["cap_drop"] == ["ALL"]


def test_the_worker_learns_alone_and_is_asked_for_no_health() -> None:
    worker = load(FILES[0])["services"]["worker"]
    assert worker["command"] == ["lidiv", "worker"]
    assert worker["healthcheck"] == {"disable": True}
    assert "ports" not in worker
    assert "networks" not in worker


def test_label_studio_accepts_a_backend_at_a_private_address() -> None:
    environment = load(FILES[0])["services"]["label-studio"]["environment"]
    assert environment["ML_BLOCK_LOCAL_IP"] == "false"
    assert environment["SSRF_PROTECTION_ENABLED"] == "false"
