/** Hints, taken apart into the commands that stand in them. */

import assert from "node:assert/strict";

/** Parts of a hint that are no commands: for the person to read. */
const PROSE = [
  /^--lima-home DIR names (?:another LIMA_HOME|it)$/,
  /^it is left alone$/,
  /^limactl start would silently create a new VM of this name$/,
  /^move (?:it out of \/|it out of the folder$|LIMA_HOME to a shorter path$)/,
  /^did you mean --[a-z-]+\?$/,
  /^--[a-z-]+ takes names as separate words(?:, as in --[a-z-]+ \w+)?$/,
  /^then move its plist away$/,
  /^where the mode permits it: System Settings, /,
  /^the top of a volume cannot be LIMA_HOME: move the instances into a folder of it, and name that one$/,
];
const PROGRAMS = /^(?:lima-guard|limactl|launchctl|ls|ps|lsof|tail|kill|chmod|chown|mv|rm)$/;

/** A text of a shell, cut at the blanks and the `;` and `&&` that no quotes hold. Words still have their quotes. */
export function cut(text: string): string[] {
  return text.match(/(?:'[^']*'|\\.|&(?!&)|[^\s;&'\\])+|;|&&/gs) ?? [];
}

export function unquoted(word: string): string {
  return word.replaceAll(/'([^']*)'|\\(.)/gs, (_, quoted = "", escaped = "") => quoted + escaped);
}

/** The words of a command without sudo and without what is set for it. */
export function bare(words: readonly string[]): readonly string[] {
  const [first = "", ...rest] = words;
  if (first === "sudo") return bare(rest[0] === "-H" ? rest.slice(3) : rest);
  return /^\w+=/.test(first) ? bare(rest) : words;
}

/**
 * The commands of a hint, as they are printed: after a `:` or a `?`, and before an `, or`. What is neither one nor a
 * known sentence is an error.
 */
export function commandsIn(hint: string): string[] {
  // A path in a sentence is not quoted.
  if (PROSE.some((known) => known.test(hint))) return [];
  const parts: string[][] = [[]];
  for (const word of cut(hint)) {
    if (word === ";" || word === "&&") parts.push([]);
    else parts.at(-1)!.push(word);
  }
  return parts.flatMap((words) => {
    if (isProse(words)) return [];
    const begin = words.findLastIndex((word) => /[:?]$/.test(word)) + 1;
    const or = words.findIndex((word, at) => word.endsWith(",") && words[at + 1] === "or");
    const command = or < 0 ? words.slice(begin) : [...words.slice(begin, or), words[or]!.slice(0, -1)];
    if (isProse(command)) return [];
    assert.match(bare(command)[0] ?? "", PROGRAMS, `neither a command nor a known sentence: ${words.join(" ")}`);
    return [command.join(" ")];
  });
}

const isProse = (words: readonly string[]) => PROSE.some((known) => known.test(words.join(" ")));
