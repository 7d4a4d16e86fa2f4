/** The scripts of `completions`, in the shells themselves. */

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { run } from "./support/command_line.mjs";
import { api, temporaryFolder } from "./support/models.mjs";
import * as processes from "./support/processes.mjs";

const SHELLS = ["bash", "zsh", "fish"];
const MODELS = api.KNOWN_MODELS.map(({ id }) => id);
const OF_BAAI = MODELS.filter((id) => id.startsWith("BAAI/"));

/** What is typed, and all words that complete its last one. */
const CASES = [
  ["em", ["embed"]],
  ["help do", ["doctor"]],
  ["sea", ["search"]],
  ["completions ", SHELLS],
  ["embed --ki", ["--kind"]],
  ["embed --kind ", ["query", "document"]],
  ["embed -k q", ["query"]],
  ["embed --output x --dty", ["--dtype"]],
  ["rerank --activation s", ["sigmoid"]],
  ["models --d", ["--downloaded"]],
  ["rm BAAI/", OF_BAAI],
  ["pull --endpoint x BAAI/", OF_BAAI],
];

/** Runs a program that reads the completion script at `SCRIPT` in its environment. */
async function withScript(t, shell, args) {
  const isThere = await processes.run(shell, ["--version"]).catch(() => undefined);
  if (isThere?.status !== 0) return t.skip(`${shell} is not installed`);
  const file = path.join(temporaryFolder(), "script");
  const { status, stdout, stderr } = await run(["completions", shell]);
  assert.deepEqual([status, stderr], [0, ""]);
  writeFileSync(file, stdout);
  const env = { ...process.env, SCRIPT: file, HOME: temporaryFolder(), TERM: "dumb" };
  const outcome = await processes.run(shell, args, { cwd: path.dirname(file), env, timeoutMs: 60_000 });
  assert.deepEqual([outcome.status, outcome.stderr], [0, ""]);
  return outcome.stdout;
}

for (const shell of SHELLS) {
  test(`${shell}: its script has every command and option of the help`, async () => {
    const { stdout: script } = await run(["completions", shell]);
    const { stdout: help } = await run(["--help"]);
    const commands = [
      ...help
        .split("Commands:")[1]
        .split("Exit codes:")[0]
        .matchAll(/^ {2}(\w+) /gm),
    ].map(([, name]) => name);
    assert.ok(commands.includes("completions") && commands.length >= 10, commands.join());
    for (const command of commands.filter((name) => name !== "help")) {
      const { stdout } = await run([command, "--help"]);
      const options = [...stdout.matchAll(/^ {2}(?:-\w, )?--([\w-]+)/gm)].map(([, option]) => option);
      assert.ok(options.includes("help"));
      for (const word of [command, ...options]) {
        assert.ok(new RegExp(`\\b${word}\\b`).test(script), `${command}: ${word}`);
      }
    }
  });
}

test("bash completes commands, options, values and models", async (t) => {
  const lines = CASES.map(([typed]) => {
    // bash itself makes a word of "=".
    const words = ["semantic-search-native", ...typed.split(" ")].map((word) => `'${word}'`);
    return `COMP_WORDS=(${words.join(" ")}); COMP_CWORD=${words.length - 1}; _semantic_search_native; echo "\${COMPREPLY[*]}"`;
  });
  lines.push(`COMP_WORDS=(x embed --kind = q); COMP_CWORD=4; _semantic_search_native; echo "\${COMPREPLY[*]}"`);
  lines.push(`COMP_WORDS=(x embed --kind =); COMP_CWORD=3; _semantic_search_native; echo "\${COMPREPLY[*]}"`);
  lines.push(
    `COMP_WORDS=(x embed --kind = query BAAI/x ''); COMP_CWORD=6; _semantic_search_native; echo "\${COMPREPLY[*]}"`,
  );
  lines.push("complete -p semantic-search-native");
  const stdout = await withScript(t, "bash", ["--norc", "-c", `set -u; eval "$(cat "$SCRIPT")"\n${lines.join("\n")}`]);
  if (stdout === undefined) return;
  const [equals, value, files, registered] = stdout.trimEnd().split("\n").slice(CASES.length);
  const found = stdout.split("\n").slice(0, CASES.length);
  assert.deepEqual(
    found,
    CASES.map(([, words]) => words.join(" ")),
  );
  assert.deepEqual([equals, value, files], ["query", "query document", ""]);
  assert.equal(registered, "complete -o default -F _semantic_search_native semantic-search-native");
});

test("fish completes commands, options, values and models", async (t) => {
  const lines = CASES.map(([typed]) => `complete -C "semantic-search-native ${typed}"; echo ---`);
  const stdout = await withScript(t, "fish", ["--no-config", "-c", `source "$SCRIPT"\n${lines.join("\n")}`]);
  if (stdout === undefined) return;
  const found = stdout.split("---\n").slice(0, -1);
  const words = found.map((block) => block.split("\n").flatMap((line) => line.split("\t")[0] || []));
  for (const [index, [typed, expected]] of CASES.entries()) {
    assert.deepEqual(words[index].toSorted(), expected.toSorted(), typed);
  }
});

test("zsh completes commands, options, values and models", async (t) => {
  const unique = [
    ...CASES.filter(([, words]) => words.length === 1),
    ["pull nomic-ai/CodeR", ["nomic-ai/CodeRankEmbed"]],
  ];
  // Only a terminal has completion. A key prints what became of the line.
  const prepare = [
    ...["stty -echo", "PS1=", "autoload -Uz compinit", "compinit -D -u", 'eval "$(cat "$SCRIPT")"'],
    ...['show() { zle complete-word; print -r -- "<<$BUFFER>>"; BUFFER=; }', "zle -N show", 'bindkey "^T" show'],
    'print RE""ADY',
  ];
  const script = [
    ...["zmodload zsh/zpty", "zpty shell zsh -f -i", `zpty -w shell '${prepare.join("; ")}'`],
    "zpty -r shell out '*READY*'",
    ...unique.flatMap(([typed]) => [
      `zpty -w -n shell "semantic-search-native ${typed}"$'\\x14'`,
      "zpty -r shell out '*<<*>>*'; print -r -- $out",
    ]),
    "zpty -d shell",
  ];
  const stdout = await withScript(t, "zsh", ["-f", "-c", script.join("\n")]);
  if (stdout === undefined) return;
  const lines = [...stdout.matchAll(/<<semantic-search-native (.*?)[ =]?>>/g)].map(([, line]) => line);
  const completed = unique.map(([typed, [word]]) => [...typed.split(" ").slice(0, -1), word].join(" "));
  assert.deepEqual(lines, completed);
});
