from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from label_studio_sdk.label_interface import LabelInterface

from lidiv_backend.cli import main
from lidiv_backend.labelstudio import connect_command
from lidiv_backend.labelstudio.connect import SECRET_HEADER, open_client
from tests.image_host import Answer, image_host, self_signed
from tests.labelstudio.fake_label_studio import TOKEN, URL, FakeLabelStudio

BACKEND = "http://backend.test:9090"


def test_command_prints_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeLabelStudio()
    monkeypatch.setattr(connect_command, "open_client", partial(open_client, transport=fake))
    monkeypatch.setenv("LIDIV_LABEL_STUDIO_TOKEN", TOKEN)
    (tmp_path / "secret").write_text("s3cret\n")
    monkeypatch.setenv("LIDIV_WEBHOOK_SECRET_FILE", str(tmp_path / "secret"))
    words = ["connect", "--label-studio", URL, "--backend", BACKEND]
    assert main([*words, "--label", "Nucleus", "--label", "Cell"]) == 0
    printed = capsys.readouterr().out
    assert f"{URL}/projects/1/data" in printed
    assert "s3cret" not in printed
    assert [each["headers"] for each in fake.webhooks.values()] == [{SECRET_HEADER: "s3cret"}]
    assert "Nucleus" in fake.projects[1]["label_config"]
    assert main([*words, "--basic-auth", "nonsense"]) == 1
    assert "USER:PASSWORD" in capsys.readouterr().err
    assert main([*words, "--token-file", str(tmp_path / "none")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_command_needs_address_and_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LIDIV_LABEL_STUDIO_URL", raising=False)
    monkeypatch.delenv("LIDIV_LABEL_STUDIO_TOKEN", raising=False)
    assert main(["connect", "--backend", BACKEND]) == 1
    assert "--token-file" in capsys.readouterr().err


def test_certificates_of_label_studios_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = self_signed(tmp_path)
    monkeypatch.setenv("LIDIV_CA_BUNDLE", str(certificate))
    with image_host(certificate=certificate) as host:
        host.routes["/api/current-user/whoami"] = Answer(401, b'{"detail": "Invalid token."}')
        words = ["connect", "--label-studio", host.url, "--backend", BACKEND, "--token", TOKEN]
        assert main(words) == 1
    assert "does not accept the token" in capsys.readouterr().err


def test_what_a_project_asks_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeLabelStudio()
    monkeypatch.setattr(connect_command, "open_client", partial(open_client, transport=fake))
    words = ["connect", "--label-studio", URL, "--backend", BACKEND, "--token", TOKEN]
    assert main([*words, "--label", "Cell", "--rectangles", "--overlay"]) == 0
    (backend,) = fake.backends.values()
    helpers = ["alternative 2", "alternative 3", "alternative 4"]
    assert backend["extra_params"] == {"rectangles": True, "overlay": helpers}
    interface = LabelInterface(fake.projects[1]["label_config"])
    assert interface.get_control("label").labels == ["Cell", *helpers]
    assert interface.get_control("box").attr["smart"] == "true"
    # Without these options what is there stays, and the same ones change nothing.
    fake.writes.clear()
    assert main(words) == main([*words, "--rectangles", "--overlay"]) == 0
    assert fake.writes == []
    assert main([*words, "--overlay", "Second", "--refine-accepted"]) == 0
    assert backend["extra_params"] == {"refine_accepted": True, "overlay": ["Second"]}
    assert main([*words, "--no-options", "--rectangles"]) == 1
    assert "contradicts" in capsys.readouterr().err
    assert main([*words, "--no-options"]) == 0
    assert backend["extra_params"] == {}
