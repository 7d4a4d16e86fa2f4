/**
 * What a file's path says about how likely it is the answer to a question about code. Each kind of file counts less,
 * unless the question asks for it.
 */

/**
 * @typedef {object} Kind
 * @property {RegExp} path
 * @property {RegExp} [asked] a question that asks for it
 * @property {number} weight
 */

/** Names in paths that say for which operating system a file is, by Node's name for it. */
const PLATFORMS = {
  win32: ["win", "windows", "win32", "win64", "winapi", "cygwin"],
  darwin: ["darwin", "macos", "osx", "ios"],
  aix: ["aix", "ibmi"],
  sunos: ["sunos", "solaris"],
  freebsd: ["freebsd"],
  openbsd: ["openbsd"],
  android: ["android"],
  others: ["os390", "zos", "haiku", "netbsd", "qnx"],
};
const OTHER_PLATFORMS = Object.entries(PLATFORMS)
  .flatMap(([platform, names]) => (platform === process.platform ? [] : names))
  .join("|");

/** @type {Kind[]} */
const KINDS = [
  // What this machine would not run is seldom what its user is looking for.
  {
    path: new RegExp(`(^|[/_.-])(${OTHER_PLATFORMS})[/_.-]`, "i"),
    asked: new RegExp(`\\b(${OTHER_PLATFORMS}|platforms?)\\b`, "i"),
    weight: 0.7,
  },
  // Tests use what others define, and have its words.
  {
    path: /(^|\/)([\w-]*[_-])?(tests?|specs?|__tests?__|testing|testdata|fixtures?|mocks?)([_-]\w*)?\/|(^|\/)\w*[a-z]Tests?\/|(^|[/_.-])(tests?|spec|mock)\.[^/]*$|(^|\/)(test|conftest)[_.-][^/]*$|Tests?\.[^/]*$/,
    asked: /\b(tests?|specs?|tested|testing|fixtures?|mocks?)\b/i,
    weight: 0.5,
  },
  // So do examples and documents.
  {
    path: /(^|\/)_?(examples?|samples?|demos?|bench(es|marks?)?|docs?|documentation|website)\//i,
    asked: /\b(examples?|samples?|demos?|bench\w*|docs?|documentation|documented)\b/i,
    weight: 0.5,
  },
  // Files that only pass on what others define.
  { path: /(^|\/)(__init__\.py|index\.[cm]?[jt]sx?|doc\.go|package-info\.java)$|\.d\.[cm]?ts$/, weight: 0.8 },
  // Prose, data and settings.
  {
    path: /\.(md|mdx|markdown|rst|adoc|txt|jsonc?|ya?ml|toml|ini|cfg|conf|csv|html?|s?css|svg|xml|properties|gradle|plist|podspec|gemspec|cmake|am|ac|m4|in|mod)$|(^|\/)(changelog|licen[cs]e|readme|authors|contributors|makefile|dockerfile|rakefile|gemfile|cmakelists)[^/]*$/i,
    asked:
      /\b(readme|changelog|licen[cs]e|config\w*|settings?|docs?|documentation|json|ya?ml|toml|css|html|makefile|dockerfile)\b/i,
    weight: 0.5,
  },
];

/**
 * @param {string} path
 * @param {string} [question]
 * @returns {number} above 0, at most 1
 */
export function pathWeight(path, question = "") {
  const kinds = KINDS.filter((kind) => kind.path.test(path) && !kind.asked?.test(question));
  return kinds.reduce((product, { weight }) => product * weight, 1);
}

/**
 * The name of a file without its ending.
 *
 * @param {string} path
 */
export function stemOf(path) {
  return path.slice(path.lastIndexOf("/") + 1).replace(/(?<=.)\.[^.]*$/, "");
}
