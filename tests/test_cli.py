import pytest

from lidiv_backend import cli
from lidiv_backend.segment import parse_click


def test_help_imports_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])

    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in cli.COMMANDS)


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])

    assert stopped.value.code == 0
    assert f"lidiv {command}" in capsys.readouterr().out


def test_an_error_is_told_with_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["segment", "missing.jpg", "--click", "nonsense"]) == 1

    told = capsys.readouterr().err
    assert "'nonsense' is not two numbers" in told
    assert "--click 120,80" in told


def test_a_negative_click_is_no_option() -> None:
    words = cli._join_negative(["segment", "a.jpg", "--click", "-200,90", "--out", "b.png"])

    assert words == ["segment", "a.jpg", "--click=-200,90", "--out", "b.png"]
    assert parse_click("-200,90").positive is False
