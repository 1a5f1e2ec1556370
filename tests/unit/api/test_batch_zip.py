"""Names of pictures in a zip, whatever custom ids are."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath

from hypothesis import example, given
from hypothesis import strategies as st

from services.api.batch_zip import safe_stem


@example("con.x")
@example("../..")
@given(st.text(min_size=1, max_size=128))
def test_a_stem_is_one_plain_name(custom_id: str) -> None:
    """It leads nowhere, is neither hidden nor a device, and any file system has room for it."""
    name = f"{safe_stem(custom_id)}_0.png"
    assert PurePosixPath(name).name == name == PureWindowsPath(name).name
    assert not name.startswith(".")
    assert name.partition(".")[0].casefold() not in ("con", "prn", "aux", "nul", "com1", "lpt1")
    assert len(name.encode()) <= 120
    assert name.isprintable()
