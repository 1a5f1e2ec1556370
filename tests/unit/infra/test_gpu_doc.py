"""docs/gpu.md against the arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.gpu_doc import PAGE, main, tables, with_tables


def test_tables_are_current() -> None:
    """The tables in the repository are what the arithmetic says now; `python -m infra.gpu_doc` writes them."""
    assert with_tables(PAGE.read_text()) == PAGE.read_text()


@pytest.mark.parametrize("name", sorted(tables()))
def test_every_table_is_on_the_page(name: str) -> None:
    """Nothing is computed for nobody."""
    assert PAGE.read_text().count(f"<!-- table: {name} -->") == 1


def test_check_tells_a_stale_page(tmp_path: Path) -> None:
    """`--check` fails on a page whose table says something else, and no longer once it was written anew."""
    page = tmp_path / "gpu.md"
    page.write_text("before\n<!-- table: ratio -->\n| old |\n<!-- end -->\nafter\n")
    with pytest.raises(SystemExit, match="out of date"):
        main(["--check"], page)

    main([], page)
    main(["--check"], page)

    assert page.read_text() == f"before\n<!-- table: ratio -->\n{tables()['ratio']}\n<!-- end -->\nafter\n"
