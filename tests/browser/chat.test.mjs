// The chat page in a real Chromium: two tabs talk to each other through the relay and the broker.
//
// Environment: BASE_URL (the page, https://localhost:8443/), SCREENSHOTS (a folder; default target/browser), and that of
// chromium.mjs.
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";
import { launch } from "./chromium.mjs";

const DEADLINE_MS = 20_000;
const baseUrl = process.env.BASE_URL;
const screenshots = process.env.SCREENSHOTS ?? fileURLToPath(new URL("../../target/browser", import.meta.url));
const room = `room${process.pid}`;
let browser;
let context;

before(async () => {
  assert.ok(baseUrl, "BASE_URL must name the chat page");
  mkdirSync(screenshots, { recursive: true });
  browser = await launch();
  context = await browser.newContext({ viewport: { width: 900, height: 700 } });
  context.setDefaultTimeout(DEADLINE_MS);
});

after(async () => {
  await browser?.close();
});

// A tab on the chat page, with all that went wrong in it: script errors, console errors, refused requests, CSP violations.
async function openTab() {
  const page = await context.newPage();
  const faults = [];
  page.on("pageerror", (error) => faults.push(`script: ${error}`));
  page.on("console", (message) => {
    if (message.type() === "error") faults.push(`console: ${message.text()}`);
  });
  page.on("requestfailed", (request) => faults.push(`request: ${request.url()} ${request.failure()?.errorText}`));
  await page.exposeFunction("reportViolation", (text) => faults.push(`csp: ${text}`));
  await page.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => {
      globalThis.reportViolation(`${event.violatedDirective} ${event.blockedURI}`);
    });
  });
  const response = await page.goto(baseUrl);
  assert.equal(response.status(), 200);
  return { page, faults, response };
}

async function join(page, name, passcode = "guest") {
  await page.getByLabel("Your name").fill(name);
  await page.getByRole("textbox", { name: "Room" }).fill(room);
  await page.getByLabel("Passcode").fill(passcode);
  await page.getByRole("button", { name: "Join" }).click();
}

async function say(page, text) {
  await page.getByLabel("Message", { exact: true }).fill(text);
  await page.getByRole("button", { name: "Send" }).click();
}

const joined = (page) => page.locator("#state[data-state=online]").waitFor();
const received = (page, from, text) =>
  page.locator("#messages li.other").filter({ hasText: from }).filter({ hasText: text }).waitFor();

test("two tabs talk to each other through the broker", async () => {
  const alice = await openTab();
  const bob = await openTab();
  await join(alice.page, "Alice");
  await join(bob.page, "Bob");
  await joined(alice.page);
  await joined(bob.page);

  await say(alice.page, "Hello Bob, ünïcode ✓");
  await received(bob.page, "Alice", "Hello Bob, ünïcode ✓");
  await say(bob.page, "Hello <b>Alice</b> <img src=x onerror=alert(1)>");
  await received(alice.page, "Bob", "Hello <b>Alice</b> <img src=x onerror=alert(1)>");
  assert.equal(await alice.page.locator("#messages img, #messages b").count(), 0, "text of others became markup");

  for (const { page } of [alice, bob]) {
    await page.locator("#messages li.own[data-delivery=confirmed] .tick").waitFor();
    assert.equal(await page.locator("#messages li").count(), 2, "each tab shows each message once");
  }
  await alice.page.screenshot({ path: `${screenshots}/alice.png` });
  await bob.page.emulateMedia({ colorScheme: "dark" });
  await bob.page.setViewportSize({ width: 390, height: 700 });
  await bob.page.screenshot({ path: `${screenshots}/bob.png` });

  await bob.page.getByRole("button", { name: "Leave" }).click();
  await bob.page.locator("#state[data-state=offline]").waitFor();
  await bob.page.getByRole("button", { name: "Join" }).waitFor();
  assert.deepEqual(alice.faults, []);
  assert.deepEqual(bob.faults, []);
  await alice.page.close();
  await bob.page.close();
});

test("a wrong passcode shows the relay's error and the page can be used again", async () => {
  const { page, faults } = await openTab();
  await join(page, "Mallory", "wrong");
  const error = page.locator("#error");
  await error.waitFor();
  assert.notEqual((await page.locator("#error-message").textContent()).trim(), "");
  assert.match(await error.textContent(), /access|refused|login|connect|password|passcode/i);
  await page.screenshot({ path: `${screenshots}/refused.png` });
  await page.locator("#state[data-state=offline]").waitFor();
  await join(page, "Mallory");
  await joined(page);
  assert.equal(await error.isVisible(), false);
  assert.deepEqual(faults, []);
  await page.close();
});

test("the page is served with a policy that allows no inline script and no foreign origin", async () => {
  const { page, faults, response } = await openTab();
  const policy = response.headers()["content-security-policy"] ?? "";
  assert.match(policy, /default-src '(none|self)'/);
  assert.doesNotMatch(policy, /unsafe-inline|unsafe-eval|\*/);
  await page.waitForLoadState("networkidle");
  assert.deepEqual(faults, []);
  await page.close();
});
