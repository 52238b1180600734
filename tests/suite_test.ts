/** What runs the whole suite: what it counts, and what it leaves behind. */

import assert from "node:assert/strict";
import { countsOf, cpuTimeOf, LONG_FILES, runSuite, secondsOf, testFiles, timesOf } from "../tools/suite.ts";

const COUNTS: [title: string, output: string, status: number, counts: [number, number, number]][] = [
  ["all have passed", "ok | 12 passed (3 steps) | 0 failed | 1 ignored (3s)\n", 0, [12, 0, 1]],
  ["what is 0 is left out", "ok | 2 passed (1s)\n", 0, [2, 0, 0]],
  ["some have failed", "FAILED | 2 passed | 3 failed (1s)\n\nerror: Test failed\n", 1, [2, 3, 0]],
  ["a test prints a summary too", "ok | 9 passed | 0 failed (1s)\nFAILED | 2 passed | 1 failed (1s)\n", 1, [2, 1, 0]],
  ["no summary", "running 2 tests\n", 0, [0, 1, 0]],
  ["killed before the summary", "running 2 tests\na ... ok (1ms)\n", 137, [0, 1, 0]],
  ["a status that the summary does not explain", "ok | 2 passed | 0 failed (1s)\n", 1, [2, 1, 0]],
  ["a success that the summary contradicts", "FAILED | 2 passed | 1 failed (1s)\n", 0, [2, 2, 0]],
];
for (const [title, output, status, [passed, failed, ignored]] of COUNTS) {
  Deno.test(`a file's counts: ${title}`, () => assert.deepEqual(countsOf(output, status), { passed, failed, ignored }));
}

Deno.test("the CPU time that the shell tells is taken off the end of the output; without it nothing is known", () => {
  const printed = "a warning\n0m0.000000s 0m0.010000s\n1m2.500000s 0m7.250000s\n";
  assert.deepEqual(cpuTimeOf(printed), { cpuSeconds: 69.75, text: "a warning\n" });
  assert.deepEqual(cpuTimeOf("killed\n"), { cpuSeconds: null, text: "killed\n" });
});

Deno.test("a test's time is read as deno test prints it", () => {
  const printed = { "35ms": 0.035, "12s": 12, "1m2s": 62, "1h": 0 };
  for (const [text, seconds] of Object.entries(printed)) assert.equal(secondsOf(text), seconds, text);
});

Deno.test("the times of tests: of one that took more than a minute too", () => {
  const still = (time: string) => `'b: c' has been running for over (${time})\n`;
  const output = `a ... ok (35ms)\nb: c ...${still("1m0s")}${still("2m0s")} ok (2m48s)\nd ... FAILED (3s)\n`;
  assert.deepEqual(timesOf(output), [
    { name: "a", seconds: 0.035 },
    { name: "b: c", seconds: 168 },
    { name: "d", seconds: 3 },
  ]);
});

Deno.test("what is known to take long starts first; then the largest", async () => {
  const files = await testFiles(new URL("..", import.meta.url).pathname);
  assert.deepEqual(files.slice(0, LONG_FILES.length), LONG_FILES);
  assert.equal(new Set(files).size, files.length);
});

/** A project with these test files, and what the suite says of it. */
async function suiteOf(files: Record<string, string>): Promise<{ status: number; lines: string[] }> {
  const root = await Deno.makeTempDir({ prefix: "suite-" });
  try {
    await Deno.mkdir(`${root}/tests/below`, { recursive: true });
    for (const [name, text] of Object.entries(files)) await Deno.writeTextFile(`${root}/tests/${name}`, text);
    const said: string[] = [];
    const say = (line: string) => said.push(line);
    const status = await runSuite({ files: await testFiles(root), flags: ["--no-lock", "--no-config"], root, say });
    return { status, lines: said.join("\n").split("\n") };
  } finally {
    await Deno.remove(root, { recursive: true });
  }
}

const GOOD = 'Deno.test("good", () => {}); Deno.test.ignore("no Mac here", () => {});';

