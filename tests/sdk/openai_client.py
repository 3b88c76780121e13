"""The OpenAI SDK, told nothing but a token and a base URL: streaming and not, and what a refusal looks like."""

import sys

import openai
from openai import OpenAI

token, base_url, wrong_token = sys.argv[1:]
client = OpenAI(api_key=token, base_url=base_url)
question = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello?"}]}

answer = client.chat.completions.create(**question)
assert answer.choices[0].message.content == "Hello from the stand-in", answer

pieces = [c.choices[0].delta.content or "" for c in client.chat.completions.create(stream=True, **question)]
assert "".join(pieces) == "Hello from the stand-in", pieces
assert len(pieces) == 4, pieces

assert [m.id for m in client.models.list()] == ["gpt-4o-mini"]
assert client.embeddings.create(model="e", input="x", encoding_format="float").data[0].embedding == [0.25, -0.5]

try:
    OpenAI(api_key=wrong_token, base_url=base_url, max_retries=0).chat.completions.create(**question)
    raise SystemExit("a wrong token was accepted")
except openai.AuthenticationError as refusal:
    assert refusal.code == "token_malformed", refusal.code
    assert refusal.type == "seks_error", refusal.type
    assert "token" in str(refusal) and wrong_token not in str(refusal), str(refusal)
    print("refusal:", refusal)
print("ok")
