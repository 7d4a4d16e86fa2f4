/** What a file's path says about how likely it is the answer. */

/** Folders and names of tests. */
const TESTS = /(^|\/)(tests?|specs?|__tests?__|testing|testdata|fixtures?|mocks?)\/|(^|[/_.-])(tests?|spec|mock)\.[^/]*$|(^|\/)(test|conftest)[_.-][^/]*$|Tests?\.[^/]*$/;
const EXAMPLES = /(^|\/)(examples?|samples?|demos?|benchmarks?|benches|docs?|documentation|website|www|_?examples)\//i;
/** Files that only pass on what others define. */
const INDEXES = /(^|\/)(__init__\.py|index\.[cm]?[jt]sx?|mod\.rs|lib\.rs|doc\.go|package-info\.java|types?\.d\.ts)$/;
const NOT_CODE = /\.(md|mdx|markdown|rst|adoc|txt|json|jsonc|ya?ml|toml|ini|cfg|conf|lock|csv|html?|css|scss|svg|xml|properties|gradle|plist|podspec|gemspec|cmake|am|ac|m4|in)$|(^|\/)(changelog|license|readme|authors|contributors|makefile|dockerfile|rakefile|gemfile|cmakelists)[^/]*$/i;

export function pathWeight(path) {
  let w = 1;
  if (TESTS.test(path)) w *= 0.5;
  if (EXAMPLES.test(path)) w *= 0.5;
  if (INDEXES.test(path)) w *= 0.8;
  if (NOT_CODE.test(path)) w *= 0.5;
  return w;
}
