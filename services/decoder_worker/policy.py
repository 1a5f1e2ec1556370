"""
Which pictures take the next step. Plain numbers in, a group out. Pure.

The picture with the least work left goes first, so a large one never holds back small ones, and the mean time in system is the
smallest there is. One that was passed over for long gets a fixed share of the engine all the same, so it always comes to its end.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """
    A picture that could take a step. Work is in FLOPs; candidates are listed in the order in which they came.

    Attributes:
        shape: pictures share a batch only if theirs are equal.
        num_patches: its share of the token budget.
        work_left: of all its steps to come.
        step_work: of its next step.
        passed_over: work that the engine did for others since this picture last moved, or since it came.
        is_preview: runs when nothing else wants the engine, or when it is overdue.
        is_alone: shares no batch.
    """

    shape: Hashable
    num_patches: int
    work_left: float
    step_work: float
    passed_over: float
    is_preview: bool = False
    is_alone: bool = False


@dataclass(frozen=True)
class Choice:
    """Who takes the next step, as indices of candidates, the leader first; `is_favour`: it was overdue, and not the shortest."""

    members: tuple[int, ...]
    is_favour: bool


def choose(candidates: Sequence[Candidate], token_budget: int, overdue_share: float, since_favour: float) -> Choice:
    """
    Choose the next group; there is at least one candidate.

    The leader is the picture with the least work left, previews after all others; pictures of its shape join it, the shortest first,
    while their patches together fit the budget.

    Args:
        token_budget: patch tokens of a group; a picture larger than that goes alone.
        overdue_share: of the engine that goes to those who were passed over. All of them together get it, the one that waits longest
            first: no one starves, and shorter pictures lose no more than the share.
        since_favour: work done since the last favour.
    """
    order = sorted(range(len(candidates)), key=lambda index: (candidates[index].is_preview, candidates[index].work_left, index))
    leader = order[0]
    is_favour = False
    if len(order) > 1:
        # Of the longest waiting alone: were all asked, those with short steps would use up the share before a long one is due.
        longest = max(order[1:], key=lambda index: (candidates[index].passed_over, -index))
        waited = min(candidates[longest].passed_over, since_favour)
        is_favour = overdue_share * waited >= candidates[longest].step_work
        leader = longest if is_favour else leader
    first = candidates[leader]
    mates = [
        index
        for index in order
        if index != leader and candidates[index].shape == first.shape and not (first.is_alone or candidates[index].is_alone)
    ]
    room = max(1, token_budget // first.num_patches)
    return Choice((leader, *mates[: room - 1]), is_favour)
