"""google-api-python-client uploads to Drive in chunks, to the URL in `Location`. Prints the file's id."""

import io
import json
import pathlib

import googleapiclient
from check import BASE, TOKEN
from google.oauth2.credentials import Credentials
from googleapiclient.discovery import build_from_document
from googleapiclient.http import MediaIoBaseUpload

documents = pathlib.Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
drive = json.loads((documents / "drive.v3.json").read_text())
drive["rootUrl"], drive["mtlsRootUrl"] = BASE + "/", BASE + "/"
service = build_from_document(drive, credentials=Credentials(token=TOKEN))
media = MediaIoBaseUpload(io.BytesIO(b"x" * 600_000), mimetype="text/plain", chunksize=256 * 1024, resumable=True)
request, response = service.files().create(body={"name": "a"}, media_body=media), None
while response is None:
    _, response = request.next_chunk()
print(response["id"])
