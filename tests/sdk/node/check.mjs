// What every client of the matrix does: one line of JSON a check, with what the SDK returned or raised.
//
// The environment says where and as whom; a subject that is called `check-…` tells the stand-in what to answer.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const env = process.env;
export const BASE = env.SDK_BASE_URL;

/** An SDK from where `tests/sdk/install` has put it: not beside these files. */
export const sdk = (name) => import(pathToFileURL(createRequire(`${env.SDK_MODULES}/`).resolve(name)).href);

async function check(name, call) {
  let said;
  try {
    said = { check: name, text: await call() };
  } catch (error) {
    said = { check: name, raised: error.constructor.name, message: String(error.message) };
  }
  console.log(JSON.stringify(said));
}

/** Runs `call(token, subject, retries)`, which returns the stand-in's greeting, in every situation. */
export async function matrix(call, stream) {
  await check("call", () => call(env.SDK_TOKEN, "check-call", true));
  if (stream) {
    await check("stream", async () => {
      const pieces = [];
      for await (const piece of stream(env.SDK_TOKEN, "check-stream")) pieces.push(piece);
      return pieces.join("|");
    });
  }
  await check("bad_request", () => call(env.SDK_TOKEN, "check-bad-request", true));
  await check("server_error", () => call(env.SDK_TOKEN, "check-server-error", false));
  await check("retry", () => call(env.SDK_TOKEN, "check-retry", true));
  await check("revoked", () => call(env.SDK_REVOKED_TOKEN, "check-call", true));
  await check("denied", () => call(env.SDK_DENIED_TOKEN, "check-call", true));
}
