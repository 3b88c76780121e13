// The OpenAI SDK.
import { BASE, matrix, sdk } from "./check.mjs";

const { default: OpenAI } = await sdk("openai");

function create(apiKey, model, retries, more) {
  const client = new OpenAI({ apiKey, baseURL: BASE, ...(retries ? {} : { maxRetries: 0 }) });
  return client.chat.completions.create({ model, messages: [{ role: "user", content: "Hello?" }], ...more });
}

async function* stream(apiKey, model) {
  for await (const { choices } of await create(apiKey, model, true, { stream: true })) {
    if (choices[0].delta.content) yield choices[0].delta.content;
  }
}

await matrix(async (...how) => (await create(...how)).choices[0].message.content, stream);
