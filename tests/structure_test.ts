/** The figures and the shape of lima_guard.ts and install.ts, kept by machine. */

import assert from "node:assert/strict";
import { figures, limitOf, LIMITS, notYet, PRODUCT, Source } from "../tools/house.ts";
import { project } from "./helpers/paths.ts";

const FIGURES = await figures(project);
/** What has not reached its limit yet, and how far it is: it may only fall. Set again by `deno task house --write`. */
const NOT_YET = await notYet(project);

const WORDS = Object.keys({ ...FIGURES, ...NOT_YET }).filter((key) => key.endsWith(": forbidden words"));
for (const key of [...Object.keys(LIMITS), ...WORDS]) {
  const limit = limitOf(key)!;
  const most = NOT_YET[key] ?? limit;
  Deno.test(`${key}: at most ${most}${most > limit ? `, to be ${limit}` : ""}`, () => {
    // No file with forbidden words is no figure; every other figure has to be there.
    const { value, found } = FIGURES[key] ?? { value: WORDS.includes(key) ? 0 : NaN, found: [] };
    assert.ok(
      value <= most,
      `${value} are more than ${most}; \`deno task house --long\` lists them:\n${found.join("\n")}`,
    );
  });
}

Deno.test("what is not reached yet is a figure that is over its limit", () => {
  for (const [key, value] of Object.entries(NOT_YET)) assert.ok(value > (limitOf(key) ?? Infinity), key);
});

interface Rules {
  /** The parts and their chapters, in their order; those of install.ts are in its header. */
  chapters: (text: string) => string[] | undefined;
  /** What may be imported. */
  imports: RegExp[];
  /** The chapters that ask for nothing but their arguments. */
  isPure: (title: string, source: Source, at: number) => boolean;
  impure: RegExp;
  effects: RegExp;
  mayAct: RegExp;
  /** Words that a message does not have. */
  words: string;
}

const CLI = "the command line, and main";
/** What is right for both files, and where each has its own. */
const FILES: Record<typeof PRODUCT[number], Rules> = {
  "lima_guard.ts": {
    chapters: () => [
      "part I: what it decides",
      "names and numbers",
      "facts",
      "parsers",
      "proof of identity",
      "commands to type",
      "the plan of --pre",
      "the plan of --stop, the table of --run",
      "verdicts and words",
      "part II: how it looks and acts",
      "the host",
      "files, lock and journal",
      "observing",
      "launchd",
      "signalling",
      "stopping",
      "the commands",
      "part III: the edges",
      "the edges",
    ],
    imports: [
      /^import .* from "jsr:@std\/(cli|log|path)@\d+\.\d+\.\d+\/[a-z/-]+";$/,
      /\bimport\("\.\/install\.ts"(?: as string)?\)/,
    ],
    isPure: (_, source, at) => at > source.sections[0]!.at && at < source.linesBeforeTheHost(),
    // Date.parse reads a text; anything else of Date may ask the clock.
    impure: /\b(await|async|Math\.random|performance|setTimeout|fetch|crypto|console)\b|\bDate\b(?!\.parse|\([^)])/,
    effects: /\bDeno\b/,
    mayAct: /^the edges$/,
    words: "terminated?|teardown|shut down|unload|gather|desired",
  },
  "install.ts": {
    chapters: (text) =>
      [...text.matchAll(/Part I{1,3}[^:]*: ([^]*?)\./g)].flatMap((part) =>
        part[1]!.replaceAll(/\s*\n \* /g, " ").replaceAll("  ", " ").replace(", the command line, main", ` · ${CLI}`)
          .split(" · ")
      ),
    imports: [
      /^import .* from "jsr:@std\/(cli|path)@\d+\.\d+\.\d+\/[a-z/-]+";$/,
      /^import \* as fs from "node:fs";$/,
      /^import \{$|^\} from "\.\/lima_guard\.ts";$/,
      /(await|=) import\("npm:(plist@5\.0\.0|diff@9\.0\.0|dax@0\.49\.0)"\)/,
    ],
    isPure: (_, source, at) => at > source.sections[0]!.at && at < source.linesBeforeTheHost(),
    impure: /\b(await|async|Math\.random|performance|setTimeout|fetch|crypto|console)\b|\bhost\.|\bDate\.now\b/,
    effects: /\bDeno\.|npm:dax|\bfs\./,
    mayAct: new RegExp(`^(the real host|${CLI})$`),
    words: "terminated?|teardown|shut down|gather|desired",
  },
};

