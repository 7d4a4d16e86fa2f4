import { Argument, type Command, type Option } from "commander";
import { print } from "./terminal.js";

const SHELLS = ["bash", "zsh", "fish"] as const;
type Shell = (typeof SHELLS)[number];

const HELP = `
Prints a script that completes commands, options, their values and the names of known models. With another version of this
package, print it anew.

Examples:
  $ eval "$(semantic-search-native completions bash)"    # in ~/.bashrc
  $ eval "$(semantic-search-native completions zsh)"     # in ~/.zshrc, after compinit
  $ semantic-search-native completions fish > ~/.config/fish/completions/semantic-search-native.fish`;

export function addCompletions(program: Command): void {
  program
    .command("completions")
    .description("print a script for completion in a shell")
    .addArgument(new Argument("<shell>", "which one").choices(SHELLS))
    .addHelpText("after", HELP)
    .action(async (shell: Shell) => {
      const { KNOWN_MODELS } = await import("../lib/known_models.js");
      const models = KNOWN_MODELS.map(({ id }) => id).join(" ");
      await print(SCRIPTS[shell]({ program: program.name(), models, commands: wordsOf(program) }));
    });
}

/** What can follow: one of some words, a model's name or folder, a file, or something that cannot be foreseen. */
type Value = readonly string[] | "model" | "file" | "any";

interface OptionWords {
  /** `-k` and `--kind`, or one of them. */
  flags: string[];
  description: string;
  /** `undefined` for an option without a value. */
  value: Value | undefined;
}

interface CommandWords {
  name: string;
  description: string;
  options: OptionWords[];
  arguments: { name: string; value: Value; isVariadic: boolean }[];
}

interface Completion {
  program: string;
  /** Names of known models, separated by spaces. */
  models: string;
  /** The program itself first. */
  commands: CommandWords[];
}

/** All commands as the help shows them. */
function wordsOf(program: Command): CommandWords[] {
  const help = program.createHelp();
  const commands = help.visibleCommands(program);
  const names = commands.map((command) => command.name());
  return [program, ...commands].map((command) => ({
    name: command === program ? "" : command.name(),
    description: command.description(),
    options: help.visibleOptions(command).map(optionWords),
    arguments: command.registeredArguments.map((argument) => ({
      name: argument.name(),
      value: argumentValue(argument, names),
      isVariadic: argument.variadic,
    })),
  }));
}

function optionWords(option: Option): OptionWords {
  const value = option.argChoices ?? (/<(path|file)>/.test(option.flags) ? "file" : "any");
  return {
    flags: [option.short, option.long].filter((flag) => flag !== undefined && flag !== null),
    description: option.description,
    value: option.required || option.optional ? value : undefined,
  };
}

function argumentValue(argument: Argument, commands: readonly string[]): Value {
  if (argument.name() === "command") return commands;
  return argument.argChoices ?? (argument.name() === "model" ? "model" : "file");
}

const SCRIPTS: Record<Shell, (completion: Completion) => string> = {
  bash: bashScript,
  zsh: zshScript,
  fish: fishScript,
};

/** bash completes files where no word fits. Its version on macOS, 3.2, is old. */
function bashScript({ program, models, commands: [main, ...commands] }: Completion): string {
  const name = functionName(program);
  const words = (value: Value) => (value === "model" ? "$models" : Array.isArray(value) ? value.join(" ") : "");
  const cases = commands.flatMap(({ name, options, arguments: [first] }) => {
    const valued = options.filter(({ value }) => value !== undefined);
    return [
      `    ${name})`,
      `      options="${flagsOf(options)}"`,
      `      valued="${flagsOf(valued)}"`,
      ...(first ? [`      first="${words(first.value)}"`] : []),
      "      case $previous in",
      ...valued
        .filter(({ value }) => Array.isArray(value))
        .map(({ flags, value = "any" }) => `        ${flags.join(" | ")}) values="${words(value)}" ;;`),
      "      esac",
      "      ;;",
    ];
  });
  const general = [...commands.map((command) => command.name), flagsOf(main?.options ?? [])].join(" ");
  return `# Completion of ${program} for bash.
${name}() {
  local current=\${COMP_WORDS[COMP_CWORD]} previous=\${COMP_WORDS[COMP_CWORD - 1]}
  local options="" valued="" values="" first="" arguments=0 index
  local models="${models}"
  # bash makes three words of --option=value.
  if [[ $current == "=" ]]; then
    current=""
  elif [[ $previous == "=" ]]; then
    previous=\${COMP_WORDS[COMP_CWORD - 2]}
  fi
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W "${general}" -- "$current"))
    return
  fi
  case \${COMP_WORDS[1]} in
${cases.join("\n")}
  esac
  if [[ " $valued " == *" $previous "* ]]; then
    COMPREPLY=($(compgen -W "$values" -- "$current"))
    return
  fi
  if [[ $current == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$current"))
    return
  fi
  for ((index = 2; index < COMP_CWORD; index++)); do
    if [[ " $valued " == *" \${COMP_WORDS[index]} "* ]]; then
      if [[ \${COMP_WORDS[index + 1]} == "=" ]]; then ((index += 2)); else ((index += 1)); fi
    elif [[ \${COMP_WORDS[index]} != -* ]]; then
      ((arguments += 1))
    fi
  done
  if ((arguments == 0)); then COMPREPLY=($(compgen -W "$first" -- "$current")); fi
}
complete -o default -F ${name} ${program}
`;
}

