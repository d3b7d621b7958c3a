from __future__ import annotations

import pytest

from lidiv_backend.learning.settings import LearningSettings, LearningSettingsError


def test_thresholds_of_a_project_are_found_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIDIV_LEARN_AFTER", "30")
    monkeypatch.setenv("LIDIV_LEARN_PAUSE_MINUTES", "15")
    monkeypatch.setenv("LIDIV_LEARN_PROJECTS", '{"7": {"after": 5}, "9.1": {"pause_minutes": 0}}')
    settings = LearningSettings.from_environment()
    assert settings.thresholds("7.1795328789") == (5, 15.0)
    assert settings.thresholds("9.1") == (30, 0.0)
    assert settings.thresholds("9.2") == (30, 15.0)
    assert settings.thresholds(None) == (30, 15.0)


@pytest.mark.parametrize("wrong", ["7=5", '{"7": {"often": 1}}', '{"7": {"after": 0}}'])
def test_wrong_thresholds_are_refused(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("LIDIV_LEARN_PROJECTS", wrong)
    with pytest.raises(LearningSettingsError, match="LIDIV_LEARN_PROJECTS"):
        LearningSettings.from_environment()
