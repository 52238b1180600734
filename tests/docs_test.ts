/** The documents: every link leads somewhere, every test that is named exists, and the map is that of the code. */

import assert from "node:assert/strict";
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