function flagsOf(options: readonly OptionWords[]): string {
  return options.flatMap(({ flags }) => flags).join(" ");
}

/** Works as a file in `fpath` and with `eval`. */
function zshScript({ program, models, commands: [main, ...commands] }: Completion): string {
  const name = functionName(program);
  const action = (value: Value) =>
    Array.isArray(value)
      ? `(${value.join(" ")})`
      : { model: "{ compadd -a models; _files -/ }", file: "_files", any: " " }[value as string];
  const option = ({ flags, description, value }: OptionWords) =>
    flags.map((flag) => {
      const suffix = value === undefined ? "" : flag.startsWith("--") ? "=" : "+";
      const text = description.replace(/[[\]:\\]/g, "\\$&");
      return `(${flags.join(" ")})${flag}${suffix}[${text}]${value === undefined ? "" : `:value:${action(value)}`}`;
    });
  const specs = (command: CommandWords) => [
    ...command.options.flatMap(option),
    ...command.arguments.map(({ name, value, isVariadic }, index) =>
      isVariadic ? `*:${name}:${action(value)}` : `${index + 1}:${name}:${action(value)}`,
    ),
  ];
  const list = (words: string[], indent: string, end: string) =>
    words.map((word) => `${indent}'${word.replaceAll("'", "'\\''")}'`).join(`${end}\n`);
  const general = [...(main?.options.flatMap(option) ?? []), "1:command:->command", "*::argument:->argument"];
  const cases = commands.map(
    (command) => `    ${command.name})\n      _arguments -s \\\n${list(specs(command), "        ", " \\")}\n      ;;`,
  );
  return `#compdef ${program}
# Completion of ${program} for zsh.
${name}() {
  local state line
  local -a models=(${models})
  local -a commands=(
${list(
  commands.map((command) => `${command.name}:${command.description}`),
  "    ",
  "",
)}
  )
  _arguments -C \\
${list(general, "    ", " \\")}
  if [[ $state == command ]]; then
    _describe command commands
    return
  fi
  case $line[1] in
${cases.join("\n")}
  esac
}
if [[ $funcstack[1] == ${name} ]]; then ${name} "$@"; else compdef ${name} ${program}; fi
`;
}

function fishScript({ program, models, commands: [main, ...commands] }: Completion): string {
  const name = functionName(program);
  const quoted = (text: string) => `'${text.replace(/['\\]/g, "\\$&")}'`;
  const words = (value: Value | undefined) => (Array.isArray(value) ? [`-a ${quoted(value.join(" "))}`] : []);
  const option = ({ flags, description, value }: OptionWords) =>
    [
      ...flags.map((flag) => (flag.startsWith("--") ? `-l ${flag.slice(2)}` : `-s ${flag.slice(1)}`)),
      ...(value === undefined ? [] : value === "file" ? ["-r -F"] : ["-x"]),
      ...words(value),
      `-d ${quoted(description)}`,
    ].join(" ");
  const first = "-n __fish_use_subcommand";
  const lines = commands.flatMap((command) => {
    const after = `-n ${quoted(`__fish_seen_subcommand_from ${command.name}`)}`;
    const values = command.arguments.map(({ value }) => value);
    return [
      `${first} -f -a ${command.name} -d ${quoted(command.description)}`,
      ...(values.includes("file") || values.includes("model") ? [] : [`${after} -f`]),
      ...(values.includes("model") ? [`${after} -a '(${name}_models)'`] : []),
      ...values.flatMap(words).map((of) => `${after} ${of}`),
      ...command.options.map((one) => `${after} ${option(one)}`),
    ];
  });
  const general = (main?.options ?? []).map((one) => `${first} ${option(one)}`);
  return `# Completion of ${program} for fish.
function ${name}_models
  string split ' ' '${models}'
end
${[`${first} -f`, ...general, ...lines].map((line) => `complete -c ${program} ${line}`).join("\n")}
`;
}

function functionName(program: string): string {
  return `_${program.replaceAll("-", "_")}`;
}
