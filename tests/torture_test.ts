/** The cases of `deno task torture`: what has ever failed, again, and some seconds of new ones, always the same. */

import assert from "node:assert/strict";
import { makeCase } from "../tools/torture_cases.ts";
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
