/** The table of docs/benchmarks.md that `deno task bench --readme` makes of its figures. */

import assert from "node:assert/strict";
import { readmeTable, type Results, withTable } from "../tools/bench_table.ts";
import { cells, measure, type Row } from "../tools/measure.ts";
import { project } from "./helpers/paths.ts";

const RESULTS: Results = {
  date: "2026-11-23T01:02:03.000Z",
  machine: "a machine",
  guard: "0.1.0 (abc)",
  deno: "2.9.6",
  limactl: "2.2.0",
  groups: [
    {
      title: "one instance",
      rows: [
        { name: "bare `deno run`", unit: "ms", values: [18.31], median: 18.31, min: 17, ratio: 1 },
        { name: "`--pre`", unit: "ms", values: [33.24], median: 33.24, min: 30, ratio: 1.815, peakKiB: 60 * 1024 },
        { name: "`limactl list`", values: [], trouble: "skipped: no limactl" },
      ],
    },
    { title: "calls", rows: [{ name: "idle `--run`", unit: "calls", values: [368], median: 368, min: 360 }] },
  ],
};

Deno.test("the table has what was measured, with its unit, and why a row has no figures", () => {
  const text = readmeTable(RESULTS);
  assert.deepEqual(text.split("\n"), [
    "|  | median | least | ratio | peak memory |",
    "| --- | ---: | ---: | ---: | ---: |",
    "| bare `deno run` | 18.3 ms | 17.0 ms | 1 |  |",
    "| `--pre` | 33.2 ms | 30.0 ms | 1.81 | 60 MiB |",
    "| `limactl list` | skipped: no limactl |  |  |  |",
    "| idle `--run` | 368 calls | 360 calls |  |  |",
    "",
    "Measured 2026-11-23, a machine; lima-guard 0.1.0 (abc) from source, deno 2.9.6; limactl 2.2.0.",
  ]);
  assert.match(readmeTable({ ...RESULTS, limactl: "no limactl" }), /deno 2\.9\.6\.$/);
});

Deno.test("a row that could not be measured has no ratio, and leaves none to the others", async () => {
  const fails: Row = { unit: "s", measure: () => Promise.reject(new Error("no\nsecond line")) };
  const [first, second, third] = await measure({ fails, works: { unit: "s", measure: () => 2 }, other: "why" }, {
    runs: 1,
    warmUp: 0,
  }, () => Promise.resolve());
  assert.deepEqual(cells(first!), ["fails", "failed: no", "", "", ""]);
  assert.deepEqual(cells(second!), ["works", "2.00 s", "2.00 s", "", ""]);
  assert.deepEqual(cells(third!), ["other", "skipped: why", "", "", ""]);
});

Deno.test("only what stands between the marks of docs/benchmarks.md is replaced, and nothing without them", () => {
  const text = Deno.readTextFileSync(`${project}/docs/benchmarks.md`);
  const once = withTable(text, "| a |");
  assert.equal(withTable(once, "| a |"), once);
  const [before, after] = once.split("| a |");
  assert.ok(text.startsWith(before!.trimEnd()) && text.endsWith(after!.trimStart()));
  assert.throws(() => withTable("no marks", "| a |"), /no <!-- written by/);
});
