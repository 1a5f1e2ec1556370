"""`glmq generate`: one job from submit to files on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cli.client import ApiError, Client, failure
from cli.data_folder import DataFolder, default_data_folder
from cli.progress import JobProgress

_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True)
class Wish:
    """What was asked for on the command line; None leaves the choice to the service."""

    prompt: str
    out: Path
    size: str | None = None
    seed: int | None = None
    steps: int | None = None
    num_images: int = 1
    sources: tuple[Path, ...] = ()

    def request(self) -> dict[str, Any]:
        """
        Body of `POST /v1/jobs`.

        Raises:
            ApiError: the output file's name asks for a format that there is not.
        """
        image_format = _FORMATS.get(self.out.suffix.lower())
        if image_format is None:
            raise ApiError(f"{self.out.name} is none of {', '.join(_FORMATS)}: the name's end says which format is made")
        body = {"prompt": self.prompt, "size": self.size, "seed": self.seed, "steps": self.steps, "n": self.num_images}
        return {name: value for name, value in body.items() if value is not None} | {"format": image_format}

    def file(self, index: int) -> Path:
        """Where image `index` goes: the name as given, numbered when there are several."""
        return self.out if self.num_images == 1 else self.out.with_stem(f"{self.out.stem}-{index + 1}")


def connect() -> Client:
    """
    A client of the service that `GLMQ_URL` and `GLMQ_API_KEY` name, else of the stack that runs in the default data folder.

    Raises:
        ApiError: there is neither.
    """
    url, key = os.environ.get("GLMQ_URL"), os.environ.get("GLMQ_API_KEY")
    if url and key:
        return Client(url, key)
    if url or key:
        raise ApiError("GLMQ_URL and GLMQ_API_KEY go together: set the other one too, or neither")
    data = DataFolder(default_data_folder())
    state = data.read_state() if data.is_held() else None
    if state is None or state.phase != "ready":
        raise ApiError(f"no stack runs in {data.path}: start one with `glmq up --detach`, or set GLMQ_URL and GLMQ_API_KEY")
    return Client(state.exports["GLMQ_URL"], state.exports["GLMQ_API_KEY"])


def generate(client: Client, wish: Wish, console: Console) -> list[Path]:
    """
    Run one job and save what it makes. Ctrl-C cancels the job too.

    Raises:
        ApiError: refused, failed or not reachable.
    """
    missing = [str(source) for source in wish.sources if not source.is_file()]
    if missing:
        raise ApiError(f"no such file: {', '.join(missing)}")
    # Before anything is drawn: the picture would have nowhere to go.
    if not wish.out.absolute().parent.is_dir():
        raise ApiError(f"no such folder: {wish.out.absolute().parent}")
    if wish.out.is_dir():
        raise ApiError(f"a folder, not a file: {wish.out}")
    job = client.submit(wish.request(), wish.sources)
    try:
        with JobProgress(console, wish.out.name) as progress:
            job = client.wait(job, progress.show)
    except KeyboardInterrupt:
        client.cancel(job["id"])
        raise
    if job["status"] != "succeeded":
        raise ApiError(failure(job))
    files = []
    for output in job["outputs"]:
        file = wish.file(output["index"])
        file.write_bytes(client.download(output))
        files.append(file)
    return files
