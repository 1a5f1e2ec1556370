"""The miniature's AR half, loaded once for this folder's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.ar_worker.weights import ArModel, load_ar_model


@pytest.fixture(scope="session")
def ar_model(miniature: Path) -> ArModel:
    return load_ar_model(miniature, "cpu", "float32")
