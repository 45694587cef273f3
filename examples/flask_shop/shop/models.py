"""The database of the shop, and the outbox in it."""

from __future__ import annotations

import os

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from greenconn import Queue
from greenconn.contrib.outbox.sqlalchemy import Outbox

#: Orders that are to be shipped.  Those that cannot be shipped are kept in orders.dead.
ORDERS = Queue("orders", dead_letter=True)

engine = create_engine(os.environ.get("DATABASE_URL", "sqlite:///shop.db"))


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    is_shipped: Mapped[bool] = mapped_column(default=False)


outbox = Outbox(Base.metadata)
