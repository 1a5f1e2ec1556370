"""
What a data folder remembers between runs: ports, passwords, keys and process marks. One JSON file that only its owner reads.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

Value = TypeVar("Value", int, str)


class Memory:
    """Named values in sections; every change is on disk before the call returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sections: dict[str, dict[str, int | str]] = json.loads(path.read_text()) if path.exists() else {}

    def recall(self, section: str, name: str, make: Callable[[], Value]) -> Value:
        """The remembered value, or a new one, remembered from now on."""
        value = self._sections.get(section, {}).get(name)
        if value is None:
            value = make()
            self.note(section, **{name: value})
        return cast(Value, value)

    def peek(self, section: str, name: str) -> int | str | None:
        return self._sections.get(section, {}).get(name)

    def note(self, section: str, **values: int | str) -> None:
        """Remember values; the file is replaced whole, so a crash leaves the old or the new one."""
        self._sections.setdefault(section, {}).update(values)
        write_private(self._path, json.dumps(self._sections, indent=2) + "\n")


def new_password() -> str:
    """32 random bytes in letters that need no quoting in a URL, a shell or a configuration file."""
    return secrets.token_hex(32)


def write_private(path: Path, text: str) -> None:
    """Replace a file by one that only its owner can read, never readable by others and never half written."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
