"""A letter -> what is posted: the body, made once, and the secrets that sign it now."""

from __future__ import annotations

import functools

import structlog
from pydantic_core import to_json

from services.webhook_sender.settings import WebhookSenderSettings
from shared.dialects import Mailing, dialect_of
from shared.errors import StartupError
from shared.job_document import finish_document
from shared.lifecycle.letters import Letter
from shared.sealing import Sealer
from shared.storage import Storage
from shared.webhooks import event_body

log = structlog.get_logger()


class LetterWriter:
    """Makes what is posted. Knows no database and waits for nothing; safe to call from any thread."""

    def __init__(self, storage: Storage, sealer: Sealer, settings: WebhookSenderSettings) -> None:
        self._sealer = sealer
        # An endpoint gets many; to unseal its secret anew for each cost a twentieth of the sender's time.
        self._unseal = functools.lru_cache(maxsize=256)(sealer.unseal)
        self._base_url = settings.public_url
        self._presign = functools.partial(storage.presign, expires_s=settings.webhook_url_expires_s)

    def body(self, letter: Letter) -> bytes | None:
        """The body of a first attempt, or None if something of ours is in the way: that must not hold up the others of a claim."""
        try:
            data = finish_document(letter.event_data, self._base_url, self._presign)
            said = dialect_of(letter.dialect).webhook_body
            # Of an erased job there is only its id.
            if said is not None and letter.dialect is not None and "outputs" in data:
                return said(Mailing(data, letter.dialect, letter.tenant_id, self._base_url, letter.now, self._sealer.tag))
            return event_body(
                letter.event_id, _shown_type(letter), letter.event_created_at, letter.event_seq, data, letter.is_thin, to_json
            )
        except Exception as error:
            # By name only: the text may quote a prompt.
            log.error("letter_failed", event_id=letter.event_id, error=type(error).__name__)
            return None

    def secrets(self, letter: Letter) -> tuple[str, ...]:
        """
        What signs it now, newest first.

        Raises:
            StartupError: sealed under another key.
        """
        current, *older = letter.sealed_secrets
        secrets = [self._unseal(current)]
        for sealed in older:
            try:
                secrets.append(self._unseal(sealed))
            except StartupError:
                log.warning("old_secret_unreadable", event_id=letter.event_id)
        return tuple(secrets)


def _shown_type(letter: Letter) -> str:
    # A test shows the type that its sender asked for; in the ledger it is a test and nothing else.
    if letter.event_type == "endpoint.test":
        return str(letter.event_data.get("event_type", letter.event_type))
    return letter.event_type
