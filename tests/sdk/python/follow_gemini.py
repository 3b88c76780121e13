"""google-genai uploads a file to the URL that it is given, without a key. Prints the file's name."""

import io

from check import BASE, TOKEN
from google import genai

client = genai.Client(api_key=TOKEN, http_options={"base_url": BASE})
print(client.files.upload(file=io.BytesIO(b"x" * 1000), config={"mime_type": "text/plain"}).name)
