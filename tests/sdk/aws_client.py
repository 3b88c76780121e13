"""What an agent does with boto3, as it is: endpoints and a key pair from the environment, nothing else is special.

Prints one JSON object: check -> what came of it. Usage: aws_client.py CHECK...
"""

import json
import os
import sys
import urllib.error
import urllib.request

import boto3
from botocore.client import Config
from botocore.exceptions import ClientError


def client(service, **config):
    config.setdefault("retries", {"total_max_attempts": 1})
    return boto3.client(service, config=Config(**config))


def s3(payload_signing_enabled=None, **config):
    options = {"addressing_style": "path", "payload_signing_enabled": payload_signing_enabled}
    return client("s3", s3={name: value for name, value in options.items() if value is not None}, **config)


def refused(call, **arguments):
    try:
        call(**arguments)
        return "served"
    except ClientError as error:
        return f"{error.response['Error']['Code']}: {error.response['Error']['Message']}"


def fetch(url, method="GET", body=None):
    headers = {"Content-Type": "application/octet-stream"} if body else {}  # urllib's own choice is a form
    request = urllib.request.Request(url, data=body, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return f"{error.code}: {error.read().decode()}"


def s3_objects():
    api = s3()
    api.create_bucket(Bucket="bucket")
    for key in ["plain", "with space/and+plus=equals~tilde", "a(b)'c!"]:
        api.put_object(Bucket="bucket", Key=key, Body=key.encode())
        assert api.get_object(Bucket="bucket", Key=key)["Body"].read() == key.encode()
    api.put_object(Bucket="bucket", Key="empty", Body=b"")
    api.copy_object(Bucket="bucket", Key="copy", CopySource={"Bucket": "bucket", "Key": "plain"})
    listed = api.list_objects_v2(Bucket="bucket", Prefix="with ", Delimiter="/")
    assert [p["Prefix"] for p in listed["CommonPrefixes"]] == ["with space/"], listed
    api.delete_object(Bucket="bucket", Key="copy")
    return sorted(o["Key"] for o in api.list_objects_v2(Bucket="bucket")["Contents"])


def s3_payloads():
    """Hashed, unsigned, and unsigned with a checksum behind it; in one piece and in many."""
    large, done = bytes(range(256)) * 4096 * 6, []
    for signed in [True, False]:
        api = s3(payload_signing_enabled=signed)
        for checksum in ["CRC32", "SHA256", None]:
            extra = {"ChecksumAlgorithm": checksum} if checksum else {}
            api.put_object(Bucket="bucket", Key="payload", Body=large, **extra)
            assert api.get_object(Bucket="bucket", Key="payload")["Body"].read() == large
            done.append([signed, checksum])
    upload = api.create_multipart_upload(Bucket="bucket", Key="parts")["UploadId"]
    parts = [large, b"end"]
    tags = [
        {"PartNumber": n, "ETag": api.upload_part(Bucket="bucket", Key="parts", UploadId=upload, PartNumber=n, Body=part)["ETag"]}
        for n, part in enumerate(parts, 1)
    ]
    api.complete_multipart_upload(Bucket="bucket", Key="parts", UploadId=upload, MultipartUpload={"Parts": tags})
    assert api.get_object(Bucket="bucket", Key="parts", Range="bytes=-3")["Body"].read() == b"end"
    return done


def s3_presigned():
    api = s3(signature_version="s3v4")
    put = api.generate_presigned_url("put_object", Params={"Bucket": "bucket", "Key": "shared"}, ExpiresIn=600)
    get = api.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "shared"}, ExpiresIn=600)
    fetch(put, "PUT", b"by url")
    other = get.replace("/shared?", "/plain?")
    return {"got": fetch(get), "other": fetch(other), "as_put": fetch(get, "PUT", b"x")}


def dynamodb():
    api = client("dynamodb")
    key = {"AttributeName": "id", "AttributeType": "S"}
    api.create_table(
        TableName="table",
        AttributeDefinitions=[key],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    api.put_item(TableName="table", Item={"id": {"S": "1"}, "text": {"S": "größer"}})
    return api.get_item(TableName="table", Key={"id": {"S": "1"}})["Item"]["text"]["S"]


def sts():
    api = client("sts")
    role = "arn:aws:iam::123456789012:role/any"
    return {
        "who": api.get_caller_identity()["Arn"],
        "role": refused(api.assume_role, RoleArn=role, RoleSessionName="agent"),
        "session": refused(api.get_session_token),
        "federation": refused(api.get_federation_token, Name="agent"),
    }


def bedrock():
    api = client("bedrock-runtime")
    answer = api.invoke_model(modelId="anthropic.claude-3-haiku-20240307-v1:0", body=json.dumps({"max_tokens": 1}))
    return json.loads(answer["body"].read())


def denied():
    return {
        "json": refused(client("dynamodb").delete_table, TableName="table"),
        "xml": refused(s3().delete_bucket, Bucket="bucket"),
    }


def wrong_secret():
    pair = {"aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": "x" * 40}
    api = boto3.client("s3", config=Config(s3={"addressing_style": "path"}), **pair)
    return refused(api.list_objects_v2, Bucket="bucket")


print(json.dumps({check: globals()[check]() for check in sys.argv[1:]}))
