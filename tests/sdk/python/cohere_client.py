"""The Cohere SDK."""

import cohere
from check import BASE, matrix


def client(token):
    return cohere.ClientV2(api_key=token, base_url=BASE)


def question(model):
    return {"model": model, "messages": [{"role": "user", "content": "Hello?"}]}


def call(token, model, retries):
    options = {} if retries else {"max_retries": 0}
    return client(token).chat(**question(model), request_options=options).message.content[0].text


def stream(token, model):
    events = client(token).chat_stream(**question(model))
    return [e.delta.message.content.text for e in events if e.type == "content-delta"]


matrix(call, stream)
