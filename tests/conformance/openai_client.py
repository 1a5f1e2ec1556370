"""
Scenarios of the unmodified `openai` package for Python. Runs in an environment that has that package and nothing of this project.

Prints a line of JSON for each scenario: what it found, for the test to judge, or how it failed. Several of them run at once.
"""

import asyncio
import base64
import faulthandler
import io
import json
import os
import sys
import threading
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor

import openai

BASE_URL, API_KEY = os.environ["BASE_URL"], os.environ["API_KEY"]
client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, timeout=60)
SMALL = {"size": "64x64", "quality": "low"}
PNG = base64.b64decode(os.environ.get("PNG", ""))


def is_png(text):
    return base64.b64decode(text).startswith(b"\x89PNG")


def wait(read, ends):
    for _ in range(600):
        found = read()
        if found.status in ends:
            return found
        time.sleep(0.1)
    raise TimeoutError(found)


def models():
    listed = [model.id for model in client.models.list()]
    return {"listed": listed, "one": client.models.retrieve(listed[0]).id, "alias": client.models.retrieve("zai-org/GLM-Image").id}


def generate():
    found = client.images.generate(prompt='A sign that says "open"', n=2, extra_body={"seed": 7}, **SMALL)
    return {
        "pngs": [is_png(datum.b64_json) for datum in found.data],
        "size": found.size,
        "quality": found.quality,
        "usage": found.usage.to_dict(),
        "request_id": found._request_id,
        "created": found.created,
    }


def everything():
    """All parameters that the client has, where glmq can have an opinion."""
    found = client.images.generate(
        prompt="A cat",
        model="gpt-image-1",
        n=1,
        size="96x64",
        quality="medium",
        response_format="url",
        output_format="webp",
        output_compression=80,
        background="opaque",
        moderation="low",
        style="vivid",
        user="u-1",
        extra_body={"metadata": {"order": "1"}, "num_inference_steps": 2, "service_tier": "flex", "guidance_scale": 1.0},
    )
    return {"url": found.data[0].url, "b64": found.data[0].b64_json, "format": found.output_format, "size": found.size}


def stream():
    remote = openai.OpenAI(base_url=os.environ["OVERHEARD_URL"] + "/v1", api_key=API_KEY, timeout=60)
    events = list(remote.images.generate(prompt="A dog", stream=True, partial_images=2, **SMALL))
    return {
        "types": [event.type for event in events],
        "classes": [type(event).__name__ for event in events],
        "pngs": [is_png(events[-1].b64_json)],
        "usage": events[-1].usage.to_dict(),
    }


def background():
    found = client.images.generate(prompt="A bird", extra_body={"background": True}, **SMALL)
    done = wait(lambda: client.responses.retrieve(found.id), ("completed", "failed"))
    return {"id": found.id, "status": found.status, "data": found.data, "end": done.status}


def edit():
    one = client.images.edit(image=("a.png", PNG), prompt="make it night", quality="low")
    many = client.images.edit(image=[("a.png", PNG), io.BytesIO(PNG)], prompt="both", n=1, size="64x64", quality="low")
    return {"one": [is_png(one.data[0].b64_json), one.size], "many": is_png(many.data[0].b64_json), "usage": many.usage.to_dict()}


def edit_stream():
    return {"types": [event.type for event in client.images.edit(image=PNG, prompt="night", stream=True, quality="low")]}


def error_of(call):
    try:
        call()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.code, error.param, error.type, bool(error.request_id)]
    raise AssertionError("no error")


def errors():
    stranger = openai.OpenAI(base_url=BASE_URL, api_key="glmq_wrong", max_retries=0)
    return {
        "size": error_of(lambda: client.images.generate(prompt="x", size="7x7")),
        "transparent": error_of(lambda: client.images.generate(prompt="x", background="transparent")),
        "mask": error_of(lambda: client.images.edit(image=PNG, mask=PNG, prompt="x")),
        "model": error_of(lambda: client.images.generate(prompt="x", model="sd")),
        "key": error_of(lambda: stranger.images.generate(prompt="x")),
        "file": error_of(lambda: client.files.retrieve("file-none")),
        "batch": error_of(lambda: client.batches.retrieve("bat_none")),
        "response": error_of(lambda: client.responses.retrieve("resp_none")),
        "prompt": error_of(lambda: client.images.generate(prompt="<|image|>")),
    }


