"""
Query arguments of routes that take none: refused by native routes, as by those that take others.

The routes of OpenAI's and Replicate's interfaces leave them alone: their clients can be told to send some with every request
(`default_query`), as the gateways that those clients are often pointed at want.
"""

from __future__ import annotations

from apiflask import APIFlask
from flask import request

from services.api.fields import Sent
from services.api.request_body import read_query
from services.api.route_docs import docs_of, operation_id_of

_PREFIX = "/v1/"
"""The pages beside it are opened in browsers and asked by probes, with whatever those put behind a question mark."""
_OF_DIALECTS = ("openai_", "replicate_", "list_models", "get_model")
"""How the ids of their operations begin. Models are native, and OpenAI's as well."""


class _NoArguments(Sent):
    """Nothing."""


def install(app: APIFlask) -> None:
    """Look at the arguments of every request."""

    @app.before_request
    def refuse() -> None:
        if not request.query_string or request.url_rule is None:
            return
        view = app.view_functions[request.url_rule.endpoint]
        if docs_of(view).query is None and refuses_arguments(request.url_rule.rule, operation_id_of(view)):
            read_query(request.args, _NoArguments)


def refuses_arguments(rule: str, operation_id: str) -> bool:
    """Is it a native route, which refuses arguments that it does not know?"""
    return rule.startswith(_PREFIX) and not operation_id.startswith(_OF_DIALECTS)
