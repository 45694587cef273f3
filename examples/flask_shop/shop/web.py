"""The pages of the shop, for gunicorn: ``gunicorn shop.web:app``.

A request writes to the database alone, so the shop accepts orders while the broker is unavailable.
"""

from __future__ import annotations

from flask import Flask, Response, jsonify, render_template, request
from sqlalchemy import select
from sqlalchemy.orm import Session

from shop.models import ORDERS, Base, Order, engine, outbox

app = Flask(__name__)


@app.cli.command("init-db")
def init_db() -> None:
    """Create the tables: ``flask --app shop.web init-db``."""
    Base.metadata.create_all(engine)


@app.post("/orders")
def accept() -> tuple[Response, int]:
    """Accept an order.  After a 201 it will be shipped, whatever happens to this process."""
    with Session(engine) as session, session.begin():
        order = Order(item=request.form["item"])
        session.add(order)
        session.flush()  # it has its id now
        outbox.publish(session, ORDERS, {"id": order.id})
        answer = jsonify(id=order.id)
    return answer, 201


@app.get("/orders/<int:order_id>")
def show(order_id: int) -> Response | tuple[Response, int]:
    with Session(engine) as session:
        order = session.get(Order, order_id)
        if order is None:
            return jsonify(error=f"there is no order {order_id}"), 404
        return jsonify(id=order.id, item=order.item, is_shipped=order.is_shipped)


@app.get("/")
def page() -> str:
    with Session(engine) as session:
        orders = session.scalars(select(Order).order_by(Order.id.desc()).limit(50)).all()
        return render_template("orders.html", orders=orders)
