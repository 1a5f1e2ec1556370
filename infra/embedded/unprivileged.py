"""
How root runs a server that refuses to run as root. Creates no user and changes no permission outside the server's own folder.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_NOBODY = "nobody"
_NAMESPACE_OPTIONS = ("--user", "--map-user=1000", "--map-group=1000", "--")
"""A user namespace in which root is an ordinary user: files it makes still belong to root outside."""


@dataclass(frozen=True)
class RunAs:
    """Who a process is: ourselves, another user (`uid`, `gid`), or ourselves inside what `prefix` sets up."""

    uid: int = -1
    gid: int = -1
    prefix: tuple[str, ...] = ()


def ordinary_user(folder: Path, program: Path) -> RunAs | None:
    """
    How to run `program` on `folder` as somebody who is not root; None when there is no way. `folder` is given to that somebody.

    Two ways: as `nobody`, where both can be reached by it, else in a user namespace. A folder in use keeps the way it was made with.
    """
    if os.geteuid() != 0:
        return RunAs()
    nobody = _nobody(folder, program)
    if nobody is not None and (folder.stat().st_uid == nobody.uid or not any(folder.iterdir())):
        os.chown(folder, nobody.uid, nobody.gid)
        return nobody
    return _namespace(folder, program) if folder.stat().st_uid == 0 else None


def _nobody(folder: Path, program: Path) -> RunAs | None:
    try:
        account = pwd.getpwnam(_NOBODY)
    except KeyError:
        return None
    # `folder` itself is private until it is given away; its parents must let others through.
    checks = subprocess.run(
        ["/bin/sh", "-c", 'cd "$1" && exec "$2" --version', "sh", str(folder.parent), str(program)],
        cwd="/",
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
        capture_output=True,
        check=False,
    )
    return RunAs(account.pw_uid, account.pw_gid) if checks.returncode == 0 else None


def _namespace(folder: Path, program: Path) -> RunAs | None:
    unshare = shutil.which("unshare")
    if unshare is None:
        return None
    run_as = RunAs(prefix=(unshare, *_NAMESPACE_OPTIONS))
    works = subprocess.run([*run_as.prefix, str(program), "--version"], cwd=folder, capture_output=True, check=False)
    return run_as if works.returncode == 0 else None
