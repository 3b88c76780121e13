"""The OpenAI SDK."""

from check import BASE, TOKEN, check, matrix
from openai import OpenAI


def create(token, model, retries=True, **more):
    client = OpenAI(api_key=token, base_url=BASE, **({} if retries else {"max_retries": 0}))
    messages = [{"role": "user", "content": "Hello?"}]
    return client.chat.completions.create(model=model, messages=messages, **more)


def stream(token, model):
    return [c.choices[0].delta.content for c in create(token, model, stream=True) if c.choices[0].delta.content]


matrix(lambda *how: create(*how).choices[0].message.content, stream)

client = OpenAI(api_key=TOKEN, base_url=BASE)
check("models", lambda: "|".join(m.id for m in client.models.list()))
check("embeddings", lambda: str(client.embeddings.create(model="e", input="x", encoding_format="float").data[0].embedding))
