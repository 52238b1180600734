/** What people read: times, the line of a wait, and each reason once. Nothing is started here. */

import assert from "node:assert/strict";
import { formatDetails, journalWords, logLine, progressLine } from "../lima_guard.ts";

const NOON = { wallMs: () => Date.UTC(2026, 10, 27, 12, 5, 9, 7) };

Deno.test("a log line has date and time where stderr is no terminal", () => {
  assert.equal(logLine({ ...NOON, columns: () => undefined }, "x"), "2026-11-27T12:05:09.007Z lima-guard: x\n");
  assert.equal(logLine({ ...NOON, columns: () => 80 }, "x"), "lima-guard: x\n");
});

Deno.test("the line of a wait never reaches the last column", () => {
  const waits = ["alpha", "beta", "gamma"].map((name, i) => ({ name, stage: i ? "agent" : "guest", leftS: 30 + i }));
  const whole = "alpha: guest, 30 s left · beta: agent, 31 s left · gamma: agent, 32 s left";
  assert.equal(progressLine(waits, 200), whole);
  assert.equal(progressLine(waits, whole.length + 1), whole);
  assert.equal(progressLine(waits, whole.length), "3 instances: 1 in guest, 2 in agent, 32 s left");
  assert.equal(progressLine(waits.slice(0, 1), 10), "alpha: gu");
  for (let columns = 0; columns < 90; columns++) {
    assert.ok(progressLine(waits, columns).length <= Math.max(0, columns - 1), `${columns} columns`);
  }
});

Deno.test("a line of the journal has the time of the local clock", () => {
  const running = (time: string) => journalWords({ time, boot: "b", dir: "/d", role: "run", event: "running" });
  assert.equal(running(new Date(2026, 10, 26, 23, 1, 28, 802).toISOString()), "2026-11-26 23:01:28  --run: running");
  assert.equal(running("yesterday"), "yesterday  --run: running");
});

Deno.test("--status prints each reason once", () => {
  const because = "PID 7 is dead";
  const what = "/h/k3s/vz.pid";
  const report = formatDetails({
    ...{ name: "k3s", state: "stale", status: 1, stage: null, seconds: {}, notes: [{ what, because, hint: "do it" }] },
    ...{ summary: `stale: ${because}`, blockers: [{ what, because }] },
    steps: [{ kind: "remove", what: "remove vz.pid", because, outcome: "planned" }],
    evidence: [{ file: what, holds: "7", verdict: "dead", because }],
  });
  assert.deepEqual(report, [
    "k3s: stale: PID 7 is dead",
    "  vz.pid (7): dead",
    "  --pre would remove vz.pid",
    "  look: /h/k3s/vz.pid",
    "  note: /h/k3s/vz.pid (hint: do it)",
  ]);
});
