"""How Python is set in a process that serves until it is ended. Standard library only."""

from __future__ import annotations

import gc
import sys

_SWITCH_S = 0.0005
"""
A thread that works in Python keeps the others waiting for so long. At the 5 ms of the default, one that has to tell the next process of new
work, or a loop after each of the calls for which it gives up its turn, would wait longer for its turn than for all else.
"""

_YOUNG_OBJECTS = 10_000
"""Objects by which their number grows before the collector looks at them; the default is 700, which one request makes and drops again."""


def begin_to_serve() -> None:
    """
    Call once, when everything is loaded.

    Nets, routes, schemas and libraries stay until the end: the collector need not look through a million of their objects again and again.
    """
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
