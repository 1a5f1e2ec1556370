"""
`/docs`: the OpenAPI document for people, by Swagger UI. Everything comes from this process, so it works without the internet.

The assets lie in the wheel `flask-openapi-swagger`, of which nothing is imported.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from apiflask import APIBlueprint
from flask import Response

from services.api.parts import Parts
from shared.errors import RequestError

_PACKAGE = "flask_openapi_swagger"
_FILES = {
    "swagger-ui.css": ("css/swagger-ui.css", "text/css"),
    "swagger-ui-bundle.js": ("js/swagger-ui-bundle.js", "text/javascript"),
}
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>glmq API</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<div id="docs">The reference needs JavaScript; <a href="openapi.json">openapi.json</a> has all of it, too.</div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"""
# No validator: it would send the document to a server of Swagger's.
_START = """SwaggerUIBundle({
  url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null, persistAuthorization: false,
  docExpansion: "list", defaultModelsExpandDepth: 0, tryItOutEnabled: false
});
"""
_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src data:"
)


def docs_blueprint(parts: Parts) -> APIBlueprint:
    """The page and its files."""
    docs = APIBlueprint("docs", __name__)

    @docs.get("/docs")
    @docs.doc(hide=True)
    def page() -> Response:
        return _answer(_PAGE, "text/html")

    @docs.get("/docs/start.js")
    @docs.doc(hide=True)
    def start() -> Response:
        return _answer(_START, "text/javascript")

    @docs.get("/docs/<name>")
    @docs.doc(hide=True)
    def asset(name: str) -> Response:
        if name not in _FILES:
            raise RequestError("not_found", "there is no such page")
        path, media_type = _FILES[name]
        return _answer((_folder() / path).read_bytes(), media_type)

    return docs


def _folder() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise RequestError("not_found", "this installation is without the files of the page")
    return Path(spec.submodule_search_locations[0]) / "templates" / "swagger"


def _answer(body: str | bytes, media_type: str) -> Response:
    response = Response(body, mimetype=media_type)
    response.headers["Content-Security-Policy"] = _POLICY
    return response
