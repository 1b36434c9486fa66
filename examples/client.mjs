// A client for dynamo in JavaScript, written from docs/wire.md alone: one connection to one node, any number of requests in flight.
//
//     npm install @msgpack/msgpack
//     node client.mjs 127.0.0.1:7379 set alice "1 book"            prints the token of the write
//     node client.mjs 127.0.0.1:7379 get alice                     prints values and token
//     node client.mjs 127.0.0.1:7379 put alice "2 books" TOKEN     replaces what TOKEN covers, and nothing else
//     node client.mjs 127.0.0.1:7379 delete alice TOKEN
//
// or, from a program, `const { siblings, context } = await client.get("alice")` and `await client.put("alice", merge(siblings), { context })`.

import { randomBytes } from "node:crypto";
import net from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { decode, encode } from "@msgpack/msgpack";

const MAGIC = Uint8Array.of(0x8a, 0x64, 0x79, 0x6e, 0x61, 0x6d, 0x6f, 0x0d, 0x0a);
const NOTHING = new Uint8Array(0);
const FRAME_BYTES_MAX = 8 * 1024 * 1024;
const HELLO = 1, HELLO_REPLY = 2, GET = 10, PUT = 11, GET_REPLY = 20, PUT_REPLY = 21, ERROR = 29;
const MODE_PUT = 0, MODE_SET = 1;
const ERRORS = ["", "Unavailable", "Timeout", "InvalidContext", "InvalidKey", "KeyTooLong", "ValueTooLarge", "TooManySiblings", "CorruptRecord",
  "StorageFull", "StorageFailed", "InvalidRequest", "ConnectionFailed", "ConfigError", "ConflictError", "ProtocolError"];

// What a node answered in place of a reply, or what became of the connection. `maybeApplied`: a write may be visible now or later.
export class DynamoError extends Error {
  constructor(code, text, maybeApplied = false, required = 0, received = 0) {
    super(text);
    Object.assign(this, { name: ERRORS[code] || "DynamoError", code, maybeApplied, required, received });
  }
}

// Text would be msgpack `str`, and all fields of ours are `bin`; `undefined` would be nil, which deletes.
const bytes = (value, what = "key") => {
  if (typeof value !== "string" && !(value instanceof Uint8Array)) throw new TypeError(`a ${what} is a string or a Uint8Array, not ${value}`);
  return typeof value === "string" ? Buffer.from(value) : value;
};

export class Client {
  #socket;
  #received = [];
  #receivedBytes = 0;
  #neededBytes = 4; // until there is a header, then a whole frame
  #waiting = new Map(); // request id -> how to end it
  #lastId = 0;
  #over = null;
  #timeoutMs;

  // Resolves once the node has answered the greeting.
  static async connect(address, { timeoutMs = 5000, clusterId = NOTHING } = {}) {
    const colon = address.lastIndexOf(":");
    const socket = net.connect({ host: address.slice(0, colon).replace(/^\[|\]$/g, ""), port: Number(address.slice(colon + 1)), noDelay: true });
    const client = new Client(socket, timeoutMs);
    // protocol 1..1, format 1..1, cluster, partitions, tree shape, role client, node id, incarnation, nonce, capabilities, auth, address
    const greeting = [HELLO, 0, MAGIC, 1, 1, 1, 1, clusterId, 0, 0, 0, NOTHING, 0, NOTHING, 0, NOTHING, ""];
    return client.#ask(0, greeting, HELLO_REPLY, timeoutMs).then(() => client, (error) => { client.close(); throw error; });
  }

