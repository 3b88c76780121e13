"""The Slack SDK, whose retries of 429 are opt-in."""

from check import BASE, matrix
from slack_sdk import WebClient
from slack_sdk.http_retry.builtin_handlers import RateLimitErrorRetryHandler


def call(token, channel, retries):
    handlers = [RateLimitErrorRetryHandler(max_retry_count=2)] if retries else []
    client = WebClient(token=token, base_url=f"{BASE}/api/", retry_handlers=handlers)
    return client.chat_postMessage(channel=channel, text="Hello?")["message"]["text"]


matrix(call)
