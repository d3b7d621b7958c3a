"""Migrations of the database, in the order of their numbers."""

from __future__ import annotations

from alembic.config import Config
from alembic.script import ScriptDirectory


def configuration() -> Config:
    """Make Alembic's configuration; `env.py` wants a connection in its attributes."""
    config = Config()
    config.set_main_option("script_location", "lidiv_backend.learning:migrations")
    return config


def known_revisions() -> tuple[str, ...]:
    """Give the revisions that this version of LiDiv knows, the newest first."""
    return tuple(
        script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions()
    )
