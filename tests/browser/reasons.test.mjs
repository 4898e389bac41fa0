// What a page in a real Chromium learns when it is not let in: with stompjs, and with the lines that docs/errors.md gives to pages.
//
// Environment: BASE_URL and RELAY_WSS_URL (a page and the relay that serves it), TOKENS_URL and TOKENS_WSS_URL (the same of
// a relay that takes tokens, whose pages may connect anywhere), TOKENS_SECRET (what those tokens are signed with), and that of
// chromium.mjs. The broker must have RabbitMQ's default user guest.
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { after, before, test } from "node:test";
import { launch } from "./chromium.mjs";

const { BASE_URL, RELAY_WSS_URL, TOKENS_URL, TOKENS_WSS_URL, TOKENS_SECRET } = process.env;
const timeout = 30_000;
// The lines of docs/errors.md, for a `socket` and a `show`.
const handler = /```js\n(socket\.onclose[\s\S]*?)```/.exec(
  readFileSync(new URL("../../docs/errors.md", import.meta.url), "utf8"),
)?.[1];
let browser;

before(async () => {
  assert.ok(BASE_URL && RELAY_WSS_URL && TOKENS_URL && TOKENS_WSS_URL && TOKENS_SECRET, "run scripts/test browser");
  assert.ok(handler, "docs/errors.md has lines for pages");
  browser = await launch();
});

after(async () => {
  await browser?.close();
});

async function open(url) {
  const page = await browser.newPage();
  assert.equal((await page.goto(url)).status(), 200);
  return page;
}

// A token of alice that ends in so many seconds.
function token(seconds) {
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const claims = { sub: "alice", aud: "stomp-relay", exp: Math.floor(Date.now() / 1000) + seconds };
  const message = `${encode({ alg: "HS256", typ: "JWT" })}.${encode(claims)}`;
  return `${message}.${createHmac("sha256", TOKENS_SECRET).update(message).digest("base64url")}`;
}

// All that stompjs tells the page, to the close.
function connect(page, brokerURL, connectHeaders) {
  return page.evaluate(
    (config) =>
      new Promise((resolve) => {
        const told = [];
        const client = new globalThis.StompJs.Client({
          ...config,
          reconnectDelay: 0,
          onConnect: () => told.push("connected"),
          onStompError: ({ headers, body }) => told.push({ message: headers.message, code: headers["error-code"], body }),
          onWebSocketClose: ({ code, reason }) => resolve([...told, { close: code, reason }]),
        });
        client.activate();
      }),
    { brokerURL, connectHeaders },
  );
}

// What the lines of docs/errors.md show, and how the socket was closed.
function ask(page, url, frame = "") {
  return page.evaluate(`new Promise((resolve) => {
    const socket = new WebSocket(${JSON.stringify(url)}, "v12.stomp");
    let close;
    socket.addEventListener("close", ({ code, reason }) => (close = { code, reason }));
    socket.addEventListener("open", () => socket.send(${JSON.stringify(frame)}));
    const show = (text) => resolve({ ...close, text });
    ${handler}
  })`);
}

test("a wrong password", { timeout }, async () => {
  const page = await open(BASE_URL);
  const told = await connect(page, RELAY_WSS_URL, { login: "guest", passcode: "wrong", host: "/" });
  const body = "Access refused for user 'guest'\nCheck login and passcode; both are RabbitMQ's.\n";
  assert.deepEqual(told, [
    { message: "Bad CONNECT", code: "connect.refused", body },
    { close: 1008, reason: "connect.refused: Bad CONNECT" },
  ]);
  const frame = "CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:wrong\n\n\0";
  assert.equal((await ask(page, RELAY_WSS_URL, frame)).text, "1008 connect.refused: Bad CONNECT");
  await page.close();
});

const expired = [
  { message: "Token expired", code: "auth.token_expired" },
  { close: 4001, reason: "auth.token_expired: Token expired" },
];

function withoutBody(told) {
  const error = told.find((event) => event.body !== undefined);
  assert.match(error?.body ?? "", /token.*\n.*token/is, "what happened, and what to do");
  delete error.body;
  return told;
}

test("a token that has expired", { timeout }, async () => {
  const page = await open(TOKENS_URL);
  for (const headers of [{ Authorization: `Bearer ${token(-60)}` }, { login: "alice", passcode: token(-60) }]) {
    assert.deepEqual(withoutBody(await connect(page, TOKENS_WSS_URL, { ...headers, host: "/" })), expired);
  }
  await page.close();
});

test("a token that runs out during the session", { timeout }, async () => {
  const page = await open(TOKENS_URL);
  const told = await connect(page, TOKENS_WSS_URL, { Authorization: `Bearer ${token(3)}`, host: "/" });
  assert.deepEqual(withoutBody(told), ["connected", ...expired]);
  await page.close();
});

test("a page of an origin that may not connect", { timeout }, async () => {
  const page = await open(TOKENS_URL);
  const { code, reason, text } = await ask(page, RELAY_WSS_URL);
  // This is all that the browser says by itself.
  assert.deepEqual([code, reason], [1006, ""]);
  const { origin } = new URL(TOKENS_URL);
  assert.match(text, new RegExp(`^Pages of the origin ${origin} may not connect here: `));
  assert.match(text, /Ask the operator to add it to the setting http\.origins/);
  await page.close();
});

test("a server that is not there", { timeout }, async () => {
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  const page = await open(TOKENS_URL);
  const { code, text } = await ask(page, `wss://127.0.0.1:${port}/ws`);
  assert.equal(code, 1006);
  assert.match(text, /^connection lost, or no way to the server/);
  await page.close();
});
