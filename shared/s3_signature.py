"""
Links to objects in S3 that work for a while, without credentials. Pure.

boto3 makes the same, a hundred times more slowly: its client finds out anew for every link where the bucket is. A webhook has a link for
each picture of its job, and so has a page of jobs.

Source: AWS, "Authenticating Requests: Using Query Parameters (AWS Signature Version 4)".
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

_ALGORITHM = "AWS4-HMAC-SHA256"
_UNRESERVED = "-_.~"


class LinkSigner:
    """
    Signs links to one bucket.

    Args:
        endpoint: of the store, as `https://host:port`; the bucket follows it as the first part of the path.
    """

    def __init__(self, endpoint: str, bucket: str, region: str, access_key: str, secret_key: str) -> None:
        parts = urlsplit(endpoint)
        self._base_url = f"{parts.scheme}://{parts.netloc}"
        self._path = f"{parts.path.rstrip('/')}/{bucket}/"
        # The default port is not part of the Host header.
        default = {"http": 80, "https": 443}.get(parts.scheme)
        self._host = parts.netloc.removesuffix(f":{default}")
        self._region = region
        # The key of a day: four of the six hashes of a signature.
        self._day_key = functools.lru_cache(maxsize=2)(functools.partial(_day_key, secret_key, region))
        # Of a second: most links of a page, or of many webhooks, are made in the same one.
        self._query_string = functools.lru_cache(maxsize=8)(functools.partial(_query_string, access_key))

    def link(self, key: str, expires_s: int, query: Mapping[str, str], now: datetime) -> str:
        """
        A URL that anyone may GET.

        Args:
            query: what the store is to do besides, such as `response-content-disposition`.
        """
        moment = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{moment[:8]}/{self._region}/s3/aws4_request"
        query_string = self._query_string(moment, scope, expires_s, **query)
        path = quote(self._path + key, safe="/" + _UNRESERVED)
        request = f"GET\n{path}\n{query_string}\nhost:{self._host}\n\nhost\nUNSIGNED-PAYLOAD"
        text = f"{_ALGORITHM}\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._day_key(moment[:8]), text.encode(), "sha256").hex()
        return f"{self._base_url}{path}?{query_string}&X-Amz-Signature={signature}"


def _query_string(access_key: str, moment: str, scope: str, expires_s: int, **query: str) -> str:
    asked = {
        **query,
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{access_key}/{scope}",
        "X-Amz-Date": moment,
        "X-Amz-Expires": str(expires_s),
        "X-Amz-SignedHeaders": "host",
    }
    return "&".join(f"{quote(name, safe=_UNRESERVED)}={quote(asked[name], safe=_UNRESERVED)}" for name in sorted(asked))


def _day_key(secret_key: str, region: str, day: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
