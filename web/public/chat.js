// The chat page: a STOMP client in the browser, through the relay that served the page. A room is the destination
// /topic/chat.ROOM, a message a JSON text {name, text, id}. Nothing is kept: who joins later does not see what was said before.
// What comes from others is shown as text, never as markup.
"use strict";

(() => {
  const MESSAGES_SHOWN = 500; // older ones leave the page, so that a tab left open does not grow for ever
  const byId = (id) => document.getElementById(id);
  const me = newId(); // names need not be unique, so own messages are told apart by this
  let client = null;
  let room = "";
  let name = "";
  let atEnd = true; // the last message is in sight
  const waiting = new Map(); // receipt id -> list item of a message that the broker has not confirmed yet

  function newId() {
    return Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  // In a topic's name RabbitMQ gives a meaning to ".", "*", "#" and "/": a room is one word of letters, digits, "-" and "_".
  function roomWord(text) {
    const word = text.toLowerCase().replace(/[^\p{L}\p{N}_-]+/gu, "-").replace(/^-+|-+$/g, "");
    return Array.from(word).slice(0, 60).join("") || "lobby";
  }

  const destinationOf = (word) => `/topic/chat.${word}`;

  function showState(state, text) {
    byId("state").dataset.state = state;
    byId("state").textContent = text;
    byId("send").disabled = state !== "online";
    byId("text").disabled = state !== "online";
  }

  function showError(message, body) {
    byId("error-message").textContent = message;
    byId("error-body").textContent = body;
    byId("error-body").hidden = !body;
    byId("error").hidden = false;
  }

  function showForm(form) {
    byId("join").hidden = form !== "join";
    byId("chat").hidden = form !== "chat";
  }

  function element(tag, className, text) {
    const made = document.createElement(tag);
    made.className = className;
    made.textContent = text;
    return made;
  }

  // Who reads older messages is left where they are; else the last one stays in sight, also when the window changes its size.
  function scrollToEnd() {
    const list = byId("messages");
    if (atEnd) list.scrollTop = list.scrollHeight;
  }

  function addMessage(from, text, whose) {
    const list = byId("messages");
    const item = element("li", whose, "");
    item.append(element("span", "from", from), element("span", "text", text));
    const time = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    const foot = element("span", "foot", "");
    foot.append(element("time", "time", time));
    item.append(foot);
    list.append(item);
    while (list.children.length > MESSAGES_SHOWN) list.firstElementChild.remove();
    if (whose === "own") atEnd = true;
    scrollToEnd();
    return item;
  }

  function mark(item, state, sign, meaning) {
    item.dataset.delivery = state;
    let tick = item.querySelector(".tick");
    if (!tick) {
      tick = element("span", "tick", "");
      tick.setAttribute("role", "img");
      item.querySelector(".foot").append(tick);
    }
    tick.textContent = sign;
    tick.title = meaning;
    tick.setAttribute("aria-label", meaning);
  }

  // Messages whose receipt can no longer come: the connection on which they were sent is gone.
  function giveUpWaiting() {
    for (const item of waiting.values()) {
      mark(item, "unknown", "?", "The connection was lost before the broker confirmed this message");
    }
    waiting.clear();
  }

  function onMessage(frame) {
    let said;
    try {
      said = JSON.parse(frame.body);
    } catch {
      said = { name: "(not from this page)", text: frame.body };
    }
    if (said.id === me) return; // shown when it was sent; the tick comes with the receipt
    addMessage(String(said.name ?? "?").slice(0, 40), String(said.text ?? ""), "other");
  }

  function onConnect() {
    byId("error").hidden = true;
    client.subscribe(destinationOf(room), onMessage, { receipt: "joined" });
    client.watchForReceipt("joined", () => {
      showForm("chat");
      showState("online", `Connected as ${name}`);
      byId("text").focus();
    });
  }

  function onStompError(frame) {
    showError(frame.headers.message ?? "The relay reported an error", frame.body.trim());
    leave(); // STOMP closes after ERROR, and what was refused once would be refused again
  }

  function onClose(event) {
    giveUpWaiting();
    if (!client?.active) {
      showState("offline", "Not connected");
      return;
    }
    const reason = event.reason ? `: ${event.reason}` : "";
    showState("connecting", `Connection lost (${event.code}${reason}), trying again ...`);
  }

  function join(event) {
    event.preventDefault();
    name = byId("name").value.trim();
    if (!name) return;
    room = roomWord(byId("room").value);
    byId("room").value = room;
    byId("error").hidden = true;
    byId("messages").replaceChildren();
    byId("chat-title").textContent = `Room ${room}`;
    byId("chat-destination").textContent = destinationOf(room);
    atEnd = true;
    byId("join-button").disabled = true;
    showState("connecting", "Connecting ...");
    client = new StompJs.Client({
      brokerURL: `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`,
      connectHeaders: { login: byId("login").value, passcode: byId("passcode").value },
      heartbeatIncoming: 10000,
      heartbeatOutgoing: 10000,
      reconnectDelay: 1000,
      reconnectTimeMode: StompJs.ReconnectionTimeMode.EXPONENTIAL,
      maxReconnectDelay: 30000,
      onConnect,
      onStompError,
      onWebSocketClose: onClose,
    });
    client.activate();
  }

  async function leave() {
    const leaving = client;
    client = null;
    await leaving?.deactivate();
    giveUpWaiting();
    byId("join-button").disabled = false;
    showForm("join");
    showState("offline", "Not connected");
  }

  function say(event) {
    event.preventDefault();
    const text = byId("text").value.trim();
    if (!text || !client?.connected) return;
    const receipt = `said-${newId()}`;
    const item = addMessage(name, text, "own");
    mark(item, "sent", "…", "Sent, not confirmed yet");
    waiting.set(receipt, item);
    client.watchForReceipt(receipt, () => {
      waiting.delete(receipt);
      mark(item, "confirmed", "✓", "Confirmed by the broker");
    });
    client.publish({
      destination: destinationOf(room),
      headers: { receipt, "content-type": "application/json" },
      body: JSON.stringify({ name, text, id: me }),
    });
    byId("text").value = "";
    byId("text").focus();
  }

  byId("join").addEventListener("submit", join);
  byId("say").addEventListener("submit", say);
  byId("leave").addEventListener("click", leave);
  byId("messages").addEventListener("scroll", ({ target }) => {
    atEnd = target.scrollHeight - target.scrollTop - target.clientHeight < 40;
  });
  new ResizeObserver(scrollToEnd).observe(byId("messages"));
  byId("room").addEventListener("input", () => {
    byId("destination").textContent = destinationOf(roomWord(byId("room").value));
  });
})();