for (const name of PRODUCT) {
  const rules = FILES[name];
  const source = new Source(await Deno.readTextFile(`${project}/${name}`));
  const { code, text } = source;
  const mainBlock = code.findIndex((line) => /^(export function runAsProgram|if \(import\.meta\.main\) \{)/.test(line));

  Deno.test(`${name}: the parts and their chapters stand in this order`, () => {
    const banners = [...text.matchAll(/^\/\/ [─═]+ (.+) (?:──|══)$/gm)].map((m) => m[1]);
    assert.deepEqual(banners, rules.chapters(text));
  });

  Deno.test(`${name}: the world is touched by the real host and by the last lines only`, () => {
    assert.ok(mainBlock > 0);
    assert.deepEqual(source.offences(rules.effects, (title, _, at) => rules.mayAct.test(title) || at >= mainBlock), []);
    const rest = code.slice(code.indexOf("}", mainBlock) + 1).filter((line) => line !== "");
    assert.ok(
      rest.every((line) => line === "if (import.meta.main) runAsProgram();"),
      "the main block is the end of the file",
    );
  });

  Deno.test(`${name}: what reads, proves and decides asks for nothing but its arguments`, () => {
    assert.ok(code.some((_, at) => rules.isPure(source.titleAt(at), source, at)), "no chapter is pure");
    assert.deepEqual(source.offences(rules.impure, (title, _, at) => !rules.isPure(title, source, at)), []);
  });

  Deno.test(`${name}: what it exports says what it is`, () => {
    const isBare = (line: string, at: number) =>
      /^export (async )?(function|const|class) /.test(line) && !source.lines[at - 1]!.endsWith("*/");
    assert.deepEqual(source.lines.filter(isBare), []);
  });

  Deno.test(`${name}: it leaves in one place, its last lines`, () => {
    assert.equal(source.offences(/\bDeno\.exit\b/).length, 1);
    assert.deepEqual(source.offences(/\bDeno\.exit\b/, (_, __, at) => at > mainBlock), []);
  });

  Deno.test(`${name}: it imports what it may, by version, and nothing else`, () => {
    const isAllowed = (_: string, line: string) => rules.imports.some((allowed) => allowed.test(line));
    assert.deepEqual(source.offences(/\bimport\b(?!\.meta)|\bfrom "|\brequire\(/, isAllowed), []);
  });

  // One word for one thing, and no contractions: what a person reads says "instance", "stop", "refuse" and "cannot".
  for (
    const words of [
      "can't|don't|won't|isn't|doesn't|couldn't|didn't",
      "virtual machine|hypervisor|box|unit",
      rules.words,
      "invalid|illegal",
    ]
  ) {
    Deno.test(`${name}: no message says ${words.replaceAll("|", ", ")}`, () => {
      const messages = source.texts();
      assert.ok(messages.length > 200, `only ${messages.length} texts are found in the code`);
      // The guest's shell script speaks of systemd's units.
      const own = messages.filter((message) => !/unit=|\$unit/.test(message));
      assert.deepEqual(own.filter((message) => new RegExp(`\\b(?:${words})\\b`, "i").test(message)), []);
    });
  }
}

// --- only install.ts: what root does with files ---

const INSTALL = new Source(await Deno.readTextFile(`${project}/install.ts`));

Deno.test("install.ts: nothing is changed by its path: owner, group and mode come with the descriptor", () => {
  assert.deepEqual(INSTALL.offences(/\b(chown|chmod|utime)(Sync)?\(/), []);
});

Deno.test("install.ts: files are made exclusively, so that no link is followed, and synced before they get a name", () => {
  const opens = INSTALL.code.filter((line) => /fs\.openSync\(|Deno\.(writeFile|writeTextFile|copyFile)/.test(line));
  assert.deepEqual(opens.map((line) => line.trim()), [
    "fd = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);",
    'const fd = fs.openSync(path, "wx", mode);',
    'const fd = fs.openSync(path, look === "absent" ? "ax" : O_APPEND | O_NONBLOCK | O_WRONLY, 0o644);',
  ]);
  assert.match(
    INSTALL.text,
    /fs\.openSync\(path, "wx", mode\);[^}]*fs\.writeSync[^}]*fs\.fsyncSync\(fd\);\n {2}\} catch/,
  );
});

// --- the measures themselves: one that finds nothing would hold nothing ---

const SAMPLE = `// ── facts ──
export type Fact = { why: string };
const early = later("word");
// ── the host ──
export interface Host {
  signal(pid: number): void;
  readonly pid: number;
}
function later(why: string) {
  if (why.startsWith("word")) return why === "done";
${"  // …\n".repeat(40)}}
`.replaceAll(/^\/\/ ── (.*) ──$/gm, "// ──────── $1 ──");

Deno.test("the measures find what they look for", () => {
  const sample = new Source(SAMPLE);
  assert.deepEqual(sample.exported(), ["Fact", "Host"]);
  assert.deepEqual(sample.declarations(/\bfunction\b/), ["later"]);
  assert.equal(sample.linesOf("facts"), 3);
  assert.deepEqual(sample.hostMembers(), ["signal", "pid"]);
  assert.deepEqual(sample.usedBeforeTheirChapter(), ["3: later, defined at 9"]);
  assert.equal(sample.branchesOnWords().length, 1);
  assert.deepEqual(sample.longFunctions(), ["9: 43 lines"]);
  assert.equal(sample.linesBeforeTheHost(), 3);
});

Deno.test("commands to type are made in one chapter", async () => {
  const source = new Source(await Deno.readTextFile(`${project}/lima_guard.ts`));
  const program =
    /[`"](?:[^`"]*[ ;:(])?(?:lima-guard|limactl|launchctl|sudo|chmod|chown|kill|rm|ls|ps|lsof) (?:-|\$\{)/;
  const made = new Set(["commands to type", "the edges"]);
  // These name a process by its role.
  const isProcess = (line: string) =>
    /lima-guard --(?:run(?: \$\{(?:holder\.pid|r\.guardVersion)|, PID)|\$\{(?:holder|s)\.role)/.test(line);
  // The script that ends a program of --on-event in time, and the one that runs in the guest.
  const isScript = (line: string) => /ps -o pgid=|kill -9 (?:-\$\$|\$!)|sudo -n sh -c '\$\{GUEST_SCRIPT\}'/.test(line);
  assert.deepEqual(source.offences(program, (title, line) => made.has(title) || isProcess(line) || isScript(line)), []);
  assert.deepEqual(source.offences(/\bshellWords\(/, (title) => title === "commands to type"), []);
});
