"""A web backend whose logged-in users talk to Claude from their browsers.

The browser gets a short-lived token from this backend and opens a WebSocket to the Chucky server
with it. The secret that signs tokens never leaves this process.

Set CHUCKY_URL, CHUCKY_PROJECT_ID and CHUCKY_HMAC_KEY, then: python examples/web_backend/app.py
"""

import os
import secrets
import sys
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from chucky import create_budget, create_token

STATIC = Path(__file__).parent / "static"
TOKEN_SECONDS = 900
SETTINGS = ("CHUCKY_URL", "CHUCKY_PROJECT_ID", "CHUCKY_HMAC_KEY")


# --- what to copy -----------------------------------------------------------------------------


async def chat_token(request: Request) -> Response:
    """Give the user who is logged in what the page needs to reach the Chucky server.

    It is a POST, so that no link or image of another site can ask for it.
    """
    user = current_user(request)
    if user is None:
        return JSONResponse({"error": "Please sign in first."}, status_code=401)
    token = create_token(
        user_id=user,
        project_id=os.environ["CHUCKY_PROJECT_ID"],
        secret=os.environ["CHUCKY_HMAC_KEY"],
        budget=create_budget(ai_dollars=1.00, compute_hours=1, window="day"),
        expires_in=TOKEN_SECONDS,
        # The page is not to be trusted: whatever it asks for, these two decide.
        permissions={
            "allowedModels": ["haiku"],
            "allowedTools": ["get_local_time"],
            "maxTurns": 10,
        },
        sdk_config={"model": "haiku", "systemPrompt": "You help the customers of a small shop."},
    )
    answer = {"url": os.environ["CHUCKY_URL"], "token": token}
    return JSONResponse(answer, headers={"Cache-Control": "no-store"})


async def index(_request: Request) -> Response:
    """Serve the page, which may load and reach nothing but this backend and the Chucky server."""
    server = urlsplit(os.environ["CHUCKY_URL"])
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
        f"connect-src 'self' {server.scheme}://{server.netloc}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": policy})


# --- what to replace --------------------------------------------------------------------------

# The login of your application belongs here. This one lets anybody in under any name, and says so
# on the page; only its sessions are real: a random id in a cookie that neither scripts nor other
# sites can use. As nobody proves who they are, this backend answers on this computer only.
COOKIE = "session"
MAX_SESSIONS = 1000
_users: dict[str, str] = {}


def current_user(request: Request) -> str | None:
    """Return the id of the user who sent a request, or None."""
    return _users.get(request.cookies.get(COOKIE, ""))


async def sign_in(request: Request) -> Response:
    """Begin a session for the name in the query."""
    name = request.query_params.get("name", "").strip()
    if not (name.isprintable() and 1 <= len(name) <= 40):
        return JSONResponse({"error": "Please give a name of 1 to 40 characters."}, 400)
    if len(_users) >= MAX_SESSIONS:
        del _users[next(iter(_users))]  # the oldest
    session_id = secrets.token_urlsafe(32)
    _users[session_id] = name
    response = Response(status_code=204)
    is_https = request.url.scheme == "https"
    response.set_cookie(COOKIE, session_id, httponly=True, samesite="strict", secure=is_https)
    return response


app = Starlette(
    routes=[
        Route("/", index),
        Route("/sign-in", sign_in, methods=["POST"]),
        Route("/chat-token", chat_token, methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC)),
    ],
    # Without it, a page elsewhere could reach a local server under a name of its own.
    middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
)


if __name__ == "__main__":
    missing = [name for name in SETTINGS if not os.environ.get(name)]
    if missing:
        sys.exit(f"Error: set {', '.join(missing)}; examples/README.md says how.")
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
