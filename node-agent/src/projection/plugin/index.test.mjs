// Run by the agent's tests: `node --test index.test.mjs`. Needs no package.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { test } from "node:test";
import plugin from "./index.js";

async function listening(t, server, port) {
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
}

/** A host that notes what is put and answers as it is told; it ends with its test, however that ends. */
async function host(t, answers = []) {
  const seen = [];
  const server = createServer((request, response) => {
    let body = "";
    request.on("data", (part) => (body += part));
    request.on("end", () => {
      seen.push({ method: request.method, auth: request.headers.authorization, list: JSON.parse(body), at: Date.now() });
      const status = answers.shift() ?? 204;
      if (status === "hang") return;
      response.writeHead(status).end(status === 204 ? undefined : "no");
      server.emit("seen");
    });
  });
  await listening(t, server, 0);
  return { seen, server, url: `http://127.0.0.1:${server.address().port}/v1/schedule` };
}

/** A gateway with one plugin, stopped with its test: a retry would outlive it. */
function gateway(t, pluginConfig) {
  const hooks = {};
  const lines = [];
  const say = (line) => lines.push(line);
  plugin.register({
    pluginConfig,
    logger: { info: say, warn: say, error: say },
    on: (name, hook) => (hooks[name] = hook),
  });
  t.after(() => hooks.gateway_stop?.());
  return { hooks, lines };
}

async function until(what, condition) {
  for (let tries = 0; tries < 1000; tries += 1) {
    if (condition()) return;
    await new Promise((done) => setTimeout(done, 10));
  }
  assert.fail(`waited in vain: ${what}`);
}

const job = (id, nextRunAtMs, more = {}) => ({
  id, name: id, enabled: true, payload: { kind: "agentTurn" }, state: { nextRunAtMs }, ...more,
});

test("the whole list is put at the start and after every change, and only what will run", async (t) => {
  const { seen, server, url } = await host(t);
  const { hooks } = gateway(t, { url, token: "t" });
  let jobs = [job("b", 20), job("off", 5, { enabled: false }), job("exit", undefined), job("a", 10)];
  const cron = { list: async () => jobs };
  await hooks.cron_changed({}, {});
  hooks.cron_reconciled({ reason: "startup", enabled: true }, { getCron: () => cron });
  await until("the first list", () => seen.length === 1);
  assert.equal(seen[0].method, "PUT");
  assert.equal(seen[0].auth, "Bearer t");
  assert.deepEqual(seen[0].list, {
    version: 1, builtInJobs: false,
    jobs: [10, 20].map((at, n) => ({
      id: "ab"[n], name: "ab"[n], declarationKey: null, payloadKind: "agentTurn", nextRunAtMs: at,
    })),
  });
  jobs = [job("a", 30)];
  hooks.cron_changed({ reason: "finished" }, {});
  await until("the second list", () => seen.length === 2);
  assert.deepEqual(seen[1].list.jobs.map((job) => job.nextRunAtMs), [30]);
  hooks.cron_reconciled({ reason: "reload", enabled: false }, {});
  await until("a scheduler that is off has nothing", () => seen.length === 3);
  assert.deepEqual(seen[2].list.jobs, []);
});

test("a host that is away or refuses is asked again, ever more rarely, and the newest list wins", async (t) => {
  const { seen, server, url } = await host(t, [503, 507]);
  const { hooks, lines } = gateway(t, { url, token: "t", builtInJobs: true });
  let jobs = [job("old", 1)];
  hooks.cron_reconciled({ enabled: true }, { getCron: () => ({ list: async () => jobs }) });
  await until("the first try", () => seen.length === 1);
  await until("the third try", () => seen.length === 3);
  assert.ok(seen[1].at - seen[0].at >= 900 && seen[2].at - seen[1].at >= 1900);
  await until("its end is told", () => lines.length >= 2);
  assert.equal(lines.length, 2, `one line at the first failure and one at the end: ${lines}`);
  assert.equal(seen[2].list.builtInJobs, true);

  server.close();
  server.closeAllConnections();
  jobs = [job("lost", 2)];
  hooks.cron_changed({}, {});
  await until("a failure is told", () => lines.length === 3);
  const again = createServer((request, response) => {
    let body = "";
    request.on("data", (part) => (body += part));
    request.on("end", () => {
      seen.push({ list: JSON.parse(body) });
      response.writeHead(204).end();
    });
  });
  await listening(t, again, Number(new URL(url).port));
  jobs = [job("newest", 3)];
  hooks.cron_changed({}, {});
  await until("the newest list", () => seen.length === 4);
  assert.deepEqual(seen[3].list.jobs.map((job) => job.id), ["newest"]);
});

test("a hundred changes are one list in flight and the last one told", async (t) => {
  const { seen, server, url } = await host(t, ["hang"]);
  const { hooks } = gateway(t, { url, token: "t" });
  let at = 0;
  hooks.cron_reconciled({ enabled: true }, { getCron: () => ({ list: async () => [job("a", at)] }) });
  await until("the first hangs", () => seen.length === 1);
  for (at = 1; at <= 100; at += 1) hooks.cron_changed({}, {});
  at = 100;
  await until("the last is told", () => seen.at(-1).list.jobs[0].nextRunAtMs === 100);
  assert.ok(seen.length <= 4, `${seen.length} lists`);
});

test("a scheduler whose time is over is told no more, and a stop ends a retry", async (t) => {
  const { seen, server, url } = await host(t, [503, 503, 503]);
  const { hooks } = gateway(t, { url, token: "t" });
  const time = new AbortController();
  const cron = { list: async () => [job("a", 1)] };
  hooks.cron_reconciled({ enabled: true }, { getCron: () => cron, abortSignal: time.signal });
  await until("a failure", () => seen.length === 1);
  time.abort();
  hooks.cron_changed({}, {});
  await new Promise((done) => setTimeout(done, 1500));
  assert.equal(seen.length, 1);
  hooks.cron_reconciled({ enabled: true }, { getCron: () => cron });
  await until("the next scheduler's list", () => seen.length === 2);
  const before = Date.now();
  await hooks.gateway_stop();
  assert.ok(Date.now() - before < 500);
});

test("without an address nothing is hooked", (t) => {
  const { hooks, lines } = gateway(t, {});
  assert.deepEqual(Object.keys(hooks), []);
  assert.equal(lines.length, 1);
});
