"""The Groq SDK."""

from check import BASE, matrix
from groq import Groq


def create(token, model, retries=True, **more):
    client = Groq(api_key=token, base_url=BASE, **({} if retries else {"max_retries": 0}))
    messages = [{"role": "user", "content": "Hello?"}]
    return client.chat.completions.create(model=model, messages=messages, **more)


def stream(token, model):
    return [c.choices[0].delta.content for c in create(token, model, stream=True) if c.choices[0].delta.content]


matrix(lambda *how: create(*how).choices[0].message.content, stream)
