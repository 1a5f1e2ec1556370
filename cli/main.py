"""The `glmq` command: each function is one command, and only puts together what the other files do."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from cli import doctor as doctor_report
from cli import status as status_report
from cli.background import BackgroundStack, background_stack, stop_stack
from cli.batch import parse_defaults, run_batch
from cli.checkpoint import CheckpointError, named_checkpoint
from cli.client import ApiError
from cli.data_folder import DataFolder, StackState, default_data_folder
from cli.demo import RECEIVER_NETWORK, run_demo
from cli.environment import without_own
from cli.generate import Wish, connect, generate
from cli.hints import command_here, next_steps
from cli.keys import keys, tenants
from cli.supervisor import StackError
from cli.worker_counts import AR_VARIABLE, DECODER_VARIABLE, MAX_WORKERS, worker_counts
from infra.embedded.choose import choose_servers
from infra.embedded.ports import is_free
from infra.embedded.server import ServerError

app = typer.Typer(help="Serve GLM-Image as a durable, asynchronous job service.", no_args_is_help=True, add_completion=False)
app.add_typer(keys, name="keys")
app.add_typer(tenants, name="tenants")
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_WATCH_S = 0.5
_EXIT_INTERRUPTED = 130
"""As a shell reports a program that Ctrl-C ended."""

_SERVERS = ("postgres", "redis", "s3")

DataOption = Annotated[Path | None, typer.Option("--data", help="Folder of the stack. [default: GLMQ_DATA, else .glmq in the checkout]")]
CheckpointOption = Annotated[
    str | None,
    typer.Option(help="Checkpoint folder or hub id. [default: GLMQ_CHECKPOINT, else the miniature]"),
]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port of the API. [default: that of the last run, at first 8080 or any]")]

ArWorkersOption = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_WORKERS, help="AR workers. [default: GLMQ_AR_WORKERS, else one per core for a miniature]"),
]
DecodersOption = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_WORKERS, help="Decoder workers. [default: GLMQ_DECODER_WORKERS, else one per core for a miniature]"),
]


@app.command()
def up(
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    port: PortOption = 0,
    ar_workers: ArWorkersOption = None,
    decoders: DecodersOption = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when the stack is ready, and leave it running.")] = False,
) -> None:
    """Start the whole stack on this machine: Postgres, Redis, S3, API, dispatcher, workers, webhook sender."""
    folder = _folder(data)
    if folder.is_held():
        _tell_running(folder)
        return
    with _exit_codes(), background_stack(folder) as stack:
        counts = {AR_VARIABLE: ar_workers, DECODER_VARIABLE: decoders}
        settings = {variable: str(count) for variable, count in counts.items() if count is not None}
        state = _start(stack, folder, checkpoint, port, outlive=detach, settings=settings)
        if detach:
            stack.leave()
        _tell_ready(folder, state)
        _tell_next(folder, running=True)
        if not detach:
            out.print("\nCtrl-C stops it.")
            _watch(stack, folder)


@app.command()
def down(data: DataOption = None) -> None:
    """Stop the stack."""
    with _exit_codes():
        out.print(stop_stack(_folder(data, make=False)))


@app.command()
def status(
    data: DataOption = None,
    env: Annotated[bool, typer.Option("--env", help='Only shell exports, for eval "$(glmq status --env)".')] = False,
) -> None:
    """Show what runs and whether it is well. Exit code 0: all well; 1: not all; 3: nothing runs."""
    folder = _folder(data, make=False)
    state = status_report.running_state(folder)
    if state is None:
        err.print(f"nothing runs in {folder.path}")
        raise typer.Exit(status_report.EXIT_NOT_RUNNING)
    if env:
        # Not by rich, which might wrap or colour what a shell reads.
        print(status_report.shell_exports(state))
        return
    looked = status_report.look(state)
    Console().print(status_report.table(state, looked))
    if state.phase != "ready" or not all(health.well for _, health in looked):
        raise typer.Exit(status_report.EXIT_UNWELL)


@app.command(name="generate")
def generate_command(
    prompt: Annotated[str, typer.Argument(help="What to draw; quoted words are written into the image.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to make; its ending chooses PNG, JPEG or WebP.")],
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels. [default: the checkpoint's]")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed draws the same image. [default: random]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: the checkpoint's]")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Source image; may be given several times.")] = None,
    num_images: Annotated[int, typer.Option("-n", min=1, max=10, help="How many images.")] = 1,
) -> None:
    """Draw an image with the service of GLMQ_URL and GLMQ_API_KEY, or with the stack that runs here."""
    wish = Wish(prompt, output, size, seed, steps, num_images, tuple(image or ()))
    with _exit_codes(), connect() as client:
        for file in generate(client, wish, out):
            out.print(f"  {file}")


@app.command(name="batch")
def batch_command(
    file: Annotated[
        Path, typer.Argument(help="Table (.csv, columns named as members of a job request) or JSON lines.", exists=True, dir_okay=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Zip to make.")],
    defaults: Annotated[str, typer.Option(help='JSON: members that rows inherit, such as \'{"size": "512x512"}\'.')] = "{}",
) -> None:
    """Draw all that a file asks for, and save it as one zip. The same command goes on after a break. Exit code 1 if any item failed."""
    with _exit_codes(), connect() as client:
        num_failed = run_batch(client, file, output, parse_defaults(defaults), out)
        out.print(f"  {output}")
    if num_failed:
        raise typer.Exit(1)


@app.command()
def doctor(data: DataOption = None) -> None:
    """Look at what this machine has of what glmq needs. Exit code 1 if something is missing."""
    findings = doctor_report.examine(_folder(data, make=False))
    Console().print(doctor_report.table(findings))
    if not all(finding.well for finding in findings):
        raise typer.Exit(1)


@app.command()
def demo(
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    images: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("demo-images"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running afterwards.")] = False,
) -> None:
    """Start a stack, draw two images with it, receive signed webhooks, stop it. Exit code 0 if all of that worked."""
    folder = _folder(data)
    with _exit_codes():
        images.mkdir(parents=True, exist_ok=True)
    if folder.is_held():
        _demo_on_running(folder, images)
        return
    allowed = os.environ.get("GLMQ_EGRESS_ALLOW")
    settings = {
        "GLMQ_EGRESS_ALLOW": f"{allowed},{RECEIVER_NETWORK}" if allowed else RECEIVER_NETWORK,
        # It draws one image at a time: more workers would only make the start slower.
        AR_VARIABLE: "1",
        DECODER_VARIABLE: "1",
    }
    with _exit_codes(), background_stack(folder) as stack:
        state = _start(stack, folder, checkpoint, 0, outlive=keep, settings=settings)
        _tell_ready(folder, state)
        run_demo(state, images, out)
        if keep:
            stack.leave()
    _tell_next(folder, running=keep)


def _demo_on_running(folder: DataFolder, images: Path) -> None:
    state = status_report.running_state(folder)
    if state is None or state.phase != "ready" or RECEIVER_NETWORK not in state.egress_allow.split(","):
        _fail(
            f"a stack runs in {folder.path}, and it may not send webhooks to this machine's loopback, where the demo's receiver is:"
            " run `glmq down` first, or `glmq demo --data` with another folder"
        )
    with _exit_codes():
        run_demo(state, images, out)
    _tell_next(folder, running=True)


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Errors that a person can do something about become a message and an exit code; others stay what they are."""
    try:
        yield
    except (ApiError, CheckpointError, ServerError, StackError, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        out.print("\nstopped")
        raise typer.Exit(_EXIT_INTERRUPTED) from None


def _start(
    stack: BackgroundStack, folder: DataFolder, checkpoint: str | None, port: int, *, outlive: bool, settings: dict[str, str] | None = None
) -> StackState:
    """Look at what can be wrong before anything starts; then start, and wait until the stack is ready."""
    environ = without_own(os.environ, folder.read_state())
    named = named_checkpoint(checkpoint, environ)
    worker_counts(named or "", environ)
    choose_servers(folder.path, folder.logs, folder.memory(), environ)
    if port and not is_free(port):
        raise StackError(f"port {port} is taken: choose another, or leave --port out")
    stack.start(named, port, outlive=outlive, settings=settings)
    with out.status("starting") as spinner:
        return stack.await_ready(lambda step: spinner.update(step))


def _watch(stack: BackgroundStack, folder: DataFolder) -> None:
    """Tell of processes that die and start again, until the stack ends."""
    restarts: dict[str, int] = {}
    while not stack.has_ended():
        state = folder.read_state()
        for row in state.rows if state else ():
            if row.restarts > restarts.get(row.name, 0):
                out.print(f"{row.name} ended by itself and is started again; see {folder.log(row.name)}")
            restarts[row.name] = row.restarts
        time.sleep(_WATCH_S)
    state = folder.read_state()
    if state is not None and state.phase == "failed":
        _fail(state.step)
    out.print("the stack was stopped")


def _folder(data: Path | None, *, make: bool = True) -> DataFolder:
    folder = DataFolder(data or default_data_folder())
    if make:
        try:
            folder.make()
        except OSError as error:
            _fail(f"the data folder {folder.path} cannot be made: {error.strerror}")
    return folder


def _tell_running(folder: DataFolder) -> None:
    state = folder.read_state()
    out.print(f"A stack is running in {folder.path} already ({state.phase if state else 'starting'}). `glmq down` stops it.")
    if state is not None and state.phase == "ready":
        _tell_ready(folder, state)
        _tell_next(folder, running=True)


def _tell_ready(folder: DataFolder, state: StackState) -> None:
    for row in state.rows:
        if row.name in _SERVERS:
            out.print(f"  {row.name:<9} {row.origin}, port {row.port}")
    out.print(f"  {'model':<9} {state.checkpoint}")
    out.print(f"  {'data':<9} {folder.path}")
    out.print(f"\n[bold]{state.url}[/bold] is ready.  API key: {state.exports['GLMQ_API_KEY']}")


def _tell_next(folder: DataFolder, *, running: bool) -> None:
    command = command_here(Path(sys.executable), os.environ.get("PATH", ""), Path.cwd())
    out.print("\nTry next:")
    for line in next_steps(command, None if folder.path == default_data_folder() else folder.path, running=running):
        # Pasted into a shell, so nothing of it is markup.
        out.print(f"  {line}", markup=False)


def _fail(message: str) -> NoReturn:
    err.print(f"glmq: {message}", markup=False)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