def failing_stream():
    """A job that ends while it is streamed, because somebody cancels it: the client raises what the stream says."""
    mark = uuid.uuid4().hex
    extra = {"num_inference_steps": 200, "metadata": {"mark": mark}}

    def cancel():
        found = []
        while not found:
            found = client.get(f"/jobs?metadata[mark]={mark}", cast_to=object)["data"]
        client.post(f"/jobs/{found[0]['id']}/cancel", cast_to=object)

    canceling = threading.Thread(target=cancel)
    canceling.start()
    try:
        list(client.images.generate(prompt="A late swan", stream=True, size="256x256", extra_body=extra))
    except openai.APIError as error:
        return {"error": type(error).__name__, "code": error.code}
    finally:
        canceling.join()
    return {"error": None}


def hasty():
    """A server that holds requests for a moment only: the client is told not to try again."""
    tired = openai.OpenAI(base_url=os.environ["HASTY_URL"] + "/v1", api_key=API_KEY, max_retries=2)
    found = error_of(lambda: tired.images.generate(prompt="A slow fish", size="128x128", extra_body={"num_inference_steps": 30}))
    return {"error": found}


def kept_alive():
    """A server that is heard of again before the client gives up, however long the picture takes."""
    timeout_s = 3
    edgy = openai.OpenAI(base_url=os.environ["LIVELY_URL"] + "/v1", api_key=API_KEY, max_retries=0, timeout=timeout_s)
    for size in ("256x256", "512x512", "1024x1024"):
        began = time.monotonic()
        found = edgy.images.generate(prompt="A very slow fish", size=size, extra_body={"num_inference_steps": 120})
        if time.monotonic() - began > timeout_s:
            return {"png": is_png(found.data[0].b64_json), "outlasted": True}
    return {"outlasted": False}


def impatient():
    """A client that gives up and tries again by itself."""
    impatient = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=1, timeout=0.4)
    try:
        impatient.images.generate(prompt="An impatient fish", size="128x128", extra_body={"num_inference_steps": 30})
    except openai.APITimeoutError:
        return {"timed_out": True}
    return {"timed_out": False}


def lost():
    """Answers that never arrive; see tests/conformance/proxy.py."""
    unlucky = openai.OpenAI(base_url=os.environ["LOSING_URL"] + "/v1", api_key=API_KEY, max_retries=2)
    found = unlucky.images.generate(prompt="A lost sheep", **SMALL)
    return {"png": is_png(found.data[0].b64_json)}


def lost_with_key():
    unlucky = openai.OpenAI(base_url=os.environ["LOSING_URL_2"] + "/v1", api_key=API_KEY, max_retries=2)
    found = unlucky.images.generate(prompt="A lost goat", extra_headers={"Idempotency-Key": "goat-1"}, **SMALL)
    again = client.images.generate(prompt="A lost goat", extra_headers={"Idempotency-Key": "goat-1"}, **SMALL)
    return {"same": found.data[0].b64_json == again.data[0].b64_json}


def walk_away():
    """A stream that nobody reads to its end; of a client of its own, for httpx closes it at some moment within any use of the same pool."""
    stroller = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY)
    for _ in stroller.images.generate(prompt="A deserted cat", stream=True, size="64x64", partial_images=1):
        break
    return {}


def files():
    made = client.files.create(file=("in.jsonl", b'{"a": 1}\n'), purpose="batch")
    found = {
        "purpose": made.purpose,
        "read": client.files.content(made.id).read().decode(),
        "listed": made.id in [file.id for file in client.files.list(purpose="batch")],
        "name": client.files.retrieve(made.id).filename,
        "deleted": client.files.delete(made.id).deleted,
    }
    picture = client.files.create(file=("a.png", PNG), purpose="vision")
    content = [{"type": "input_text", "text": "night"}, {"type": "input_image", "file_id": picture.id}]
    tool = {"type": "image_generation", "quality": "low"}
    edited = client.responses.create(model="gpt-5", input=[{"role": "user", "content": content}], tools=[tool])
    return {**found, "edited": is_png(edited.output[0].result)}


