"""Connect a project of Label Studio's: label config, backend and webhook.

Connecting by hand goes wrong in four places: Label Studio refuses private addresses, and says so
only after it has half connected the backend; the webhook that it makes by itself carries no
credentials and reports every action; the label config must pair brushes with smart key points; and
interactive preannotations are off until somebody ticks a box. Here the webhook is made first. That
runs into the same refusal, leaves nothing behind when it does, and keeps Label Studio from making
its own.
"""

from __future__ import annotations

import html
import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import requests
from label_studio_sdk import LabelStudio
from label_studio_sdk.core.api_error import ApiError
from label_studio_sdk.label_interface import LabelInterface

from lidiv_backend.errors import LidivError
from lidiv_backend.labelstudio.config import LabelConfigError, parse_label_config
from lidiv_backend.labelstudio.options import ProjectOptions

#: What the backend is called in Label Studio's settings; predictions are listed under it.
TITLE = "LiDiv"
#: Header of the webhook that carries the secret.
SECRET_HEADER = "X-LiDiv-Secret"  # noqa: S105 - the header's name
#: What the webhook reports; Label Studio would report everything.
ACTIONS = (
    "ANNOTATION_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_DELETED",
    "PROJECT_UPDATED",
    "TASKS_CREATED",
)
#: Colours of helper labels, far from the one that Label Studio gives a first label.
HELPER_COLOURS = ("#0072B2", "#009E73", "#CC79A7")
#: A new Label Studio project has this label config.
EMPTY_LABEL_CONFIGS = ("", "<View></View>", "<View/>")
# How Label Studio refuses a private address, with status 403 as if a permission were missing.
_RESERVED = "reserved network address"


