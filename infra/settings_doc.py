"""
Writes docs/settings.md: every `GLMQ_…` variable, from the settings classes themselves.

`python -m infra.settings_doc` writes the page, `--check` only says whether it is current.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from infra.migrate import MigrateSettings
from services.api.settings import ApiSettings
from services.ar_worker.settings import ArWorkerSettings
from services.decoder_worker.settings import DecoderWorkerSettings
from services.dispatcher.settings import DispatcherSettings
from services.webhook_sender.settings import WebhookSenderSettings
from shared.settings import CoreSettings, QuotaSettings, WorkerSettings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"

PREFIX = "GLMQ_"

SETTINGS_OF: dict[str, type[CoreSettings]] = {
    "migrate": MigrateSettings,
    "api": ApiSettings,
    "batch_clerk": ApiSettings,
    "dispatcher": DispatcherSettings,
    "ar_worker": ArWorkerSettings,
    "decoder_worker": DecoderWorkerSettings,
    "webhook_sender": WebhookSenderSettings,
}
"""What each process reads at its start."""

_SECTIONS: tuple[tuple[str, type[CoreSettings]], ...] = (
    ("Every process", CoreSettings),
    ("GPU workers", WorkerSettings),
    ("AR worker", ArWorkerSettings),
    ("Decoder worker", DecoderWorkerSettings),
    ("Limits of a tenant", QuotaSettings),
    ("API", ApiSettings),
    ("Dispatcher", DispatcherSettings),
    ("Webhook sender", WebhookSenderSettings),
    ("Migration", MigrateSettings),
)


@dataclass(frozen=True)
class CommandVariable:
    """A variable of the `glmq` command, which reads the environment without a settings class."""

    name: str
    default: str
    meaning: str


COMMAND_VARIABLES = (
    CommandVariable("GLMQ_DATA", "`.glmq` in the checkout", "Folder of the stack that `glmq up` runs."),
    CommandVariable(
        "GLMQ_AR_WORKERS", "one per core, at most 4, for a miniature on a CPU; else 1", "AR workers of the stack that `glmq up` runs."
    ),
    CommandVariable(
        "GLMQ_DECODER_WORKERS",
        "one per core, at most 4, for a miniature on a CPU; else 1",
        "Decoder workers of the stack that `glmq up` runs.",
    ),
    CommandVariable("GLMQ_URL", "the stack that runs here", "Service that `glmq generate` and `glmq batch` ask, as `http://host:port`."),
    CommandVariable("GLMQ_API_KEY", "that of the stack that runs here", "Key for it."),
)

_OPENING = """\
# Settings

Written by `python -m infra.settings_doc` from the settings classes; do not edit.

Every setting is an environment variable. A process reads its settings once, at its start; a missing or wrong one refuses the start
with the variable's name, never its value. `glmq up` and docker-compose.yml fill in what is required; give them the rest in
the environment or in a `docker-compose.override.yml`.
"""

_COMMAND = """\
## The `glmq` command

`glmq up` passes its environment on to the processes, so the variables above work with it; only `GLMQ_API_HOST` and `GLMQ_API_PORT` it
decides itself (`--port`). It takes a server from outside when `GLMQ_DATABASE_URL`, `GLMQ_REDIS_URL` or `GLMQ_S3_ENDPOINT` (with its keys)
names one, and makes up what nobody names. These variables are for the command alone:
"""


def settings_page() -> str:
    """The whole page."""
    lines = [_OPENING]
    for title, kind in _SECTIONS:
        readers = [f"`{role}`" for role, settings in SETTINGS_OF.items() if issubclass(settings, kind)]
        lines += [f"## {title}\n", f"Read by {_listing(readers)}.\n"]
        lines += _table(("variable", "type", "default", "meaning"), _setting_rows(kind))
    lines.append(_COMMAND)
    rows = ((f"`{variable.name}`", variable.default, variable.meaning) for variable in COMMAND_VARIABLES)
    lines += _table(("variable", "default", "meaning"), rows)
    return "\n".join(lines).rstrip() + "\n"


def variables(kind: type[CoreSettings]) -> dict[str, FieldInfo]:
    """The variables that a settings class reads."""
    return {f"{PREFIX}{name.upper()}": field for name, field in kind.model_fields.items()}


def _setting_rows(kind: type[CoreSettings]) -> Iterator[tuple[str, ...]]:
    own = {f"{PREFIX}{name.upper()}" for name in kind.__annotations__}
    for name, field in variables(kind).items():
        if name in own:
            yield f"`{name}`", _type_text(field), _default_text(field), field.description or ""


def _type_text(field: FieldInfo) -> str:
    kind: Any = field.annotation
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is dict:
        return "JSON object"
    names = {SecretStr: "secret", str: "text", int: "integer", float: "number"}
    words = next(names[candidate] for candidate in (kind, *get_args(kind)) if candidate in names)
    return ", ".join([words, *_bounds(field)])


def _bounds(field: FieldInfo) -> Iterator[str]:
    for bound in field.metadata:
        match bound:
            case Ge(ge=value):
                yield f"at least {value}"
            case Gt(gt=value):
                yield f"above {value}"
            case Le(le=value):
                yield f"at most {value}"


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    return "none" if field.default in (None, "") else f"`{field.default}`"


def _table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> list[str]:
    lines = [_row(header), _row(tuple("---" for _ in header)), *(_row(row) for row in rows)]
    return [*lines, ""]


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _listing(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def main(arguments: list[str], file: Path = PAGE) -> None:
    """Write the page, or with `--check` end with 1 when it is not current."""
    page = settings_page()
    if "--check" not in arguments:
        file.write_text(page, encoding="utf-8")
    elif not file.exists() or file.read_text(encoding="utf-8") != page:
        sys.exit(f"{file} is out of date: run python -m infra.settings_doc")


if __name__ == "__main__":
    main(sys.argv[1:])
