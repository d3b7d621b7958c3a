"""Rectangles that wait for clicks, and what interactions began with.

Revision: 0004
Follows: 0003
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the change."""
    op.create_table(
        "waiting_boxes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project", sa.String(length=64), nullable=False),
        sa.Column("task", sa.BigInteger(), nullable=True),
        sa.Column("boxes", sa.JSON(), nullable=False),
        sa.Column("placed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_waiting_boxes")),
    )
    op.create_index("ix_waiting_boxes_place", "waiting_boxes", ["project", "task"], unique=False)
    op.create_index(
        op.f("ix_waiting_boxes_placed_at"), "waiting_boxes", ["placed_at"], unique=False
    )
    op.create_table(
        "beginnings",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_beginnings")),
    )
    op.create_index(op.f("ix_beginnings_begun_at"), "beginnings", ["begun_at"], unique=False)


def downgrade() -> None:
    """Take it back."""
    op.drop_index(op.f("ix_beginnings_begun_at"), "beginnings")
    op.drop_table("beginnings")
    op.drop_index(op.f("ix_waiting_boxes_placed_at"), "waiting_boxes")
    op.drop_index("ix_waiting_boxes_place", "waiting_boxes")
    op.drop_table("waiting_boxes")
