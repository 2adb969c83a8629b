import os

from alembic import context
from shop.models import Base
from sqlalchemy import engine_from_config, pool

config = context.config
# SQLAlchemy takes a plain postgresql:// for psycopg2; this project uses psycopg 3.
url = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://", 1)
config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))

engine = engine_from_config(config.get_section("alembic"), prefix="sqlalchemy.", poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()
