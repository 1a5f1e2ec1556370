// The webhooks of the unmodified `openai` package for Node: what an endpoint got, with two signatures, is unwrapped by each secret.
import OpenAI from "openai";

const { BASE_URL, API_KEY, DELIVERY } = process.env;
const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY });
const { body, headers, secrets } = JSON.parse(DELIVERY);

async function isSigned(text, secret) {
  try {
    await client.webhooks.unwrap(text, headers, secret);
    return true;
  } catch (error) {
    if (error instanceof OpenAI.InvalidWebhookSignatureError) return false;
    throw error;
  }
}

const values = {
  type: (await client.webhooks.unwrap(body, headers, secrets[0])).type,
  signed: await Promise.all(secrets.map((secret) => isSigned(body, secret))),
  forged: await isSigned(`${body} `, secrets[0]),
};
console.log(JSON.stringify({ name: "unwrap", values }));
