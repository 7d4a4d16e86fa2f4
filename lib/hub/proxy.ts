import { EmbedderError } from "../errors.js";

/**
 * The proxy for a URL from the environment, as curl and Python read it: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and
 * `NO_PROXY`, in upper or lower case. Node's own `fetch` ignores them before Node 24, and the agent of undici 6 that reads
 * them prints a warning.
 *
 * @throws EmbedderError `INVALID_ARGUMENT` for a proxy that is not HTTP or HTTPS.
 */
export function proxyFor(url: URL, env: NodeJS.ProcessEnv = process.env): string | undefined {
  const read = (name: string) => env[name.toLowerCase()] || env[name];
  const scheme = url.protocol === "https:" ? "HTTPS_PROXY" : "HTTP_PROXY";
  const named = read(scheme) || read("ALL_PROXY");
  if (!named || isExcepted(url, read("NO_PROXY") ?? "")) return undefined;
  const proxy = named.includes("://") ? named : `http://${named}`;
  if (URL.canParse(proxy) && /^https?:$/.test(new URL(proxy).protocol)) return proxy;
  // The URL may contain a password: the message does not show it.
  throw new EmbedderError("INVALID_ARGUMENT", `${scheme}: expected the http or https URL of a proxy`);
}

/** `NO_PROXY` lists hosts, including their subdomains, with or without a leading dot and a port; `*` means all. */
function isExcepted(url: URL, list: string): boolean {
  const host = url.hostname.replace(/^\[|\]$/g, "").toLowerCase();
  const port = url.port || (url.protocol === "https:" ? "443" : "80");
  return list.split(/[\s,]+/).some((entry) => {
    if (entry === "*") return true;
    const [, name = "", wantedPort] = /^\[?(.*?)\]?(?::(\d+))?$/.exec(entry.toLowerCase()) ?? [];
    const suffix = name.replace(/^\*?\./, "");
    if (suffix === "" || (wantedPort !== undefined && wantedPort !== port)) return false;
    return host === suffix || host.endsWith(`.${suffix}`);
  });
}
