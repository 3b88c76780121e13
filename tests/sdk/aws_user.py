"""Makes a user in a fresh moto server and prints its key pair: from then on moto verifies every signature.

Usage: aws_user.py ENDPOINT (moto: INITIAL_NO_AUTH_ACTION_COUNT=3)
"""

import json
import sys

import boto3

nobody = {"aws_access_key_id": "AKIANOBODY0000000000", "aws_secret_access_key": "x", "region_name": "us-east-1"}
iam = boto3.client("iam", endpoint_url=sys.argv[1], **nobody)
iam.create_user(UserName="broker")
everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
iam.put_user_policy(UserName="broker", PolicyName="everything", PolicyDocument=json.dumps(everything))
key = iam.create_access_key(UserName="broker")["AccessKey"]
print(json.dumps({"access_key_id": key["AccessKeyId"], "secret_access_key": key["SecretAccessKey"]}))
