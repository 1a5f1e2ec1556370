"""
The catalogue of problems where their types' URIs lead: a page for people, JSON for programs; and docs/problems.md.

`python -m services.api.problem_pages` writes the page of the documentation, `--check` only says whether it is current.
"""

from __future__ import annotations

import html
import sys
from operator import itemgetter
from pathlib import Path
from typing import Any

from apiflask import APIBlueprint
from flask import Response, jsonify, request
from pydantic import BaseModel, Field

from services.api.list_answer import ListAnswer, list_body
from services.api.parts import Parts
from services.api.problem_catalogue import Problem
from services.api.route_docs import describe
from shared.errors import RequestError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "problems.md"

_HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem; color: #1c2024; background: #fff }}
  code {{ background: #eef1f4; padding: .1em .3em; border-radius: .2em }}
  table {{ border-collapse: collapse }} td, th {{ text-align: left; padding: .25rem 1rem .25rem 0; vertical-align: top }}
  td:first-child {{ white-space: nowrap }}
  @media (prefers-color-scheme: dark) {{
    body {{ color: #e6e8ea; background: #16191c }} code {{ background: #2a2f34 }} a {{ color: #7cb7ff }}
  }}
</style>
<h1>{title}</h1>
{body}
</html>
"""
_OPENING = """\
# Problems

Written by `python -m services.api.problem_pages` from the catalogue; do not edit.

Every refusal is a problem (RFC 9457) with a `code`. A running service shows
each at `/problems/<code>`, as a page or, for programs, as JSON.
*May succeed later*: the same request, or `POST /v1/jobs/{id}/retry` of the job.
"""


class ProblemEntry(BaseModel):
    """A problem of the catalogue."""

    type: str
    title: str
    status: int | None = Field(description="Null: it is told in the `error` of a job.")
    code: str
    retryable: bool
    text: str


class ProblemList(ListAnswer[ProblemEntry]):
    """All problems, by their codes."""


def problem_pages_blueprint(parts: Parts) -> APIBlueprint:
    """`/problems` and a page for each."""
    pages = APIBlueprint("problems", __name__)
    as_page = {"200": {"text/html": {"type": "string"}}}

    @pages.get("/problems")
    @pages.output(ProblemList, description="Every problem.")
    @pages.doc(summary="List every problem", operation_id="list_problems", extensions=describe(more_content=as_page))
    def list_problems() -> Response:
        entries = [_entry(problem, parts.base_url()) for problem in Problem]
        if not _wants_page():
            return jsonify(list_body(entries, id_of=itemgetter("code")))
        rows = [f'<tr><td>{_status(entry)}<td><a href="{entry["type"]}">{entry["code"]}</a><td>{entry["title"]}' for entry in entries]
        return _page("Problems", f"<table><tr><th>status<th>code<th>meaning{''.join(rows)}</table>")

    @pages.get("/problems/<slug>")
    @pages.output(ProblemEntry, description="The problem.")
    @pages.doc(summary="Describe a problem", operation_id="get_problem", responses=[404], extensions=describe(more_content=as_page))
    def get_problem(slug: str) -> Response:
        # By the last part of its type, or by its code, which is what programs have at hand.
        found = [problem for problem in Problem if slug in (problem.code, problem.path.rpartition("/")[2])]
        if not found:
            raise RequestError("not_found", "there is no such problem")
        entry = _entry(found[0], parts.base_url())
        if not _wants_page():
            return jsonify(entry)
        facts = f"<p>Status {_status(entry)}, code <code>{entry['code']}</code>. {_later(found[0])}"
        body = f"<p>{_inline(entry['text'])}</p>{facts}<p><a href='{parts.base_url()}/problems'>All problems</a>"
        return _page(entry["title"], body)

    return pages


def problems_page() -> str:
    """docs/problems.md."""
    lines = [_OPENING, "| status | code | may succeed later | meaning |", "|---|---|---|---|", *map(_row, Problem)]
    return "\n".join(lines) + "\n"


def _row(problem: Problem) -> str:
    later = "yes" if problem.retryable else "no"
    return f"| {problem.status or 'of a job'} | `{problem.code}` | {later} | {problem.title}. {problem.text} |"


def _entry(problem: Problem, base_url: str) -> dict[str, Any]:
    return {**problem.describe(base_url), "text": problem.text}


def _wants_page() -> bool:
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


def _page(title: str, body: str) -> Response:
    return Response(_HTML.format(title=html.escape(title), body=body), mimetype="text/html")


def _inline(text: str) -> str:
    """Escaped, with what stands in backticks as code."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))


def _status(entry: dict[str, Any]) -> str:
    return str(entry["status"] or "of a job")


def _later(problem: Problem) -> str:
    return "The same request may succeed later." if problem.retryable else "The same request fails again."


def main(arguments: list[str], file: Path = PAGE) -> None:
    """Write the page, or with `--check` end with 1 when it is not current."""
    page = problems_page()
    if "--check" not in arguments:
        file.write_text(page, encoding="utf-8")
    elif not file.exists() or file.read_text(encoding="utf-8") != page:
        sys.exit(f"{file} is out of date: run python -m services.api.problem_pages")


if __name__ == "__main__":
    main(sys.argv[1:])
