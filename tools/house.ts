/**
 * The figures that tests/structure_test.ts holds, taken from the text of the files. `deno task house` prints them beside
 * their limits; `deno task house --write` keeps those that are not reached yet in tests/not_yet.json.
 * @module
 */

export const PRODUCT = ["lima_guard.ts", "install.ts"] as const;
const NOT_YET = "tests/not_yet.json";

/** What each figure may be at most; a count of forbidden words may be 0 in every file. */
export const LIMITS: Readonly<Record<string, number>> = {
  "lima_guard.ts: lines": 3500,
  "lima_guard.ts: lines of what it decides": 950,
  "lima_guard.ts: chapters": 16,
  "lima_guard.ts: functions": 205,
  "lima_guard.ts: types": 42,
  "lima_guard.ts: exports": 60,
  "lima_guard.ts: exports that no file imports": 0,
  "lima_guard.ts: members of the host": 22,
  "lima_guard.ts: functions over 40 lines": 0,
  "lima_guard.ts: names used before their chapter": 0,
  "lima_guard.ts: branches on words": 0,
  "lima_guard.ts: chapters that signal": 1,
  "lima_guard.ts: lines of the chapters that signal": 120,
  "install.ts: lines": 2200,
  "install.ts: chapters": 13,
  "install.ts: exports that no file imports": 0,
  "install.ts: functions over 40 lines": 0,
  "install.ts: branches on words": 0,
  "both files: names with two meanings": 0,
};

/** In no comment, no title and no message; `bell-style` is an option of readline's. */
export const FORBIDDEN = new RegExp(
  `\\b(?:${
    [
      "(some|any|every)(body|one)|nobody|no one|whoever|whom|told|anew|for ever|by then|but for",
      "mend(s|ed|ing)?|heal(s|ed|ing)?|of ours|(go|goes|going|went) on|lets? go|no matter of|worth a word",
      "stands? (behind|there)|as it stands|at work on|is survived|the way back|a fault of",
      "strangers?|innocent|ladder|rungs?|climb(s|ed|ing)?|deeds?|bells?(?!-style)|brake[sd]?|patience",
      "(a|another|other|second|that|which|two|several|six) guards?",
    ].join("|")
  })\\b`,
  "gi",
);
/** For messages of the product and for documents; `agent` alone is the name of a stage, in backticks. */
const FORBIDDEN_TO_READERS = /(?<![-\w])guards?(?![-\w])|(?<!host |login )\bagents?\b/gi;
/** Recorded text, and this file, which has to spell the words. */
const EXEMPT = /^(tests\/(testdata|corpus)\/|tools\/house\.ts$|coverage\/|\.git\/)/;
/** Values of the JSON document that hold a blank. */
const CODE_NAMES = ['"cut by agent"'];
const DOCUMENT = /^(README|CONTRIBUTING|SECURITY|CHANGELOG)\.md$|^(docs|examples|man|completions)\//;

/** A source file, cut at its banners. */
export class Source {
  readonly lines: string[];
  /** Comments may speak of anything. */
  readonly code: string[];
  readonly sections: { title: string; at: number }[];

  constructor(readonly text: string) {
    this.lines = text.split("\n");
    this.code = this.lines.map((line) => line.replace(/^\s*(\/\/|\/\*|\*).*|\s\/\/ .*$/, ""));
    this.sections = this.lines.flatMap((line, at) => {
      const title = /^\/\/ ─+ (.+) ──$/.exec(line)?.[1];
      return title === undefined ? [] : [{ title, at }];
    });
  }

  sectionAt(at: number): number {
    return this.sections.findLastIndex((section) => section.at <= at);
  }

  titleAt(at: number): string {
    return this.sections[this.sectionAt(at)]?.title ?? "";
  }

  /** Each line of code that matches and may not: where it is and how it reads. */
  offences(pattern: RegExp, isAllowed: (title: string, line: string, at: number) => boolean = () => false): string[] {
    return this.code.flatMap((line, at) =>
      pattern.test(line) && !isAllowed(this.titleAt(at), line, at) ? [`${at + 1}: ${line.trim()}`] : []
    );
  }

  /** The names that are declared at the top level, with their lines. */
  declared(): Map<string, number> {
    const declaration =
      /^(?:export )?(?:declare )?(?:abstract )?(?:async )?(?:function\*?|const|let|class|interface|type|enum) (\w+)/;
    return new Map(this.code.flatMap((line, at) => {
      const name = declaration.exec(line)?.[1];
      return name === undefined ? [] : [[name, at] as const];
    }));
  }

  exported(): string[] {
    return [...this.declared()].filter(([, at]) => this.lines[at]!.startsWith("export ")).map(([name]) => name);
  }

  /** What a declaration at the top level begins with. */
  declarations(kind: RegExp): string[] {
    return [...this.declared()].filter(([, at]) => kind.test(this.code[at]!)).map(([name]) => name);
  }

