"""Texts to draw, over HTTP: quoted in the prompt or sent apart, what the workers get of them, and what their sender is told."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from services.api.batch_clerk import Clerk
from services.api.parts import Parts
from services.api.settings import ApiSettings
from shared.checkpoint import ModelInfo
from shared.db import Database
from shared.lifecycle import claims, work
from shared.states import Stage
from tests.integration.api.conftest import Account, assert_problem, client_of, count_rows, open_app, png
from tests.integration.api.openai import draw
from tests.integration.api.test_jobs import assert_documented, claim_grid
from tests.integration.api.test_openai_batches import content, line, make, read, work_all
from tests.ledger import finish_one_grid


def test_texts_are_quoted_for_the_sender(client: FlaskClient, db: Database) -> None:
    """`text` goes into the prompt that the engines get; the request is echoed as it was sent."""
    job = client.post("/v1/jobs", json={"prompt": "a poster.", "text": ["SALE", "50 %"]}).get_json()
    assert job["glyph_texts"] == ["SALE", "50 %"]
    assert job["params"]["prompt"] == 'a poster, with the text "SALE" and "50 %"' == claim_grid(db).prompt
    assert job["input"] == {"prompt": "a poster.", "text": ["SALE", "50 %"]}
    assert job["warnings"] == []
    assert_documented(job)


def test_every_dialect_tells_what_is_drawn(client: FlaskClient, db: Database, parts: Parts) -> None:
    """Texts and warnings are in OpenAI's images and responses, in lines of batches and in predictions."""
    prompt = "it's a sign that says \"A\" and a dog's"
    image = client.post("/v1/images/generations", json={"prompt": prompt, "background": True}).get_json()
    asked = {"input": prompt, "tools": [{"type": "image_generation"}], "background": True}
    predicted = client.post("/v1/predictions", json={"version": "glmq/miniature", "input": {"prompt": prompt}}).get_json()
    batch = make(client, [line("a", prompt=prompt)])
    clerk = Clerk(parts, threading.Event())
    work_all(clerk)
    draw(db, parts.storage, png(64, 64))
    work_all(clerk)
    sent = {"prompt": prompt, "response_format": "url", "seed": client.get(f"/v1/jobs/{image['id']}").get_json()["seed"]}
    drawn = client.post("/v1/images/generations", json=sent).get_json()
    [record] = content(client, read(client, batch)["output_file_id"])
    for answer in (image, drawn, client.post("/v1/responses", json=asked).get_json(), predicted, record["response"]["body"]):
        assert answer["glyph_texts"] == ["A"]
        assert [warning["code"] for warning in answer["warnings"]] == ["apostrophe"]


def test_what_no_prompt_can_say_goes_to_the_decoder_beside_it(client: FlaskClient, db: Database) -> None:
    """A text that the reference's parser cannot read back is drawn all the same, and drawn anew by a redecode."""
    text = "He said \"hi\" and 'ho' “hu” 「he」"
    job = client.post("/v1/jobs", json={"prompt": "a poster", "text": [text]}).get_json()
    assert job["glyph_texts"] == [text]
    finish_one_grid(db)
    again = client.post(f"/v1/jobs/{job['id']}/redecode", json={"steps": 9}).get_json()
    assert again["glyph_texts"] == [text]
    work.release(db, Stage.DECODER, 10)
    for _ in range(2):
        image = claims.claim_image(db, "w", 30)
        assert image is not None
        assert image.glyph_texts == (text,)


def test_a_prompt_without_traps_is_left_to_the_reference(client: FlaskClient, db: Database) -> None:
    """Nothing is stored beside it, so that it shares its layout with what was drawn before."""
    client.post("/v1/jobs", json={"prompt": 'a "SALE" poster'})
    finish_one_grid(db)
    work.release(db, Stage.DECODER, 10)
    image = claims.claim_image(db, "w", 30)
    assert image is not None
    assert image.glyph_texts is None


def test_traps_are_told(client: FlaskClient) -> None:
    """Warnings name what was found and where; `glyphs: reference` leaves the trap as the model's own code has it."""
    prompt = "it's a dog's \"B\" sign"
    job = client.post("/v1/jobs", json={"prompt": prompt}).get_json()
    assert job["glyph_texts"] == ["B"]
    assert [(warning["code"], warning["position"], warning["fixed"]) for warning in job["warnings"]] == [("apostrophe", 2, True)]
    assert_documented(job)
    job = client.post("/v1/jobs", json={"prompt": prompt, "glyphs": "reference"}).get_json()
    assert job["glyph_texts"] == ["s a dog", "B"]
    assert job["params"]["prompt"] == prompt
    assert [(warning["code"], warning["fixed"]) for warning in job["warnings"]] == [("apostrophe", False)]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"text": "SALE"}, "invalid_request", "text"),
        ({"text": [1]}, "invalid_request", "text.0"),
        ({"text": ["a", ""]}, "invalid_request", "text.1"),
        ({"text": ["  "]}, "invalid_request", "text.0"),
        ({"text": ["é" * 1024]}, "invalid_request", "text.0"),
        ({"text": ["a"] * 17}, "invalid_request", "text"),
        ({"text": ["a", "<|image|>"]}, "unprocessable_prompt", "text.1"),
        ({"text": ["ok", "He said \"hi\" 'ho' “hu” 「he」"], "glyphs": "reference"}, "unprocessable_prompt", "text.1"),
        ({"glyphs": "none"}, "invalid_request", "glyphs"),
    ],
)
def test_texts_that_cannot_be_drawn(refusing: FlaskClient, fields: dict[str, object], code: str, param: str) -> None:
    """Each is refused with the field that holds it, and nothing is stored."""
    status = 422 if code == "unprocessable_prompt" else 400
    assert_problem(refusing.post("/v1/jobs", json={"prompt": "a poster", **fields}), status, code, param)


def test_what_the_operator_forbids_is_not_drawn(
    settings: ApiSettings, db: Database, account: Account, model: ModelInfo, tmp_path: Path
) -> None:
    """A term of the operator's file is refused by every interface, with its own words, and nothing is stored."""
    (tmp_path / "terms.txt").write_text("blorp\n")
    with open_app(settings.model_copy(update={"blocked_terms": str(tmp_path / "terms.txt")})) as app:
        client = client_of(app, account.keys["submit"])
        for path in ("/v1/jobs", "/v1/estimate"):
            assert_problem(client.post(path, json={"prompt": "a poster", "text": ["BL0RP"]}), 422, "content_rejected", "text.0")
        refused = client.post("/v1/images/generations", json={"prompt": "a b-l-o-r-p"}).get_json()
        assert (refused["error"]["code"], refused["error"]["param"]) == ("content_rejected", "prompt")
        assert_problem(
            client.post("/v1/predictions", json={"version": "glmq/miniature", "input": {"prompt": "blorp"}}),
            422,
            "content_rejected",
            "input.prompt",
        )
        assert not any(count_rows(db).values())
        assert client.post("/v1/jobs", json={"prompt": "a flower"}).status_code == 202
