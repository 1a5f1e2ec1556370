"""docs/settings.md against the settings classes and the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infra.settings_doc import COMMAND_VARIABLES, PAGE, SETTINGS_OF, main, settings_page, variables
from shared.settings import CoreSettings

ROOT = Path(__file__).parents[3]

INTERNAL = {"GLMQ_STACK_MARK"}
"""What the supervisor writes on its processes to know them again; nobody sets it."""

_NAME = re.compile(r"\bGLMQ_[A-Z0-9]+(?:_[A-Z0-9]+)*\b")


def test_page_is_current() -> None:
    """The page in the repository is what the classes say now; `python -m infra.settings_doc` writes it."""
    assert PAGE.read_text() == settings_page()


def test_check_tells_a_stale_page(tmp_path: Path) -> None:
    """`--check` fails until the page is written, and again once somebody has edited it."""
    page = tmp_path / "settings.md"
    with pytest.raises(SystemExit, match="out of date"):
        main(["--check"], page)

    main([], page)
    main(["--check"], page)

    page.write_text(page.read_text() + "more\n")
    with pytest.raises(SystemExit, match="out of date"):
        main(["--check"], page)


def test_every_setting_is_explained() -> None:
    """Each field of each settings class says what it means."""
    assert {name for kind in SETTINGS_OF.values() for name, field in variables(kind).items() if not field.description} == set()


def test_every_settings_class_is_on_the_page() -> None:
    """No service reads a class that the page leaves out."""

    def subclasses(kind: type[CoreSettings]) -> set[type[CoreSettings]]:
        return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))

    shipped = {kind for kind in subclasses(CoreSettings) if kind.__module__.split(".")[0] in ("services", "infra", "shared")}

    assert {name for kind in shipped for name in variables(kind) if f"| `{name}` |" not in PAGE.read_text()} == set()


@pytest.mark.parametrize("folder", ["services", "shared", "cli", "infra", "checkpoints"])
def test_every_variable_in_the_code_is_on_the_page(folder: str) -> None:
    """Whatever `GLMQ_…` the code or its messages name is a setting on the page."""
    explained = set(_NAME.findall(PAGE.read_text())) | INTERNAL
    named = {name for file in (ROOT / folder).rglob("*.py") for name in _NAME.findall(file.read_text())}

    assert named - explained == set()


@pytest.mark.parametrize("variable", [variable.name for variable in COMMAND_VARIABLES])
def test_variables_of_the_command_are_read_by_it(variable: str) -> None:
    """The page promises nothing of the `glmq` command that its code does not know."""
    assert any(f'"{variable}"' in file.read_text() for file in (ROOT / "cli").glob("*.py"))
