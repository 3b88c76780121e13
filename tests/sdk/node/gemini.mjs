// Google's Gen AI SDK, whose retries are opt-in.
import { BASE, matrix, sdk } from "./check.mjs";

const { GoogleGenAI } = await sdk("@google/genai");

function models(apiKey, retries) {
  const httpOptions = { baseUrl: BASE, ...(retries ? { retryOptions: { attempts: 2 } } : {}) };
  return new GoogleGenAI({ apiKey, httpOptions }).models;
}

async function* stream(apiKey, model) {
  for await (const chunk of await models(apiKey, true).generateContentStream({ model, contents: "Hello?" })) {
    yield chunk.text;
  }
}

const call = async (apiKey, model, retries) =>
  (await models(apiKey, retries).generateContent({ model, contents: "Hello?" })).text;

await matrix(call, stream);
