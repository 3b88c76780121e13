// The Stripe SDK. It takes a host and a port but no path, so its `fetch` puts the path in.
import { BASE, matrix, sdk } from "./check.mjs";

const { default: Stripe } = await sdk("stripe");
const { hostname: host, port, protocol, origin } = new URL(BASE);
const throughTheProxy = (url, init) => fetch(String(url).replace(origin, BASE), init);

await matrix(async (key, customer, retries) => {
  const stripe = new Stripe(key, {
    host,
    port,
    protocol: protocol.slice(0, -1),
    httpClient: Stripe.createFetchHttpClient(throughTheProxy),
    ...(retries ? {} : { maxNetworkRetries: 0 }),
  });
  return (await stripe.customers.retrieve(customer)).name;
});
