"""
The webhooks of the unmodified `openai` package for Python: endpoints made, changed, rotated, tested and deleted, deliveries unwrapped.

Prints a line of JSON for each scenario. The package of the previous major has no endpoints, and only unwraps what is in `DELIVERY`.
"""

import json
import os
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai

client = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["API_KEY"], timeout=60)
got = []


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        got.append({"headers": {name.lower(): value for name, value in self.headers.items()}, "body": body})
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def delivered(kind):
    """The delivery of this type, once it has come."""
    for _ in range(200):
        for one in got:
            if json.loads(one["body"])["type"] == kind:
                return one
        time.sleep(0.05)
    raise TimeoutError([json.loads(one["body"])["type"] for one in got])


def is_signed(delivery, secret):
    try:
        client.webhooks.unwrap(delivery["body"], delivery["headers"], secret=secret)
    except openai.InvalidWebhookSignatureError:
        return False
    return True


def endpoints():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/hook"
    again = {"Idempotency-Key": "studio-1"}
    asked = {"name": "studio", "url": url, "event_types": ["batch.completed", "response.completed", "job.canceled"]}
    made, same = (client.webhooks.create(**asked, extra_headers=again) for _ in range(2))
    changed = client.webhooks.update(made.id, name="atelier")
    listed = client.webhooks.list(limit=1)
    tested = client.webhooks.test(made.id, event_type="batch.completed")
    first = delivered("batch.completed")
    rotated = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    job = client.post("/jobs", cast_to=object, body={"prompt": "never drawn"})
    client.post(f"/jobs/{job['id']}/cancel", cast_to=object)
    second = delivered("job.canceled")
    hasty = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=False)
    client.webhooks.test(made.id, event_type="response.completed")
    third = delivered("response.completed")
    deleted = client.webhooks.delete(made.id)
    try:
        client.webhooks.retrieve(made.id)
    except openai.NotFoundError as error:
        missing = error.code
    secrets = [made.signing_secret, rotated.signing_secret, hasty.signing_secret]
    server.shutdown()
    return {
        "made": made.to_dict(),
        "is_same": same.to_dict() == made.to_dict(),
        "changed": [changed.name, changed.url == url, changed.event_types],
        "listed": [[one.id for one in listed.data] == [made.id], listed.has_more],
        "known": client.webhooks.event_types.list().data,
        "tested": tested.to_dict(),
        "type": client.webhooks.unwrap(first["body"], first["headers"], secret=made.signing_secret).type,
        "signed": [[is_signed(delivery, secret) for secret in secrets] for delivery in (first, second, third)],
        "deleted": deleted.to_dict(),
        "missing": missing,
        "delivery": {**second, "secrets": secrets},
    }


def unwrap():
    """What another client's endpoint got, with two signatures."""
    delivery = json.loads(os.environ["DELIVERY"])
    return {
        "type": client.webhooks.unwrap(delivery["body"], delivery["headers"], secret=delivery["secrets"][0]).type,
        "signed": [is_signed(delivery, secret) for secret in delivery["secrets"]],
        "forged": is_signed({**delivery, "body": delivery["body"] + " "}, delivery["secrets"][0]),
    }


def main():
    for scenario in (endpoints,) if "DELIVERY" not in os.environ else (unwrap,):
        try:
            print(json.dumps({"name": scenario.__name__, "values": scenario()}), flush=True)
        except BaseException:
            print(json.dumps({"name": scenario.__name__, "error": traceback.format_exc()[-3000:]}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
