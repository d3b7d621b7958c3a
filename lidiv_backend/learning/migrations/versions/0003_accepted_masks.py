"""Accepted masks, and what each cost; accepted annotations are counted without reading their masks.

Revision: 0003
Follows: 0002
"""

from collections.abc import Sequence
from datetime import UTC

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the change, and count what was accepted until now."""
    op.create_index(
        "ix_annotations_accepted",
        "annotations",
        ["was_cancelled", "deleted_at", "project", "created_at"],
        unique=False,
    )
    op.create_table(
        "accepted_masks",
        sa.Column("project", sa.String(length=64), nullable=False),
        sa.Column("annotation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("region_id", sa.String(length=64), nullable=False),
        sa.Column("model_version", sa.String(length=128), nullable=False),
        sa.Column("clicks", sa.Integer(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Integer(), nullable=True),
        sa.Column("day", sa.Date(), nullable=False),
        sa.PrimaryKeyConstraint(
            "project", "annotation", "region_id", name=op.f("pk_accepted_masks")
        ),
    )
    op.create_index(op.f("ix_accepted_masks_day"), "accepted_masks", ["day"], unique=False)
    _count_earlier()


def _count_earlier() -> None:
    # Tables as they are at this revision, whatever the code's look like by then.
    annotations = sa.table(
        "annotations",
        sa.column("id", sa.Integer()),
        sa.column("project", sa.String()),
        sa.column("annotation", sa.BigInteger()),
        sa.column("result", sa.JSON()),
    )
    interactions = sa.table(
        "interactions",
        sa.column("region_id", sa.String()),
        sa.column("project", sa.String()),
        sa.column("interactive", sa.Boolean()),
        sa.column("clicks", sa.JSON()),
        sa.column("model_version", sa.String()),
        sa.column("created_at", sa.DateTime(timezone=True)),
    )
    accepted = sa.table(
        "accepted_masks",
        *(
            sa.column(name)
            for name in ("project", "annotation", "region_id", "model_version", "clicks", "steps")
        ),
        sa.column("day", sa.Date()),
    )
    connection = op.get_bind()
    counted = sa.text("deleted_at IS NULL AND NOT was_cancelled")
    for number in connection.scalars(sa.select(annotations.c.id).where(counted)).all():
        row = connection.execute(sa.select(annotations).where(annotations.c.id == number)).one()
        regions = {
            item["id"]
            for item in row.result
            if isinstance(item, dict)
            and item.get("type") in ("brush", "brushlabels")
            and isinstance(item.get("id"), str)
            and "\0" not in item["id"]
        }
        found = connection.execute(
            sa.select(interactions).where(
                interactions.c.region_id.in_(regions),
                interactions.c.project == row.project,
                interactions.c.interactive,
            )
        ).all()
        for answer in found:
            shown = answer.created_at
            connection.execute(
                sa.insert(accepted).values(
                    project=row.project,
                    annotation=row.annotation,
                    region_id=answer.region_id,
                    model_version=answer.model_version,
                    clicks=len(answer.clicks),
                    steps=sum(1 for click in answer.clicks if click.get("next")),
                    day=(shown if shown.tzinfo is None else shown.astimezone(UTC)).date(),
                )
            )


def downgrade() -> None:
    """Take it back."""
    op.drop_index(op.f("ix_accepted_masks_day"), "accepted_masks")
    op.drop_table("accepted_masks")
    op.drop_index("ix_annotations_accepted", "annotations")
