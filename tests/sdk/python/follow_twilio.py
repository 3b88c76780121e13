"""twilio reads pages of two kinds: by a path with the account's id, and by an absolute URL. Prints the ids of all."""

from check import BASE, TOKEN
from twilio.rest import Client

client = Client("AC0123456789abcdef0123456789abcdef", TOKEN)
client.api.base_url = BASE
client.messaging.base_url = BASE
print([call.sid for call in client.calls.list(page_size=1)], [s.sid for s in client.messaging.v1.services.list(page_size=1)])
