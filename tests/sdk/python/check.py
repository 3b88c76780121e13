"""What every client of the matrix does: one line of JSON a check, with what the SDK returned or raised.

The environment says where and as whom; a subject that is called `check-…` tells the stand-in what to answer.
"""

import json
import os

BASE = os.environ["SDK_BASE_URL"]
TOKEN = os.environ["SDK_TOKEN"]


def check(name, call):
    try:
        said = {"check": name, "text": call()}
    except Exception as error:
        said = {"check": name, "raised": type(error).__name__, "message": str(error)}
    print(json.dumps(said), flush=True)


def matrix(call, stream=None):
    """Runs `call(token, subject, retries)`, which returns the stand-in's greeting, in every situation."""
    check("call", lambda: call(TOKEN, "check-call", True))
    if stream:
        check("stream", lambda: "|".join(stream(TOKEN, "check-stream")))
    check("bad_request", lambda: call(TOKEN, "check-bad-request", True))
    check("server_error", lambda: call(TOKEN, "check-server-error", False))
    check("retry", lambda: call(TOKEN, "check-retry", True))
    check("revoked", lambda: call(os.environ["SDK_REVOKED_TOKEN"], "check-call", True))
    check("denied", lambda: call(os.environ["SDK_DENIED_TOKEN"], "check-call", True))
