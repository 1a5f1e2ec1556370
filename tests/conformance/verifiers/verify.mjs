// Reads lines of JSON, {secret, headers, body}, and answers each with what the two libraries say of it.
import { createInterface } from "node:readline";
import { createRequire } from "node:module";

const require = createRequire(process.env.VERIFIERS + "/");
const libraries = { standardwebhooks: require("standardwebhooks").Webhook, svix: require("svix").Webhook };

for await (const line of createInterface({ input: process.stdin })) {
  const { secret, headers, body } = JSON.parse(line);
  const said = {};
  for (const [name, Webhook] of Object.entries(libraries)) {
    try {
      new Webhook(secret).verify(body, headers);
      said[name] = true;
    } catch (error) {
      said[name] = false;
    }
  }
  console.log(JSON.stringify(said));
}
