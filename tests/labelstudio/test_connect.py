from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from label_studio_sdk.label_interface import LabelInterface

from lidiv_backend.labelstudio.connect import (
    SECRET_HEADER,
    ConnectError,
    Connection,
    Wish,
    connect,
    label_config_problem,
    open_client,
    recommended_label_config,
)
from tests.image_host import Answer, image_host, self_signed
from tests.labelstudio.fake_label_studio import TOKEN, URL, FakeLabelStudio

BACKEND = "http://backend.test:9090"
UNFIT = '<View><Image name="i" value="$image"/><Choices name="c" toName="i"/></View>'


def join(fake: FakeLabelStudio, *, token: str = TOKEN, **wish: Any) -> Connection:
    wish = {"backend_url": BACKEND, "webhook_secret": "s3cret"} | wish
    return connect(open_client(URL, token, transport=fake), Wish(**wish), url=URL)


def only(table: dict[int, dict[str, Any]]) -> dict[str, Any]:
    (row,) = table.values()
    return row


def test_connects_a_new_project() -> None:
    fake = FakeLabelStudio()
    done = join(fake, title="Cells")
    assert only(fake.projects)["title"] == done.project_title == "Cells"
    assert label_config_problem(only(fake.projects)["label_config"]) == ""
    backend = only(fake.backends)
    assert backend["is_interactive"] is True
    assert backend["url"] == BACKEND
    webhook = only(fake.webhooks)
    assert webhook["url"] == f"{BACKEND}/webhook"
    assert webhook["headers"] == {SECRET_HEADER: "s3cret"}
    assert webhook["send_for_all_actions"] is False
    assert "ANNOTATIONS_DELETED" in webhook["actions"]
    assert done.model_version == "model-1"


def test_second_time_writes_nothing() -> None:
    fake = FakeLabelStudio()
    join(fake)
    fake.writes.clear()
    done = join(fake, backend_url=BACKEND + "/")
    assert fake.writes == []
    assert done.changes == ()


def test_automatic_webhook_is_replaced_and_backend_made_interactive() -> None:
    fake = FakeLabelStudio()
    project = fake.add_project(label_config=recommended_label_config())
    fake.add_backend(project, BACKEND + "/")
    fake.add_webhook(project, BACKEND + "/webhook")
    join(fake)
    assert only(fake.webhooks)["headers"] == {SECRET_HEADER: "s3cret"}
    assert only(fake.backends)["is_interactive"] is True


def test_without_a_secret_the_one_that_is_there_stays() -> None:
    fake = FakeLabelStudio()
    join(fake)
    assert join(fake, webhook_secret="").changes == ()
    assert only(fake.webhooks)["headers"] == {SECRET_HEADER: "s3cret"}


@pytest.mark.parametrize("address", ["http://lidiv:9090", "lidiv:9090"])
def test_address_that_gets_no_webhooks(address: str) -> None:
    # Label Studio would connect such a backend, and not say that it is deaf.
    fake = FakeLabelStudio()
    with pytest.raises(ConnectError, match="a name with a dot"):
        join(fake, backend_url=address)
    assert fake.backends == {}


def test_doubles_are_removed() -> None:
    fake = FakeLabelStudio()
    project = fake.add_project(label_config=recommended_label_config())
    for _ in range(2):
        fake.add_backend(project, BACKEND, is_interactive=True)
        fake.add_webhook(project, BACKEND + "/webhook")
    join(fake)
    assert len(fake.backends) == len(fake.webhooks) == 1


def test_other_backends_and_webhooks_are_left_alone() -> None:
    fake = FakeLabelStudio()
    project = fake.add_project(label_config=recommended_label_config())
    fake.add_backend(project, "http://other.test")
    fake.add_webhook(project, "http://other.test/webhook")
    join(fake)
    assert len(fake.backends) == len(fake.webhooks) == 2


def test_basic_auth_is_sent() -> None:
    fake = FakeLabelStudio()
    join(fake, basic_auth=("u", "p"))
    backend = only(fake.backends)
    assert backend["auth_method"] == "BASIC_AUTH"
    assert (backend["basic_auth_user"], backend["basic_auth_pass"]) == ("u", "p")


@pytest.mark.parametrize("blocks_backends", [True, False])
def test_private_address_names_both_variables_and_leaves_nothing(blocks_backends: bool) -> None:
    fake = FakeLabelStudio(blocks_backends=blocks_backends, blocks_webhooks=True)
    with pytest.raises(ConnectError) as refused:
        join(fake)
    assert "ML_BLOCK_LOCAL_IP=false" in refused.value.remedy
    assert "SSRF_PROTECTION_ENABLED=false" in refused.value.remedy
    assert fake.backends == fake.webhooks == {}


def test_private_address_with_webhooks_allowed_leaves_nothing() -> None:
    fake = FakeLabelStudio(blocks_backends=True)
    with pytest.raises(ConnectError, match="reserved network address"):
        join(fake)
    assert fake.backends == fake.webhooks == {}


def test_half_connected_backend_of_an_earlier_attempt_is_removed() -> None:
    fake = FakeLabelStudio(blocks_webhooks=True)
    project = fake.add_project(label_config=recommended_label_config())
    fake.add_backend(project, BACKEND)
    other = fake.add_backend(project, "http://other.test")
    with pytest.raises(ConnectError, match="heard of no annotation, and was removed"):
        join(fake)
    assert list(fake.backends) == [other]


