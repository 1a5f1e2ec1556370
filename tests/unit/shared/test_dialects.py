"""Jobs in the words of other interfaces."""

from __future__ import annotations

from shared.dialects import DIALECTS, NATIVE, OPENAI_RESPONSES, dialect_of
from shared.lifecycle.events import EVENT_FILTERS, EVENT_TYPES
from shared.states import TERMINAL_JOB, JobStatus


def test_a_job_is_of_the_dialect_that_its_row_names() -> None:
    """What names none, or one that is gone, is native."""
    assert [dialect_of({"name": name}) for name in DIALECTS] == list(DIALECTS.values())
    assert dialect_of(None) is dialect_of({}) is dialect_of({"name": "of old"}) is NATIVE


def test_ends() -> None:
    """A dialect names each end or none, and every type can be subscribed to."""
    assert OPENAI_RESPONSES.end_event("job_1", JobStatus.EXPIRED) == (
        "response.incomplete",
        {"id": "resp_1", "object": "response", "status": "incomplete"},
    )
    assert NATIVE.end_event("job_1", JobStatus.FAILED) is None
    for dialect in DIALECTS.values():
        assert set(dialect.ends) in (set(), set(TERMINAL_JOB))
        assert set(dialect.end_events) <= set(EVENT_TYPES)
    assert "response.*" in EVENT_FILTERS
