"""What to try next, as commands that can be pasted into the shell that asked. Knows no stack."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path


def command_here(executable: Path, search_path: str, folder: Path) -> str:
    """
    How this `glmq` is called: by its name where the shell finds it, else by its path, which `make` leaves outside of the search path.

    Args:
        executable: Python's; the command lies beside it.
        search_path: PATH.
        folder: where the shell is.
    """
    own = executable.with_name("glmq")
    found = shutil.which("glmq", path=search_path)
    if not own.is_file() or (found is not None and Path(found).samefile(own)):
        return "glmq"
    return shlex.quote(str(own.relative_to(folder) if own.is_relative_to(folder) else own))


def next_steps(command: str, data: Path | None, *, running: bool) -> list[str]:
    """
    Command lines.

    Args:
        command: how `glmq` is called.
        data: the stack's folder; None: the usual one.
        running: does the stack run on?
    """
    where = "" if data is None else f" --data {shlex.quote(str(data))}"
    return [
        *([] if running else [f"{command} up --detach{where}"]),
        f'eval "$({command} status --env{where})"',
        f"{command} generate 'A teal sign that says \"OPEN\"' -o open.png",
        'curl -H "Authorization: Bearer $GLMQ_API_KEY" $GLMQ_URL/v1/jobs',
        *([f"{command} status{where}; {command} down{where}"] if running else []),
    ]
