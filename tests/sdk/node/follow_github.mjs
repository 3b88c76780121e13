// Octokit reads all pages of a repository's issues. Prints their numbers.
import { BASE, sdk } from "./check.mjs";

const { Octokit } = await sdk("octokit");
const octokit = new Octokit({ auth: process.env.SDK_TOKEN, baseUrl: BASE });
const { data } = await octokit.rest.repos.get({ owner: "seks", repo: "demo" });
const issues = await octokit.paginate(`GET ${data.url}/issues`, { per_page: 1 });
console.log(JSON.stringify(issues.map((issue) => issue.number)));
