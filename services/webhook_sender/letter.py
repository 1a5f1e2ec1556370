"""A claimed delivery -> what is posted: the body, made once and kept, and the secrets that sign it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from services.webhook_sender.outbox import Outbox
from services.webhook_sender.settings import WebhookSenderSettings
from shared.job_document import finish_document
from shared.lifecycle.deliveries import Delivery
from shared.sealing import Sealer
from shared.storage import Storage
from shared.webhooks import event_body


@dataclass(frozen=True)
class Letter:
    """What is posted."""

    body: bytes
    secrets: tuple[str, ...]


class LetterWriter:
    """Makes letters. Blocks on the database at a delivery's first attempt."""

    def __init__(self, outbox: Outbox, storage: Storage, sealer: Sealer, settings: WebhookSenderSettings) -> None:
        self._outbox = outbox
        self._sealer = sealer
        self._base_url = settings.public_url
        self._presign = functools.partial(storage.presign, expires_s=settings.webhook_url_expires_s)

    def write(self, delivery: Delivery) -> Letter:
        """
        Raises:
            StartupError: the secret was sealed under another key.
        """
        # Before the body is made: who cannot sign must not keep one.
        secrets = (self._sealer.unseal(delivery.sealed_secret),)
        if delivery.body is not None:
            return Letter(delivery.body, secrets)
        data = finish_document(delivery.event_data, self._base_url, self._presign)
        body = event_body(delivery.event_id, delivery.event_type, delivery.event_created_at, delivery.event_seq, data)
        self._outbox.keep_body(delivery, body)
        return Letter(body, secrets)
