/** Which requests `serve` accepts: from whom, and how many at a time. */

import { createHash, timingSafeEqual } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { isIP } from "node:net";
import { ApiError } from "./request.js";

export interface AdmissionSettings {
  /** As the user named it. */
  host: string;
  /** The address of `host`. */
  address: string;
  /** Required under /v1 and /metrics if set. */
  apiKey: string | undefined;
  /** Names that the Host and Origin headers may have besides those of this machine. */
  allowedHosts: readonly string[];
  /** Embedding requests at a time; others are told to try again. */
  maxRequests: number;
  /** The same for the address of one client. */
  maxRequestsPerClient: number;
}

const LOCAL_NAMES = ["localhost", "127.0.0.1", "[::1]"];

export class Admission {
  readonly #settings: AdmissionSettings;
  #requests = 0;
  readonly #requestsByClient = new Map<string, number>();

  constructor(settings: AdmissionSettings) {
    this.#settings = settings;
  }

  /**
   * Keeps web pages out. A page can have its own host name point to this machine, and a browser would then let it read
   * answers: the Host header shows that. Browsers also name the page that a request comes from in the Origin header.
   *
   * @throws ApiError 400 or 403
   */
  checkOrigin({ httpVersion, headers: { host, origin } }: IncomingMessage): void {
    const { address, apiKey } = this.#settings;
    if (host === undefined && httpVersion !== "1.0") {
      throw new ApiError(400, "malformed_request", "the request has no Host header");
    }
    if (isLoopback(address) && !this.#isExpected(`http://${host}`)) {
      const message = `the host ${JSON.stringify(host ?? "")} is not served; see --allow-host`;
      throw new ApiError(403, "host_not_allowed", message);
    }
    // A page does not know the key.
    if (origin === undefined || apiKey !== undefined) return;
    if (this.#isExpected(origin) && new URL(origin).host === new URL(`http://${host}`).host) return;
    const message = `requests of web pages (here of ${JSON.stringify(origin)}) are not served without an API key`;
    throw new ApiError(403, "origin_not_allowed", message);
  }

  #isExpected(url: string): boolean {
    if (!URL.canParse(url)) return false;
    const { host, address, allowedHosts } = this.#settings;
    return [...LOCAL_NAMES, asHostname(host), asHostname(address), ...allowedHosts].includes(new URL(url).hostname);
  }

  /** @throws ApiError 401 */
  checkKey({ headers: { authorization } }: IncomingMessage): void {
    const { apiKey } = this.#settings;
    if (apiKey === undefined) return;
    const [, given] = /^Bearer\s+(.*)$/i.exec(authorization ?? "") ?? [];
    // Hashes have the same length for any key, and the time that comparing them takes tells nothing.
    const digest = (key: string) => createHash("sha256").update(key).digest();
    if (given !== undefined && timingSafeEqual(digest(given), digest(apiKey))) return;
    const message = given === undefined ? "this server wants an API key: Authorization: Bearer …" : "wrong API key";
    throw new ApiError(401, "invalid_api_key", message, { headers: { "www-authenticate": "Bearer" } });
  }

  /**
   * Counts a request among those that are being answered, until the returned function is called.
   *
   * @throws ApiError 429
   */
  enter({ socket }: IncomingMessage): () => void {
    const { maxRequests, maxRequestsPerClient } = this.#settings;
    const byClient = this.#requestsByClient;
    const client = socket.remoteAddress ?? "";
    const own = byClient.get(client) ?? 0;
    const refusal = (requests: string) =>
      new ApiError(429, "too_many_requests", `${requests} are being answered already; try again later`);
    if (this.#requests >= maxRequests) throw refusal(`${maxRequests} requests`);
    if (own >= maxRequestsPerClient) throw refusal(`${own} requests from ${client}`);
    this.#requests++;
    byClient.set(client, own + 1);
    return () => {
      this.#requests--;
      const left = (byClient.get(client) ?? 1) - 1;
      if (left > 0) byClient.set(client, left);
      else byClient.delete(client);
    };
  }
}

/** Whether only this machine can connect to an address. */
export function isLoopback(address: string): boolean {
  return address.startsWith("127.") || address === "::1" || address.startsWith("::ffff:127.");
}

/** A host as it is written in a URL. */
export function asHostname(host: string): string {
  return isIP(host) === 6 ? `[${host}]` : host;
}
