"""The Anthropic SDK."""

from anthropic import Anthropic
from check import BASE, matrix


def messages(token, retries=True):
    return Anthropic(api_key=token, base_url=BASE, **({} if retries else {"max_retries": 0})).messages


def question(model):
    return {"model": model, "max_tokens": 16, "messages": [{"role": "user", "content": "Hello?"}]}


def stream(token, model):
    with messages(token).stream(**question(model)) as events:
        return list(events.text_stream)


matrix(lambda token, model, retries: messages(token, retries).create(**question(model)).content[0].text, stream)
