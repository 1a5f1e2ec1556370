"""Reads a Dockerfile as far as infra/docker/Dockerfile goes: stages, and what stands in each. Builds nothing."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Copy:
    """One COPY: from another stage, or from the build context when `stage` is None."""

    stage: str | None
    sources: tuple[str, ...]
    target: str


@dataclass
class Stage:
    """One FROM and what follows it."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """Instruction and arguments, in order."""


class Dockerfile:
    """A parsed Dockerfile."""

    def __init__(self, path: Path) -> None:
        self.stages: dict[str, Stage] = {}
        lines = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        for line in (line.strip() for line in lines):
            if not line or line.startswith("#"):
                continue
            instruction, arguments = line.split(maxsplit=1)
            if instruction == "FROM":
                base, _, name = arguments.split()
                stage = self.stages[name] = Stage(name, base)
            else:
                stage.steps.append((instruction, arguments))

    def base_images(self) -> set[str]:
        """What the stages start from, other stages aside."""
        return {stage.base for stage in self.stages.values()} - self.stages.keys()

    def steps(self, name: str) -> list[tuple[str, str]]:
        """The steps of a stage, after those of the stages it starts from."""
        stage = self.stages[name]
        return [*(self.steps(stage.base) if stage.base in self.stages else []), *stage.steps]

    def copies(self, name: str) -> list[Copy]:
        """The copies of a stage and of those it starts from."""
        return [_copy(arguments) for instruction, arguments in self.steps(name) if instruction == "COPY"]

    def last(self, name: str, instruction: str) -> str:
        """What counts of an instruction that may be given again, such as USER."""
        return [arguments for given, arguments in self.steps(name) if given == instruction][-1]

    def command(self, name: str) -> list[str]:
        """What a container of this image runs."""
        command: list[str] = json.loads(self.last(name, "CMD"))
        return command


def _copy(arguments: str) -> Copy:
    words = shlex.split(arguments)
    stage = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else None
    *sources, target = words
    return Copy(stage, tuple(sources), target)
