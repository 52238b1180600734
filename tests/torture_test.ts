/**
 * The cases of `deno task torture`: what has ever failed, again, and some seconds of new ones, always the same; and its
 * cycles.
 */

import assert from "node:assert/strict";
import { makeCase } from "../tools/torture_cases.ts";
import { cycles, median } from "../tools/torture_cycles.ts";
import { readKept, runCase, tellFailure, torture } from "../tools/torture.ts";

const corpus = new URL("corpus/", import.meta.url).pathname;

for (const { name } of [...Deno.readDirSync(corpus)].sort((a, b) => a.name < b.name ? -1 : 1)) {
  const { why, open, case: kept } = readKept(corpus + name);
  Deno.test({
    name: open ? `torture: ${why} (skipped: ${open})` : `torture: ${why}`,
    ignore: open !== undefined,
    fn: () => runCase(kept),
  });
}

/** Some 20 s where nothing else runs; on a busy machine it ends earlier in the list, not later. */
const CASES = 30;
const LIMIT_MINUTES = 0.5;

Deno.test(`torture: up to ${CASES} cases of one seed, and the three laws after each step`, async () => {
  const { cases, failures } = await torture({ seed: 20261123, minutes: LIMIT_MINUTES, most: CASES });
  assert.ok(cases > 0);
  assert.deepEqual(failures, [], failures.map(tellFailure).join("\n"));
});

Deno.test("torture: seed and number decide the whole case", () => {
  for (let number = 0; number < 200; number++) {
    assert.deepEqual(makeCase(7, number), makeCase(7, number));
    assert.notDeepEqual(makeCase(7, number), makeCase(8, number));
    assert.deepEqual(JSON.parse(JSON.stringify(makeCase(7, number))), makeCase(7, number));
  }
});

Deno.test("thirty starts and stops leave nothing behind", async () => {
  const { cycles: done, guardDescriptors, guardThreads, guardKiB, own } = await cycles(30, 5);
  assert.equal(done, 30);
  if (Deno.build.os !== "linux") return;
  // Deno itself opens a few once and for all; a leak would be one for each cycle.
  assert.ok(
    own.after.descriptors < own.before.descriptors + 10,
    `${own.before.descriptors} → ${own.after.descriptors}`,
  );
  assert.ok(
    Math.max(...guardDescriptors) <= Math.max(...guardDescriptors.slice(0, 10)) + 2,
    "descriptors of the guard",
  );
  // Deno starts a thread for each file call that has to wait: how many is the machine's doing, so the middle counts.
  const [few, many] = [median(guardThreads.slice(0, 10)), median(guardThreads.slice(-10))];
  assert.ok(many <= few + 4, `${few} threads in the first cycles, ${many} in the last ones`);
  // The guards of the last cycles find a longer journal, and the same memory, give or take what V8 does.
  const [first, last] = [median(guardKiB.slice(0, 10)), median(guardKiB.slice(-10))];
  assert.ok(last < first * 1.2, `${first} KiB in the first cycles, ${last} KiB in the last ones`);
});
