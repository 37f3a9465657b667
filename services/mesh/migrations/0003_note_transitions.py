"""How long the transition of a key is to last: it begins when the key's announcement can be sent."""

from libs.migrations import refuse, run

revision = "0003"
down_revision = "0002"

SQL = """
ALTER TABLE mesh.signing_keys ADD COLUMN transition interval CHECK (transition > interval '0');
UPDATE mesh.signing_keys SET transition = greatest(transition_expires - created_at, interval '1 second')
WHERE transition_expires IS NOT NULL;
GRANT UPDATE (transition_expires) ON mesh.signing_keys TO mesh;
"""


def upgrade() -> None:
    run(SQL)


def downgrade() -> None:
    refuse("a rotation that is under way would not end")
