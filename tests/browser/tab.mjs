// One tab of a real browser, for as long as this program lives. It is told what to do on standard input, a line of JSON
// each, and answers each with one line: {"ok": true, ...} or {"ok": false, "error": "..."}.
//
//   {"do": "open", "url": URL}          opens a login link, presses its button, waits for OpenClaw's page
//   {"do": "say", "text": TEXT}         types a message into the page as it is, and waits until its answer is shown
//   {"do": "look"}                      what the page is and has been through; nothing of it is touched
//   {"do": "reload"}                    reloads the page and waits until one can type again
//   {"do": "picture", "file": PATH}     a screenshot
//
// Environment: BERTH_CHROMIUM, the browser's program.

import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

// The slowest cold start of a real gateway that was ever measured took 82 s.
const WAIT_MS = 200_000;

// A turn of a busy gateway took 18 s.
const ANSWER_MS = 90_000;

// A picture of a page whose fonts do not come is no reason to wait.
const PICTURE_MS = 20_000;

const browser = await chromium.launch({
  executablePath: process.env.BERTH_CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
const context = await browser.newContext({ viewport: { width: 1200, height: 800 } });
const page = await context.newPage();
page.setDefaultTimeout(WAIT_MS);

// What the page goes through, seen from outside of it.
const seen = { loads: 0, opened: 0, closed: 0, sent: {}, heard: {}, errors: [] };

const count = (of, frame) => {
  let name = "other";
  try {
    const { type, method, event } = JSON.parse(frame.payload);
    name = method ?? event ?? type ?? name;
  } catch {
    // Not one of the gateway's frames.
  }
  of[name] = (of[name] ?? 0) + 1;
};

page.on("load", () => (seen.loads += 1));
page.on("pageerror", (error) => seen.errors.push(String(error).slice(0, 300)));
page.on("websocket", (socket) => {
  seen.opened += 1;
  socket.on("framesent", (frame) => count(seen.sent, frame));
  socket.on("framereceived", (frame) => count(seen.heard, frame));
  socket.on("close", () => (seen.closed += 1));
});

const composer = () => page.locator("textarea:visible").first();

const usable = async () => {
  await composer().waitFor({ state: "visible" });
  await page.waitForFunction(() => {
    const field = [...document.querySelectorAll("textarea")].find((one) => one.offsetParent !== null);
    return field === undefined || !field.disabled;
  });
};

const deeds = {
  async open({ url }) {
    await page.goto(url);
    await page.locator("button").first().click();
    await usable();
  },

  async say({ text }) {
    const begun = Date.now();
    await composer().fill(text);
    await composer().press("Enter");
    // The model says it back in quotes, and what was typed has none. The page leaves out what stands before it.
    await page.getByText(`${text}"`).last().waitFor({ state: "attached", timeout: ANSWER_MS });
    return { ms: Date.now() - begun };
  },

  async look() {
    // The mark is gone as soon as another document is there.
    const marked = await page.evaluate(() => {
      const before = window.berthMark === true;
      window.berthMark = true;
      return before;
    });
    return { ...seen, marked, url: page.url(), text: (await page.locator("body").innerText()).slice(0, 4000) };
  },

  async reload() {
    await page.reload();
    await usable();
  },

  async picture({ file }) {
    await page.screenshot({ path: file, timeout: PICTURE_MS });
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const order = JSON.parse(line);
    answer = { ok: true, ...(await deeds[order.do](order)) };
  } catch (error) {
    answer = { ok: false, error: String(error?.message ?? error).slice(0, 2000) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
