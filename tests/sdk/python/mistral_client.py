"""The Mistral SDK, whose retries are opt-in."""

from check import BASE, matrix
from mistralai.client import Mistral
from mistralai.client.utils import BackoffStrategy, RetryConfig


def chat(token, retries=True):
    retry = RetryConfig("backoff", BackoffStrategy(100, 1000, 1.5, 5000), True) if retries else None
    return Mistral(api_key=token, server_url=BASE, retry_config=retry).chat


def question(model):
    return {"model": model, "messages": [{"role": "user", "content": "Hello?"}]}


def call(token, model, retries):
    return chat(token, retries).complete(**question(model)).choices[0].message.content


def stream(token, model):
    with chat(token).stream(**question(model)) as events:
        return [e.data.choices[0].delta.content for e in events if e.data.choices[0].delta.content]


matrix(call, stream)
