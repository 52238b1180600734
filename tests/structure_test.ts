/** The shape of lima_guard.ts, as its header promises it: kept by machine, so that it stays when nobody is looking. */

import assert from "node:assert/strict";

const SOURCE = await Deno.readTextFile(new URL("../lima_guard.ts", import.meta.url));
/** The code, line by line; comments may speak of anything. */
const CODE = SOURCE.split("\n").map((line) => line.replace(/^\s*(\/\/|\/\*|\*).*|\s\/\/ .*$/, ""));
const MAIN_BLOCK = CODE.findIndex((line) => line.startsWith("if (import.meta.main)"));

/** The banners and where they stand, in order. */
const SECTIONS = SOURCE.split("\n").flatMap((line, at) => {
  const title = /^\/\/ ─+ (.+) ──$/.exec(line)?.[1];
  return title === undefined ? [] : [{ title, at }];
});
const TITLES = SECTIONS.map(({ title }) => title);
const sectionOf = (at: number) => SECTIONS.findLastIndex((section) => section.at <= at);
const isHost = (section: number) => /^the real host(:|$)/.test(TITLES[section] ?? "");

/** Each line of code that matches and may not: where it is and how it reads. */
function offences(pattern: RegExp, isAllowed: (at: number, line: string) => boolean = () => false): string[] {
  return CODE.flatMap((line, at) => pattern.test(line) && !isAllowed(at, line) ? [`${at + 1}: ${line.trim()}`] : []);
}

Deno.test("the sections stand in the order that the header lists", () => {
  const listed = /\n \* Sections: ([^]*?)\.\n/.exec(SOURCE)?.[1]?.replaceAll(/\s*\n \* /g, " ").split(" · ");
  assert.deepEqual(TITLES, listed);
  const order = [
    "names and numbers",
    "reading",
    "deciding: --pre",
    "the host",
    "the real host",
    "command line",
    "main",
  ];
  assert.deepEqual(TITLES.filter((title) => order.includes(title)), order);
});

Deno.test("Deno is touched by the real host and by the last lines only", () => {
  const isLast = (at: number) => MAIN_BLOCK > 0 && at >= MAIN_BLOCK;
  assert.deepEqual(offences(/\bDeno\b/, (at) => isHost(sectionOf(at)) || isLast(at)), []);
  const hosts = TITLES.flatMap((_, i) => isHost(i) ? [i] : []);
  assert.equal((hosts.at(-1) ?? 0) - (hosts[0] ?? 0) + 1, hosts.length, "the sections of the real host stand together");
  assert.equal(CODE.indexOf("}", MAIN_BLOCK), CODE.length - 2, "the main block is the end of the file");
});

Deno.test("what reads, proves and decides asks for nothing but its arguments", () => {
  const [first, end] = [TITLES.indexOf("reading"), TITLES.indexOf("the host")];
  // Date.parse and new Date(…) read what they are given; anything else of Date may ask the clock.
  const impure =
    /\b(await|async|Math\.random|performance|setTimeout|fetch|crypto|console)\b|\bDate\b(?!\.parse|\((?!\)))/;
  assert.deepEqual(offences(impure, (at) => sectionOf(at) < first || sectionOf(at) >= end), []);
});

Deno.test("the program leaves in one place, its last line", () => {
  assert.equal(offences(/\bDeno\.exit\b/).length, 1);
  assert.deepEqual(offences(/\bDeno\.exit\b/, (at) => at === CODE.length - 3), []);
});

Deno.test("the file runs alone: it imports the standard library, by version, and nothing else", () => {
  const allowed = /^import .* from "jsr:@std\/(cli|log|path)@\d+\.\d+\.\d+\/[a-z/-]+";$|\bimport\("\.\/install\.ts"\)/;
  assert.deepEqual(offences(/\bimport\b(?!\.meta)|\bfrom "|\brequire\(/, (_, line) => allowed.test(line)), []);
});

// One word for one thing, and no contractions: what a person reads says "instance", "stop", "refuse" and "cannot".
for (
  const words of [
    "can't|don't|won't|isn't|doesn't|couldn't|didn't",
    "virtual machine|hypervisor|box|unit",
    "terminated?|teardown|shut down|unload|gather|desired",
    "invalid|illegal",
  ]
) {
  Deno.test(`no message says ${words.replaceAll("|", ", ")}`, () => {
    const messages = CODE.join("\n").match(/"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\\n]|\\.)*`/g) ?? [];
    assert.ok(messages.length > 200, `only ${messages.length} texts are found in the code`);
    assert.deepEqual(messages.filter((text) => new RegExp(`\\b(?:${words})\\b`, "i").test(text)), []);
  });
}
