"""
Scenarios of the unmodified `httpx-sse` and `sseclient-py` packages. Runs in an environment that has those and nothing of this project.

Prints a line of JSON for each scenario.
"""

import json
import os

import httpx
import requests
import sseclient
from httpx_sse import connect_sse

JOBS = f"{os.environ['BASE_URL']}/jobs"
KEY = {"Authorization": f"Bearer {os.environ['API_KEY']}"}
# Asked for here, so that it has not ended when the first client is there.
job = requests.post(JOBS, json={"prompt": "Two clients", "size": "256x256", "steps": 60, "seed": 32}, headers=KEY, timeout=60).json()
URL = f"{JOBS}/{job['id']}/events"
HEADERS = {**KEY, "Accept": "text/event-stream"}

kinds, ids = [], []
with httpx.Client(headers=HEADERS, timeout=60) as client, connect_sse(client, "GET", URL) as source:
    for event in source.iter_sse():
        if not event.data:
            # httpx-sse makes an empty event of a comment, once it has seen an id.
            continue
        kinds.append(event.event)
        if event.event.startswith("job.") and event.event not in ("job.snapshot", "job.progress"):
            ids.append(event.id)
        json.loads(event.data)
print(json.dumps({"name": "httpx_sse", "values": {"job": job["id"], "kinds": kinds, "ids": ids}}), flush=True)

kinds, after = [], ids[0]
answer = requests.get(URL, headers={**HEADERS, "Last-Event-ID": after}, stream=True, timeout=60)
found = [(event.event, event.id) for event in sseclient.SSEClient(answer).events()]
told = [event_id for kind, event_id in found if kind not in ("job.snapshot", "job.progress")]
print(json.dumps({"name": "sseclient", "values": {"kinds": [kind for kind, _ in found], "ids": told, "after": after}}), flush=True)
