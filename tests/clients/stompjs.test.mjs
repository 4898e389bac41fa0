// stompjs, the client most browsers use, against the relay.
//
// Environment: RELAY_WS_URL and/or RELAY_WSS_URL (ws://127.0.0.1:8080/ws), RELAY_CA (PEM of the CA for wss).
// The tests run once for every URL that is given. The broker must have RabbitMQ's default user guest.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Client, Versions } from "@stomp/stompjs";
import WebSocket from "ws";

const DEADLINE_MS = 15_000;
const SESSIONS = 20;
const urls = [process.env.RELAY_WS_URL, process.env.RELAY_WSS_URL].filter(Boolean);
const ca = process.env.RELAY_CA ? readFileSync(process.env.RELAY_CA) : undefined;
let counter = 0;
const unique = (word) => `${word}-${process.pid}-${++counter}`;

function deadline(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing within ${DEADLINE_MS} ms`)), DEADLINE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// One STOMP connection. `inbox(destination)` subscribes and hands out messages one by one.
class Peer {
  constructor(url, { login = "guest", passcode = "guest", versions = Versions.default, heartbeat = 0, ...more } = {}) {
    this.lines = [];
    this.errors = [];
    this.closed = new Promise((resolve) => (this.onClosed = resolve));
    this.client = new Client({
      webSocketFactory: () => new WebSocket(url, versions.protocolVersions(), { ca }),
      connectHeaders: { login, passcode },
      stompVersions: versions,
      heartbeatIncoming: heartbeat,
      heartbeatOutgoing: heartbeat,
      reconnectDelay: 0,
      debug: (line) => this.lines.push(line),
      onStompError: (frame) => this.errors.push(frame),
      onWebSocketClose: (event) => this.onClosed(event),
      ...more,
    });
  }

  // Resolves with the CONNECTED or the ERROR frame.
  connect() {
    const answered = new Promise((resolve) => {
      this.client.onConnect = resolve;
      this.client.onStompError = (frame) => {
        this.errors.push(frame);
        resolve(frame);
      };
    });
    this.client.activate();
    return deadline(answered, "CONNECT");
  }

  // Runs `send` with the headers that ask for a receipt; resolves when the receipt is there.
  receipt(send, what = "receipt") {
    const id = unique("receipt");
    const arrived = new Promise((resolve) => this.client.watchForReceipt(id, resolve));
    send({ receipt: id });
    return deadline(arrived, what);
  }

  send(destination, body, headers = {}) {
    return this.receipt((wanted) => this.client.publish({ destination, body, headers: { ...headers, ...wanted } }), "SEND");
  }

  async inbox(destination, headers = {}) {
    const messages = [];
    const takers = [];
    const onMessage = (message) => (takers.length ? takers.shift()(message) : messages.push(message));
    let subscription;
    await this.receipt((wanted) => {
      subscription = this.client.subscribe(destination, onMessage, { ...headers, ...wanted });
    }, "SUBSCRIBE");
    return {
      subscription,
      get waiting() { return messages.length; },
      take: () =>
        deadline(messages.length ? Promise.resolve(messages.shift()) : new Promise((give) => takers.push(give)), "MESSAGE"),
    };
  }

  // DISCONNECT with a receipt, which stompjs always asks for; resolves with that RECEIPT.
  async disconnect() {
    const receipt = new Promise((resolve) => (this.client.onDisconnect = resolve));
    const done = this.client.deactivate();
    const frame = await deadline(receipt, "RECEIPT of DISCONNECT");
    await deadline(done, "close");
    return frame;
  }
}

async function connected(t, url, options) {
  const peer = new Peer(url, options);
  t.after(() => peer.client.deactivate({ force: true }));
  const frame = await peer.connect();
  assert.equal(frame.command, "CONNECTED", `${frame.headers.message}: ${frame.body}`);
  return peer;
}

// A queue that was given one, two and three, to a client that acknowledged two and left.
async function secondOfThreeAcknowledged(t, url, ack) {
  const peer = await connected(t, url);
  const destination = `/queue/${unique(ack)}`;
  const inbox = await peer.inbox(destination, { ack });
  for (const body of ["one", "two", "three"]) await peer.send(destination, body);
  await inbox.take();
  const two = await inbox.take();
  await inbox.take();
  await peer.receipt((wanted) => two.ack(wanted), "ACK");
  await peer.disconnect();
  return destination;
}

async function bodies(inbox, count) {
  const taken = [];
  for (let i = 0; i < count; i++) taken.push((await inbox.take()).body);
  return taken;
}

test("the environment names a relay", () => assert.ok(urls.length > 0, "set RELAY_WS_URL or RELAY_WSS_URL"));

for (const url of urls) {
  const scheme = url.split(":")[0];
  const check = (name, body) => test(`${scheme}: ${name}`, body);

  for (const version of [Versions.V1_0, Versions.V1_1, Versions.V1_2]) {
    check(`connects as STOMP ${version} and talks to itself`, async (t) => {
      const peer = await connected(t, url, { versions: new Versions([version]) });
      // RabbitMQ names the version in every CONNECTED, STOMP 1.0 itself does not: absent means 1.0.
      assert.equal(peer.client.connectedVersion ?? "1.0", version);
      const destination = `/topic/${unique("own")}`;
      const inbox = await peer.inbox(destination);
      await peer.send(destination, "echo");
      assert.equal((await inbox.take()).body, "echo");
      assert.equal((await peer.disconnect()).command, "RECEIPT");
    });
  }

  check("the highest common version is chosen, and its subprotocol", async (t) => {
    const peer = await connected(t, url);
    assert.equal(peer.client.connectedVersion, "1.2");
    assert.equal(peer.client.webSocket.protocol, "v12.stomp");
  });

  check("a wrong passcode is an ERROR, then the connection closes", async (t) => {
    const peer = new Peer(url, { passcode: "wrong" });
    t.after(() => peer.client.deactivate({ force: true }));
    const frame = await peer.connect();
    assert.equal(frame.command, "ERROR");
    assert.notEqual(frame.headers.message ?? "", "");
    assert.doesNotMatch(frame.body + JSON.stringify(frame.headers), /wrong/, "the passcode is told back");
    await deadline(peer.closed, "close after ERROR");
  });

  check("a topic reaches every subscriber", async (t) => {
    const peers = [await connected(t, url), await connected(t, url), await connected(t, url)];
    const destination = `/topic/${unique("fan")}`;
    const inboxes = await Promise.all(peers.map((peer) => peer.inbox(destination)));
    await peers[0].send(destination, "to all");
    for (const inbox of inboxes) {
      const message = await inbox.take();
      assert.equal(message.body, "to all");
      assert.equal(message.headers.destination, destination);
    }
  });

  check("headers and bodies arrive as they were sent", async (t) => {
    const peer = await connected(t, url);
    const destination = `/queue/${unique("verbatim")}`;
    const inbox = await peer.inbox(destination);
    const odd = "colon: backslash\\ newline\n ünïcode ✓";
    await peer.send(destination, "text ✓", { "content-type": "text/plain", "x-odd": odd });
    const text = await inbox.take();
    assert.equal(text.body, "text ✓");
    assert.equal(text.headers["x-odd"], odd);
    assert.equal(text.headers["content-type"], "text/plain");
  });

  check("a client that sends binary messages gets binary ones, every byte intact", async (t) => {
    const peer = await connected(t, url, { forceBinaryWSFrames: true });
    const destination = `/queue/${unique("binary")}`;
    const inbox = await peer.inbox(destination);
    const binaryBody = Uint8Array.from({ length: 512 }, (_, i) => i % 256); // NUL bytes and bytes that are no UTF-8
    await peer.receipt((wanted) => peer.client.publish({ destination, binaryBody, headers: wanted }));
    assert.deepEqual(Uint8Array.from((await inbox.take()).binaryBody), binaryBody);
  });

  check("a frame that comes in many WebSocket messages is put together", async (t) => {
    const peer = await connected(t, url, { splitLargeFrames: true, maxWebSocketChunkSize: 1000 });
    const destination = `/queue/${unique("chunks")}`;
    const inbox = await peer.inbox(destination);
    const body = "0123456789".repeat(20_000);
    await peer.send(destination, body);
    assert.equal((await inbox.take()).body, body);
  });

  check("ack client-individual: what is not acknowledged comes again", async (t) => {
    const destination = await secondOfThreeAcknowledged(t, url, "client-individual");
    const second = await connected(t, url);
    const again = await second.inbox(destination, { ack: "client-individual" });
    const one = await again.take();
    const three = await again.take();
    assert.deepEqual([one.body, three.body], ["one", "three"]);
    assert.deepEqual([one.headers.redelivered, three.headers.redelivered], ["true", "true"]);
    await second.receipt((wanted) => three.ack(wanted), "ACK");
    await second.receipt((wanted) => one.nack(wanted), "NACK");
    const onceMore = await again.take();
    assert.equal(onceMore.body, "one", "NACK puts the message back");
    await second.receipt((wanted) => onceMore.ack(wanted), "ACK");
    await second.disconnect();

    const third = await connected(t, url);
    const rest = await third.inbox(destination);
    await third.send(destination, "last");
    assert.deepEqual(await bodies(rest, 1), ["last"], "all before it was acknowledged");
  });

  check("ack client: an ACK covers all messages before it", async (t) => {
    const destination = await secondOfThreeAcknowledged(t, url, "client");
    const second = await connected(t, url);
    const rest = await second.inbox(destination);
    await second.send(destination, "last");
    assert.deepEqual(await bodies(rest, 2), ["three", "last"]);
  });

  check("a transaction is invisible until COMMIT", async (t) => {
    const peer = await connected(t, url);
    const destination = `/queue/${unique("commit")}`;
    const inbox = await peer.inbox(destination);
    const transaction = peer.client.begin();
    const headers = { transaction: transaction.id };
    peer.client.publish({ destination, headers, body: "in 1" });
    peer.client.publish({ destination, headers, body: "in 2" });
    await peer.send(destination, "outside");
    assert.equal((await inbox.take()).body, "outside");
    assert.equal(inbox.waiting, 0);
    transaction.commit();
    assert.deepEqual(await bodies(inbox, 2), ["in 1", "in 2"]);
  });

  check("ABORT discards a transaction", async (t) => {
    const peer = await connected(t, url);
    const destination = `/queue/${unique("abort")}`;
    const inbox = await peer.inbox(destination);
    const transaction = peer.client.begin();
    peer.client.publish({ destination, headers: { transaction: transaction.id }, body: "discarded" });
    transaction.abort();
    await peer.send(destination, "after");
    assert.deepEqual(await bodies(inbox, 1), ["after"]);
    assert.equal(inbox.waiting, 0);
  });

  check("UNSUBSCRIBE ends the messages", async (t) => {
    const peer = await connected(t, url);
    const destination = `/topic/${unique("unsubscribe")}`;
    const left = await peer.inbox(destination);
    const stays = await peer.inbox(destination);
    await peer.receipt((wanted) => left.subscription.unsubscribe(wanted), "UNSUBSCRIBE");
    await peer.send(destination, "after");
    assert.equal((await stays.take()).body, "after");
    assert.equal(left.waiting, 0);
  });

  // As a page's framework does it: the effect that unsubscribes and the one that subscribes run in one tick, often with one id.
  for (const [what, prefix, headers, ending] of [
    ["of a topic", "/topic/", {}, {}],
    ["of a topic with ack:client", "/topic/", { ack: "client" }, {}],
    ["that is durable", "/topic/", { durable: "true", "auto-delete": "false" }, { durable: "true" }],
    ["of a queue", "/queue/", {}, {}],
    ["of a queue that goes with its last subscription", "/queue/", { durable: "false", "auto-delete": "true" }, {}],
  ]) {
    check(`a subscription ${what} is made again in one tick`, async (t) => {
      for (let session = 0; session < SESSIONS; session++) {
        const peer = await connected(t, url);
        const destination = `${prefix}${unique("again")}`;
        let onMessage;
        const mount = (wanted = {}) =>
          peer.client.subscribe(destination, (message) => onMessage(message), { id: "component", ...headers, ...wanted });
        let subscription;
        await peer.receipt((wanted) => (subscription = mount(wanted)), "SUBSCRIBE");
        for (let again = 0; again < 3; again++) {
          await peer.receipt((wanted) => {
            subscription.unsubscribe();
            subscription = mount(wanted);
          }, "SUBSCRIBE");
        }
        const message = new Promise((resolve) => (onMessage = resolve));
        await peer.send(destination, "still there");
        const got = await deadline(message, "MESSAGE");
        assert.equal(got.body, "still there");
        if (headers.ack) got.ack();
        await peer.receipt((wanted) => subscription.unsubscribe({ ...ending, ...wanted }), "UNSUBSCRIBE");
        assert.deepEqual(peer.errors, []);
        assert.equal((await peer.disconnect()).command, "RECEIPT");
      }
    });
  }

  check("heart-beats go both ways and keep an idle connection", async (t) => {
    const beats = 4;
    let seen = 0;
    let enough;
    const seenEnough = new Promise((resolve) => (enough = resolve));
    const debug = (line) => {
      if (line.includes("<<< PONG") && ++seen === beats) enough();
    };
    const peer = await connected(t, url, { heartbeat: 500, debug });
    await deadline(seenEnough, `${beats} heart-beats of the relay`);
    assert.ok(peer.client.connected);
    const inbox = await peer.inbox(`/topic/${unique("beats")}`);
    assert.equal(inbox.waiting, 0);
    assert.deepEqual(peer.errors, []);
  });

  check("an unknown destination is an ERROR that names the receipt", async (t) => {
    const peer = await connected(t, url);
    const refused = new Promise((resolve) => (peer.client.onStompError = resolve));
    peer.client.publish({ destination: "/something/interesting", headers: { receipt: "r-1" }, body: "x" });
    const frame = await deadline(refused, "ERROR");
    assert.equal(frame.headers.message, "Unknown destination");
    await deadline(peer.closed, "close after ERROR");
  });
}
