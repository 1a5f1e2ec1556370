"""What each problem means and what its reader can do about it, in words. By code; `problem_catalogue.py` has the codes."""

from __future__ import annotations

TEXTS: dict[str, str] = {
    "invalid_request": (
        "A field, a header or the body is not as it should be. `errors` lists every wrong field with a JSON pointer and a sentence; "
        "nothing was stored. An unknown field is refused, with the name of the one that was probably meant."
    ),
    "unsupported_parameter": "The parameter would change what is drawn, and glmq cannot do what it asks for. Leave it out.",
    "invalid_image": "The file is not a PNG, JPEG or WebP that can be decoded, or its size or shape is out of range.",
    "forbidden_address": (
        "The URL names, or its host name leads to, an address outside of the public internet. The operator may allow networks."
    ),
    "unauthorized": "No key was sent, or it is malformed, unknown or revoked. Send `Authorization: Bearer glmq_…`.",
    "budget_exhausted": (
        "The tenant has used up the seconds of workers that it may use in a day. There are new ones from midnight UTC on, in "
        "`Retry-After` seconds."
    ),
    "forbidden_scope": (
        "The key is valid, and may not do this. A key has the scope `read`, `submit`, `admin` or `operator`; each allows what the ones "
        "before it allow."
    ),
    "forbidden_priority": "The key has a ceiling for the priority of its jobs (`max_priority`). Ask for less, or leave `priority` out.",
    "not_found": "There is no such route, or nothing of yours with this id. What another tenant has answers the same.",
    "model_not_found": "The model that the request names is not loaded. `GET /v1/models` lists what is.",
    "method_not_allowed": "The route exists, and does not know this method. `Allow` lists those that it knows.",
    "deadline_unmeetable": (
        "The job takes longer than its `deadline` leaves, by the speed that the workers report, even if nothing is before it in the line. "
        "Ask for less, or for later. Told with 422 by OpenAI's interface."
    ),
    "already_terminal": "The job has succeeded, failed, expired or been canceled, and does not change any more.",
    "name_taken": "Another one has this name. Choose another name.",
    "not_awaiting_approval": (
        "Only a job that was submitted with `approve` can be approved or rejected, and only while all its drafts wait."
    ),
    "too_many_drafts": "The drafts of a job can be rejected a limited number of times. Submit another job.",
    "not_retryable": (
        "Only a job that has failed, expired or been canceled can be run again; of a batch, only what was run before, and not while it is "
        "being canceled. Told with 422 where OpenAI's clients read it."
    ),
    "batch_sealed": "The batch was sealed, was read from a file, or has ended. Make another one for more items.",
    "layout_unavailable": "The job's layouts are not finished, or belong to a model that is not loaded any more.",
    "request_in_flight": (
        "A request with the same `Idempotency-Key` and the same content has come and is not answered yet. Come back in `Retry-After` "
        "seconds for its answer."
    ),
    "gone": "It was there, and was erased or has outlived its time.",
    "payload_too_large": "The body, a file or a fetched picture has more bytes than are allowed.",
    "uri_too_long": "The first line of a request has at most 8,190 bytes, its URL among them. Ask for less at once.",
    "unsupported_media": "The body, a file or a fetched picture is of a type that cannot be read here.",
    "idempotency_mismatch": "The same `Idempotency-Key` came before with a different request. Use a new key for a new request.",
    "unprocessable_prompt": (
        "The prompt contains what the model reads as a command and not as text, or takes more tokens than there is room for beside those "
        "of the picture (`limits.max_tokens` of `GET /v1/models`). Leave the command out, write less, or ask for a smaller picture."
    ),
    "content_rejected": "The prompt or a text contains a word or phrase that the operator of this service does not allow in pictures.",
    "endpoint_disabled": "The webhook endpoint is disabled, so nothing can be sent to it. Enable it first.",
    "too_many_endpoints": "The tenant has as many webhook endpoints as there may be. Delete one.",
    "input_fetch_failed": (
        "A picture that the request names by URL, or a stored input of a job, could not be fetched: the host does not answer, is too "
        "slow, or refuses."
    ),
    "job_canceled": "The request waited for its job, and the job was canceled meanwhile.",
    "job_failed": "The request waited for its job, and the job failed. The job tells why.",
    "too_many_requests": "The tenant has sent more requests that make jobs than it may in a minute. Come back in `Retry-After` seconds.",
    "queue_full": "So many jobs of the tenant wait that another one may not. There is room again when one begins or is canceled.",
    "too_many_batches": "So many batches of the tenant have not ended that another one may not be made. There is room when one ends.",
    "headers_too_large": "A request has at most 100 headers, none of them longer than 8,190 bytes.",
    "internal": "A fault of glmq's. It was logged under the `request_id`, which helps whoever looks for it.",
    "engine_unavailable": (
        "A store does not answer, no worker has reported its model yet, or too many requests wait for something slow. Nothing was "
        "stored, or a repetition with the same `Idempotency-Key` will tell. Come back in `Retry-After` seconds."
    ),
    "deadline": "The request waited for its job for as long as it may. The job goes on; `job` says where it is.",
    # In the `error` of a job.
    "file_too_large": "The picture cannot be encoded within `format_options.max_bytes`, at no quality.",
    "ar_oom": "A worker's memory was too short for the job's layout, attempt after attempt.",
    "decoder_oom": "A worker's memory was too short for the picture, attempt after attempt.",
    "ar_incomplete_grid": "The AR model's layout lacked tokens, or had some that are no tokens of a picture, attempt after attempt.",
    "ar_timeout": "The layout took longer than an attempt may, attempt after attempt.",
    "decoder_timeout": "The picture took longer than an attempt may, attempt after attempt.",
    "ar_overflow": "The AR model's numbers grew beyond what it can count with. Adapters with large scales do that; ask for smaller ones.",
    "decoder_overflow": (
        "The decoder's numbers grew beyond what it can count with. Adapters with large scales and a large `guidance_scale` do that; ask "
        "for smaller ones."
    ),
    "lora_broken": "The files of an adapter cannot be loaded by a worker. The operator has to mend them.",
    "unknown_lora": "A worker does not have the adapter any more that the job was accepted with.",
    "artifact_broken": "What one stage left for the next was damaged in the store, more often than it is drawn again.",
    "artifact_mismatch": "What one stage left for the next does not fit the job: its size, its model or its codebook.",
    "artifact_lost": "What one stage left for the next was gone from every store, more often than it is drawn again.",
    "engine_broken": "The worker's device failed, and so did every further attempt.",
    "model_mismatch": "The workers that were left had another model than the job was accepted for.",
    "upload_failed": "The finished picture could not be stored, attempt after attempt.",
    "approval_expired": "Nobody approved or rejected the draft in time.",
    "deadline_exceeded": "The job's `deadline` passed before its last image was stored.",
    "worker_lost": "The worker that had the work died or fell silent. Told of an attempt; another worker goes on.",
    "poison": "The workers that had the job died or fell silent, three in a row; the job is taken for the cause.",
    "canceled_by_user": "The job was canceled, by itself, with its batch, or because it was deleted while it ran.",
}
