/** Fifty starts and stops of `--run`: nothing is left after any of them, and nothing grows. */

import assert from "node:assert/strict";
import { cycles, median } from "../tools/cycles.ts";

Deno.test("fifty starts and stops leave nothing behind", async () => {
  const { cycles: done, guardDescriptors, guardThreads, guardKiB, own } = await cycles(50, 5);
  assert.equal(done, 50);
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
