"""Settings of the server, from the environment.

======================================  ==========================================================
variable                                what it says
======================================  ==========================================================
``LIDIV_LABEL_STUDIO_URL``              address of Label Studio as this machine reaches it. Without
                                        it, what Label Studio says of itself by ``/setup`` is
                                        believed
``LIDIV_LABEL_STUDIO_TOKEN``            legacy token or personal access token, to fetch images with;
                                        needs the address, so that it is sent nowhere else. Without
                                        it, the token that ``/setup`` brings is used
``LIDIV_WEBHOOK_SECRET``                what webhooks must carry in the header ``X-LiDiv-Secret``
``LIDIV_BASIC_AUTH_USER``,              what Label Studio must log in with; both or neither
``LIDIV_BASIC_AUTH_PASSWORD``
``LIDIV_STATE``                         folder of the database; ``~/.local/share/lidiv`` or what the
                                        platform has for it
``LIDIV_DATABASE_URL``                  database; ``lidiv.sqlite`` in the state folder if not given
``LIDIV_PRESET``                        ``default``, ``paper``, or a folder with weights
``LIDIV_DEVICE``                        ``cpu``, ``cuda``, …; chosen if not given
``LIDIV_ALLOWED_IMAGE_HOSTS``           hosts that images may come from besides Label Studio,
                                        separated by commas: ``host``, ``host:port``, ``*.domain``
``LIDIV_MAX_BODY_BYTES``                largest request
``LIDIV_MAX_IMAGE_BYTES``               largest image file
``LIDIV_MAX_PIXELS``                    largest image; 178956970 at most. Masks of images with more
                                        than 100000000 are not learnt from
``LIDIV_IMAGE_SECONDS``                 how long fetching an image may take,
                                        a quarter of it without receiving anything
``LIDIV_CACHE_BYTES``                   memory for what a process keeps of images and clicks so that
                                        the next click is fast; embeddings have most of it
``LIDIV_LOAD_SECONDS``                  how long a request waits for the model to be loaded
``LIDIV_CA_BUNDLE``                     certificates to trust, for an https of your own
``LIDIV_BIND``                          address and port to listen on; ``127.0.0.1:9090``
``LIDIV_WORKERS``                       processes, each with a model of its own in memory; 1
``LIDIV_THREADS``                       requests that a process answers at once; 24. Clicks never
                                        take the last of them
``LIDIV_COMPUTATIONS``                  passes through the networks that a process makes at once;
                                        2. Embedding an image never takes the last of them
``LIDIV_REQUESTS_PER_SECOND``           what one client may ask, on average; 100. 0 is no limit,
                                        a wrong login counts as twenty, and webhooks that carry
                                        their secret are not counted
``LIDIV_PROXIES``                       proxies in front of the server, whose word on the client's
                                        address is taken; 0
``LIDIV_METRICS``                       who may read ``/metrics``: whoever has the ``login``,
                                        everybody (``open``), or nobody (``off``)
``LIDIV_LOG_LEVEL``                     ``DEBUG``, ``INFO``, ``WARNING``, …
``LIDIV_LOG_FORMAT``                    ``text`` for people, ``json`` for machines
======================================  ==========================================================

The token, the secret, the password and the database's URL may each be in a file instead, named by
the same variable with ``_FILE`` at its end.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from lidiv_backend.errors import LidivError
from lidiv_backend.images import MAX_PIXELS, PILLOW_MAX_PIXELS

#: Threads that clicks never take: Label Studio calls a backend dead whose health takes a second.
RESERVED_THREADS = 4
_PREFIX = "LIDIV_"
#: Settings that may be in files instead.
SECRETS = ("label_studio_token", "webhook_secret", "basic_auth_password", "database_url")


class SettingsError(LidivError):
    """A setting is missing, wrong, or contradicts another."""

    kind = "settings"


class _SecretFiles(PydanticBaseSettingsSource):
    """Reads secrets from the files that variables with ``_FILE`` name."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not asked for: all values come from `__call__`."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        found = {}
        for name in SECRETS:
            variable = f"{_PREFIX}{name.upper()}"
            path = os.environ.get(f"{variable}_FILE")
            if not path:
                continue
            if os.environ.get(variable):
                raise SettingsError(
                    f"{variable} and {variable}_FILE are both set.", remedy="Keep one of them."
                )
            try:
                found[name] = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(
                    f"The file of {variable}_FILE cannot be read: {error}.",
                    remedy="Check its path and its permissions.",
                ) from error
        return found


