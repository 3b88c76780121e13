// Every major version of Octokit that is in use reads all pages of a repository's issues. Prints their numbers, a line for each.
import { BASE, sdk } from "./check.mjs";

for (const version of ["octokit", "octokit-4", "octokit-3"]) {
  const { Octokit } = await sdk(version);
  const octokit = new Octokit({ auth: process.env.SDK_TOKEN, baseUrl: BASE });
  const { data } = await octokit.rest.repos.get({ owner: "seks", repo: "demo" });
  const issues = await octokit.paginate(`GET ${data.url}/issues`, { per_page: 1 });
  console.log(JSON.stringify(issues.map((issue) => issue.number)));
}
