"""
The reference images of a request, brought from wherever they are to S3: fetched, checked and normalised first, stored later.

In two steps, because nothing may be stored for a request of which any part is wrong.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from services.api.field_errors import ErrorCollector, Path
from services.api.parts import Parts
from services.api.request_body import Upload
from services.api.schemas import SourceReference
from shared.checkpoint import ModelInfo
from shared.errors import GlmqError, RequestError
from shared.fetch import fetch
from shared.grid import LETTERS_SHRINK_WEIGHT, SCALE_WEIGHT
from shared.ids import is_id
from shared.lifecycle.files import PlainFile, get_file
from shared.lifecycle.jobs import get_result
from shared.lifecycle.new_job import SourceFile
from shared.lifecycle.tenants import StoredFile, add_source, get_source
from shared.source_image import NormalisedImage, normalise
from shared.source_size import SourceLimits, legal_size
from shared.source_store import source_key
from shared.storage import StorageDownError, StorageMissingError


class BusyError(GlmqError):
    """Too many requests wait for foreign servers already."""


ReadySource = StoredFile | NormalisedImage
"""A usable reference image: a file that is stored already, or a picture that is not yet. Both know their size."""


class SourceReader:
    """Reads and stores the reference images of one request."""

    def __init__(self, parts: Parts, tenant_id: str, info: ModelInfo) -> None:
        self._parts = parts
        self._tenant_id = tenant_id
        # As results are resized (`TokenGrid.drawn_for`), or an earlier result would not lie on the grid that it was drawn in.
        shrink_weight = SCALE_WEIGHT if info.max_generate_px is None else LETTERS_SHRINK_WEIGHT
        self._limits = SourceLimits(info.source_min_px, info.source_max_px, info.max_source_aspect, shrink_weight)

    def prepare(self, references: Sequence[SourceReference], uploads: Sequence[Upload]) -> list[ReadySource]:
        """
        Bring every image here, in order, and store nothing.

        Raises:
            InvalidFieldsError: names every image that cannot be used.
            BusyError
        """
        errors = ErrorCollector()
        ready: list[ReadySource] = []
        deadline = time.monotonic() + self._parts.settings.source_fetch_s
        for index, reference in enumerate(references):
            path: Path = ("images", index)
            with errors.collecting((*path, "url") if reference.url else path):
                ready.append(self._prepare(reference, f"images.{index}", deadline))
        for upload in uploads:
            with errors.collecting(tuple(upload.param.split("."))):
                ready.append(normalise(upload.data, self._limits, upload.param))
        errors.raise_any()
        return ready

    def store(self, ready: Sequence[ReadySource]) -> tuple[SourceFile, ...]:
        """
        Put what is new into S3 and the ledger.

        Raises:
            StorageDownError, DatabaseDownError
        """
        files = [source if isinstance(source, StoredFile) else self._store(source) for source in ready]
        return tuple(SourceFile(file.id, file.sha256) for file in files)

    def _prepare(self, reference: SourceReference, param: str, deadline: float) -> ReadySource:
        if reference.url is not None:
            return normalise(self._fetch(reference.url, f"{param}.url", deadline), self._limits, f"{param}.url")
        if reference.file_id is not None:
            return self._stored_file(reference.file_id, param)
        return normalise(self._result(reference.job_id or "", reference.index, param), self._limits, param)

    def _fetch(self, url: str, param: str, deadline: float) -> bytes:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise RequestError("input_fetch_failed", f"{param}: the images together took too long to arrive", param)
        if not self._parts.fetch_slots.acquire(blocking=False):
            raise BusyError("too many source images are being fetched")
        try:
            return fetch(url, self._parts.policy, self._limits.max_bytes, left_s, param)
        finally:
            self._parts.fetch_slots.release()

    def _stored_file(self, file_id: str, param: str) -> ReadySource:
        file = get_source(self._parts.db, self._tenant_id, file_id) if is_id(file_id, "file") else None
        if file is None and (upload := self._upload(file_id)) is not None:
            return normalise(self._read(upload.storage_key, param), self._limits, param)
        if file is None:
            raise RequestError("invalid_request", f"{param}: file_id names no source image of yours", param)
        if legal_size(file.height_px, file.width_px, self._limits) == (file.height_px, file.width_px):
            return file
        # Stored for a checkpoint with other limits.
        return normalise(self._read(file.storage_key, param), self._limits, param)

    def _upload(self, file_id: str) -> PlainFile | None:
        """A picture that was uploaded as a file of its own."""
        file = get_file(self._parts.db, self._tenant_id, file_id) if is_id(file_id, "file") else None
        return file if file is not None and file.purpose not in ("batch", "batch_output") else None

    def _result(self, job_id: str, index: int, param: str) -> bytes:
        result = get_result(self._parts.db, self._tenant_id, job_id, index) if is_id(job_id, "job") else None
        if result is None:
            raise RequestError("invalid_request", f"{param}: job_id and index name no finished image of yours", param)
        return self._read(result.artifact.storage_key, param)

    def _read(self, key: str, param: str) -> bytes:
        try:
            return self._parts.storage.get(key)
        except StorageMissingError:
            raise RequestError("input_fetch_failed", f"{param}: the image is no longer stored", param) from None

    def _store(self, image: NormalisedImage) -> StoredFile:
        key = source_key(self._tenant_id, image.sha256)
        # The object before the row: a row always has its object.
        self._parts.storage.put(key, image.png, "image/png")
        stored = add_source(self._parts.db, self._tenant_id, key, image.sha256, len(image.png), image.height_px, image.width_px)
        if stored.storage_key != key:
            # The same picture was there before.
            with contextlib.suppress(StorageDownError):
                self._parts.storage.delete(key)
        return stored
