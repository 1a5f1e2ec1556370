"""
`python -m infra.bench.webhook_receiver`: a customer's webhook receiver as fast as aiohttp makes it. It keeps what it gets and answers 204.

Prints its port. `GET /taken` gives what has come since it was last asked, `DELETE /taken` forgets it. Judges nothing.
"""

from __future__ import annotations

import base64
import sys

from aiohttp import web

_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")

Taken = list[tuple[dict[str, str], bytes]]


def application(taken: Taken) -> web.Application:
    """The receiver, which keeps what it gets in `taken`."""

    async def take(request: web.Request) -> web.Response:
        taken.append(({name: request.headers.get(name, "") for name in _HEADERS}, await request.read()))
        return web.Response(status=204)

    async def tell(request: web.Request) -> web.Response:
        return web.json_response([[headers, base64.b64encode(body).decode()] for headers, body in taken])

    async def forget(request: web.Request) -> web.Response:
        taken.clear()
        return web.Response(status=204)

    made = web.Application()
    made.router.add_post("/hook", take)
    made.router.add_get("/taken", tell)
    made.router.add_delete("/taken", forget)
    return made


async def _serve() -> web.Application:
    return application([])


def main() -> None:
    """Serve until killed."""

    def announce(text: str) -> None:
        print(text, flush=True)

    web.run_app(_serve(), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=announce)


if __name__ == "__main__":
    main()
