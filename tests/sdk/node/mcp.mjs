// MCP over both transports: lists the tools, calls one that is permitted and one that is not. Prints what each said.
import { BASE, sdk } from "./check.mjs";

const { Client } = await sdk("@modelcontextprotocol/sdk/client/index.js");
const { SSEClientTransport } = await sdk("@modelcontextprotocol/sdk/client/sse.js");
const { StreamableHTTPClientTransport } = await sdk("@modelcontextprotocol/sdk/client/streamableHttp.js");

const requestInit = { headers: { Authorization: `Bearer ${process.env.SDK_TOKEN}` } };

async function use(transport) {
  const client = new Client({ name: "test", version: "1" });
  await client.connect(transport);
  const { tools } = await client.listTools();
  console.log(JSON.stringify(tools.map((tool) => tool.name).sort()));
  const greeting = await client.callTool({ name: "get_greeting", arguments: { name: "agent" } });
  console.log(greeting.content[0].text);
  try {
    console.log(await client.callTool({ name: "delete_everything", arguments: {} }));
  } catch (error) {
    console.log(`refused: ${error.message}`.replaceAll("\n", " "));
  }
  await client.close();
}

await use(new StreamableHTTPClientTransport(new URL(`${BASE}/mcp`), { requestInit }));
await use(new SSEClientTransport(new URL(`${BASE}/sse`), { requestInit }));
