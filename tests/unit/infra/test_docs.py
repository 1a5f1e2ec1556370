"""What the documents name is there, files, settings, chores and the pages they link; and modules are in the lists that have all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
"""Not the changelog, which tells of what is gone as well."""

FOLDERS = ("checkpoints", "cli", "docs", "infra", "services", "shared", "tests")


def named(pattern: str) -> Iterator[tuple[str, str]]:
    """Whatever the first group of this pattern finds in the pages, with the page's name."""
    for page in PAGES:
        for found in re.finditer(pattern, page.read_text()):
            yield page.name, found[1]


def test_files_are_there() -> None:
    """A file that is named with its folder exists."""
    pattern = rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w./-]*\w\.(?:py|md|json|sh|yml|toml|txt|png))\b"
    assert [name for name in named(pattern) if not (ROOT / name[1]).is_file()] == []


def test_links_lead_somewhere() -> None:
    """A link to another page, and to a heading of one, leads there."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" in target:
                continue
            path, _, heading = target.partition("#")
            place = (page.parent / path).resolve() if path else page
            assert place.exists(), f"{page.name}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.+)$", place.read_text(), re.MULTILINE)
                assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, f"{page.name}: {target}"


def test_settings_are_there() -> None:
    """A variable of glmq's that is named is one of those that docs/settings.md lists."""
    known = set(re.findall(r"`(GLMQ_[A-Z0-9_]+)`", (ROOT / "docs" / "settings.md").read_text()))
    # A name that ends in _ stands for those that begin with it.
    assert [name for name in named(r"(GLMQ_[A-Z0-9_]+)") if name[1] not in known and not name[1].endswith("_")] == []


def test_chores_are_there() -> None:
    """`make` of anything that the pages show as code is a chore."""
    chores = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert [name for name in named(r"(?m)(?:`|^)make ([a-z-]+)") if name[1] not in chores] == []


def test_every_module_of_shared_has_its_place() -> None:
    """The diagram of docs/architecture.md names all modules of `shared`, and the life cycle's docstring all of its own."""
    [diagram] = [text for text in (ROOT / "docs" / "architecture.md").read_text().split("```") if "shared.worker  " in text]
    modules = {path.stem for path in (ROOT / "shared").iterdir() if not path.name.startswith("_")}
    assert modules - set(re.findall(r"\w+", diagram)) == set()
    lifecycle = ROOT / "shared" / "lifecycle"
    listed = set(re.findall(r"^    (\w+\.py) ", (lifecycle / "__init__.py").read_text(), re.MULTILINE))
    assert listed == {path.name for path in lifecycle.glob("[!_]*.py")}
