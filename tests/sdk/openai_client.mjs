// The OpenAI SDK for Node, told nothing but a token and a base URL: streaming and not, and what a refusal looks like.
import assert from "node:assert";
import { createRequire } from "node:module";

const [modules, apiKey, baseURL, wrongToken] = process.argv.slice(2);
const { default: OpenAI } = createRequire(`${modules}/`)("openai");
const client = new OpenAI({ apiKey, baseURL });
const question = { model: "gpt-4o-mini", messages: [{ role: "user", content: "Hello?" }] };

const answer = await client.chat.completions.create(question);
assert.equal(answer.choices[0].message.content, "Hello from the stand-in");

const pieces = [];
for await (const event of await client.chat.completions.create({ ...question, stream: true })) {
  pieces.push(event.choices[0].delta.content ?? "");
}
assert.equal(pieces.join(""), "Hello from the stand-in");
assert.equal(pieces.length, 4);

const stranger = new OpenAI({ apiKey: wrongToken, baseURL, maxRetries: 0 });
await assert.rejects(stranger.chat.completions.create(question), (refusal) => {
  assert.equal(refusal.status, 401);
  assert.equal(refusal.code, "token_malformed");
  assert.ok(refusal.message.includes("token") && !refusal.message.includes(wrongToken), refusal.message);
  console.log("refusal:", refusal.message);
  return true;
});
console.log("ok");
