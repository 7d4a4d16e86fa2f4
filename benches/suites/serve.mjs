/** `serve` with many clients that ask for one text each, beside one client that sends all texts at once. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import * as http from "node:http";
import * as path from "node:path";
import { createInterface } from "node:readline";
import { measured } from "../contestants/registry.mjs";
import { quantile } from "../report/statistics.mjs";

const CONNECTIONS = [1, 16, 128];
/** The server's own limit is twice as much, so that no client is turned away. */
const MAX_REQUESTS = 2 * Math.max(...CONNECTIONS);

/**
 * @typedef {object} Load one number of connections, each of which sends its next request as soon as the last is answered
 * @property {number} connections
 * @property {number} speed texts per second
 * @property {number} p50 seconds from request to answer
 * @property {number} p99
 * @property {number} refused answers other than 200
 */

/**
 * @param {string} model folder
 * @param {string[]} texts all different
 * @param {number} maxTokens
 * @returns {Promise<{ [kind: string]: { atOnce: number, loads: Load[] } }>} `atOnce`: texts per second of the single client
 */
export async function measureServe(model, texts, maxTokens) {
  const main = path.join(measured.package, "dist/cli/main.js");
  const limits = ["--max-requests", String(MAX_REQUESTS), "--max-batch", String(texts.length)];
  const args = ["serve", model, "--port", "0", "--json", "--max-tokens", String(maxTokens), ...limits];
  const server = spawn(process.execPath, [main, ...args], { stdio: ["ignore", "pipe", "inherit"] });
  try {
    const [line] = await once(createInterface(server.stdout), "line");
    const { url, model: name } = JSON.parse(line);
    const samples = {};
    for (const kind of ["query", "document"]) {
      const ask = (input, agent) => post(`${url}/v1/embeddings`, { model: name, input, input_type: kind }, agent);
      const agent = new http.Agent({ keepAlive: true, maxSockets: MAX_REQUESTS });
      await ask(texts.slice(0, 8), agent);
      const { seconds } = await ask(texts, agent);
      const loads = [];
      for (const connections of CONNECTIONS) {
        // A single connection is slow.
        const some = texts.slice(0, Math.min(texts.length, 16 * connections));
        loads.push({ connections, ...(await load(some, connections, (text) => ask(text, agent))) });
      }
      agent.destroy();
      samples[kind] = { atOnce: texts.length / seconds, loads };
    }
    return samples;
  } finally {
    server.kill();
    if (server.exitCode === null) await once(server, "exit");
  }
}

async function load(texts, connections, ask) {
  const answers = [];
  const waiting = texts.values();
  const start = performance.now();
  const client = async () => {
    for (const text of waiting) answers.push(await ask(text));
  };
  await Promise.all(Array.from({ length: connections }, client));
  const times = answers.map(({ seconds }) => seconds);
  return {
    speed: (1000 * texts.length) / (performance.now() - start),
    p50: quantile(times, 0.5),
    p99: quantile(times, 0.99),
    refused: answers.filter(({ status }) => status !== 200).length,
  };
}

/** @returns {Promise<{ status: number, seconds: number }>} */
function post(url, body, agent) {
  const start = performance.now();
  return new Promise((resolve, reject) => {
    const headers = { "content-type": "application/json" };
    const request = http.request(url, { method: "POST", agent, headers }, (response) => {
      response.on("error", reject).on("end", () => {
        resolve({ status: response.statusCode, seconds: (performance.now() - start) / 1000 });
      });
      response.resume();
    });
    request.on("error", reject).end(JSON.stringify(body));
  });
}
