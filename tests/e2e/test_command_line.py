"""A stranger's first hour with the `glmq` command: the demo, a stack that stays, images, mistakes, the end."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import psycopg
import pytest
from PIL import Image

from cli.background import stop_stack
from cli.data_folder import DataFolder


@pytest.fixture
def data(tmp_path: Path) -> Iterator[DataFolder]:
    data = DataFolder(tmp_path / "data")
    yield data
    stop_stack(data)


# Every process of the stack imports for itself, here alone: minutes on a machine that is full.
@pytest.mark.timeout(600)
def test_from_the_demo_to_the_end(data: DataFolder, tmp_path: Path) -> None:
    """Everything that the README tells a stranger to type does what it says, with the checkpoint that a stranger gets."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GLMQ_")}
    environment["GLMQ_DATA"] = str(data.path)

    def glmq(command: str, **more: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-m", "cli.main", *shlex.split(command)]
        return subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment | more, timeout=200)

    # Before anything runs
    assert glmq("status").returncode == 3
    assert glmq("down").returncode == 0
    mistaken = glmq("up --detach --checkpoint nothing/here/at/all")
    assert (mistaken.returncode, data.is_held()) == (1, False)
    assert "there is no checkpoint folder" in mistaken.stderr
    assert "no stack runs" in glmq("generate cat -o cat.png").stderr

    # The demo, left running
    demo = glmq("demo --keep --images demo")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert demo.stdout.count("signature verified") == 2
    for name in ("text-to-image.png", "image-to-image.png"):
        with Image.open(tmp_path / "demo" / name) as picture:
            picture.load()
            assert picture.format == "PNG"

    # Looked at
    status = glmq("status", COLUMNS="200")
    assert status.returncode == 0, status.stdout
    for process in ("postgres", "redis", "s3", "api", "dispatcher", "ar_worker", "decoder_worker", "webhook_sender"):
        assert process in status.stdout
    again = glmq("up --detach")
    assert again.returncode == 0
    assert "is running in" in again.stdout
    assert glmq("doctor", COLUMNS="200").returncode == 0

    # From a shell beside it
    script = f"eval {shlex.quote(glmq('status --env').stdout)}; env"
    exported = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True, env={}).stdout
    shell = dict(line.split("=", 1) for line in exported.splitlines() if line.startswith("GLMQ_"))
    with psycopg.connect(shell["GLMQ_DATABASE_URL"]) as connection:
        assert connection.execute("select count(*) from job").fetchone() == (2,)

    # Images of one's own: by the environment, from a source, several
    made = glmq("generate 'A teal sign that says \"OPEN\"' -o open.png --size 100x70 --steps 2", **shell | {"GLMQ_DATA": "/nonexistent"})
    assert made.returncode == 0, made.stderr
    assert Image.open(BytesIO((tmp_path / "open.png").read_bytes())).size == (100, 70)
    several = glmq("generate 'Make the background red' -o red.webp --image open.png -n 2 --size 64x64 --steps 2")
    assert several.returncode == 0, several.stderr
    assert sorted(path.name for path in tmp_path.glob("red*")) == ["red-1.webp", "red-2.webp"]

    # A table, twice: the second time there is nothing left to draw
    (tmp_path / "shop.csv").write_text("\ufeffcustom_id,prompt,steps\nmug,A red mug,2\npot,A tea pot,2\n", encoding="utf-8")
    for _ in range(2):
        drawn = glmq('batch shop.csv -o shop.zip --defaults \'{"size": "64x64"}\'')
        assert drawn.returncode == 0, drawn.stdout + drawn.stderr
        with zipfile.ZipFile(tmp_path / "shop.zip") as archive:
            assert archive.namelist() == ["mug_0.png", "pot_0.png", "manifest.jsonl"]
            assert Image.open(archive.open("pot_0.png")).size == (64, 64)

    # Mistakes
    wrong = glmq("generate cat -o cat.png --size 7x7")
    assert wrong.returncode == 1
    assert "pixels (got 7)" in wrong.stderr
    forbidden = glmq("generate cat -o cat.png", GLMQ_URL=shell["GLMQ_URL"], GLMQ_API_KEY="glmq_wrong")
    assert forbidden.returncode == 1
    assert "Traceback" not in forbidden.stderr

    # The end
    assert "stopped the stack" in glmq("down").stdout
    assert glmq("status").returncode == 3
