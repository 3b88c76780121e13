"""The example that the project was started with: only the token and the host are a user's own."""

import sys

from openai import OpenAI

token, host = sys.argv[1:]

client = OpenAI(api_key=token, base_url=f"{host}/api/openai")

response = client.chat.completions.create(
    model="gpt-4o-mini",
    messages=[{"role": "user", "content": "Hello?"}],
)
print(response.choices[0].message.content)
