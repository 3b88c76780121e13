"""Secrets and keys in moto, by the SDK of AWS. Prints JSON.

Usage: aws_secrets.py ENDPOINT put-secret NAME VALUE | create-key NAME
"""

import json
import sys

import boto3

endpoint, command, name, *rest = sys.argv[1:]
secrets = boto3.client("secretsmanager", endpoint_url=endpoint)
keys = boto3.client("kms", endpoint_url=endpoint)
answer = {}
if command == "put-secret":
    try:
        secrets.create_secret(Name=name, SecretString=rest[0])
    except secrets.exceptions.ResourceExistsException:
        secrets.put_secret_value(SecretId=name, SecretString=rest[0])
elif command == "create-key":
    answer = {"id": keys.create_key(Description=name)["KeyMetadata"]["KeyId"]}
print(json.dumps(answer))
