"""The Anthropic SDK, told nothing but a token and a base URL: streaming and not, and what a refusal looks like."""

import sys

import anthropic
from anthropic import Anthropic

token, base_url, wrong_token = sys.argv[1:]
client = Anthropic(api_key=token, base_url=base_url)
question = {"model": "claude-test", "max_tokens": 16, "messages": [{"role": "user", "content": "Hello?"}]}

answer = client.messages.create(**question)
assert answer.content[0].text == "Hello from the stand-in", answer

with client.messages.stream(**question) as stream:
    pieces = list(stream.text_stream)
assert pieces == ["Hello from ", "the stand-in"], pieces

try:
    Anthropic(api_key=wrong_token, base_url=base_url, max_retries=0).messages.create(**question)
    raise SystemExit("a wrong token was accepted")
except anthropic.AuthenticationError as refusal:
    assert "token" in str(refusal) and wrong_token not in str(refusal), str(refusal)
    print("refusal:", refusal)
print("ok")
