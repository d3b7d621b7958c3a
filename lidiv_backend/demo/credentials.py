"""Login, token and secret of a demo folder, made up once and kept where only its owner reads."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lidiv_backend.errors import LidivError

#: Name of the file in the demo folder.
FILE_NAME = "credentials.json"


class Credentials(BaseModel):
    """What the two services of a demo folder share.

    Parameters
    ----------
    email, password
        Login of Label Studio's only user.
    token
        That user's legacy token, 40 hexadecimal digits.
    webhook_secret
        What Label Studio's webhooks carry, so that the backend believes them.
    """

    model_config = ConfigDict(frozen=True)

    email: str
    password: str = Field(repr=False)
    token: str = Field(repr=False)
    webhook_secret: str = Field(repr=False)


def load_or_create(folder: Path) -> Credentials:
    """Read a demo folder's credentials, or make them up.

    Parameters
    ----------
    folder
        Made if missing.

    Returns
    -------
    Credentials
        The same at every call for the same folder.

    Raises
    ------
    LidivError
        If the file is there and is not what this function writes.
    """
    path = folder / FILE_NAME
    if path.exists():
        try:
            return Credentials.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise LidivError(
                f"{path} is damaged.",
                remedy=f"Delete the folder {folder} to start over; its annotations go with it.",
            ) from error
    credentials = Credentials(
        email="demo@example.com",
        password=secrets.token_urlsafe(9),
        token=secrets.token_hex(20),
        webhook_secret=secrets.token_urlsafe(24),
    )
    folder.mkdir(parents=True, exist_ok=True)
    # Never readable by others, not even for a moment, and never half written.
    aside = path.with_suffix(".new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(credentials.model_dump_json(indent=1))
    aside.rename(path)
    return credentials
