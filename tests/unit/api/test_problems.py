"""The catalogue of problems, and what an exception becomes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from apiflask import APIFlask
from werkzeug.exceptions import Gone, ImATeapot, NotImplemented

from services.api.field_errors import FieldError, InvalidFieldsError
from services.api.problem_catalogue import PROBLEM_TYPE, Problem
from services.api.problem_pages import PAGE, problems_page
from services.api.problem_texts import TEXTS
from services.api.problems import problem_response
from shared.db import DatabaseDownError
from shared.errors import RequestError

ROOT = Path(__file__).parents[3]
CODE = re.compile("[a-z]+(_[a-z]+)*")
JOB_CODE = re.compile(r'"code": "([a-z_]+)"')
CLIENT_ERRORS = {"RequestError", "SourceImageError", "ForbiddenAddressError", "QuotaError", "UnfinishedError"}
JOB_ERRORS = {"WorkError", "PermanentWorkError", "TransientWorkError", "TokenGridError"}
BROWSER = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}


def answer(app: APIFlask, error: Exception, path: str = "/v1/jobs", method: str = "POST") -> tuple[int, dict[str, object], dict[str, str]]:
    with app.test_request_context(path, method=method):
        app.preprocess_request()
        response = problem_response(error, "https://glmq.example")
        return response.status_code, response.get_json(force=True), dict(response.headers)


def codes_in(folders: tuple[str, ...], errors: set[str]) -> set[str]:
    """The codes with which these errors are made, read from the code itself."""
    found = set()
    for file in (file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                # An error that fixes its own code says it to its base: super().__init__("queue_full", …).
                if (name in errors or name == "__init__") and isinstance(node.args[0].value, str) and CODE.fullmatch(node.args[0].value):
                    found.add(node.args[0].value)
    return found


def test_every_code_that_is_raised_is_in_the_catalogue() -> None:
    """No error for a client or of a job has a code that the catalogue lacks."""
    told = codes_in(("services/api", "shared"), CLIENT_ERRORS)
    assert told >= {"invalid_request", "not_found", "forbidden_address", "input_fetch_failed", "idempotency_mismatch", "queue_full"}
    assert told <= {problem.code for problem in Problem if problem.status is not None}
    of_jobs = codes_in(("services", "shared"), JOB_ERRORS)
    assert of_jobs >= {"upload_failed", "artifact_broken"}
    literal = {
        code for file in (ROOT / "shared" / "lifecycle").rglob("*.py") for code in JOB_CODE.findall(file.read_text(encoding="utf-8"))
    }
    assert literal >= {"worker_lost", "deadline_exceeded"}
    assert of_jobs | literal <= {problem.code for problem in Problem}


def test_every_problem_has_a_test_that_provokes_it() -> None:
    """Each code is expected by some test, other than those of the catalogue."""
    own = {Path(__file__).name}
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py") if file.name not in own)
    assert [problem.code for problem in Problem if f'"{problem.code}"' not in tests] == []


def test_every_problem_is_described_where_its_type_leads(app: APIFlask) -> None:
    """The URI of a type is a page of this service, for programs and for people; titles are distinct."""
    client = app.test_client()
    listed = client.get("/problems").get_json()["data"]
    assert len(listed) == len(Problem) == len(TEXTS)
    assert client.get("/problems", headers=BROWSER).mimetype == "text/html"
    for entry in listed:
        path = entry["type"].removeprefix("https://glmq.example")
        assert client.get(path).get_json() == client.get(f"/problems/{entry['code']}").get_json() == entry
        assert entry["status"] is None or 400 <= entry["status"] < 600
        page = client.get(path, headers=BROWSER)
        assert page.mimetype == "text/html"
        assert entry["code"] in page.get_data(as_text=True)
    assert len({problem.title for problem in Problem}) == len(Problem)
    assert client.get("/problems/nonsense").status_code == 404


def test_page_of_the_documentation_is_current() -> None:
    """docs/problems.md is what the catalogue says."""
    assert PAGE.read_text(encoding="utf-8") == problems_page()


def test_body_has_every_member(app: APIFlask) -> None:
    """A problem has all members of RFC 9457 and of docs/problems.md, and the same again for OpenAI's clients."""
    status, body, _ = answer(app, RequestError("invalid_request", "size: too large", "images.0.url"))
    assert status == 400
    assert body == {
        "type": "https://glmq.example/problems/invalid-request",
        "title": "The request is not valid",
        "status": 400,
        "detail": "size: too large",
        "instance": f"/v1/jobs#{body['request_id']}",
        "code": "invalid_request",
        "param": "images.0.url",
        "retryable": False,
        "request_id": body["request_id"],
        "trace_id": None,
        "errors": [{"pointer": "#/images/0/url", "code": "invalid_request", "detail": "size: too large"}],
        "error": {"message": "size: too large", "type": "invalid_request_error", "param": "images.0.url", "code": "invalid_request"},
    }


def test_pointers_are_escaped(app: APIFlask) -> None:
    """A JSON pointer in a URI fragment escapes ~, / and what a URI cannot hold."""
    _, body, _ = answer(app, InvalidFieldsError([FieldError(("metadata", "a/b~é #"), "x", "y")]))
    assert body["errors"] == [{"pointer": "#/metadata/a~1b~0%C3%A9%20%23", "code": "x", "detail": "y"}]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (KeyError("secret"), 500, "internal"),
        (RequestError("no_such_code", "secret"), 500, "internal"),
        (DatabaseDownError("secret"), 503, "engine_unavailable"),
        (Gone(), 400, "invalid_request"),
        (ImATeapot(), 400, "invalid_request"),
        (NotImplemented(), 500, "internal"),
    ],
)
def test_inside_is_not_shown(app: APIFlask, error: Exception, status: int, code: str) -> None:
    """Unexpected errors say nothing of themselves; what is away asks to come back."""
    got, body, headers = answer(app, error)
    assert (got, body["code"]) == (status, code)
    assert "secret" not in str(body)
    assert headers["Content-Type"] == PROBLEM_TYPE
    assert ("Retry-After" in headers) == (status == 503)


def test_unauthorized_says_how(app: APIFlask) -> None:
    """401 names the scheme, as RFC 9110 wants."""
    _, body, headers = answer(app, RequestError("unauthorized", "x"))
    assert headers["WWW-Authenticate"] == 'Bearer realm="glmq"'
    assert body["error"] == {"message": "x", "type": "authentication_error", "param": None, "code": "unauthorized"}
