"""
Scenarios of the unmodified `replicate` package for Python. Runs in an environment that has that package and nothing of this project.

Prints a line of JSON for each scenario: what it found, for the test to judge, or how it failed.
"""

import asyncio
import base64
import io
import json
import os
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import replicate
from replicate.exceptions import ModelError, ReplicateError
from replicate.webhook import Webhooks

BASE_URL = os.environ["BASE_URL"].removesuffix("/v1")
client = replicate.Client(base_url=BASE_URL, api_token=os.environ["API_KEY"])
REF = os.environ["REF"]
PNG = base64.b64decode(os.environ["PNG"])
SMALL = {"size": "64x64", "num_inference_steps": 2}
SLOW = {"size": "256x256", "num_inference_steps": 50}
ENDLESS = {"size": "512x512", "num_inference_steps": 200}


def run():
    output = client.run(REF, input={"prompt": 'A sign that says "open"', "num_outputs": 2, "seed": 7, **SMALL})
    return {"output": [str(item) for item in output]}


def run_slower_than_the_wait():
    """The answer to the create comes before the end; the client polls on and gets the images."""
    output = client.run(REF, input={"prompt": "A slow one", "seed": 8, **SLOW}, wait=1)
    return {"output": output and [str(item) for item in output]}


def run_by_version():
    version = client.models.get(REF).latest_version
    output = client.run(f"{REF}:{version.id}", input={"prompt": "A cat", "seed": 1, **SMALL})
    return {"output": [str(item) for item in output], "version": version.id}


def create_and_poll():
    prediction = client.predictions.create(version=REF, input={"prompt": "A dog", "seed": 2, **SMALL})
    first = prediction.status
    prediction.wait()
    progress = prediction.progress
    return {
        "id": prediction.id,
        "first": first,
        "status": prediction.status,
        "output": prediction.output,
        "model": prediction.model,
        "percentage": progress.percentage,
        "metrics": prediction.metrics,
        "input": prediction.input,
    }


def cancel():
    prediction = client.predictions.create(version=REF, input={"prompt": "A long one", "seed": 3, **ENDLESS})
    prediction.cancel()
    once = prediction.status
    prediction.cancel()
    return {"once": once, "twice": prediction.status, "read": client.predictions.get(prediction.id).status}


def failure():
    """A prediction that is canceled while `run` polls is no failure; a wrong input is an error with our words."""
    try:
        client.run(REF, input={"prompt": ""})
    except ReplicateError as error:
        return {"status": error.status, "detail": error.detail, "title": error.title}
    return {}


def listing():
    page = client.predictions.list()
    return {"ids": [found.id for found in page.results], "statuses": sorted({found.status for found in page.results})}


def stream():
    asked = {"prompt": "A stream", "seed": 4, **SLOW}
    prediction = client.predictions.create(version=REF, input=asked)
    events = [(event.event.value, str(event.data), event.id) for event in prediction.stream()]
    whole = [event.event.value for event in client.stream(REF, input=asked)]
    return {"events": events, "whole": whole}


def files():
    """A file that is uploaded first, as the client does by default, and one in a data URL."""
    made = []
    for strategy in ("url", "base64"):
        prediction = client.predictions.create(
            version=REF, input={"prompt": "An edit", "seed": 5, "image": io.BytesIO(PNG), **SMALL}, file_encoding_strategy=strategy
        )
        prediction.wait()
        made.append(prediction.status)
    return {"statuses": made}


def secret():
    return {"key": client.webhooks.default.secret().key}


def validate():
    """The client's own validation of a delivery that a receiver got."""
    got = json.loads(os.environ["DELIVERY"])
    secret = SimpleNamespace(key=os.environ["SECRET"])
    Webhooks.validate(headers=got["headers"], body=got["body"], secret=secret)
    return {"prediction": json.loads(got["body"])}


def others():
    """A job that was made natively is a prediction."""
    prediction = client.predictions.get(os.environ["JOB_ID"])
    prediction.wait()
    return {"status": prediction.status, "output": prediction.output}


def asynchronous():
    async def work():
        output = await client.async_run(REF, input={"prompt": "Later", "seed": 6, **SMALL})
        return [str(item) for item in output]

    return {"output": asyncio.run(work())}


def wrong_key():
    try:
        replicate.Client(base_url=BASE_URL, api_token="glmq_wrong").predictions.list()
    except ReplicateError as error:
        return {"status": error.status}
    return {}


def too_many():
    """Over the limit: an error at once, since the client repeats no POST."""
    client.predictions.create(version=REF, input={"prompt": "A cat", **SMALL})
    started = time.monotonic()
    try:
        client.predictions.create(version=REF, input={"prompt": "A dog", **SMALL})
    except ReplicateError as error:
        return {"status": error.status, "seconds": time.monotonic() - started, "made": len(client.predictions.list().results)}
    return {}


def unknown_model():
    try:
        client.run("nobody/nothing", input={"prompt": "A cat"})
    except (ReplicateError, ModelError) as error:
        return {"status": error.status, "detail": error.detail}
    return {}


def tell(scenario):
    started = time.monotonic()
    try:
        line = {"values": globals()[scenario]()}
    except Exception:
        line = {"error": traceback.format_exc()}
    return {"name": scenario, "seconds": time.monotonic() - started, **line}


# Together: what takes time is the drawing, and the engines draw several pictures in little more than the time of one.
with ThreadPoolExecutor(4) as threads:
    for line in threads.map(tell, os.environ["SCENARIOS"].split(",")):
        print(json.dumps(line), flush=True)
