/** The documents: every link leads somewhere, every test that is named exists, and the map is that of the code. */

import assert from "node:assert/strict";
import { backoffMs, DEFAULT_BUDGET_S, LAUNCHD_DEFAULT_S, stageLimits } from "../lima_guard.ts";
import { documents } from "./helpers/documents.ts";
import { project } from "./helpers/paths.ts";
import { runGuard, startBystander, tempLimaHome } from "./helpers/mod.ts";

const PAGES = [
  "README.md",
  "CHANGELOG.md",
  "CONTRIBUTING.md",
  "SECURITY.md",
  "examples/ansible/README.md",
  "examples/ups/README.md",
  ...[...Deno.readDirSync(`${project}/docs`)].map(({ name }) => `docs/${name}`).sort(),
];
const TEXTS = new Map(PAGES.map((page) => [page, Deno.readTextFileSync(`${project}/${page}`)]));

/** A heading's anchor, as GitHub makes it. */
const anchor = (heading: string) =>
  heading.toLowerCase().replaceAll(/[^\p{L}\p{N} _-]/gu, "").trim().replaceAll(" ", "-");
const headings = (text: string) => [...text.matchAll(/^#+ (.+)$/gm)].map(([, heading = ""]) => anchor(heading));

function isThere(path: string): boolean {
  try {
    return Deno.statSync(`${project}/${path}`) !== undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

for (const [page, text] of TEXTS) {
  Deno.test(`${page}: every relative link leads somewhere`, () => {
    for (const [, link = ""] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(link)) continue;
      const [file = "", heading] = link.split("#");
      const path = file === "" ? page : new URL(file, `file:///${page}`).pathname.slice(1);
      assert.ok(isThere(path), `${link}: there is no ${path}`);
      const all = () => headings(TEXTS.get(path) ?? Deno.readTextFileSync(`${project}/${path}`));
      if (heading !== undefined) assert.ok(all().includes(heading), `${link}: ${path} has no such heading`);
    }
  });

  Deno.test(`${page}: every file of the project that is named exists`, () => {
    for (
      const [, path = ""] of text.matchAll(/`((?:tests|tools|docs|examples|completions|man|\.github)\/[^`\s…]*)`/g)
    ) {
      if (!path.includes("*") && !path.includes("{")) assert.ok(isThere(path), path);
    }
  });
}

/** The files of the tests, by the name that docs/testing.md has for them. */
function testFiles(name: string): string[] {
  const [folder = "", file = ""] = name.split(/\/(?=[^/]+$)/);
  const pattern = new RegExp(`^${file.replaceAll(".", "\\.").replaceAll("*", ".*")}$`);
  const found = [...Deno.readDirSync(`${project}/${folder}`)].filter((entry) => pattern.test(entry.name));
  return found.map((entry) => Deno.readTextFileSync(`${project}/${folder}/${entry.name}`));
}

Deno.test("docs/testing.md: each claim has a test that exists, or is marked", () => {
  const rows = (TEXTS.get("docs/testing.md") ?? "").split("\n").filter((line) => /^\| (?!---)/.test(line));
  const claims = rows.filter((line) => !line.startsWith("| claim"));
  assert.ok(claims.length > 30, `only ${claims.length} rows`);
  for (const row of claims) {
    const proofs = [...row.matchAll(/`(tests\/[^`]+)`((?:[:,] "[^"]+")*)/g)];
    assert.ok(proofs.length > 0 || /\*\*not (yet verified on macOS|tested)\*\*/.test(row), `nothing holds up: ${row}`);
    for (const [, file = "", names = ""] of proofs) {
      const texts = testFiles(file);
      assert.ok(texts.length > 0, `there is no ${file}`);
      for (const [, name = ""] of names.matchAll(/"([^"]+)"/g)) {
        assert.ok(texts.some((text) => text.includes(name)), `${file} has no test "${name}"`);
      }
    }
  }
});

/** Without Markdown's marks, so that words can be compared. */
const words = (markdown: string) =>
  markdown.replaceAll(/\]\([^)]*\)/g, "]").replaceAll(/[*_\[\]`]/g, "").replaceAll(/\s+/g, " ").trim();

/** What a page says, sentence by sentence, up to the list of documents; a row of a table with a time in it is one. */
function sentences(page: string): string[] {
  const [prose = ""] = page.replaceAll(/^```[^]*?^```/gm, "\n\n").replaceAll(/^#.*$/gm, "\n").split(/^\[Reference\]/m);
  const blocks = prose.split(/\n\s*\n|\n(?=\||\d+\. )/).map(words).filter((block) =>
    !/^(\||$)/.test(block) || / s( |;)/.test(block)
  );
  return blocks.flatMap((block) => block.startsWith("|") ? [block] : block.split(/(?<=[.!?:;])\s+(?=[A-Z]|--)/))
    .filter((sentence) => !/^\d\.$/.test(sentence));
}

Deno.test("docs/testing.md: each sentence of the README has a row, and each row is a sentence of it", () => {
  const table = TEXTS.get("docs/testing.md")?.split(/^## Each sentence.*$/m)[1]?.split(/^## /m)[0] ?? "";
  const claims = [...table.matchAll(/^\| (?!claim |---)(.+?) +\|/gm)].map(([, claim = ""]) => words(claim));
  const said = sentences(TEXTS.get("README.md") ?? "");
  assert.ok(said.length > 40, `only ${said.length} sentences`);
  assert.deepEqual(said.filter((sentence) => !claims.some((claim) => sentence.includes(claim))), []);
  assert.deepEqual(claims.filter((claim) => !said.some((sentence) => sentence.includes(claim))), []);
});

Deno.test("CONTRIBUTING.md: the map has the sections of lima_guard.ts, in their order", async () => {
  const source = await Deno.readTextFile(`${project}/lima_guard.ts`);
  const banners = [...source.matchAll(/^\/\/ ─+ (.+) ──$/gm)].map(([, title]) => title);
  const map = TEXTS.get("CONTRIBUTING.md")?.split(/^## The map.*$/m)[1]?.split(/^## /m)[0] ?? "";
  const rows = [...map.matchAll(/^\| [_`](.+?)[_`] +\| (.+?) +\|$/gm)];
  assert.deepEqual(rows.flatMap(([, titles = ""]) => titles.split("_, _")), banners);
});

Deno.test("the example for monitoring is what --status prints", async () => {
  await using home = await tempLimaHome();
  await using bystander = await startBystander(home, { command: ["sleep"] });
  home.instance("default").pidFile("vz.pid", bystander.pid);
  const { stdout } = await runGuard(home, ["--status", "--json"]);
  const real = stdout.replaceAll(home.lima, "/Users/vms/.lima").replaceAll(`${bystander.pid}`, "789");
  const example = await Deno.readTextFile(`${project}/examples/ansible/status.json`);
  assert.deepEqual(JSON.parse(example), JSON.parse(real));
});

Deno.test("documents: a page that speaks of macOS or launchd says that no Mac has shown it yet", () => {
  // CONTRIBUTING.md is about the code.
  const pages = [...TEXTS].filter(([page, text]) => page !== "CONTRIBUTING.md" && /macOS|launchd/.test(text));
  assert.ok(pages.length > 12, `only ${pages.length} pages`);
  const isMarked = (text: string) =>
    /not yet verified on macOS|was run on a Mac yet/i.test(text.replaceAll(/\s+/g, " "));
  assert.deepEqual(pages.filter(([, text]) => !isMarked(text)).map(([page]) => page), []);
});

/** Every text that a person may type from: pages, examples, the man page, the workflow's, and what `--help` prints. */
async function allTexts(): Promise<[name: string, text: string][]> {
  await using home = await tempLimaHome();
  const helps = await Promise.all(["--help", "--install"].map(async (arg) => {
    const options = arg === "--install" ? { script: "install.ts" } : {};
    return [`${arg} --help`, (await runGuard(home, ["--help"], options)).stdout] as [string, string];
  }));
  const files = [...new Set([...PAGES, ...documents(), "man/lima-guard.1", "packaging/pkg.sh"])];
  return [...files.map((file) => [file, Deno.readTextFileSync(`${project}/${file}`)] as [string, string]), ...helps];
}

/** What was once typed from a page and did harm, or led nowhere. */
const NEVER: Readonly<Record<string, RegExp>> = {
  "a stop that fails keeps the Mac up": /(?:limactl stop|colima stop|--stop)[^\n|;]*&&[^\n]*(?:shutdown|reboot|halt)/,
  "sudo without -H keeps HOME": /sudo (?:-n )?-u \S+ \S*lima-guard/,
  "another user may have put the program there": /(?:sudo|scp|cp|install)\b[^\n]*\/tmp\//,
  "the sums of files that were not downloaded fail":
    /(?:shasum|sha256sum)(?![^\n]*--ignore-missing)[^\n]* (?:-c|--check)\b/,
  "Lima writes its plist at autostart enable only":
    /upgrade of Lima[^.]*plist|Lima[^.]{0,40}(?:rewrites|writes)[^.]*at each start/,
  "what was downloaded is used before its sum is known": /^(?:sudo install\b.*"\$name"|tar -x)/m,
  "it may kill another program": /^\s*(?:sudo )?(?:(?:limactl|colima) stop (?:--force|-f)\b|rm \S*\.pid)/m,
};

Deno.test("documents: each variable of the environment that is read or set is in a page, and in the man page", () => {
  const sources = ["lima_guard.ts", "install.ts"].map((file) => Deno.readTextFileSync(`${project}/${file}`)).join("\n");
  const read = [...sources.matchAll(/\benv\("([A-Z_]+)"\)/g)].map(([, name = ""]) => name);
  const set = [...sources.matchAll(/^ +(LIMA_GUARD_[A-Z]+): /gm)].map(([, name = ""]) => name);
  assert.ok(read.length > 8 && set.length === 7, `${read} ${set}`);
  const own = ["docs/reference.md", "docs/monitoring.md"].map((page) => TEXTS.get(page)).join("\n");
  assert.deepEqual([...read, ...set].filter((name) => !own.includes(`\`${name}\``)), []);
  const man = Deno.readTextFileSync(`${project}/man/lima-guard.1`);
  // Only from source, and only what sudo says.
  const shown = [...read, ...set].filter((name) => !["DENO_DIR", "SUDO_UID"].includes(name));
  assert.deepEqual(shown.filter((name) => !new RegExp(`^\\.It Ev (.* )?${name}\\b`, "m").test(man)), []);
  const tests = TEXTS.get("docs/testing.md")! + TEXTS.get("docs/first-mac-run.md");
  const walk = (folder: string): string[] =>
    [...Deno.readDirSync(folder)].flatMap(({ name, isDirectory }) =>
      isDirectory ? walk(`${folder}/${name}`) : /\.ts$/.test(name) ? [`${folder}/${name}`] : []
    );
  const wishes = walk(`${project}/tests`).flatMap((file) => [
    ...Deno.readTextFileSync(file).matchAll(/env\.get\("(LIMA_GUARD_\w+)"\)/g),
  ]).map(([, name = ""]) => name);
  assert.ok(wishes.length > 5, `${wishes}`);
  assert.deepEqual(wishes.filter((name) => !tests.includes(name)), []);
});