def _state_folder() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "lidiv"
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "lidiv"


class Settings(BaseSettings):
    """Settings of the server; see the module for what each says."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore")

    label_studio_url: str = ""
    label_studio_token: SecretStr = SecretStr("")
    webhook_secret: SecretStr = SecretStr("")
    basic_auth_user: str = ""
    basic_auth_password: SecretStr = SecretStr("")
    state: Path = Field(default_factory=_state_folder)
    database_url: SecretStr = SecretStr("")
    preset: str = "default"
    device: str | None = None
    allowed_image_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    max_body_bytes: int = Field(default=100_000_000, gt=0)
    max_image_bytes: int = Field(default=200_000_000, gt=0)
    max_pixels: int = Field(default=MAX_PIXELS, gt=0, le=PILLOW_MAX_PIXELS)
    image_seconds: float = Field(default=60.0, gt=0)
    cache_bytes: int = Field(default=768_000_000, ge=0)
    load_seconds: float = Field(default=60.0, ge=0)
    ca_bundle: Path | None = None
    bind: str = "127.0.0.1:9090"
    workers: int = Field(default=1, gt=0)
    threads: int = Field(default=24, gt=RESERVED_THREADS)
    computations: int = Field(default=2, gt=0)
    requests_per_second: float = Field(default=100.0, ge=0)
    proxies: int = Field(default=0, ge=0)
    metrics: Literal["login", "open", "off"] = "login"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take arguments first, then files of secrets, then the environment."""
        # Files first: a variable that is set, but empty, does not take its file's place.
        return init_settings, _SecretFiles(settings_cls), env_settings

    @classmethod
    def from_environment(cls) -> Settings:
        """Read the environment.

        Raises
        ------
        SettingsError
            If a setting is wrong; the message names it, and never shows a secret.
        """
        try:
            return cls()
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = "_".join(str(part) for part in first["loc"]).upper()
            name = f"{_PREFIX}{where}" if where else "The settings"
            raise SettingsError(
                f"{name}: {first['msg']}.", remedy="Correct the environment variable."
            ) from error

    @field_validator("allowed_image_hosts", mode="before")
    @classmethod
    def _separated_by_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("label_studio_url")
    @classmethod
    def _web_address(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value.rstrip("/")

    @field_validator("device", "ca_bundle", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @model_validator(mode="after")
    def _belong_together(self) -> Settings:
        if self.label_studio_token.get_secret_value() and not self.label_studio_url:
            raise ValueError(
                "LIDIV_LABEL_STUDIO_TOKEN needs LIDIV_LABEL_STUDIO_URL: the token must not be sent "
                "to whoever claims to be Label Studio"
            )
        if bool(self.basic_auth_user) != bool(self.basic_auth_password.get_secret_value()):
            raise ValueError(
                "LIDIV_BASIC_AUTH_USER and LIDIV_BASIC_AUTH_PASSWORD go together: set both or none"
            )
        return self

    @property
    def state_folder(self) -> Path:
        """The state folder, absolute."""
        return self.state.expanduser().absolute()

    @property
    def embedding_bytes(self) -> int:
        """What of `cache_bytes` embeddings may take; of all models together."""
        return self.cache_bytes * 9 // 16

    @property
    def window_bytes(self) -> int:
        """What of it embedded parts of images may take."""
        return self.cache_bytes * 3 // 16

    @property
    def image_bytes(self) -> int:
        """What of it decoded images may take."""
        return self.cache_bytes // 16

    @property
    def memo_bytes(self) -> int:
        """What of it proposals may take."""
        return self.cache_bytes * 3 // 16

    @property
    def database(self) -> str:
        """SQLAlchemy's URL of the database."""
        given = self.database_url.get_secret_value()
        return given or f"sqlite:///{self.state_folder / 'lidiv.sqlite'}"