class ConnectError(LidivError):
    """Label Studio refused, or what is there does not fit."""

    status = 502
    kind = "connect"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What shall be connected.

    Parameters
    ----------
    backend_url
        The backend's address as Label Studio reaches it.
    project_id
        The project; None to find it by `title`.
    title
        Title of a project that is made if there is none; not used with `project_id`.
    label_config
        XML that is written where the project has none; the recommended one if None.
    replace_label_config
        Whether a label config that does not fit may be replaced.
    basic_auth
        User and password that the backend asks for, or None.
    webhook_secret
        What the webhook carries; empty to leave alone what it carries.
    options
        What the project asks for beyond clicks; None to leave alone what it asks for.
    """

    backend_url: str
    project_id: int | None = None
    title: str = TITLE
    label_config: str | None = None
    replace_label_config: bool = False
    basic_auth: tuple[str, str] | None = None
    webhook_secret: str = ""
    options: ProjectOptions | None = None


@dataclass(frozen=True, kw_only=True)
class Connection:
    """What is connected now.

    Parameters
    ----------
    project_id, project_title
        The project.
    backend_id
        Label Studio's number of the backend.
    model_version
        What the backend said that it serves.
    webhook_id
        Label Studio's number of the webhook.
    changes
        What had to be done, one sentence each; empty when everything was in place.
    """

    project_id: int
    project_title: str
    backend_id: int
    model_version: str
    webhook_id: int
    changes: tuple[str, ...]


def recommended_label_config(
    labels: Sequence[str] = ("Object",),
    options: ProjectOptions = ProjectOptions(),  # noqa: B008 - frozen
) -> str:
    """Write a label config with one row of labels and a clean saved result.

    Parameters
    ----------
    labels
        Names of the labels, in the order in which annotators see them.
    options
        What the project asks for: rectangles need a tag, an overlay its helper labels.

    Returns
    -------
    str
        XML.
    """
    view = ElementTree.Element("View")
    row = ElementTree.SubElement(view, "Labels", name="label", toName="image")
    for label in labels:
        ElementTree.SubElement(row, "Label", value=label)
    for number, label in enumerate(options.overlay):
        colour = HELPER_COLOURS[number % len(HELPER_COLOURS)]
        ElementTree.SubElement(row, "Label", value=label, background=colour)
    ElementTree.SubElement(view, "Image", name="image", value="$image", zoom="true")
    # Without smart="false" the Auto-Detect tool offers the brush first, and the points in a menu.
    ElementTree.SubElement(view, "Brush", name="brush", toName="image", smart="false")
    smart = {"smart": "true", "smartOnly": "true"}
    ElementTree.SubElement(view, "KeyPoint", name="kp", toName="image", attrib=smart)
    if options.rectangles:
        ElementTree.SubElement(view, "Rectangle", name="box", toName="image", attrib=smart)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode")


def open_client(
    url: str,
    token: str,
    *,
    ca_bundle: str | Path | None = None,
    transport: httpx.BaseTransport | None = None,
) -> Any:
    """Make the SDK's client for a Label Studio.

    Parameters
    ----------
    url
        Address of Label Studio.
    token
        A legacy token or a personal access token; which one is told from its form.
    ca_bundle
        File of the certificates to trust; None, or empty, for the usual ones.
    transport
        For tests.

    Returns
    -------
    label_studio_sdk.LabelStudio

    Raises
    ------
    ConnectError
        If the token is an expired personal access token, or `ca_bundle` cannot be read.
    """
    with explained(url):
        return LabelStudio(
            base_url=url.rstrip("/"),
            api_key=token.strip(),
            httpx_client=httpx.Client(
                timeout=60,
                follow_redirects=True,
                verify=_trusting(ca_bundle) if ca_bundle else True,
                transport=transport,
            ),
        )


def _trusting(ca_bundle: str | Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except OSError as error:  # ssl.SSLError is one, too
        raise ConnectError(
            f"The certificates in {ca_bundle} cannot be read: {error}.",
            remedy="LIDIV_CA_BUNDLE names a file of certificates in PEM format.",
        ) from error


def connect(client: Any, wish: Wish, *, url: str) -> Connection:
    """Connect a backend to a project; does nothing where that is done already.

    Parameters
    ----------
    client
        From `open_client`.
    wish
        What shall be connected.
    url
        Address of Label Studio, for messages.

    Returns
    -------
    Connection
        What is connected, and what had to be done.

    Raises
    ------
    ConnectError
        If Label Studio does not answer, refuses the token, the backend's address or the backend,
        or if the project's label config does not fit. Nothing half connected is left behind.
    """
    changes: list[str] = []
    backend_url = wish.backend_url.rstrip("/")
    with explained(url, backend_url=backend_url):
        client.users.whoami()
        project = _ensure_project(client, wish, changes)
        _ensure_label_config(client, project, wish, changes)
        had_webhook = bool(_webhooks(client, project.id, backend_url))
        try:
            webhook_id = _ensure_webhook(client, project.id, backend_url, wish, changes)
        except ApiError as error:
            refused = error.status_code == 400 or _RESERVED in str(error.body)
            # Anything else than a refusal of the address may pass, and the backend works again.
            if had_webhook or not refused:
                raise
            if not _remove_backends(client, project.id, backend_url):
                raise
            refusal = _explanation(error, url=url, backend_url=backend_url)
            raise ConnectError(
                f"{refusal.message.rstrip('.')}. The backend that the project had at this address "
                "heard of no annotation, and was removed.",
                remedy=refusal.remedy,
            ) from error
        try:
            backend = _ensure_backend(client, project.id, backend_url, wish, changes)
        except ApiError:
            if not had_webhook:
                client.webhooks.delete(id=webhook_id)
            raise
    return Connection(
        project_id=project.id,
        project_title=project.title,
        backend_id=backend.id,
        model_version=backend.model_version or "",
        webhook_id=webhook_id,
        changes=tuple(changes),
    )


def _ensure_project(client: Any, wish: Wish, changes: list[str]) -> Any:
    if wish.project_id is not None:
        return client.projects.get(id=wish.project_id)
    # Label Studio's own search finds every title that contains this one.
    found = [each for each in client.projects.list(title=wish.title) if each.title == wish.title]
    if len(found) > 1:
        numbers = ", ".join(str(each.id) for each in found)
        raise ConnectError(
            f'Several projects have the title "{wish.title}": {numbers}.',
            remedy="Choose one with --project.",
        )
    if found:
        return client.projects.get(id=found[0].id)
    made = client.projects.create(title=wish.title, label_config=_label_config(wish))
    changes.append(f'Project {made.id} "{wish.title}" is new.')
    return client.projects.get(id=made.id)


def label_config_problem(label_config: str) -> str:
    """Say why an annotator's clicks would not become masks with a label config.

    Parameters
    ----------
    label_config
        XML.

    Returns
    -------
    str
        A sentence; empty if the label config fits.
    """
    try:
        images = parse_label_config(label_config).images
    except LabelConfigError as error:
        return error.message
    if not any(image.smart_keypoints for image in images):
        return 'None of its key points has smart="true", so that clicks ask no backend.'
    if any(
        tag.tag == "KeyPointLabels" and tag.attr.get("smartOnly") == "true"
        for tag in LabelInterface(label_config).controls
    ):
        return 'smartOnly="true" on KeyPointLabels hides its labels, so that no click works.'
    return ""


def _ensure_label_config(client: Any, project: Any, wish: Wish, changes: list[str]) -> None:
    problem = label_config_problem(project.label_config or "")
    if not problem:
        return
    is_empty = re.sub(r"\s", "", project.label_config or "") in EMPTY_LABEL_CONFIGS
    if not is_empty and not wish.replace_label_config:
        raise ConnectError(
            f"The label config of project {project.id} does not fit. {problem}",
            remedy="Change it in Label Studio (Settings, Labeling Interface), or let it be "
            "replaced with --replace-label-config. What fits:\n" + _label_config(wish),
        )
    client.projects.update(id=project.id, label_config=_label_config(wish))
    changes.append(f"Project {project.id} has a label config for clicks and masks now.")


def _label_config(wish: Wish) -> str:
    if wish.label_config is not None:
        return wish.label_config
    return recommended_label_config(options=wish.options or ProjectOptions())


def _webhooks(client: Any, project_id: int, backend_url: str) -> list[Any]:
    target = f"{backend_url}/webhook"
    return [each for each in client.webhooks.list(project=str(project_id)) if each.url == target]


def _ensure_webhook(
    client: Any, project_id: int, backend_url: str, wish: Wish, changes: list[str]
) -> int:
    wanted: dict[str, Any] = {
        "url": f"{backend_url}/webhook",
        "send_payload": True,
        "send_for_all_actions": False,
        "is_active": True,
        "actions": sorted(ACTIONS),
    }
    if wish.webhook_secret:
        wanted["headers"] = {SECRET_HEADER: wish.webhook_secret}
    found = _webhooks(client, project_id, backend_url)
    if not found:
        made = client.webhooks.create(project=project_id, **wanted)
        changes.append(f"Webhook {made.id} is new.")
        return int(made.id)
    kept, *surplus = found
    for each in surplus:
        client.webhooks.delete(id=each.id)
        changes.append(f"Webhook {each.id} said the same again and is gone.")
    present = {name: getattr(kept, name) for name in wanted}
    present["actions"] = sorted(present["actions"] or ())
    if present != wanted:
        client.webhooks.update(id=kept.id, **wanted)
        changes.append(f"Webhook {kept.id} was updated: its secret, or what it reports.")
    return int(kept.id)


def _backends(client: Any, project_id: int, backend_url: str) -> list[Any]:
    everything = client.ml.list(project=project_id)
    return [each for each in everything if each.url.rstrip("/") == backend_url]


def _remove_backends(client: Any, project_id: int, backend_url: str) -> bool:
    """Remove what an attempt by hand leaves behind; whether there was something."""
    found = _backends(client, project_id, backend_url)
    for each in found:
        client.ml.delete(id=each.id)
    return bool(found)


def _ensure_backend(
    client: Any, project_id: int, backend_url: str, wish: Wish, changes: list[str]
) -> Any:
    wanted: dict[str, Any] = {
        "project": project_id,
        "url": backend_url,
        "title": TITLE,
        "is_interactive": True,
        "auth_method": "NONE",
    }
    if wish.basic_auth is not None:
        user, password = wish.basic_auth
        wanted |= {
            "auth_method": "BASIC_AUTH",
            "basic_auth_user": user,
            "basic_auth_pass": password,
        }
    if wish.options is not None:
        wanted["extra_params"] = wish.options.as_extra_params()
    found = _backends(client, project_id, backend_url)
    if not found:
        made = client.ml.create(**wanted)
        changes.append(f"Backend {made.id} is new, with interactive preannotations.")
        return made
    kept, *surplus = found
    for each in surplus:
        client.ml.delete(id=each.id)
        changes.append(f"Backend {each.id} had the same address and is gone.")
    fits = (
        kept.is_interactive
        and kept.state == "CO"
        and wish.basic_auth is None  # a password cannot be compared, so it is always sent
        and kept.auth_method == "NONE"
        and (wish.options is None or (kept.extra_params or {}) == wanted["extra_params"])
    )
    if fits:
        return kept
    client.ml.update(id=kept.id, **wanted)
    changes.append(f"Backend {kept.id} was updated.")
    return client.ml.get(id=kept.id)


@contextmanager
def explained(url: str, *, backend_url: str = "") -> Iterator[None]:
    """Turn what goes wrong in talking to Label Studio into a `ConnectError` with a remedy."""
    try:
        yield
    except httpx.HTTPError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):  # httpx has no error of its own for that
            raise ConnectError(
                f"The certificate of {url} is not trusted: {error}.",
                remedy="If it is one of your own, set LIDIV_CA_BUNDLE to a file with the "
                "certificates to trust.",
            ) from error
        raise ConnectError(
            f"No Label Studio answers at {url}: {error}.",
            remedy="Check --label-studio; it is the address that you open in a browser.",
        ) from error
    except ApiError as error:
        raise _explanation(error, url=url, backend_url=backend_url) from error


def _explanation(error: ApiError, *, url: str, backend_url: str) -> ConnectError:
    """Turn a refusal of Label Studio's into what happened and what to do."""
    body = error.body
    if not isinstance(body, dict):
        return ConnectError(
            f"What answers at {url} is not Label Studio's API (status {error.status_code}).",
            remedy="Check --label-studio; it is the address that you open in a browser.",
        )
    detail = str(body.get("detail") or body)
    for problems in (body.get("validation_errors") or {}).values():
        detail = " ".join(html.unescape(re.sub(r"<[^>]*>", "", str(each))) for each in problems)
    if error.status_code == 401:
        return ConnectError(
            f"Label Studio does not accept the token: {detail}",
            remedy="Account & Settings in Label Studio shows both kinds: a personal access token, "
            "or a legacy token where the organization allows them.",
        )
    if _RESERVED in detail:
        return ConnectError(
            f"Label Studio refuses the backend's address {backend_url}: {detail}.",
            remedy="Start Label Studio with ML_BLOCK_LOCAL_IP=false and "
            "SSRF_PROTECTION_ENABLED=false in its environment; one alone is not enough. "
            "Nothing half connected was left behind.",
        )
    if "Enter a valid URL" in detail:
        return ConnectError(
            f"Label Studio sends no webhooks to {backend_url}: {detail}",
            remedy="It wants a name with a dot, localhost or an IP address, after http:// or "
            "https://. Where a bare name such as http://lidiv:9090 is all there is, give the "
            "backend a second one (in a compose file: a network alias like lidiv.internal).",
        )
    if "authentication parameters" in detail:
        return ConnectError(
            f"The backend at {backend_url} asks for a user and a password: {detail}",
            remedy="Give --basic-auth USER:PASSWORD, the LIDIV_BASIC_AUTH_USER and "
            "LIDIV_BASIC_AUTH_PASSWORD that the backend was started with.",
        )
    if "health check failed" in detail:
        return ConnectError(
            f"Label Studio cannot reach the backend at {backend_url}: {detail}",
            remedy=_reachability(backend_url),
        )
    if error.status_code == 404:
        return ConnectError(
            f"Label Studio at {url} has no such project for this user.",
            remedy="Check --project, or use --title to have one made.",
        )
    return ConnectError(f"Label Studio refused (status {error.status_code}): {detail}")


def _reachability(backend_url: str) -> str:
    try:
        answer = requests.get(f"{backend_url}/health", timeout=3)
    except requests.RequestException:
        return "It does not answer from this machine either: start it with `lidiv serve`."
    if answer.status_code != 200:
        return f"From this machine it answers with status {answer.status_code}."
    return (
        "It does answer from this machine, so the address is not the one that Label Studio must "
        "use: in a container, localhost is the container itself."
    )
