"""The API wired to stores that do not exist: enough for all that asks none of them."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from apiflask import APIFlask
from pydantic import SecretStr

from services.api.app import create_app
from services.api.settings import ApiSettings
from shared.checkpoint import ModelInfo


@pytest.fixture(scope="session")
def app() -> Iterator[APIFlask]:
    settings = ApiSettings(
        database_url=SecretStr("postgresql://nobody@127.0.0.1:1/none"),
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
        s3_endpoint="http://127.0.0.1:1",
        s3_access_key="key",
        s3_secret_key=SecretStr("secret"),
        secret_key=SecretStr(base64.b64encode(bytes(32)).decode()),
        public_url="https://glmq.example/",
    )
    app = create_app(settings)
    yield app
    app.extensions["glmq"].close()


@pytest.fixture
def info() -> ModelInfo:
    """A checkpoint whose defaults and limits are all different."""
    return ModelInfo(
        name="m",
        revision="r1",
        codebook_size=512,
        steps=50,
        guidance_scale=1.5,
        temperature=0.9,
        top_p=0.75,
        default_height_px=128,
        default_width_px=256,
        min_px=32,
        max_px=512,
        source_min_px=64,
        source_max_px=1024,
    )
