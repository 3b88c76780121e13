"""Google's Gen AI SDK, whose retries are opt-in."""

from check import BASE, matrix
from google import genai
from google.genai import types


def models(token, retries=True):
    retry = types.HttpRetryOptions(attempts=2, initial_delay=0.1) if retries else None
    return genai.Client(api_key=token, http_options=types.HttpOptions(base_url=BASE, retry_options=retry))


def call(token, model, retries):
    client = models(token, retries)
    return client.models.generate_content(model=model, contents="Hello?").text


def stream(token, model):
    client = models(token)
    return [chunk.text for chunk in client.models.generate_content_stream(model=model, contents="Hello?")]


matrix(call, stream)
