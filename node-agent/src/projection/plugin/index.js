// Tells the host the whole list of this gateway's next runs, at its start and after every change (package docs,
// plugins/hooks/lifecycle.md, "Safe external cron projection"). Events are hints only: each time the scheduler itself is
// read again. The newest list wins; one that the host did not take is tried again, ever more rarely.

import { setTimeout as sleep } from "node:timers/promises";

const VERSION = 1;
const RETRY_FIRST_MS = 1_000;
const RETRY_MAX_MS = 30_000;
const ANSWER_MAX_MS = 10_000;
// One more than the host takes: a list that is too long is refused by it, and not cut short in silence.
const JOBS_SENT_MAX = 1_001;
const ID_CHARS_MAX = 128;
// Only the beginning says whether a job is one of the gateway's own.
const NAME_CHARS_MAX = 40;

const cut = (text, max) => (typeof text === "string" ? text.slice(0, max) : null);

function projected(jobs) {
  return jobs
    .filter((job) => job.enabled !== false && Number.isSafeInteger(job.state?.nextRunAtMs))
    .sort((a, b) => a.state.nextRunAtMs - b.state.nextRunAtMs)
    .slice(0, JOBS_SENT_MAX)
    .map((job) => ({
      id: cut(String(job.id), ID_CHARS_MAX),
      name: cut(job.name, NAME_CHARS_MAX),
      declarationKey: cut(job.declarationKey, NAME_CHARS_MAX),
      payloadKind: cut(job.payload?.kind, NAME_CHARS_MAX),
      nextRunAtMs: job.state.nextRunAtMs,
    }));
}

export default {
  id: "wake-projection",
  name: "Berth wake projection",
  description: "Tells the host when this gateway's cron jobs run next, so that it is awake for them.",
  register(api) {
    const { url, token, builtInJobs = false } = api.pluginConfig ?? {};
    if (!url || !token) {
      api.logger.warn("wake projection: no url or no token, the host does not learn of cron jobs");
      return;
    }
    const ending = new AbortController();
    // The scheduler that was reconciled last, and the signal that ends its time.
    let scheduler;
    let wanted = 0;
    let told = 0;
    let attempt;
    let worker;

    async function put(signal) {
      const jobs = scheduler.cron ? await scheduler.cron.list({ includeDisabled: true }) : [];
      signal.throwIfAborted();
      const answer = await fetch(url, {
        method: "PUT",
        redirect: "error",
        headers: { "content-type": "application/json", authorization: `Bearer ${token}` },
        body: JSON.stringify({ version: VERSION, builtInJobs, jobs: projected(jobs) }),
        signal: AbortSignal.any([signal, AbortSignal.timeout(ANSWER_MAX_MS)]),
      });
      const words = await answer.text();
      if (answer.status !== 204) throw new Error(`${answer.status} ${words.slice(0, 200)}`);
    }

    async function work() {
      let wait = RETRY_FIRST_MS;
      while (told < wanted && !ending.signal.aborted && !scheduler.signal?.aborted) {
        const number = wanted;
        attempt = new AbortController();
        const signals = [ending.signal, attempt.signal, scheduler.signal].filter(Boolean);
        const signal = AbortSignal.any(signals);
        try {
          await put(signal);
          if (wait > RETRY_FIRST_MS) api.logger.info("wake projection: the host has the list again");
          told = number;
          wait = RETRY_FIRST_MS;
        } catch (error) {
          if (signal.aborted) continue; // Something newer is to be told, or nothing any more.
          if (wait === RETRY_FIRST_MS) {
            api.logger.warn(`wake projection: the host has not taken the list, trying again: ${error.message}`);
          }
          await sleep(wait, undefined, { signal }).catch(() => {});
          wait = Math.min(wait * 2, RETRY_MAX_MS);
        }
      }
    }

    function tell() {
      wanted += 1;
      attempt?.abort();
      // One at a time: whoever is at work sees that there is more to do.
      worker ??= work().finally(() => {
        worker = undefined;
        if (told < wanted && !ending.signal.aborted && !scheduler.signal?.aborted) tell();
      });
      return worker;
    }

    api.on("cron_reconciled", (event, context) => {
      const cron = context.getCron?.();
      if (event.enabled && !cron) {
        api.logger.warn("wake projection: the scheduler cannot be read");
        return;
      }
      scheduler = { cron: event.enabled ? cron : undefined, signal: context.abortSignal };
      void tell();
    });
    api.on("cron_changed", () => {
      if (scheduler) void tell();
    });
    api.on("gateway_stop", async () => {
      ending.abort();
      await worker;
    });
  },
};
