/** The table of docs/benchmarks.md that `deno task bench --readme` makes of its figures. */

import assert from "node:assert/strict";
import { readmeTable, type Results, withTable } from "../tools/bench_table.ts";
import { project } from "./helpers/paths.ts";

const row = (name: string, unit: "ms" | "s" | "MiB" | "", median: number, more = {}) => (
  { name, unit, runs: 3, median, values: [median], ...more }
);
const RESULTS: Results = {
  date: "2026-11-23T01:02:03.000Z",
  machine: "a machine",
  guard: "0.1.0 (abc)",
  deno: "2.9.6",
  limactl: "limactl version 2.2.0",
  groups: [
    {
      title: "one instance",
      rows: [
        row("bare deno run (an empty file)", "ms", 18.31, { ratio: 1 }),
        row("--pre, clean", "ms", 33.24, { ratio: 1.815, peakKiB: 60 * 1024 }),
        { name: "limactl list", unit: "", skipped: "no limactl", runs: 0, values: [] },
      ],
    },
    {
      title: "--run in 10 idle minutes: system calls",
      rows: [row("--run, with a session with the guest", "", 368)],
    },
    {
      title: "--run from SIGTERM, a session with the guest",
      rows: [row("the host agent alone", "s", 0.0634, { ratio: 1 })],
    },
  ],
};

Deno.test("the table has what was measured: the median with its unit, and the memory of programs", () => {
  const lines = readmeTable(RESULTS).split("\n");
  const line = (words: string) => lines.find((line) => line.startsWith(`| ${words} |`));
  assert.equal(line("`--pre`, nothing to do"), "| `--pre`, nothing to do | 33.2 ms | 1.81 | 60 MiB |");
  assert.equal(line("`limactl list`"), undefined, "it was skipped");
  assert.equal(line("`--status`"), undefined, "it was not measured");
  const calls = "idle `--run`: system calls in 10 minutes";
  assert.equal(line(calls), `| ${calls} | 368 |  |  |`);
  const alone = "SIGTERM to the end: host agent alone";
  assert.equal(line(alone), `| ${alone} | 0.06 s |  |  |`);
  assert.equal(
    lines.at(-1),
    "Measured 2026-11-23, a machine; lima-guard 0.1.0 (abc) from source, deno 2.9.6; limactl version 2.2.0.",
  );
  assert.match(readmeTable({ ...RESULTS, limactl: "no limactl on PATH" }), /deno 2\.9\.6\.$/);
});

Deno.test("only what stands between the marks of docs/benchmarks.md is replaced, and nothing without them", () => {
  const text = Deno.readTextFileSync(`${project}/docs/benchmarks.md`);
  const once = withTable(text, "| a |");
  assert.equal(withTable(once, "| a |"), once);
  const [before, after] = once.split("| a |");
  assert.ok(text.startsWith(before!.trimEnd()) && text.endsWith(after!.trimStart()));
  assert.throws(() => withTable("no marks", "| a |"), /no <!-- written by/);
});
