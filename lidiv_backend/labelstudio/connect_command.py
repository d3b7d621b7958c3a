"""The command `lidiv connect`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lidiv_backend.labelstudio.connect import (
    TITLE,
    ConnectError,
    Wish,
    connect,
    open_client,
    recommended_label_config,
)
from lidiv_backend.labelstudio.options import HELPER_LABELS, ProjectOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--label-studio",
        metavar="URL",
        default=os.environ.get("LIDIV_LABEL_STUDIO_URL"),
        help="address of Label Studio (default: LIDIV_LABEL_STUDIO_URL)",
    )
    token = parser.add_mutually_exclusive_group()
    token.add_argument(
        "--token",
        help="legacy or personal access token; better in LIDIV_LABEL_STUDIO_TOKEN or a file, "
        "since other users can read a command line",
    )
    token.add_argument("--token-file", type=Path, help="file that contains the token")
    project = parser.add_mutually_exclusive_group()
    project.add_argument("--project", type=int, metavar="ID", help="number of the project")
    project.add_argument(
        "--title",
        default=TITLE,
        help="title of the project, made if missing (default: %(default)s)",
    )
    parser.add_argument(
        "--backend",
        metavar="URL",
        required=True,
        help="address of the backend as Label Studio reaches it",
    )
    parser.add_argument(
        "--label",
        action="append",
        metavar="NAME",
        help="label of the label config, where one is written; repeat it (default: Object)",
    )
    parser.add_argument(
        "--replace-label-config",
        action="store_true",
        help="replace a label config that does not fit",
    )
    parser.add_argument(
        "--rectangles",
        action="store_true",
        help="a smart rectangle asks for the object inside it",
    )
    parser.add_argument(
        "--refine-accepted",
        action="store_true",
        help="a first click inside an accepted region refines a copy of it",
    )
    parser.add_argument(
        "--overlay",
        action="append",
        nargs="?",
        const="",
        metavar="LABEL",
        help="show all proposals at once, the alternatives under this helper label; repeat it "
        f"(alone: {', '.join(HELPER_LABELS)})",
    )
    parser.add_argument(
        "--no-options",
        action="store_true",
        help="take back what these three once asked for",
    )
    parser.add_argument(
        "--basic-auth",
        metavar="USER:PASSWORD",
        help="what the backend asks for "
        "(default: LIDIV_BASIC_AUTH_USER and LIDIV_BASIC_AUTH_PASSWORD)",
    )
    parser.add_argument(
        "--webhook-secret",
        help="what the webhook carries (default: LIDIV_WEBHOOK_SECRET)",
    )
    parser.epilog = (
        "LIDIV_LABEL_STUDIO_TOKEN, LIDIV_WEBHOOK_SECRET and LIDIV_BASIC_AUTH_PASSWORD may each be "
        "in a file instead, named by the same variable with _FILE at its end. LIDIV_CA_BUNDLE is a "
        "file of the certificates to trust, for an https of your own."
    )


def run(args: argparse.Namespace) -> int:
    """Connect, and print what was done."""
    token = args.token or _secret("LABEL_STUDIO_TOKEN", file=args.token_file)
    if not args.label_studio or not token:
        raise ConnectError(
            "The address of Label Studio or the token is missing.",
            remedy="Give --label-studio and --token-file, or set LIDIV_LABEL_STUDIO_URL and "
            "LIDIV_LABEL_STUDIO_TOKEN.",
        )
    options = _options(args)
    wish = Wish(
        backend_url=args.backend,
        project_id=args.project,
        title=args.title,
        label_config=recommended_label_config(args.label, options or ProjectOptions())
        if args.label
        else None,
        replace_label_config=args.replace_label_config,
        basic_auth=_basic_auth(args.basic_auth),
        webhook_secret=args.webhook_secret or _secret("WEBHOOK_SECRET"),
        options=options,
    )
    url = args.label_studio.rstrip("/")
    client = open_client(url, token, ca_bundle=os.environ.get("LIDIV_CA_BUNDLE"))
    done = connect(client, wish, url=url)
    for change in done.changes or ("Everything was in place.",):
        print(change)
    print(f'Project "{done.project_title}": {url}/projects/{done.project_id}/data')
    print(f"Model version: {done.model_version}")
    if not wish.webhook_secret:
        print("Mind: without LIDIV_WEBHOOK_SECRET, whoever reaches the backend can forge webhooks.")
    return 0


def _options(args: argparse.Namespace) -> ProjectOptions | None:
    labels = tuple(filter(None, args.overlay or ()))
    if args.overlay and not labels:
        labels = HELPER_LABELS
    chosen = ProjectOptions(
        rectangles=args.rectangles, refine_accepted=args.refine_accepted, overlay=labels
    )
    is_chosen = chosen != ProjectOptions()
    if is_chosen and args.no_options:
        raise ConnectError("--no-options contradicts the options beside it.")
    return chosen if is_chosen or args.no_options else None


def _basic_auth(option: str | None) -> tuple[str, str] | None:
    if option is not None:
        user, colon, password = option.partition(":")
        if not (user and colon and password):
            raise ConnectError("--basic-auth is not USER:PASSWORD.")
        return user, password
    login = os.environ.get("LIDIV_BASIC_AUTH_USER", ""), _secret("BASIC_AUTH_PASSWORD")
    return login if all(login) else None


def _secret(name: str, *, file: Path | None = None) -> str:
    """Read a secret from a file, or from the variables that the server reads, too."""
    variable = f"LIDIV_{name}"
    path = file or os.environ.get(f"{variable}_FILE")
    if not path:
        return os.environ.get(variable, "")
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConnectError(f"The file {path} cannot be read: {error}.") from error
