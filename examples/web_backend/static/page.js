// The page around a conversation: it signs in, shows messages as they come, and offers a tool.

import { Chat } from "./chat.js";

const element = (id) => document.getElementById(id);
const log = element("log");

const tools = {
  get_local_time: {
    description: "Get the local time of the user",
    inputSchema: { type: "object", properties: {} },
    run: () => `${new Date().toLocaleString()} (${Intl.DateTimeFormat().resolvedOptions().timeZone})`,
  },
};

let chat = null; // the conversation, or null until it begins and after it ended
let draft = null; // the text that is being written
const calls = new Map(); // tool_use_id -> where the tool's answer is shown

// --- the conversation ---------------------------------------------------------------------------

/** Begin a conversation if there is none. Where nobody is signed in, ask for that; then it is false. */
async function connect() {
  if (chat) return true;
  const response = await fetch("/chat-token", { method: "POST" });
  if (response.status === 401) {
    showSignIn(true);
    return false;
  }
  try {
    if (!response.ok) throw new Error("This site gave no token; try again later.");
    const opened = new Chat({ tools, onMessage, onEnd });
    await opened.open(await response.json());
    chat = opened;
    return true;
  } finally {
    showSignIn(false);
  }
}

async function ask(text) {
  setRunning(true);
  try {
    if (await connect()) {
      show("user", text);
      chat.ask(text);
      element("message").value = "";
    } else {
      setRunning(false);
    }
  } catch (error) {
    onEnd(error.message);
  }
}

function onEnd(sentence) {
  chat = draft = null;
  calls.clear();
  show("notice", `${sentence} Your next message begins a new conversation.`);
  setRunning(false);
}

function onMessage(message) {
  if (message.type === "stream_event") onPiece(message.event);
  else if (message.type === "assistant") onAssistant(message.message.content);
  else if (message.type === "user") onToolResults(message.message.content);
  else if (message.type === "result") onResult(message);
}

function onPiece(event) {
  if (event.type !== "content_block_delta" || event.delta.type !== "text_delta") return;
  draft ??= show("assistant", "");
  draft.lastChild.append(event.delta.text);
  draft.scrollIntoView({ block: "end" });
}

function onAssistant(blocks) {
  draft?.remove(); // the message is complete, and its pieces are no longer needed
  draft = null;
  for (const block of blocks) {
    if (block.type === "text") show("assistant", block.text);
    if (block.type === "tool_use") showCall(block);
  }
}

function onToolResults(blocks) {
  for (const { tool_use_id: id, content, is_error: failed } of blocks) {
    const text = content.map((item) => item.text ?? `[${item.type}]`).join("\n");
    calls.get(id)?.append(`\n${failed ? "failed" : "answered"}: ${text}`);
    calls.delete(id);
  }
}

function onResult(result) {
  draft = null;
  calls.clear();
  if (result.is_error) show("notice", result.result);
  element("status").textContent = `Cost so far: $${result.total_cost_usd.toFixed(6)}`;
  setRunning(false);
  if (result.error?.code === "AUTHENTICATION_ERROR") {
    chat.close(); // the token has expired; the next conversation gets a new one
    chat = null;
  }
}

// --- what is on the page ------------------------------------------------------------------------

const SPEAKERS = { user: "You", assistant: "Assistant", notice: "Notice" };

/** Everything is shown as text: what a model writes must never become part of the page. */
function show(kind, text) {
  const shown = document.createElement("div");
  const speaker = document.createElement("strong");
  const said = document.createElement("p");
  shown.className = kind;
  speaker.textContent = SPEAKERS[kind];
  said.textContent = text;
  shown.append(speaker, said);
  log.append(shown);
  shown.scrollIntoView({ block: "end" });
  return shown;
}

function showCall({ id, name, input }) {
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  const text = document.createElement("pre");
  details.className = "tool";
  summary.textContent = `Used ${name.split("__").at(-1)}`;
  text.textContent = `asked: ${JSON.stringify(input)}`;
  details.append(summary, text);
  log.append(details);
  calls.set(id, text);
}

function setRunning(running) {
  log.ariaBusy = String(running); // a screen reader waits, instead of reading every piece
  element("send").hidden = running;
  element("stop").hidden = !running;
}

function showSignIn(needed) {
  element("sign-in").hidden = !needed;
  element("chat").hidden = needed;
  element(needed ? "name" : "message").focus();
}

element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = element("message").value.trim();
  if (text && !element("send").hidden) ask(text);
});

element("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  element("ask").requestSubmit();
});

element("stop").addEventListener("click", () => chat?.interrupt());

element("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = encodeURIComponent(element("name").value);
  const response = await fetch(`/sign-in?name=${name}`, { method: "POST" });
  element("status").textContent = response.ok ? "" : (await response.json()).error;
  if (response.ok) begin();
});

function begin() {
  connect().catch((error) => onEnd(error.message));
}

begin();
