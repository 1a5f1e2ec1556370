"""Every wrong field is a 4xx problem that names it, and leaves nothing behind (the fixture `refusing` looks)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.integration.api.conftest import assert_problem

OK = {"prompt": "a red fox"}

WRONG_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": " \n\t　"}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ["a"]}, "prompt"),
    ({"prompt": "x" * 8001}, "prompt"),
    ({"prompt": "a\0b"}, "prompt"),
    ({"prompt": "half \ud83e"}, "prompt"),
    ({"size": "64x64\n"}, "size"),
    ({"size": "64X64"}, "size"),
    ({"size": "64"}, "size"),
    ({"size": "064x64"}, "size"),
    ({"size": "64x-64"}, "size"),
    ({"size": "٦٤x64"}, "size"),
    ({"size": "31x64"}, "size"),
    ({"size": "64x513"}, "size"),
    ({"size": "999999x999999"}, "size"),
    ({"size": "9999999x64"}, "size"),
    ({"size": 64}, "size"),
    ({"size": [64, 64]}, "size"),
    ({"size": "64x64", "width": 64, "height": 64}, "size"),
    ({"size": "auto", "width": 64}, "size"),
    ({"width": 64}, "height"),
    ({"height": 64}, "width"),
    ({"width": 31, "height": 64}, "width"),
    ({"width": 64, "height": 513}, "height"),
    ({"width": 64.5, "height": 64}, "width"),
    ({"width": "64", "height": 64}, "width"),
    ({"width": True, "height": 64}, "width"),
    ({"width": 10**39, "height": 64}, "width"),
    ({"n": 0}, "n"),
    ({"n": 11}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": "1"}, "n"),
    ({"n": True}, "n"),
    ({"n": None}, "n"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"seed": "7"}, "seed"),
    ({"seed": False}, "seed"),
    ({"layout_seed": 2**64}, "layout_seed"),
    ({"same_layout": 1}, "same_layout"),
    ({"same_layout": "true"}, "same_layout"),
    ({"steps": 0}, "steps"),
    ({"steps": 201}, "steps"),
    ({"steps": 4.5}, "steps"),
    ({"guidance_scale": 0.5}, "guidance_scale"),
    ({"guidance_scale": 20.1}, "guidance_scale"),
    ({"guidance_scale": "1.5"}, "guidance_scale"),
    ({"guidance_scale": True}, "guidance_scale"),
    ({"guidance_scale": 10**39}, "guidance_scale"),
    ({"temperature": 0}, "temperature"),
    ({"temperature": 2.01}, "temperature"),
    ({"temperature": 1e-300}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"top_p": []}, "top_p"),
    ({"format": "gif"}, "format"),
    ({"format": "PNG"}, "format"),
    ({"format": 1}, "format"),
    ({"format": "jpeg", "format_options": {"quality": 0}}, "format_options.quality"),
    ({"format": "jpeg", "format_options": {"quality": 101}}, "format_options.quality"),
    ({"format": "png", "format_options": {"quality": 90}}, "format_options.quality"),
    ({"format_options": {"max_bytes": 1}}, "format_options.max_bytes"),
    ({"format_options": 90}, "format_options"),
    ({"format_options": None}, "format_options"),
    ({"quality": "best"}, "quality"),
    ({"quality": 90}, "quality"),
    ({"lora": {}}, "lora"),
    ({"lora": ["sketch"]}, "lora.0"),
    ({"lora": [{}]}, "lora.0.name"),
    ({"lora": [{"name": "unknown"}]}, "lora.0.name"),
    ({"lora": [{"name": "sketch"}, {"name": "../sketch"}]}, "lora.1.name"),
    ({"lora": [{"name": "sketch\n"}]}, "lora.0.name"),
    ({"lora": [{"name": "s" * 65}]}, "lora.0.name"),
    ({"lora": [{"name": "sketch"}, {"name": "sketch", "scale": 2}]}, "lora"),
    ({"lora": [{"name": "sketch", "scale": 4.1}]}, "lora.0.scale"),
    ({"lora": [{"name": "sketch", "scale": -4.1}]}, "lora.0.scale"),
    ({"lora": [{"name": "sketch", "scale": "1"}]}, "lora.0.scale"),
    ({"lora": [{"name": "sketch", "weight": 1}]}, "lora.0.weight"),
    ({"lora": [{"name": f"a{i}"} for i in range(5)]}, "lora"),
    ({"previews": "yes"}, "previews"),
    ({"previews": None}, "previews"),
    ({"approve": 1}, "approve"),
    ({"approve": True, "previews": False}, "previews"),
    ({"approve": True, "images": [{"file_id": "file_" + "0" * 26}]}, "approve"),
    ({"cache": "on"}, "cache"),
    ({"cache": True}, "cache"),
    ({"priority": "urgent"}, "priority"),
    ({"priority": 1}, "priority"),
    ({"deadline": "2020-01-01T00:00:00Z"}, "deadline"),
    ({"deadline": "2100-01-01T00:00:00"}, "deadline"),
    ({"deadline": "2100-01-01"}, "deadline"),
    ({"deadline": "2100-13-01T00:00:00Z"}, "deadline"),
    ({"deadline": "9999-12-31T23:59:59-14:00"}, "deadline"),
    ({"deadline": 4102444800}, "deadline"),
    ({"deadline": "tomorrow"}, "deadline"),
    ({"webhook": "ftp://hooks.example/"}, "webhook"),
    ({"webhook": "not a url"}, "webhook"),
    ({"webhook": ""}, "webhook"),
    ({"webhook": 5}, "webhook"),
    ({"webhook": {}}, "webhook.url"),
    ({"webhook": {"url": 5}}, "webhook.url"),
    ({"webhook": {"url": "https://u:p@hooks.example/"}}, "webhook.url"),
    ({"webhook": {"url": "https://hooks.example/", "secret_id": "x"}}, "webhook.secret_id"),
    ({"webhook": {"url": "https://hooks.example/", "events": []}}, "webhook.events"),
    ({"webhook": {"url": "https://hooks.example/", "events": ["job.done"]}}, "webhook.events.0"),
    ({"webhook": {"url": "https://hooks.example/", "events": "job.*"}}, "webhook.events"),
    ({"webhook": {"url": "https://hooks.example/", "events": ["job.*"] * 50}}, "webhook.events"),
    ({"metadata": {"k": 1}}, "metadata.k"),
    ({"metadata": {"k": None}}, "metadata.k"),
    ({"metadata": {"k": {"nested": "x"}}}, "metadata.k"),
    ({"metadata": {"": "x"}}, "metadata."),
    ({"metadata": {"k" * 65: "x"}}, f"metadata.{'k' * 39}…"),
    ({"metadata": {"k": "x" * 513}}, "metadata.k"),
    ({"metadata": {"k": "\0"}}, "metadata.k"),
    ({"metadata": {f"k{i}": "x" for i in range(17)}}, "metadata"),
    ({"metadata": []}, "metadata"),
    ({"custom_id": ""}, "custom_id"),
    ({"custom_id": "x" * 129}, "custom_id"),
    ({"custom_id": 7}, "custom_id"),
    ({"images": {}}, "images"),
    ({"images": ["https://hooks.example/a.png"]}, "images.0"),
    ({"images": [{}]}, "images.0"),
    ({"images": [{"url": "https://hooks.example/a.png", "file_id": "x"}]}, "images.0"),
    ({"images": [{"url": "https://hooks.example/a.png", "index": 0}]}, "images.0"),
    ({"images": [{"job_id": "job_x", "index": "0"}]}, "images.0.index"),
    ({"images": [{"job_id": "job_x", "index": 10}]}, "images.0.index"),
    ({"images": [{"file": "x"}]}, "images.0.file"),
    ({"images": [{"file_id": "file_" + "0" * 26}] * 17}, "images"),
    ({"images": [{"file_id": "file_" + "0" * 26}]}, "images.0"),
    ({"images": [{"file_id": "file_" + "\u00e9" * 26}]}, "images.0"),
    ({"images": [{"job_id": "job_" + "0" * 26}]}, "images.0"),
    ({"images": [{"url": "file:///etc/passwd"}]}, "images.0.url"),
    ({"negative_prompt": "x"}, "negative_prompt"),
    ({"x" * 500: 1}, "x" * 39 + "…"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG_FIELDS, ids=lambda value: json.dumps(value)[:60])
def test_wrong_field_is_named(refusing: FlaskClient, fields: dict[str, Any], param: str) -> None:
    """A wrong type, range or name is 400 and names the field."""
    # Not by the application's own writer, which the client would use: it writes no halves of surrogate pairs.
    sent = json.dumps({**OK, **fields})
    body = assert_problem(refusing.post("/v1/jobs", data=sent, content_type="application/json"), 400, "invalid_request", param)
    assert body["errors"][0]["detail"]
    assert len(body["detail"]) < 400


def test_missing_prompt(refusing: FlaskClient) -> None:
    """The one required field is asked for."""
    assert_problem(refusing.post("/v1/jobs", json={}), 400, "invalid_request", "prompt")


def test_every_wrong_field_is_listed(refusing: FlaskClient) -> None:
    """All wrong fields come back at once, with JSON pointers; param is the first."""
    body = assert_problem(
        refusing.post("/v1/jobs", json={**OK, "steps": 0, "n": 11, "metadata": {"a/b~c d": 1}}), 400, "invalid_request", "n"
    )
    assert [(error["pointer"], error["code"]) for error in body["errors"]] == [
        ("#/n", "less_than_equal"),
        ("#/steps", "greater_than_equal"),
        ("#/metadata/a~1b~0c%20d", "string_type"),
    ]
    assert body["detail"] == "n: input should be less than or equal to 10 (got 11) (and 2 more, see errors)"
    assert "more" not in body["errors"][0]["detail"]


def test_what_only_the_checkpoint_knows_is_listed_together(refusing: FlaskClient) -> None:
    """Size, prompt and webhook are judged together too."""
    request = {"prompt": "a <|image|>", "size": "9x9999", "webhook": "http://127.0.0.2/"}
    body = assert_problem(refusing.post("/v1/jobs", json=request), 422, "unprocessable_prompt", "prompt")
    assert [error["pointer"] for error in body["errors"]] == ["#/prompt", "#/size", "#/size", "#/webhook"]


def test_unknown_field_gets_a_suggestion(refusing: FlaskClient) -> None:
    """A typing error is met with the field that was meant."""
    body = assert_problem(refusing.post("/v1/jobs", json={**OK, "guidence_scale": 2}), 400, "invalid_request", "guidence_scale")
    assert body["detail"] == "unknown field guidence_scale; did you mean guidance_scale?"


def test_unknown_adapter_is_told_the_known_ones(refusing: FlaskClient) -> None:
    """Whoever asks for an adapter that no worker has is told which there are."""
    body = assert_problem(refusing.post("/v1/jobs", json={**OK, "lora": [{"name": "skecth"}]}), 400, "invalid_request", "lora.0.name")
    assert body["detail"] == "lora.0.name: there is no adapter skecth; there are: neon, sketch"


@pytest.mark.parametrize("token", ["<sop>", "<eop>", "<|image|>", "<|dit_token_7|>", "[gMASK]"])
def test_control_tokens_are_refused(refusing: FlaskClient, token: str) -> None:
    """A prompt that holds a command of the model is 422, and the command is named."""
    body = assert_problem(refusing.post("/v1/jobs", json={"prompt": f"a {token} b"}), 422, "unprocessable_prompt", "prompt")
    assert token in body["detail"]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://169.254.169.254/latest/meta-data", "forbidden_address"),
        ("http://[::1]/", "forbidden_address"),
        ("http://2130706434/", "forbidden_address"),
        ("http://inside.example/", "forbidden_address"),
        ("http://both.example/", "forbidden_address"),
        ("http://hooks.example:22/", "forbidden_address"),
    ],
)
def test_inside_addresses_are_refused_at_the_door(refusing: FlaskClient, url: str, code: str) -> None:
    """A webhook or source image that leads inside is refused before anything is stored or asked."""
    assert_problem(refusing.post("/v1/jobs", json={**OK, "webhook": url}), 400, code, "webhook")
    assert_problem(refusing.post("/v1/jobs", json={**OK, "webhook": {"url": url}}), 400, code, "webhook.url")
    assert_problem(refusing.post("/v1/jobs", json={**OK, "images": [{"url": url}]}), 400, code, "images.0.url")
