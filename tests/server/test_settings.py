from __future__ import annotations

import re
from pathlib import Path

import pytest

from lidiv_backend.server import settings as module
from lidiv_backend.server.settings import Settings, SettingsError


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = {
        "LABEL_STUDIO_URL": "http://labels.test/",
        "LABEL_STUDIO_TOKEN": "placeholder",
        "WEBHOOK_SECRET": "s3cret",
        "BASIC_AUTH_USER": "lab",
        "BASIC_AUTH_PASSWORD": "password",
        "STATE": str(tmp_path),
        "PRESET": "paper",
        "ALLOWED_IMAGE_HOSTS": "images.test, *.cdn.test:8443 ,",
        "MAX_BODY_BYTES": "1000",
        "MAX_PIXELS": "2000",
        "DEVICE": "",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"LIDIV_{name}", value)
    settings = Settings.from_environment()
    assert settings.label_studio_url == "http://labels.test"
    assert settings.label_studio_token.get_secret_value() == "placeholder"
    assert settings.allowed_image_hosts == ("images.test", "*.cdn.test:8443")
    assert (settings.max_body_bytes, settings.max_pixels) == (1000, 2000)
    assert settings.device is None
    assert settings.database == f"sqlite:///{tmp_path}/lidiv.sqlite"
    for secret in ("placeholder", "s3cret", "'password'"):
        assert secret not in repr(settings)


def test_nothing_has_to_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(module.sys, "platform", "linux")
    settings = Settings.from_environment()
    assert settings.state == tmp_path / "lidiv"
    assert settings.preset == "default"


SECRETS = pytest.mark.parametrize(
    ("variable", "field"),
    [
        ("LIDIV_LABEL_STUDIO_TOKEN", "label_studio_token"),
        ("LIDIV_WEBHOOK_SECRET", "webhook_secret"),
        ("LIDIV_BASIC_AUTH_PASSWORD", "basic_auth_password"),
        ("LIDIV_DATABASE_URL", "database_url"),
    ],
)


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A file of a secret, and what belongs to any of them."""
    monkeypatch.setenv("LIDIV_LABEL_STUDIO_URL", "http://labels.test")
    monkeypatch.setenv("LIDIV_BASIC_AUTH_USER", "lab")
    monkeypatch.setenv("LIDIV_BASIC_AUTH_PASSWORD", "other")
    (tmp_path / "secret").write_text("from-file\n")
    return str(tmp_path / "secret")


@SECRETS
def test_secrets_may_be_in_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secret: str, variable: str, field: str
) -> None:
    monkeypatch.setenv(f"{variable}_FILE", secret)
    if variable == "LIDIV_BASIC_AUTH_PASSWORD":
        with pytest.raises(SettingsError, match="both set"):
            Settings.from_environment()
        monkeypatch.delenv(variable)
    assert getattr(Settings.from_environment(), field).get_secret_value() == "from-file"
    monkeypatch.setenv(f"{variable}_FILE", str(tmp_path / "gone"))
    with pytest.raises(SettingsError, match=f"{variable}_FILE"):
        Settings.from_environment()


@SECRETS
def test_an_empty_variable_does_not_take_its_files_place(
    monkeypatch: pytest.MonkeyPatch, secret: str, variable: str, field: str
) -> None:
    monkeypatch.setenv(variable, "")
    monkeypatch.setenv(f"{variable}_FILE", secret)
    assert getattr(Settings.from_environment(), field).get_secret_value() == "from-file"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"LABEL_STUDIO_TOKEN": "very-secret"}, "needs LIDIV_LABEL_STUDIO_URL"),
        ({"LABEL_STUDIO_URL": "labels.test"}, "LIDIV_LABEL_STUDIO_URL.*http"),
        ({"BASIC_AUTH_USER": "lab"}, "go together"),
        ({"BASIC_AUTH_PASSWORD": "very-secret"}, "go together"),
        ({"MAX_PIXELS": "many"}, "LIDIV_MAX_PIXELS"),
        ({"MAX_PIXELS": "178956971"}, "LIDIV_MAX_PIXELS.*less than or equal to 178956970"),
        ({"MAX_BODY_BYTES": "0"}, "LIDIV_MAX_BODY_BYTES"),
        ({"LOG_LEVEL": "loud"}, "LIDIV_LOG_LEVEL"),
    ],
)
def test_a_wrong_setting_is_named_and_no_secret_is_shown(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], message: str
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"LIDIV_{name}", value)
    with pytest.raises(SettingsError, match=message) as caught:
        Settings.from_environment()
    assert "very-secret" not in str(caught.value)


def test_every_setting_is_described() -> None:
    described = set(re.findall(r"``LIDIV_([A-Z_]+)``", module.__doc__ or ""))
    assert described == {name.upper() for name in Settings.model_fields}
