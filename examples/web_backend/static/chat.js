// One conversation with a Chucky server over its WebSocket; docs/protocol.md describes the frames.

export class Chat {
  #socket;
  #reason = "The connection was lost.";
  #tools;
  #onMessage;
  #onEnd;

  /**
   * @param tools  name -> { description, inputSchema, run(input) }: what the model may ask this page
   * @param onMessage  called with each message of the agent, "result" last
   * @param onEnd  called with a sentence once the conversation cannot go on; a new Chat can
   */
  constructor({ tools, onMessage, onEnd }) {
    this.#tools = tools;
    this.#onMessage = onMessage;
    this.#onEnd = onEnd;
  }

  /** Connect, with the url and token that your backend gave to this user. */
  open({ url, token }) {
    const socket = new WebSocket(url);
    this.#socket = socket;
    return new Promise((resolve, reject) => {
      socket.onerror = () => reject(new Error("The Chucky server cannot be reached."));
      socket.onmessage = ({ data }) => this.#onFrame(JSON.parse(data));
      socket.onopen = () => {
        socket.onclose = () => this.#onEnd(this.#reason);
        // A token in the url works too, but urls end up in the logs of proxies.
        this.#send({ type: "init", payload: { ...this.#options(), token } });
        resolve();
      };
    });
  }

  ask(text) {
    this.#send({ type: "user", message: { role: "user", content: text } });
  }

  /** End the running answer; it still gets its result. */
  interrupt() {
    this.#send({ type: "control", payload: { action: "interrupt" } });
  }

  /** End the conversation without a word to `onEnd`. */
  close() {
    this.#socket.onclose = null;
    this.#socket.close();
  }

  #onFrame(frame) {
    if (frame.type === "error") this.#reason = frame.payload.message;
    else if (frame.type === "tool_call") this.#runTool(frame.payload);
    else if (frame.type !== "control") this.#onMessage(frame);
  }

  #options() {
    const tools = Object.entries(this.#tools).map(([name, { description, inputSchema }]) => ({
      name, description, inputSchema, executeIn: "browser",
    }));
    return {
      includePartialMessages: true,
      capabilities: ["interrupt", "error_frames", "result_details"],
      mcpServers: [{ name: "page", version: "1.0.0", tools }],
    };
  }

  async #runTool({ callId, toolName, input }) {
    let text, isError = false;
    try {
      text = String(await this.#tools[toolName].run(input));
    } catch (error) {
      [text, isError] = [`${toolName} failed: ${error.message}`, true];
    }
    const result = { content: [{ type: "text", text }], isError };
    this.#send({ type: "tool_result", payload: { callId, result } });
  }

  #send(frame) {
    this.#socket.send(JSON.stringify(frame)); // does nothing once the socket is closed
  }
}