class Stumbling(FakeLabelStudio):
    """Makes no webhooks at the moment, whatever their address."""

    status = 500

    def _create_webhooks(self, body: dict[str, Any]) -> httpx.Response:
        return httpx.Response(self.status, json={"detail": "Not now."})


@pytest.mark.parametrize("status", [403, 500])
def test_a_failure_that_may_pass_removes_no_backend(status: int) -> None:
    fake = Stumbling()
    fake.status = status
    project = fake.add_project(label_config=recommended_label_config())
    backend = fake.add_backend(project, BACKEND)
    with pytest.raises(ConnectError, match="Not now") as failed:
        join(fake)
    assert list(fake.backends) == [backend]
    assert "removed" not in str(failed.value)


def test_working_connection_survives_a_refusal() -> None:
    fake = FakeLabelStudio()
    join(fake)
    fake.backends.clear()
    fake.refusal = "Can't connect to ML backend, health check failed."
    with pytest.raises(ConnectError):
        join(fake)
    assert len(fake.webhooks) == 1


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (
            "Able to connect to ML Server, but authentication parameters were either not provided "
            "or are incorrect.",
            "--basic-auth",
        ),
        (
            "Can't connect to ML backend x, health check failed. "
            '<a href="https://labelstud.io/guide/ml.html">Learn more</a> about it.',
            "lidiv serve",
        ),
        (
            "Successfully connected to x but it doesn't look like a valid ML backend. "
            "Reason: 500 Server Error.",
            "500 Server Error",
        ),
    ],
)
def test_refused_backend_says_why_and_leaves_nothing(refusal: str, words: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        fake = FakeLabelStudio(refusal=refusal)
        with pytest.raises(ConnectError) as refused:
            join(fake, backend_url=address)
    assert words in str(refused.value)
    assert "<a" not in str(refused.value)
    assert fake.backends == fake.webhooks == {}


def test_label_config_that_does_not_fit_is_kept_unless_asked() -> None:
    fake = FakeLabelStudio()
    project = fake.add_project(label_config=UNFIT)
    with pytest.raises(ConnectError, match="--replace-label-config"):
        join(fake)
    assert fake.writes == []
    join(fake, project_id=project, replace_label_config=True)
    assert label_config_problem(fake.projects[project]["label_config"]) == ""


def test_titles_must_match_exactly_and_be_unique() -> None:
    fake = FakeLabelStudio()
    fake.add_project(title="Cells, old")
    first = join(fake, title="Cells").project_id
    assert join(fake, title="Cells").project_id == first
    fake.add_project(title="Cells")
    with pytest.raises(ConnectError, match="--project"):
        join(fake, title="Cells")


def test_unknown_project() -> None:
    with pytest.raises(ConnectError, match="no such project"):
        join(FakeLabelStudio(), project_id=7)


def test_wrong_token_names_both_kinds() -> None:
    with pytest.raises(ConnectError, match=r"personal access token.*legacy token"):
        join(FakeLabelStudio(), token="f" * 40)


def test_no_label_studio_at_the_address() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    client = open_client(URL, TOKEN, transport=httpx.MockTransport(refuse))
    with pytest.raises(ConnectError, match="No Label Studio answers"):
        connect(client, Wish(backend_url=BACKEND), url=URL)


def test_certificates_of_its_own(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    with image_host(certificate=certificate) as host:
        host.routes["/api/current-user/whoami"] = Answer(body=b'{"id": 5}')
        assert open_client(host.url, TOKEN, ca_bundle=certificate).users.whoami().id == 5
        with pytest.raises(ConnectError, match=r"is not trusted.*LIDIV_CA_BUNDLE"):
            connect(open_client(host.url, TOKEN), Wish(backend_url=BACKEND), url=host.url)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConnectError, match=r"ca\.pem cannot be read.*LIDIV_CA_BUNDLE"):
        open_client(URL, TOKEN, ca_bundle=path)


def test_something_else_at_the_address() -> None:
    page = httpx.MockTransport(lambda _: httpx.Response(404, text="<html>nginx</html>"))
    with pytest.raises(ConnectError, match="not Label Studio's API"):
        connect(open_client(URL, TOKEN, transport=page), Wish(backend_url=BACKEND), url=URL)


def test_recommended_label_config_escapes_labels() -> None:
    labels = ["Object", 'a "quoted" <b> & c']
    config = recommended_label_config(labels)
    (control,) = (tag for tag in LabelInterface(config).controls if tag.tag == "Labels")
    assert list(control.labels) == labels
    assert label_config_problem(config) == ""


SMART = '<KeyPointLabels name="k" toName="i" smart="true">'
HIDDEN = '<KeyPointLabels name="k" toName="i" smart="true" smartOnly="true">'
DULL = '<KeyPointLabels name="k" toName="i">'
LABELS = '<Label value="O"/></KeyPointLabels>'
BRUSH = '<BrushLabels name="b" toName="i"><Label value="O"/></BrushLabels>'
IMAGE = '<Image name="i" value="$image"/>'


@pytest.mark.parametrize(
    ("inside", "word"),
    [
        (IMAGE + BRUSH + SMART + LABELS, ""),
        (IMAGE + BRUSH + HIDDEN + LABELS, "smartOnly"),
        (IMAGE + BRUSH + DULL + LABELS, "smart="),
        (IMAGE + BRUSH, "KeyPoint"),
        (IMAGE + SMART + LABELS, "Brush"),
        (IMAGE + "<", "read"),
    ],
)
def test_label_config_problem(inside: str, word: str) -> None:
    problem = label_config_problem(f"<View>{inside}</View>")
    assert bool(problem) == bool(word)
    assert word in problem
