/** The program of `--on-event`: what it gets, and that no stop waits for it. */

import assert from "node:assert/strict";
import { EVENT_SCRIPT, eventsOf } from "../lima_guard.ts";
import { startAgent } from "./helpers/agents.ts";
import { runGuard } from "./helpers/guard.ts";
import { test } from "./helpers/pre.ts";
import { eventually } from "./helpers/processes.ts";

const LINE = { time: "", boot: "b", dir: "/h/k3s", role: "run" };
for (
  const [line, before, events] of [
    [{ event: "pre", status: 0 }, undefined, ["repaired"]],
    [{ event: "pre", status: 1 }, undefined, []],
    [{ event: "start" }, undefined, ["started"]],
    [{ event: "start" }, { event: "end" }, ["started"]],
    [{ event: "start" }, { event: "start" }, ["cut off", "started"]],
    [{ event: "start", adopted: true }, { event: "start" }, ["started"]],
    [{ event: "running" }, undefined, ["running"]],
    [{ event: "end", stage: "guest" }, undefined, ["stopped"]],
    [{ event: "end", stage: "killed" }, undefined, ["killed"]],
    [{ event: "end", stage: "agent", cut: "vz: CanRequestStop is not supported" }, undefined, ["killed"]],
    [{ event: "end", stage: "unknown" }, undefined, ["killed"]],
    [{ event: "end", status: 1 }, undefined, ["ended"]],
    [{ event: "stage", stage: "killed" }, undefined, []],
  ] as const
) {
  Deno.test(`event of ${JSON.stringify(line)} after ${before?.event}`, () => {
    assert.deepEqual(eventsOf({ ...LINE, ...line }, before && { ...LINE, ...before }), events);
  });
}

/** A program for --on-event. */
function program(root: string, body: string): string {
  Deno.writeTextFileSync(`${root}/event`, `#!/bin/sh\n${body}\n`, { mode: 0o755 });
  return `${root}/event`;
}

test("a repair and a stop are announced, with the journal's line on stdin", async ({ home, k3s }) => {
  const path = program(
    home.root,
    `{ env | grep ^LIMA_GUARD_; cat; } >"$0.$LIMA_GUARD_EVENT.new"
mv "$0.$LIMA_GUARD_EVENT.new" "$0.$LIMA_GUARD_EVENT"`,
  );
  const read = (event: string) => eventually(() => Deno.readTextFileSync(`${path}.${event}`));
  k3s.write("ha.pid", "4194000\n");
  assert.equal((await runGuard(home, ["--pre", "k3s", "--on-event", path])).status, 0);
  const repaired = await read("repaired");
  assert.match(repaired, /^LIMA_GUARD_INSTANCE=k3s$/m);
  assert.ok(repaired.includes(`LIMA_GUARD_HOME=${home.lima}\n`), repaired);
  assert.match(repaired, /^LIMA_GUARD_STATUS=0$/m);
  assert.equal(JSON.parse(repaired.trim().split("\n").at(-1)!).event, "pre");
  await using _ = await startAgent(k3s);
  assert.equal((await runGuard(home, ["--stop", "k3s", "--on-event", path])).status, 0);
  const stopped = await read("stopped");
  assert.match(stopped, /^LIMA_GUARD_STAGE=agent$/m);
  assert.match(stopped, /^LIMA_GUARD_SECONDS=[\d.]+$/m);
});

test("a stop does not wait for a program that hangs, floods and ignores SIGTERM", async ({ home, k3s }) => {
  const path = program(home.root, `trap '' TERM HUP INT; echo $$ >"$0.pid"; while :; do echo flood; sleep 0.1; done`);
  await using _ = await startAgent(k3s);
  const { status, stdout } = await runGuard(home, ["--stop", "k3s", "--on-event", path], { timeoutMs: 20_000 });
  assert.equal(status, 0, stdout);
  const pid = await eventually(() => Number(/^\d+/.exec(Deno.readTextFileSync(`${path}.pid`))![0]));
  Deno.kill(pid, "SIGKILL");
});

test("a program that ignores SIGTERM is ended with all its children at the limit", async ({ home }) => {
  const path = program(home.root, "trap '' TERM; sleep 1000 & wait; wait");
  const child = new Deno.Command("/bin/sh", {
    args: ["-c", EVENT_SCRIPT, path, "{}", "1"],
    detached: true,
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  // The pipe ends when the last of them has.
  const { signal, stdout } = await child.output();
  assert.equal(signal, "SIGKILL");
  assert.equal(new TextDecoder().decode(stdout), "", "it had no end of its own");
});

test("a program that is not there is a usage error", async ({ home }) => {
  const { status, stderr } = await runGuard(home, ["--pre", "k3s", "--on-event", "/not/there"]);
  assert.equal(status, 64);
  assert.match(stderr, /Cannot find the program of --on-event: .not.there/);
});
