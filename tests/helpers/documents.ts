/** What the documents tell a reader to type: found in their text, cut into commands, and sorted by what each needs. */

import { project } from "./paths.ts";

/** Lines that are typed one after the other into one shell: a fenced block, or one command within a sentence. */
export interface Typed {
  readonly page: string;
  readonly line: number;
  readonly lines: readonly string[];
  readonly isBlock: boolean;
}

/** The documents, and the examples with a usage line in their comments. */
export function documents(folder = ""): string[] {
  const pages = folder === "" ? ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"] : [];
  const below = folder === "" ? ["docs", "examples"] : [];
  for (const { name, isDirectory } of folder === "" ? [] : Deno.readDirSync(`${project}/${folder}`)) {
    if (isDirectory) below.push(`${folder}/${name}`);
    else pages.push(`${folder}/${name}`);
  }
  return [...pages.sort(), ...below.sort().flatMap(documents)];
}

/** What stands for a path, a name or a number that the reader fills in. */
const PLACEHOLDER = /\b(NAME|FILE|PLIST|LABEL|TARGET|DIR|UID|USER|ROUTER|OWNER|URL)\b/;
const OURS = /^(?:[./\w-]*\/)?lima-guard$|^(?:deno|npx)$|^tests\/mac\//;
const OTHERS = new Set(["limactl", "colima", "brew", "rm"]);
/** Programs of macOS. A test makes sure that this machine has none of them, unless it is a Mac. */
export const APPLE = new Set(
  "launchctl log plutil codesign spctl xattr pmset fdesetup pkgutil sfltool diskutil defaults osascript".split(" "),
);
const SHELL = new Set(["cd", "umask", "type", "echo", ":", "command", "exit", "for", "do", "done"]);
const SEPARATOR = /^(?:;|&&|\|\||\||&|\n)/;

/** A shell line as its simple commands, those within `$(…)` first. Quotes are taken off; redirections stay words. */
export function simpleCommands(line: string): string[][] {
  const [commands, inner]: [string[][], string[][]] = [[], []];
  let [words, word]: [string[], string | undefined] = [[], undefined];
  const endWord = () => {
    if (word !== undefined) words.push(word);
    word = undefined;
  };
  const endCommand = () => {
    endWord();
    if (words.length > 0) commands.push(words);
    words = [];
  };
  for (let rest = line; rest !== "";) {
    const [taken = ""] = /^'[^']*'|^"(?:[^"\\$]|\\.|\$\([^)]*\)|\$)*"|^\$\([^)]*\)/.exec(rest) ?? [];
    const separator = SEPARATOR.exec(rest)?.[0];
    if (taken !== "") {
      for (const [, script = ""] of taken.startsWith("'") ? [] : taken.matchAll(/\$\(([^)]*)\)/g)) {
        inner.push(...simpleCommands(script));
      }
      word = (word ?? "") + (/^['"]/.test(taken) ? taken.slice(1, -1) : taken);
    } else if (separator !== undefined) endCommand();
    else if (rest.startsWith("#") && word === undefined) {
      rest = rest.slice(rest.indexOf("\n") < 0 ? rest.length : rest.indexOf("\n"));
      continue;
    } else if (/^\s/.test(rest)) endWord();
    else word = (word ?? "") + rest[0];
    rest = rest.slice((taken || separator || rest[0]!).length);
  }
  endCommand();
  return [...inner, ...commands];
}

/** The command itself: without assignments and redirections, and behind sudo, npx and ssh. */
export function bare(words: readonly string[]): string[] {
  const [first = "", ...rest] = words;
  if (/^\w+=/.test(first)) return bare(rest);
  if (first === "sudo") {
    const options = /^(?:-(?:u|o) \S+ |-\S+ )*/.exec(`${rest.join(" ")} `)?.[0].trim() ?? "";
    return bare(rest.slice(options === "" ? 0 : options.split(" ").length));
  }
  if (first === "npx") return ["deno", ...rest.filter((word) => !/^(-y|deno@.*)$/.test(word))];
  if (first === "ssh") return bare(simpleCommands(rest.slice(1).join(" ")).at(-1) ?? []);
  const end = words.findIndex((word) => /^\d?[<>]/.test(word));
  return end < 0 ? [...words] : words.slice(0, end);
}