  constructor(socket, timeoutMs) {
    this.#socket = socket;
    this.#timeoutMs = timeoutMs;
    socket.on("data", (piece) => this.#receive(piece));
    socket.on("error", (error) => this.#end(new DynamoError(12, error.message)));
    socket.on("close", () => this.#end(new DynamoError(12, "the node closed the connection")));
  }

  // All siblings of the key, none if it is absent or deleted, and a context that covers what is shown: it belongs into the put that replaces them.
  // `leftOut`: how many versions did not fit into the answer; put one value for those shown, and get again.
  async get(key, { bucket = "default", r = 0, pr = 0, timeoutMs = this.#timeoutMs } = {}) {
    const fields = (leftMs) => [bytes(bucket, "bucket"), bytes(key), r, pr, nodeMs(leftMs)];
    const [, , , , ownersAnswered, context, siblings, , leftOut = 0] = await this.#request(GET, fields, GET_REPLY, timeoutMs);
    const shown = siblings.map(([value, actor, counter, time]) => ({ value, dot: { actor, counter }, time: hlcToDate(time) }));
    return { siblings: shown, context, ownersAnswered, leftOut };
  }

  // Replaces what `context` covers; without one, adds a sibling beside whatever there is. Returns the context of this write.
  put(key, value, options = {}) { return this.#write(key, bytes(value, "value"), MODE_PUT, options); }

  // Replaces what the node holds, in one round trip; a concurrent write that nobody has read may be lost.
  set(key, value, options = {}) { return this.#write(key, bytes(value, "value"), MODE_SET, { ...options, context: null }); }

  // Deletes what `context` covers.
  delete(key, options) {
    if (!options?.context) throw new TypeError("delete needs the context of a read");
    return this.#write(key, null, MODE_PUT, options);
  }

  close() { this.#socket.destroy(); } // not end(), which would wait for the other side, and it may be silent

  async #write(key, value, mode, { bucket = "default", context = null, w = 0, pw = 0, timeoutMs = this.#timeoutMs, operation = randomBytes(16) }) {
    const covered = context === null ? null : bytes(context, "context");
    const fields = (leftMs) => [bytes(bucket, "bucket"), bytes(key), value, covered, mode, w, pw, nodeMs(leftMs), operation];
    const [, , , , token, actor, counter, unseenSiblings] = await this.#request(PUT, fields, PUT_REPLY, timeoutMs);
    return { context: token, dot: { actor, counter }, unseenSiblings };
  }

  // A node that is busy (Unavailable that requires nobody) did nothing: ask again after pauses that double, as long as there is time.
  async #request(type, fields, replyType, timeoutMs) {
    const end = performance.now() + timeoutMs;
    for (let pauseMs = 20, leftMs = timeoutMs; ; pauseMs *= 2) {
      const id = (this.#lastId = (this.#lastId % 0xffffffff) + 1); // 2^32 would be encoded as a float
      const refused = await this.#ask(id, [type, id, ...fields(leftMs)], replyType, leftMs).catch((error) => error);
      if (!(refused instanceof Error)) return refused;
      if (refused.code !== 1 || refused.required !== 0) throw refused;
      await sleep(Math.max(0, Math.min(pauseMs * (0.5 + Math.random()), end - performance.now())));
      if ((leftMs = end - performance.now()) < 1) throw refused;
    }
  }

  // Send a message; resolves to the reply with its request id.
  #ask(id, message, replyType, timeoutMs) {
    return new Promise((resolve, reject) => {
      if (this.#over) return reject(this.#over);
      const body = encode(message, { useBigInt64: true });
      if (body.length > FRAME_BYTES_MAX) return reject(new DynamoError(6, "the request does not fit into a frame"));
      const isWrite = message[0] === PUT;
      const end = (error, reply) => {
        clearTimeout(timer);
        this.#waiting.delete(id);
        if (error) reject(isWrite ? new DynamoError(error.code, error.message, true) : error);
        else if (reply[0] === ERROR) reject(new DynamoError(...reply.slice(2, 7)));
        else if (reply[0] === replyType) resolve(reply);
        else reject(new DynamoError(15, `type ${reply[0]} in answer to ${message[0]}`, isWrite));
      };
      // The node answers Timeout before the time is over; this is for one that says nothing.
      const timer = setTimeout(() => end(new DynamoError(2, `no answer within ${timeoutMs} ms`)), timeoutMs + 250);
      this.#waiting.set(id, end);
      const header = Uint8Array.of(body.length >>> 24, body.length >>> 16, body.length >>> 8, body.length);
      this.#socket.write(Buffer.concat([header, body]));
    });
  }

  // Frames come in any pieces, several in one piece or one in several.
  #receive(piece) {
    this.#received.push(piece);
    this.#receivedBytes += piece.length;
    while (this.#receivedBytes >= this.#neededBytes && !this.#over) {
      const data = this.#received.length === 1 ? this.#received[0] : Buffer.concat(this.#received);
      const length = data.readUInt32BE(0);
      if (length === 0 || length > FRAME_BYTES_MAX) return this.#fail(`a frame of ${length} bytes`);
      this.#neededBytes = 4 + length;
      let rest = data;
      if (data.length >= this.#neededBytes) {
        rest = data.subarray(this.#neededBytes);
        try { // 64-bit integers become BigInt, smaller ones numbers; the body is copied, for values stay where they came in
          this.#dispatch(decode(Uint8Array.from(data.subarray(4, this.#neededBytes)), { useBigInt64: true }));
        } catch (error) {
          return this.#fail(error.message);
        }
        this.#neededBytes = 4;
      }
      this.#received = rest.length ? [rest] : [];
      this.#receivedBytes = rest.length;
    }
  }

  #dispatch(message) {
    if (!Array.isArray(message)) throw new TypeError("a frame that is no message");
    const end = this.#waiting.get(Number(message[1]));
    if (end) end(null, message);
    else if (message[0] === ERROR && message[1] === 0) this.#end(new DynamoError(message[2], message[3])); // about the whole connection
    // else: the answer to a request that was given up
  }

  #fail(text) { this.#end(new DynamoError(15, text)); this.#socket.destroy(); }

  #end(error) {
    this.#over ??= error;
    for (const end of [...this.#waiting.values()]) end(this.#over);
  }
}

const hlcToDate = (time) => new Date(Number((BigInt(time) >> 12n) / 1000n)); // from unix microseconds shifted left by 12 bits
const nodeMs = (timeoutMs) => Math.ceil(Math.max(1, Math.min(timeoutMs, 60_000))); // a node takes whole numbers, and works on nothing for longer
const USAGE = "usage: client.mjs HOST:PORT get KEY | set KEY VALUE | put KEY VALUE [TOKEN] | delete KEY TOKEN";

async function main([address, verb, key, ...rest]) {
  if (key === undefined || !["get", "set", "put", "delete"].includes(verb)) throw new TypeError(USAGE);
  const context = (token) => (token === undefined ? null : Buffer.from(token, "base64url"));
  const shown = (token) => Buffer.from(token).toString("base64url");
  const client = await Client.connect(address);
  try {
    if (verb === "get") {
      const { siblings, context: token } = await client.get(key);
      const values = siblings.map(({ value }) => Buffer.from(value).toString());
      console.log(JSON.stringify({ values, times: siblings.map(({ time }) => time), context: shown(token) }));
    } else if (verb === "put" || verb === "set") {
      const written = await client[verb](key, rest[0], { context: context(rest[1]) });
      console.log(JSON.stringify({ context: shown(written.context), unseenSiblings: written.unseenSiblings }));
    } else {
      console.log(JSON.stringify({ context: shown((await client.delete(key, { context: context(rest[0]) })).context) }));
    }
  } finally {
    client.close();
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  main(process.argv.slice(2)).catch((error) => { console.error(`${error.name}: ${error.message}`); process.exitCode = 1; });
}
