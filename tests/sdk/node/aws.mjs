// What an agent does with AWS's SDK, as it is: endpoints and a key pair from the environment, nothing else is special.
//
// Prints one JSON object: check -> what came of it. Usage: aws.mjs CHECK...
import { Readable } from "node:stream";
import { sdk } from "./check.mjs";

const { S3Client, CreateBucketCommand, PutObjectCommand, GetObjectCommand, DeleteBucketCommand } = await sdk("@aws-sdk/client-s3");
const { DynamoDBClient, ListTablesCommand } = await sdk("@aws-sdk/client-dynamodb");
const s3 = new S3Client({ forcePathStyle: true, maxAttempts: 1 });

async function refused(call) {
  try {
    await call();
    return "served";
  } catch (error) {
    return `${error.name}: ${error.message}`;
  }
}

const checks = {
  async objects() {
    await s3.send(new CreateBucketCommand({ Bucket: "bucket" }));
    const large = Buffer.alloc(3 << 20, "0123456789abcdef");
    const bodies = {
      "with space/and+plus": Buffer.from("plain"),
      large,
      // A stream is sent unsigned, with a checksum behind it.
      stream: Readable.from([large.subarray(0, 1 << 20), large.subarray(1 << 20)]),
    };
    const lengths = {};
    for (const [Key, Body] of Object.entries(bodies)) {
      const ContentLength = Body.length ?? large.length;
      await s3.send(new PutObjectCommand({ Bucket: "bucket", Key, Body, ContentLength }));
      const got = await (await s3.send(new GetObjectCommand({ Bucket: "bucket", Key }))).Body.transformToByteArray();
      lengths[Key] = got.length;
    }
    return lengths;
  },
  async tables() {
    return (await new DynamoDBClient({ maxAttempts: 1 }).send(new ListTablesCommand({}))).TableNames;
  },
  // With the SDK's own retries: how often it asked, and what it made of it.
  async retried() {
    try {
      const { TableNames, $metadata } = await new DynamoDBClient({}).send(new ListTablesCommand({}));
      return [$metadata.attempts, TableNames.join()];
    } catch (error) {
      return [error.$metadata.attempts, `${error.name}: ${error.message}`];
    }
  },
  async denied() {
    return refused(() => s3.send(new DeleteBucketCommand({ Bucket: "bucket" })));
  },
};

const results = {};
for (const name of process.argv.slice(2)) results[name] = await checks[name]();
console.log(JSON.stringify(results));
