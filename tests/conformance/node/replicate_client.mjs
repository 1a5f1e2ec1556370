// Scenarios of the unmodified `replicate` package for Node: a line of JSON for each, what it found or how it failed.
import Replicate, { validateWebhook, parseProgressFromLogs } from "replicate";

const { BASE_URL, API_KEY, REF, SCENARIOS } = process.env;
const replicate = new Replicate({ baseUrl: BASE_URL, auth: API_KEY });
const small = { size: "64x64", num_inference_steps: 2 };

const scenarios = {
  async run() {
    const output = await replicate.run(REF, { input: { prompt: 'A sign that says "open"', num_outputs: 2, seed: 17, ...small } });
    return { output: output.map(String) };
  },

  async run_slower_than_the_wait() {
    const input = { prompt: "A slow one", seed: 18, size: "256x256", num_inference_steps: 50 };
    const seen = [];
    const output = await replicate.run(REF, { input, wait: { mode: "block", timeout: 1 } }, (p) => seen.push(p.status));
    return { output: output && output.map(String), seen };
  },

  async run_by_version() {
    const version = (await replicate.models.get(...REF.split("/"))).latest_version.id;
    const output = await replicate.run(`${REF}:${version}`, { input: { prompt: "A cat", seed: 11, ...small }, wait: { mode: "poll" } });
    return { output: output.map(String), version };
  },

  async create_and_poll() {
    const made = await replicate.predictions.create({ model: REF, input: { prompt: "A dog", seed: 12, ...small } });
    const done = await replicate.wait(made, { interval: 100 });
    return { first: made.status, status: done.status, output: done.output, progress: parseProgressFromLogs(done) };
  },

  async cancel() {
    const input = { prompt: "A long one", seed: 13, size: "512x512", num_inference_steps: 200 };
    const made = await replicate.predictions.create({ version: REF, input });
    const once = await replicate.predictions.cancel(made.id);
    const twice = await replicate.predictions.cancel(made.id);
    return { once: once.status, twice: twice.status };
  },

  async listing() {
    const ids = [];
    for await (const page of replicate.paginate(replicate.predictions.list)) ids.push(...page.map((found) => found.id));
    return { ids };
  },

  async stream() {
    const input = { prompt: "A stream", seed: 14, size: "256x256", num_inference_steps: 50 };
    const events = [];
    for await (const event of replicate.stream(REF, { input })) events.push([event.event, String(event.data), event.id]);
    return { events };
  },

  async files() {
    const image = new Blob([Buffer.from(process.env.PNG, "base64")], { type: "image/png" });
    const output = await replicate.run(REF, { input: { prompt: "An edit", seed: 15, image, ...small } });
    return { output: output.map(String) };
  },

  async secret() {
    return { key: (await replicate.webhooks.default.secret.get()).key };
  },

  async validate() {
    const { headers, body } = JSON.parse(process.env.DELIVERY);
    const valid = await validateWebhook({ headers, body }, process.env.SECRET);
    const forged = await validateWebhook({ headers, body: body + " " }, process.env.SECRET);
    return { valid, forged };
  },

  async too_many() {
    const tries = [];
    const counting = new Replicate({
      baseUrl: BASE_URL,
      auth: API_KEY,
      fetch: async (...asked) => {
        const answer = await fetch(...asked);
        tries.push([answer.status, answer.headers.get("Retry-After")]);
        return answer;
      },
    });
    try {
      await counting.predictions.create({ model: REF, input: { prompt: "A bird", ...small } });
    } catch (error) {
      return { status: error.response.status, tries, made: (await replicate.predictions.list()).results.length };
    }
    return {};
  },

  async wrong_input() {
    try {
      await replicate.run(REF, { input: { prompt: "a", num_outputs: 99 } });
    } catch (error) {
      return { status: error.response.status, message: error.message };
    }
    return {};
  },
};

// Together: what takes time is the drawing, and the engines draw several pictures in little more than the time of one.
async function tell(name) {
  try {
    console.log(JSON.stringify({ name, values: await scenarios[name]() }));
  } catch (error) {
    console.log(JSON.stringify({ name, error: String(error.stack ?? error) }));
  }
}
await Promise.all(SCENARIOS.split(",").map(tell));
