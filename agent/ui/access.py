"""Who may look: whoever came by the address that was printed, from this machine, in a page of our own.

The token of the address becomes a cookie at once, so that it stays out of history, referrers and links.
"""

import secrets

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost")
"""Names in the address; another one is a foreign page that made its name point to this machine (DNS rebinding)."""
READING = ("GET", "HEAD")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
NO_TOKEN = "no token, or a wrong one: open the whole address that `run_agent.py ui` printed\n"
FOREIGN = "this was asked for by a page from elsewhere, so it is not done\n"


class Access:
    """Middleware: passes on what may be answered, and sets the headers that keep the pages to themselves."""

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self.app = app
        self.token = token
        self.cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI calls it."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._instead(Request(scope)) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send_guarded)

    def _instead(self, request: Request) -> Response | None:
        """Return what is answered instead of the page, None when the request may pass."""
        if request.url.hostname not in HOSTS:
            return PlainTextResponse(FOREIGN, 403)
        if "token" in request.query_params:
            if not self._fits(request.query_params["token"]):
                return PlainTextResponse(NO_TOKEN, 403)
            entered = RedirectResponse(request.url.remove_query_params("token"), 303)
            entered.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
            return entered
        if not self._fits(request.cookies.get(self.cookie, "")):
            return PlainTextResponse(NO_TOKEN, 403)
        ours = f"{request.url.scheme}://{request.url.netloc}"
        if request.method not in READING and request.headers.get("origin") != ours:
            return PlainTextResponse(FOREIGN, 403)
        return None

    def _fits(self, token: str) -> bool:
        return secrets.compare_digest(token.encode(), self.token.encode())