Deno.test("the suite runs every test file below the directory, and ends with the line of deno test and one for people", async () => {
  const { status, lines } = await suiteOf({ "a_test.ts": GOOD, "below/b_test.ts": GOOD, "helper.ts": "throw 1;" });
  assert.equal(status, 0, lines.join("\n"));
  assert.match(lines.at(-2)!, /^ok \| 2 passed \| 0 failed \| 2 ignored \(\d+s\)$/);
  assert.match(lines.at(-1)!, /^2 passed, 0 failed, 2 skipped, 0 min \d+ s on \d+ cores, aim 6 min$/);
  assert.equal(lines.filter((line) => /no Mac here \.\.\. ignored/.test(line)).length, 2);
  assert.equal(lines.filter((line) => /^ok tests\/.*_test\.ts: 1 passed, 1 ignored \([\d.]+s\)$/.test(line)).length, 2);
  const table = lines.slice(lines.indexOf("tests  seconds    CPU s  file") + 1);
  assert.match(table[2]!, /^ +2 +[\d.]+ +(?:[\d.]+|-) {2}2 files$/);
  for (const file of ["tests/a_test.ts", "tests/below/b_test.ts"]) {
    assert.ok(
      table.slice(0, 2).some((line) => /^ +1 +[\d.]+ +(?:[\d.]+|-) {2}/.test(line) && line.endsWith(file)),
      file,
    );
  }
});

Deno.test("the suite fails where a file fails, does not load, or is killed; the rest is run", async () => {
  const { status, lines } = await suiteOf({
    "a_test.ts": GOOD,
    "b_test.ts": 'Deno.test("bad", () => { throw new Error("the reason"); });',
    "c_test.ts": 'throw new Error("not loaded");',
    "d_test.ts": 'Deno.test("killed", () => Deno.kill(Deno.pid, "SIGKILL"));',
  });
  assert.equal(status, 1);
  assert.match(lines.at(-2)!, /^FAILED \| 1 passed \| 3 failed \| 1 ignored \(\d+s\)$/, lines.join("\n"));
  for (const reason of ["the reason", "not loaded"]) assert.ok(lines.some((line) => line.includes(reason)), reason);
  assert.deepEqual(lines.find((line) => line.startsWith("failed: "))?.split(" ").slice(1).sort(), [
    "tests/b_test.ts",
    "tests/c_test.ts",
    "tests/d_test.ts",
  ]);
});

const CAN_ISOLATE = Deno.build.os === "linux" && Deno.uid() === 0;
Deno.test({
  name: "each file has memory of its own for its Macs, in a folder of root's that is gone in the end" +
    (CAN_ISOLATE ? "" : ": skipped: needs Linux and root"),
  ignore: !CAN_ISOLATE,
  fn: async () => {
    const out = await Deno.makeTempFile({ prefix: "suite-" });
    try {
      const file = `Deno.test("looks", () => {
        const dir = Deno.env.get("LIMA_GUARD_TESTS_MACS");
        if ([...Deno.readDirSync(dir)].length > 0) throw new Error("another file's");
        Deno.writeTextFileSync(dir + "/mine", "");
        const { dev, uid, mode } = Deno.lstatSync(dir);
        const line = [dir, dev !== Deno.lstatSync(dir + "/..").dev, uid, mode & 0o777].join(" ") + "\\n";
        Deno.writeTextFileSync(${JSON.stringify(out)}, line, { append: true });
      });`;
      const { status, lines } = await suiteOf({ "a_test.ts": file, "b_test.ts": file });
      assert.equal(status, 0, lines.join("\n"));
      const seen = (await Deno.readTextFile(out)).trim().split("\n");
      const [dir = "", ...rest] = seen[0]!.split(" ");
      assert.deepEqual([seen.length, new Set(seen).size, ...rest], [2, 1, "true", "0", String(0o755)]);
      await assert.rejects(Deno.lstat(dir), Deno.errors.NotFound);
    } finally {
      await Deno.remove(out);
    }
  },
});

Deno.test("a suite without a test file is no success", async () => {
  const { status, lines } = await suiteOf({});
  assert.equal(status, 1, lines.join("\n"));
});
