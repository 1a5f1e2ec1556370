"""
What no picture here may be about: words and phrases that the operator lists in a file, and that no prompt and no text may contain.

They are found whatever their case, accents, full-width letters, invisible characters, look-alike digits (`sh1t`) and spaced letters
(`s h i t`). Words match whole, so that a town is not refused for the letters in the middle of its name; of scripts that are written
without spaces any place matches. Knows no list of its own: what is to be refused differs from host to host.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from services.api.field_errors import ErrorCollector
from services.api.field_errors import Path as FieldPath
from services.api.schemas import JobRequest
from shared.errors import StartupError

_MAX_BYTES = 1 << 20
_LOOK_ALIKES = str.maketrans("0134578@$", "oieastbas")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")
"""Thai, Lao, Burmese, Khmer, kana and Han."""
_GAP = re.compile(r"[\W_]+")
_EXCLAMATION_IN_WORD = re.compile(r"!(?=\w)")
_PUNCTUATION = re.compile(r"[^\w\s]|_")


class ContentPolicy:
    """The terms of the operator's file; without a file everything is allowed."""

    def __init__(self, path: str) -> None:
        """
        Args:
            path: a text file with a word or phrase a line; empty lines and those that begin with # are left out. "": no file.
        Raises:
            StartupError: the file cannot be read.
        """
        terms = _read_terms(path) if path else []
        self._unspaced = tuple(_GAP.sub("", term) for term in terms if _UNSPACED.search(term))
        self._phrases = frozenset(tuple(_words(term)) for term in terms if not _UNSPACED.search(term))
        self._lengths = sorted({len(phrase) for phrase in self._phrases})
        self._spelled = frozenset("".join(phrase) for phrase in self._phrases)
        self._spelled_lengths = sorted({len(spelled) for spelled in self._spelled})

    def check(self, request: JobRequest, errors: ErrorCollector) -> None:
        """Collect the fields that contain a term. The errors do not repeat it: they are shown to whoever wrote it, and in logs."""
        if not self._phrases and not self._unspaced:
            return
        fields: list[tuple[FieldPath, str]] = [(("prompt",), request.prompt)]
        fields += [(("text", index), text) for index, text in enumerate(request.text)]
        for path, text in fields:
            plain = _plain(text)
            if self._is_refused(plain) or self._is_refused(_EXCLAMATION_IN_WORD.sub("i", plain).translate(_LOOK_ALIKES)):
                errors.add(path, "content", "contains what may not be drawn here", "content_rejected")

    def _is_refused(self, plain: str) -> bool:
        bare = _GAP.sub("", plain)
        if any(term in bare for term in self._unspaced):
            return True
        words = _words(plain)
        # Punctuation between words, and punctuation that hides a word.
        if any(_holds(found, self._phrases, self._lengths) for found in (words, _PUNCTUATION.sub("", plain).split())):
            return True
        runs = ("".join(run) for is_letter, run in groupby(words, lambda word: len(word) == 1) if is_letter)
        return any(_holds(run, self._spelled, self._spelled_lengths) for run in runs)


def _read_terms(path: str) -> list[str]:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        lines = data.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"GLMQ_BLOCKED_TERMS={path} cannot be read: {error}") from error
    if len(data) > _MAX_BYTES:
        raise StartupError(f"GLMQ_BLOCKED_TERMS={path} has more than {_MAX_BYTES} bytes")
    terms = [_plain(line).strip() for line in lines if not line.lstrip().startswith("#")]
    return [term for term in dict.fromkeys(terms) if _words(term)]


def _plain(text: str) -> str:
    """Lower case, without accents, ligatures, full-width forms and what nobody sees."""
    parts = unicodedata.normalize("NFKD", text.casefold())
    return "".join(sign for sign in parts if unicodedata.category(sign) not in ("Mn", "Cf"))


def _words(plain: str) -> list[str]:
    return [word for word in _GAP.split(plain) if word]


def _holds(found: Sequence[str], wanted: frozenset[Any], lengths: Sequence[int]) -> bool:
    """Does any slice of what was found, of one of these lengths, equal something that is wanted?"""
    make = tuple if isinstance(found, list) else str
    return any(make(found[start : start + length]) in wanted for length in lengths for start in range(len(found) - length + 1))
