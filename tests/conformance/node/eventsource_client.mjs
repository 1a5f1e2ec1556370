// The unmodified `eventsource` package on a job's stream: what it was told, and whether it stopped by itself after the end.
import { EventSource } from "eventsource";

const { BASE_URL, API_KEY, JOB_ID } = process.env;
const statuses = [];
const source = new EventSource(`${BASE_URL}/jobs/${JOB_ID}/events`, {
  fetch: async (url, init) => {
    const answer = await fetch(url, { ...init, headers: { ...init.headers, Authorization: `Bearer ${API_KEY}` } });
    statuses.push([answer.status, init.headers["Last-Event-ID"] ?? null]);
    return answer;
  },
});
const events = [];
for (const type of ["job.snapshot", "job.started", "job.progress", "job.tokens_ready", "job.preview", "job.draft_ready", "job.succeeded"]) {
  source.addEventListener(type, (event) => events.push([event.type, event.lastEventId, JSON.parse(event.data).data.status]));
}
source.addEventListener("error", () => {
  if (source.readyState === EventSource.CLOSED) {
    console.log(JSON.stringify({ name: "eventsource", values: { events, statuses } }));
  }
});