  /** How many lines a chapter has, its banner too. */
  linesOf(title: string): number {
    const i = this.sections.findIndex((section) => section.title === title);
    return i < 0 ? 0 : (this.sections[i + 1]?.at ?? this.lines.length) - this.sections[i]!.at;
  }

  /** As `deno fmt` writes it, a function ends at the next bracket that is indented as its first line is. */
  longFunctions(most = 40): string[] {
    const start =
      /^( *)(?:export )?(?:async )?(?:function\b|const \w+ = (?:async )?\(.*=> \{$|(?:\w+ )*#?\w+\([^=]*\)(?:: [^=]+)? \{$)/;
    return this.code.flatMap((line, at) => {
      const indent = start.exec(line)?.[1];
      if (indent === undefined || /^\s*(if|for|while|switch|return|await|throw)\b/.test(line)) return [];
      const ends = [`${indent}}`, `${indent}};`];
      const end = this.code.findIndex((other, i) => i > at && ends.includes(other));
      const length = end - at + 1;
      return end > 0 && length > most ? [`${at + 1}: ${length} lines`] : [];
    });
  }

  /** Names that a chapter uses and a later one defines. */
  usedBeforeTheirChapter(): string[] {
    const declared = this.declared();
    const text = this.code.map((line) => line.replaceAll(/"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'/g, '""'));
    return [...declared].flatMap(([name, at]) => {
      const chapter = this.sectionAt(at);
      // Neither a member, nor a key, nor the signature of a method.
      const use = new RegExp(`(?<![.\\w#])${name}(?![\\w]|\\??:)`);
      const method = new RegExp(`^  (?:async )?${name}\\(.*[;{]$`);
      const first = text.findIndex((line, i) =>
        this.sectionAt(i) >= 0 && this.sectionAt(i) < chapter && use.test(line) && !method.test(line)
      );
      return first < 0 ? [] : [`${first + 1}: ${name}, defined at ${at + 1}`];
    });
  }

  /** What a program decides it must not read from words that are for people. */
  branchesOnWords(): string[] {
    const words = "(?:why|outcome|because|asked)";
    // `trouble` is a kind in some places, and compared there.
    const texts = "(?:why|outcome|because|asked|answer|trouble|message)";
    return this.offences(
      new RegExp(
        `\\b${texts}\\??\\.(?:startsWith|endsWith|includes|match)\\(|\\b${words} [!=]== "|\\.test\\((?:\\w+\\.)*${words}\\)`,
      ),
    );
  }

  hostMembers(): string[] {
    const start = this.code.findIndex((line) => /^(export )?interface Host\b/.test(line));
    const end = this.code.indexOf("}", start);
    return start < 0
      ? []
      : this.code.slice(start, end).flatMap((line) => /^ {2}(?:readonly )?(\w+)\??[(:<]/.exec(line)?.[1] ?? []);
  }

  /** How many lines stand before the host: what reads and decides. */
  linesBeforeTheHost(): number {
    return this.sections.find(({ title }) => /^(the )?host$/.test(title))?.at ?? this.lines.length;
  }

  texts(): string[] {
    return this.code.join("\n").match(/"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\\n]|\\.)*`/g) ?? [];
  }

  comments(): string[] {
    return this.lines.flatMap((line) => /^\s*(?:\/\/|\/\*|\*)(.*)|\s\/\/ (.*)$/.exec(line)?.slice(1).join("") ?? []);
  }
}

/** Every figure, with what it counts where that is a list. */
export interface Figure {
  readonly value: number;
  readonly found: readonly string[];
}

export async function figures(root: string): Promise<Record<string, Figure>> {
  const files = await texts(root);
  const [guard, install] = PRODUCT.map((name) => new Source(files.get(name) ?? ""));
  const found = (list: readonly string[]): Figure => ({ value: list.length, found: list });
  const all: Record<string, Figure> = {};
  for (const [name, source] of [["lima_guard.ts", guard!], ["install.ts", install!]] as const) {
    all[`${name}: lines`] = { value: source.lines.length - 1, found: [] };
    all[`${name}: chapters`] = found(source.sections.map(({ title }) => title));
    all[`${name}: exports`] = found(source.exported());
    all[`${name}: exports that no file imports`] = found(unused(name, source, files));
    all[`${name}: functions`] = found(source.declarations(/\bfunction\b/));
    all[`${name}: types`] = found(source.declarations(/^(export )?(interface|type|class) /));
    all[`${name}: functions over 40 lines`] = found(source.longFunctions());
    all[`${name}: names used before their chapter`] = found(source.usedBeforeTheirChapter());
    all[`${name}: branches on words`] = found(source.branchesOnWords());
  }
  all["lima_guard.ts: lines of what it decides"] = { value: guard!.linesBeforeTheHost(), found: [] };
  all["lima_guard.ts: members of the host"] = found(guard!.hostMembers());
  const signalling = guard!.code.flatMap((line, at) => /\bhost\.signal\b/.test(line) ? [guard!.titleAt(at)] : []);
  const chapters = [...new Set(signalling)];
  all["lima_guard.ts: chapters that signal"] = found(chapters);
  const length = chapters.reduce((sum, title) => sum + guard!.linesOf(title), 0);
  all["lima_guard.ts: lines of the chapters that signal"] = { value: length, found: chapters };
  const others = install!.declared();
  all["both files: names with two meanings"] = found([...guard!.declared().keys()].filter((name) => others.has(name)));
  for (const [name, text] of files) {
    const words = forbidden(name, text);
    if (words.length > 0) all[`${name}: forbidden words`] = found(words);
  }
  return all;
}

/** Exports that no other file imports. */
function unused(name: string, source: Source, files: Map<string, string>): string[] {
  const from = String.raw`\bfrom\s*["'][^"']*${RegExp.escape(name)}["']|\s*=\s*await import\([^)]*${
    RegExp.escape(name)
  }`;
  const lists = new RegExp(String.raw`\{([^{}]*)\}\s*(?:${from})`, "g");
  const used = new Set(
    [...files].flatMap(([other, text]) => other === name ? [] : [...text.matchAll(lists)])
      .flatMap(([, list = ""]) => list.match(/\w+/g) ?? []),
  );
  return source.exported().filter((exported) => !used.has(exported));
}

function forbidden(name: string, text: string): string[] {
  const plain = (part: string) => part.replaceAll(/`[^`]*`/g, "");
  const find = (parts: string[], pattern: RegExp) => parts.flatMap((part) => part.match(pattern) ?? []);
  if (!name.endsWith(".ts")) {
    // Of scripts, what a person reads: events and kinds are the product's own values.
    const isScript = /^examples\/.*\.(sh|yml)$/.test(name);
    const read = isScript ? (text.match(/#.*$|\b(?:name|msg|fail_msg): .*$/gm) ?? []).join("\n") : text;
    // `-l guard` is an option of the installer's in a completion of fish.
    const prose = [plain(read.replaceAll(/```[^]*?```| -l \S+/g, ""))];
    return [...find(prose, FORBIDDEN), ...find(prose, FORBIDDEN_TO_READERS)];
  }
  const source = new Source(text);
  // A literal without a blank is a name of the program's own: an event, a field of the JSON document.
  const isMessage = (literal: string) => literal.includes(" ") && !CODE_NAMES.includes(literal);
  const messages = source.texts().filter(isMessage).map((literal) => literal.replaceAll(/\$\{[^}]*\}/g, "…"));
  const isProduct = (PRODUCT as readonly string[]).includes(name);
  return [
    ...find([...source.comments().map(plain), ...messages], FORBIDDEN),
    ...isProduct ? find(messages, FORBIDDEN_TO_READERS) : [],
  ];
}

/** Sources and documents, by their path. */
async function texts(root: string, dir = ""): Promise<Map<string, string>> {
  const files = new Map<string, string>();
  for await (const { name, isDirectory, isFile } of Deno.readDir(`${root}/${dir}`)) {
    const path = `${dir}${name}`;
    if (EXEMPT.test(isDirectory ? `${path}/` : path)) continue;
    if (isDirectory) { for (const [below, text] of await texts(root, `${path}/`)) files.set(below, text); }
    else if (isFile && (path.endsWith(".ts") || DOCUMENT.test(path))) {
      files.set(path, await Deno.readTextFile(`${root}/${path}`));
    }
  }
  return files;
}

export function limitOf(key: string): number | undefined {
  return key.endsWith(": forbidden words") ? 0 : LIMITS[key];
}

/** What is not reached yet, and how far it has come. */
export async function notYet(root: string): Promise<Record<string, number>> {
  return JSON.parse(await Deno.readTextFile(`${root}/${NOT_YET}`));
}

async function main(root: string, args: string[]): Promise<void> {
  const all = await figures(root);
  const isOver = (key: string) => (all[key]!.value) > (limitOf(key) ?? Infinity);
  const lines = Object.keys(all).sort().flatMap((key) => {
    const { value, found } = all[key]!;
    const row = `${isOver(key) ? "-" : "✓"} ${key}: ${value}${
      limitOf(key) === undefined ? "" : ` (at most ${limitOf(key)})`
    }`;
    return args.includes("--long") && isOver(key) ? [row, ...found.map((item) => `    ${item}`)] : [row];
  });
  await Deno.stdout.write(new TextEncoder().encode(`${lines.join("\n")}\n`));
  if (!args.includes("--write")) return;
  const left = Object.keys(all).filter(isOver).sort().map((key) => [key, all[key]!.value]);
  await Deno.writeTextFile(`${root}/${NOT_YET}`, `${JSON.stringify(Object.fromEntries(left), null, 2)}\n`);
}

if (import.meta.main) await main(import.meta.dirname!.replace(/\/tools$/, ""), Deno.args);
