/** Where the sources are to be found. The workflow tells: nothing in the sources names a host. */

import { MANIFEST } from "./platforms.mjs";

/**
 * For `package.json`; empty outside of a workflow.
 *
 * @param {{ [name: string]: string | undefined }} env
 */
export function addresses(env = process.env) {
  const { GITHUB_SERVER_URL: server, GITHUB_REPOSITORY: name } = env;
  if (!server || !name) return {};
  const url = `${server}/${name}`;
  return {
    repository: { type: "git", url: `git+${url}.git` },
    homepage: `${url}#readme`,
    bugs: `${url}/issues`,
  };
}

/** A Markdown text whose links lead to the files of this version, from wherever it is read. */
export function withAbsoluteLinks(markdown, { homepage }) {
  if (!homepage) return markdown;
  const files = `${homepage.replace("#readme", "")}/blob/v${MANIFEST.version}/`;
  return markdown.replace(/(\]\()(?!https?:|#)/g, `$1${files}`);
}
