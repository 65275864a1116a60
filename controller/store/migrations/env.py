"""How Alembic runs the steps: inside the transaction that `controller.store` opened."""

from __future__ import annotations

from alembic import context

from controller.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