def batches():
    lines = [
        {
            "custom_id": f"c{index}",
            "method": "POST",
            "url": "/v1/images/generations",
            "body": {"prompt": f"A cat {index}", **SMALL},
        }
        for index in range(3)
    ]
    data = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h", metadata={"order": "1"}
    )
    done = wait(lambda: client.batches.retrieve(batch.id), ("completed", "failed"))
    output = [json.loads(line) for line in client.files.content(done.output_file_id).text.splitlines()]
    wrong = client.files.create(file=("in.jsonl", data + b"\n{}\n" + data.splitlines()[0]), purpose="batch")
    failed = client.batches.create(input_file_id=wrong.id, endpoint="/v1/images/generations", completion_window="24h")
    failed = wait(lambda: client.batches.retrieve(failed.id), ("completed", "failed"))
    doomed = client.batches.create(input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h")
    client.batches.cancel(doomed.id)
    canceled = wait(lambda: client.batches.retrieve(doomed.id), ("completed", "cancelled"))
    # Made by the native interface: the same resource for these clients.
    native = client.post(
        "/batches", body={"items": [{"custom_id": "n0", "prompt": "A cat 0", "size": "64x64", "steps": 2}]}, cast_to=type(batch)
    )
    native = wait(lambda: client.batches.retrieve(native.id), ("completed", "failed"))
    return {
        "native": [native.status, native.request_counts.to_dict()["completed"], native.output_file_id],
        "status": done.status,
        "counts": done.request_counts.to_dict(),
        "metadata": done.metadata,
        "ids": [line["custom_id"] for line in output],
        "urls": [line["response"]["body"]["data"][0]["url"] for line in output],
        "listed": batch.id in [found.id for found in client.batches.list(limit=1)],
        "failed": failed.status,
        "errors": [[error.line, error.code] for error in failed.errors.data],
        "canceled": canceled.status,
    }


def responses():
    tool = {"type": "image_generation", "size": "64x64", "quality": "low", "partial_images": 2}
    made = client.responses.create(model="gpt-5", input="A hen", tools=[tool], background=True, metadata={"order": "2"})
    done = wait(lambda: client.responses.retrieve(made.id), ("completed", "failed"))
    slow = {"type": "image_generation", "size": "128x128", "num_inference_steps": 200}
    doomed = client.responses.create(model="gpt-5", input="A slow hen", tools=[slow], background=True)
    canceled = client.responses.cancel(doomed.id)
    client.responses.delete(doomed.id)
    return {
        "first": made.status,
        "end": done.status,
        "type": done.output[0].type,
        "png": is_png(done.output[0].result),
        "usage": done.usage.total_tokens > 0,
        "metadata": done.metadata,
        "canceled": canceled.status,
        "deleted": error_of(lambda: client.responses.retrieve(doomed.id))[1],
    }


def resume():
    """A stream that is cut off, and gone on with behind the last event that was seen."""
    tool = {"type": "image_generation", "size": "64x64", "quality": "low", "partial_images": 2}
    seen = []
    response_id = None
    # A client of its own, as in `walk_away`.
    leaving = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, timeout=60)
    for event in leaving.responses.create(model="gpt-5", input="A goose", tools=[tool], background=True, stream=True):
        seen.append(event.sequence_number)
        response_id = response_id or event.response.id
        if len(seen) == 3:
            break
    last = None
    for event in client.responses.retrieve(response_id, stream=True, starting_after=seen[-1]):
        seen.append(event.sequence_number)
        last = event
    return {"numbers": seen, "last": last.type, "png": is_png(last.response.output[0].result)}


def unwrap():
    """Webhooks by OpenAI's names, as the client's own receiver reads them."""
    events = []
    for sent in json.loads(os.environ["WEBHOOKS"]):
        event = client.webhooks.unwrap(sent["body"], sent["headers"], secret=sent["secret"])
        events.append([type(event).__name__, event.type, event.data.id, event.created_at > 0])
    return {"events": events}


def asynchronous():
    async def work():
        async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY) as remote:
            found = await asyncio.gather(*(remote.images.generate(prompt=f"A duck {index}", **SMALL) for index in range(4)))
            return [is_png(answer.data[0].b64_json) for answer in found]

    return {"pngs": asyncio.run(work())}


SCENARIOS = (
    models,
    generate,
    everything,
    stream,
    background,
    edit,
    edit_stream,
    errors,
    hasty,
    kept_alive,
    impatient,
    lost,
    lost_with_key,
    walk_away,
    files,
    batches,
    responses,
    resume,
    unwrap,
    asynchronous,
    failing_stream,
)


def run(scenario):
    began = time.monotonic()
    try:
        line = {"name": scenario.__name__, "values": scenario()}
    except BaseException:
        line = {"name": scenario.__name__, "error": traceback.format_exc()[-3000:]}
    return {**line, "seconds": round(time.monotonic() - began, 1)}


def main():
    # What hangs is told of, before the test gives up.
    faulthandler.dump_traceback_later(200, exit=True)
    print(json.dumps({"name": "version", "values": {"version": openai.__version__}}), flush=True)
    # Together: what takes time is the drawing, and the engines draw several pictures in little more than the time of one.
    with ThreadPoolExecutor(4) as threads:
        for line in threads.map(run, SCENARIOS):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
