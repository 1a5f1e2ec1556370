"""
The unmodified `replicate` and `openai` packages in one process: a job of one client is followed and canceled by the other, and all see
one end. Prints a line of JSON for each scenario.
"""

import json
import os
import traceback
from concurrent.futures import ThreadPoolExecutor

import openai
import replicate

BASE_URL, API_KEY, REF = os.environ["BASE_URL"], os.environ["API_KEY"], os.environ["REF"]
ours = replicate.Client(base_url=BASE_URL.removesuffix("/v1"), api_token=API_KEY)
theirs = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, timeout=60)


def follow(response_id, started):
    """The events of a response, as far as its name goes; `started` is called at the first one."""
    names = []
    for event in theirs.responses.retrieve(response_id, stream=True):
        if not names:
            started()
        names.append(event.type)
    return names, event.response.status


def ends(job_id):
    prediction, response = ours.predictions.get(job_id), theirs.responses.retrieve("resp_" + job_id.removeprefix("job_"))
    return {"prediction": prediction.status, "response": response.status}


def made_by_replicate():
    """Made there, streamed here, canceled there while the stream is open."""
    prediction = ours.predictions.create(version=REF, input={"prompt": "An endless one", "size": "512x512", "num_inference_steps": 200})
    names, last = follow(prediction.id, prediction.cancel)
    return {"id": prediction.id, "first": names[0], "last": names[-1], "streamed": last, **ends(prediction.id)}


def made_by_openai():
    """The other way round."""
    tool = {"type": "image_generation", "size": "512x512", "num_inference_steps": 200}
    made = theirs.responses.create(model="gpt-5", input="Another endless one", tools=[tool], background=True)
    job_id = "job_" + made.id.removeprefix("resp_")
    prediction = ours.predictions.get(job_id)
    canceled = theirs.responses.cancel(job_id)
    prediction.wait()
    return {"id": job_id, "canceled": canceled.status, "waited": prediction.status, **ends(job_id)}


def drawn():
    """What succeeds has the same picture for both."""
    output = ours.predictions.create(version=REF, input={"prompt": "A short one", "size": "64x64", "num_inference_steps": 2})
    names, last = follow(output.id, lambda: None)
    output.reload()
    return {"id": output.id, "last": names[-1], "streamed": last, "has_output": len(output.output) == 1, **ends(output.id)}


def tell(scenario):
    try:
        return {"name": scenario.__name__, "values": scenario()}
    except Exception:
        return {"name": scenario.__name__, "error": traceback.format_exc()}


with ThreadPoolExecutor(3) as threads:
    for line in threads.map(tell, (made_by_replicate, made_by_openai, drawn)):
        print(json.dumps(line), flush=True)
