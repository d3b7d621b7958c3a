"""Runs migrations over the connection that `lidiv_backend.learning.store` hands in."""

from alembic import context

from lidiv_backend.learning.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite cannot alter tables in place.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
