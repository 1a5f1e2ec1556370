// Scenarios of the unmodified `openai` package for Node: a line of JSON for each, what it found or how it failed.
import OpenAI, { toFile } from "openai";

const { BASE_URL, API_KEY, PNG } = process.env;
const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, timeout: 60_000 });
const small = { size: "64x64", quality: "low" };
const picture = Buffer.from(PNG, "base64");
const isPng = (text) => Buffer.from(text, "base64").subarray(1, 4).toString() === "PNG";

async function wait(read, ends) {
  for (let look = 0; look < 600; look++) {
    const found = await read();
    if (ends.includes(found.status)) return found;
    await new Promise((resume) => setTimeout(resume, 100));
  }
  throw new Error("waited in vain");
}

async function errorOf(call) {
  try {
    await call();
  } catch (error) {
    return [error.constructor.name, error.status, error.code, error.param];
  }
  throw new Error("no error");
}

const scenarios = {
  async generate() {
    const found = await client.images.generate({ prompt: "A cat", n: 2, seed: 7, ...small });
    return { pngs: found.data.map((datum) => isPng(datum.b64_json)), size: found.size, usage: found.usage, id: found._request_id };
  },
  async stream() {
    const types = [];
    let last;
    for await (const event of await client.images.generate({ prompt: "A dog", stream: true, partial_images: 2, ...small })) {
      types.push(event.type);
      last = event;
    }
    return { types, png: isPng(last.b64_json) };
  },
  async edit() {
    const one = await client.images.edit({ image: await toFile(picture, "a.png"), prompt: "night", quality: "low" });
    const many = await client.images.edit({
      image: [await toFile(picture, "a.png"), await toFile(picture, "b.png")],
      prompt: "both",
      ...small,
    });
    return { one: isPng(one.data[0].b64_json), many: isPng(many.data[0].b64_json) };
  },
  async errors() {
    return {
      size: await errorOf(() => client.images.generate({ prompt: "x", size: "7x7" })),
      transparent: await errorOf(() => client.images.generate({ prompt: "x", background: "transparent" })),
      model: await errorOf(() => client.images.generate({ prompt: "x", model: "sd" })),
    };
  },
  async lost() {
    const unlucky = new OpenAI({ baseURL: `${process.env.LOSING_URL}/v1`, apiKey: API_KEY, maxRetries: 2 });
    const found = await unlucky.images.generate({ prompt: "A lost cow", ...small });
    return { png: isPng(found.data[0].b64_json) };
  },
  async batches() {
    const line = { custom_id: "c", method: "POST", url: "/v1/images/generations", body: { prompt: "A cat", ...small } };
    const file = await client.files.create({ file: await toFile(Buffer.from(JSON.stringify(line)), "in.jsonl"), purpose: "batch" });
    const batch = await client.batches.create({
      input_file_id: file.id,
      endpoint: "/v1/images/generations",
      completion_window: "24h",
    });
    const done = await wait(() => client.batches.retrieve(batch.id), ["completed", "failed"]);
    const text = await (await client.files.content(done.output_file_id)).text();
    return { status: done.status, id: JSON.parse(text).custom_id };
  },
  async responses() {
    const tools = [{ type: "image_generation", size: "64x64", quality: "low", partial_images: 1 }];
    const made = await client.responses.create({ model: "gpt-5", input: "A hen", tools, background: true });
    const done = await wait(() => client.responses.retrieve(made.id), ["completed", "failed"]);
    const types = [];
    for await (const event of await client.responses.retrieve(made.id, { stream: true, starting_after: 1 })) types.push(event.type);
    return { png: isPng(done.output[0].result), last: types.at(-1), first: types[0] };
  },
};

// Together: what takes time is the drawing, and the engines draw several pictures in little more than the time of one.
async function tell([name, scenario]) {
  try {
    console.log(JSON.stringify({ name, values: await scenario() }));
  } catch (error) {
    console.log(JSON.stringify({ name, error: String(error.stack ?? error).slice(0, 3000) }));
  }
}
await Promise.all(Object.entries(scenarios).map(tell));
