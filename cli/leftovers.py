"""
What a killed supervisor could not end. Only for who holds the data folder.

On Linux servers and roles end with their supervisor; what they started in turn may not, and elsewhere nothing does.
"""

from __future__ import annotations

from cli.data_folder import DataFolder
from infra.embedded.memory import Memory, new_password
from infra.embedded.process import end_leftover, end_marked

MARK = "GLMQ_STACK_MARK"
"""Variable in the environment of every role, and so of whatever a role starts: names the stack."""


def stack_mark(memory: Memory) -> str:
    """Value of `MARK` for the stack that remembers by this."""
    return memory.recall("stack", "mark", new_password)


def end_leftovers(data: DataFolder) -> int:
    """End all of the last stack of this folder that still runs; says how many processes that was."""
    state = data.read_state()
    rows = reversed(state.rows) if state is not None else ()
    num_ended = sum(end_leftover(row.mark) for row in rows if row.mark is not None)
    return num_ended + end_marked(MARK, stack_mark(data.memory()))