Deno.test("documents: each file that lima-guard writes is in docs/reference.md and in the man page", () => {
  const sources = ["lima_guard.ts", "install.ts"].map((file) => Deno.readTextFileSync(`${project}/${file}`)).join("\n");
  const names = [
    ...sources.matchAll(/"([\w./-]*lima-guard\.[a-z][\w.]*|_lima-guard|[\w./-]*lima-guard-install\.\w+)"/g),
  ]
    .map(([, name = ""]) => name.replace(/^.*\//, ""));
  assert.ok(new Set(names).size > 6, `${names}`);
  const files = [
    ...new Set(names),
    "lima-guard.1.jsonl",
    ".before-lima-guard",
    "start.lock",
    "Library/Logs/lima-guard",
  ];
  for (const page of ["docs/reference.md", "man/lima-guard.1"]) {
    const text = Deno.readTextFileSync(`${project}/${page}`);
    assert.deepEqual(files.filter((name) => !text.includes(name)), [], page);
  }
});

Deno.test("documents: no line to type that has done harm", async () => {
  const found: string[] = [];
  for (const [name, text] of await allTexts()) {
    for (const [why, pattern] of Object.entries(NEVER)) {
      const [line] = pattern.exec(text.replaceAll("\\-", "-")) ?? [];
      if (line !== undefined) found.push(`${name}: ${line.trim()}: ${why}`);
    }
  }
  assert.deepEqual(found, []);
});

Deno.test("documents: the numbers are those of the code", async () => {
  const at = stageLimits(DEFAULT_BUDGET_S);
  const seconds = (stage: keyof typeof at) => `${Math.round(at[stage])} s`;
  const readme = TEXTS.get("README.md") ?? "";
  const stages = [...readme.matchAll(/^\| `([a-z ]+)` +\|.*\| (.+?) +\|$/gm)].map(([, stage, end]) => [stage, end]);
  assert.deepEqual(stages, [
    ["guest", `${seconds("guest")}; ${seconds("agent")} once acknowledged`],
    ["agent", seconds("agent")],
    ["driver", seconds("agent")],
    ["kill", seconds("kill")],
    ["clean up", seconds("clean up")],
  ]);
  for (const [name, text] of await allTexts()) {
    // The pictures are made from the code, with launchd's own limit too.
    if (name === "docs/pictures.md") continue;
    for (const [whole, number] of text.matchAll(/`?ExitTimeOut`?(?:<\/key>\s*<integer>| | at least )(\d+)/g)) {
      assert.equal(Number(number), DEFAULT_BUDGET_S, `${name}: ${whole}`);
    }
  }
  for (const part of ["within one time limit (60 s)", "ends by (of 60 s)", "kill the job 5 s after"]) {
    assert.ok(readme.replaceAll(/\s+/g, " ").includes(part), part);
  }
  assert.deepEqual([DEFAULT_BUDGET_S, LAUNCHD_DEFAULT_S], [60, 5]);
  const pauses = [0, 1, 2, 99].map((n) => backoffMs(n) / 1000);
  assert.deepEqual(pauses, [5, 10, 20, 300]);
  assert.match(TEXTS.get("docs/reference.md") ?? "", /waits 5 s before the third start, then 10, 20 … 5 min/);
  const [, measured = "0"] =
    /idle `--run`: memory of its own +\| +(\S+) MiB/.exec(TEXTS.get("docs/benchmarks.md") ?? "") ?? [];
  const [, said = "0"] = /takes some (\d+) MiB/.exec(readme) ?? [];
  assert.ok(Math.abs(Number(said) - Number(measured)) < 5, `${said}, measured ${measured}`);
});
