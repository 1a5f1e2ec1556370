"""
What POST /v1/jobs is measured against: a Flask handler that stores the JSON it is sent by one INSERT, in one transaction, and answers 202.

Same gunicorn, same threads, same pool, same Postgres; no key, no check, no event. `python -m infra.bench.bare_submit PORT`, with the
database in `GLMQ_DATABASE_URL`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from flask import Flask, Response, jsonify, request
from gunicorn.app.base import BaseApplication
from sqlalchemy import Column, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

from services.api.settings import ApiSettings
from shared.db import Database
from shared.ids import new_id

_THREADS = int(ApiSettings.model_fields["api_threads"].default)
_POOL_SIZE = int(ApiSettings.model_fields["db_pool_size"].default)
_METADATA = MetaData()
BARE_JOB = Table("bare_job", _METADATA, Column("id", Text, primary_key=True), Column("request", JSONB, nullable=False))
_INSERT = BARE_JOB.insert()


def create_bare_app(database_url: str) -> Flask:
    """The handler; its table is made if it is not there."""
    app = Flask("bare")
    db = Database(database_url, _POOL_SIZE)
    _METADATA.create_all(db.engine)

    @app.post("/v1/jobs")
    def submit() -> tuple[Response, int]:
        job_id = new_id("job")
        with db.engine.begin() as connection:
            connection.execute(_INSERT, {"id": job_id, "request": request.get_json()})
        return jsonify({"id": job_id, "object": "job", "status": "queued"}), 202

    return app


class _Server(BaseApplication):
    def __init__(self, port: int) -> None:
        self._port = port
        super().__init__()

    def load_config(self) -> None:
        options = {"bind": f"127.0.0.1:{self._port}", "worker_class": "gthread", "threads": _THREADS, "control_socket_disable": True}
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return create_bare_app(os.environ["GLMQ_DATABASE_URL"])


if __name__ == "__main__":
    _Server(int(sys.argv[1])).run()
