// Octokit. What it logs about a retry would stand between the checks.
import { BASE, matrix, sdk } from "./check.mjs";

const { Octokit } = await sdk("octokit");
const log = { debug() {}, info() {}, warn() {}, error() {} };

await matrix(async (auth, repo, retries) => {
  const octokit = new Octokit({ auth, baseUrl: BASE, log, ...(retries ? {} : { retry: { enabled: false } }) });
  return (await octokit.rest.repos.get({ owner: "seks", repo })).data.description;
});
