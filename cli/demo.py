"""`glmq demo`: what glmq does, shown with a real stack, two jobs and a webhook receiver, as a stranger's first look."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from cli.client import ApiError, Client, Job, failure
from cli.data_folder import StackState
from cli.progress import JobProgress
from cli.receiver import WebhookReceiver

RECEIVER_NETWORK = "127.0.0.1/32"
"""The demo's receiver is on loopback, which webhooks may reach only where the operator says so."""

TEXT_PROMPT = 'A blue poster with the words "HELLO GLMQ" in white'
EDIT_PROMPT = 'Replace the text with "AGAIN"'
"""In words that the trained miniature knows; the published model knows more."""

_RANDOM_WEIGHTS = "random-miniature"
_LARGEST_PX = 512
"""Large enough for every phase to be seen on a laptop, small enough to be done in seconds."""
_STEPS = 20
_WEBHOOK_TIMEOUT_S = 30.0


def run_demo(state: StackState, folder: Path, console: Console) -> None:
    """
    Draw an image, draw another from it, and receive a signed webhook for each.

    Args:
        folder: gets the images; it is there.
    Raises:
        ApiError: anything went otherwise than shown.
    """
    client = Client(state.exports["GLMQ_URL"], state.exports["GLMQ_API_KEY"])
    with client, WebhookReceiver(client.webhook_secret()) as receiver:
        model = client.model()
        # Where the model draws small pictures only, a larger one would be the same, enlarged.
        side = model["limits"]["max_generated_side"] or min(_LARGEST_PX, model["limits"]["max_side"])
        # No seed: with the one of an earlier run, the tokens of that run would be found and not written again.
        request: dict[str, Any] = {"prompt": TEXT_PROMPT, "size": f"{side}x{side}", "steps": _STEPS}
        first = _draw(client, receiver, console, "text to image", request, folder / "text-to-image.png")
        request = {**request, "prompt": EDIT_PROMPT, "images": [{"job_id": first["id"], "index": 0}]}
        _draw(client, receiver, console, "image to image", request, folder / "image-to-image.png")
    if model["id"] == _RANDOM_WEIGHTS:
        console.print("\nThis checkpoint's weights are random, so its pictures are coloured noise. The default one writes words.")


def _draw(client: Client, receiver: WebhookReceiver, console: Console, title: str, request: dict[str, Any], file: Path) -> Job:
    console.print(f"\n[bold]{title}[/bold]: {request['prompt']}", highlight=False)
    started = time.monotonic()
    job = client.submit({**request, "webhook": {"url": receiver.url, "events": ["job.succeeded", "job.failed"]}})
    console.print(f"  POST /v1/jobs → {job['id']}", highlight=False)
    with JobProgress(console, title) as progress:
        job = client.wait(job, progress.show)
    if job["status"] != "succeeded":
        raise ApiError(failure(job))
    output = job["outputs"][0]
    file.write_bytes(client.download(output))
    seconds = time.monotonic() - started
    console.print(f"  {output['width']}x{output['height']} {output['format']} in {seconds:.1f} s → {file}", highlight=False)
    event = receiver.await_event(job["id"], "job.succeeded", _WEBHOOK_TIMEOUT_S)
    if event is None:
        refused = f"; {receiver.num_refused} with a wrong signature were refused" if receiver.num_refused else ""
        raise ApiError(f"no webhook about {job['id']} came within {_WEBHOOK_TIMEOUT_S:.0f} s{refused}")
    console.print(f"  webhook {event['id']} {event['type']}: signature verified", highlight=False)
    return job
