"""S3: put, get, presign. Knows keys and bytes, not what they mean."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from shared.errors import GlmqError
from shared.s3_signature import LinkSigner
from shared.settings import CoreSettings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

PRESIGN_S = 3600
"""Seconds that a customer's link to a result works; every read of the job signs a new one."""


class StorageMissingError(GlmqError):
    """No object has this key."""


class StorageDownError(GlmqError):
    """The store did not answer, or answered with an error of its own. Another try may succeed."""


class Storage:
    """One bucket. Thread-safe."""

    def __init__(self, settings: CoreSettings) -> None:
        self._bucket = settings.s3_bucket
        self._client = _client(settings)
        self._signer = LinkSigner(
            settings.s3_public_endpoint or settings.s3_endpoint,
            settings.s3_bucket,
            settings.s3_region,
            settings.s3_access_key,
            settings.s3_secret_key.get_secret_value(),
        )

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """
        Store an object, over an older one with this key.

        Raises:
            StorageDownError
        """
        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data, ContentType=content_type)
        except (BotoCoreError, ClientError) as error:
            raise StorageDownError(f"put {key}: {_reason(error)}") from error

    def get(self, key: str) -> bytes:
        """
        Raises:
            StorageMissingError, StorageDownError
        """
        try:
            return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                raise StorageMissingError(key) from error
            raise StorageDownError(f"get {key}: {_reason(error)}") from error
        except BotoCoreError as error:
            raise StorageDownError(f"get {key}: {_reason(error)}") from error

    def exists(self, key: str) -> bool:
        """
        Is there an object?

        Raises:
            StorageDownError
        """
        try:
            self._client.head_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return False
            raise StorageDownError(f"head {key}: {_reason(error)}") from error
        except BotoCoreError as error:
            raise StorageDownError(f"head {key}: {_reason(error)}") from error
        return True

    def delete(self, key: str) -> None:
        """
        Remove an object; one that is not there is as good as removed.

        Raises:
            StorageDownError
        """
        try:
            self._client.delete_object(Bucket=self._bucket, Key=key)
        except (BotoCoreError, ClientError) as error:
            raise StorageDownError(f"delete {key}: {_reason(error)}") from error

    def delete_all(self, prefix: str) -> None:
        """
        Remove every object whose key begins so; none may be there.

        Raises:
            StorageDownError
        """
        try:
            while found := self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix).get("Contents"):
                objects: list[ObjectIdentifierTypeDef] = [{"Key": one["Key"]} for one in found]
                answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})
                if errors := answer.get("Errors"):
                    raise StorageDownError(f"delete {prefix}: {errors[0].get('Code')}")
        except (BotoCoreError, ClientError) as error:
            raise StorageDownError(f"delete {prefix}: {_reason(error)}") from error

    def presign(self, key: str, expires_s: int = PRESIGN_S, download_name: str | None = None) -> str:
        """A URL that anyone may GET for `expires_s` seconds; `download_name` makes browsers save instead of show."""
        query = {"response-content-disposition": f'attachment; filename="{download_name}"'} if download_name else {}
        return self._signer.link(key, expires_s, query, datetime.now(UTC))

    def ensure_bucket(self) -> None:
        """
        Make the bucket if it is not there.

        Raises:
            StorageDownError
        """
        try:
            self._client.create_bucket(Bucket=self._bucket)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise StorageDownError(f"bucket {self._bucket}: {_reason(error)}") from error
        except BotoCoreError as error:
            raise StorageDownError(f"bucket {self._bucket}: {_reason(error)}") from error

    def is_up(self) -> bool:
        """Does the bucket answer?"""
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except (BotoCoreError, ClientError):
            return False
        return True


def _client(settings: CoreSettings) -> S3Client:
    return boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=settings.s3_secret_key.get_secret_value(),
        region_name=settings.s3_region,
        config=Config(
            signature_version="s3v4",
            # Path style: one host name serves every bucket of a self-hosted store.
            s3={"addressing_style": "path"},
            connect_timeout=3,
            read_timeout=15,
            retries={"mode": "standard", "total_max_attempts": 3},
            max_pool_connections=32,
        ),
    )


def _reason(error: Exception) -> str:
    # The code only: a client error's text may quote the request.
    return error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