export type Need =
  /** Run by the tests, with stand-ins and a LIMA_HOME that is thrown away. */
  | "here"
  | "a Mac"
  /** A package of a registry or a tap, which has none before the first release. */
  | "a release"
  /** Other machines, and a program that is not here. */
  | "a network"
  /** Named, not to be typed: what another project's program does. */
  | "named"
  | undefined;

const basename = (path: string) => path.replace(/.*\//, "");

export function isOurs(words: readonly string[]): boolean {
  return basename(bare(words)[0] ?? "") === "lima-guard";
}

/** What a simple command needs; undefined where nothing is known about it. */
export function needOf(words: readonly string[], { isBlock, has }: {
  isBlock: boolean;
  has: (program: string) => boolean;
}): Need {
  const [first = "", ...args] = bare(words);
  const program = basename(first);
  const all = words.join(" ");
  if (first === "") return "here";
  if (APPLE.has(program) || first.startsWith("tests/mac/")) return "a Mac";
  // The same names as elsewhere with Apple's options, or on paths that only a Mac has.
  const onMac = /(^| )(\/(Library|Volumes)\/|~\/Library\/)/.test(all) ||
    /^(stat -f|ls -leO@|ls -lde|sysctl (-n )?kern|mount$|file .*\/disk)/.test([program, ...args].join(" "));
  if (!isOurs(words) && onMac) return "a Mac";
  if (["brew", "mise", "gh", "git"].includes(program) && all.includes("OWNER")) return "a release";
  if (program === "deno" && args.some((word) => word.startsWith("jsr:"))) return "a release";
  if (program === "ansible-playbook") return "a network";
  if (OTHERS.has(program) && !isBlock) return "named";
  if (program === "limactl" && ["autostart", "shell"].includes(args[0] ?? "")) return "a Mac";
  const isHere = isOurs(words) || program === "deno" || SHELL.has(program) || has(program) || /^[.]?\//.test(first);
  return isHere ? "here" : undefined;
}

/** A command within a sentence has more than the name of a program: an option, a path or a placeholder. */
function isCommand(text: string, has: (program: string) => boolean): boolean {
  if (text.includes("…")) return false;
  const [words = []] = simpleCommands(text.replaceAll(/\$\([^)]*\)/g, "…"));
  const [first = "", ...args] = bare(words);
  if (args.length === 0 && !/^: >/.test(text)) return /^tests\/mac\/\w+$/.test(first);
  if (OURS.test(first)) return true;
  const known = APPLE.has(first) || SHELL.has(first) || OTHERS.has(first) || has(first);
  return known && args.some((word) => /^-|[/$*>]/.test(word) || PLACEHOLDER.test(word) || word === "lima-guard");
}

/** Everything in a document that is to be typed. */
export function typedIn(page: string, text: string, has: (program: string) => boolean): Typed[] {
  const found: Typed[] = [];
  const lineAt = (index: number) => text.slice(0, index).split("\n").length;
  if (!page.endsWith(".md")) {
    // A usage line in a comment is indented by two blanks more.
    for (
      const { 1: command = "", index } of text.matchAll(
        /^#(?: {3}| Not yet verified on macOS\. Read it there with: )(\S.*)$/gm,
      )
    ) {
      found.push({ page, line: lineAt(index), lines: [command], isBlock: true });
    }
    return found;
  }
  for (const { 1: language, 2: body = "", index } of text.matchAll(/^```(\w*)\n([^]*?)^```/gm)) {
    const line = lineAt(index) + 1;
    // A loop is typed as a whole.
    const lines = body.trimEnd().split(/\n(?! |done$)/m);
    if (language === "sh") found.push({ page, line, lines, isBlock: true });
    const units = [...body.matchAll(/^Exec\w+=(.+)$/gm)].map(([, command = ""]) => command.replaceAll("%i", "NAME"));
    if (language === "ini") found.push({ page, line, lines: units, isBlock: true });
  }
  const prose = text.replaceAll(/^```[^]*?^```/gm, (block) => block.replaceAll(/[^\n]/g, " "));
  for (const { 1: code = "", index } of prose.matchAll(/`([^`]+)`/g)) {
    const command = code.replaceAll("\\|", "|").replaceAll(/\s+/g, " ");
    if (isCommand(command, has)) found.push({ page, line: lineAt(index), lines: [command], isBlock: false });
  }
  return found.sort((a, b) => a.line - b.line);
}
