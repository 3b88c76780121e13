// The Anthropic SDK.
import { BASE, matrix, sdk } from "./check.mjs";

const { default: Anthropic } = await sdk("@anthropic-ai/sdk");

const question = (model) => ({ model, max_tokens: 16, messages: [{ role: "user", content: "Hello?" }] });

function messages(apiKey, retries) {
  return new Anthropic({ apiKey, baseURL: BASE, ...(retries ? {} : { maxRetries: 0 }) }).messages;
}

async function* stream(apiKey, model) {
  for await (const event of messages(apiKey, true).stream(question(model))) {
    if (event.type === "content_block_delta") yield event.delta.text;
  }
}

await matrix(async (apiKey, model, retries) => (await messages(apiKey, retries).create(question(model))).content[0].text, stream);
