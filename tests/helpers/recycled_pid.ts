/**
 * A PID that really changes hands: `recycled_pid.ts WHO SIGNAL`, run as the first process of a PID namespace of its own,
 * where it may choose which number comes next. A host agent is being stopped; when the guard is about to ask ps for the
 * last time before it sends SIGNAL, the agent ends, and its number goes to WHO: `another program` or `another host
 * agent`. Prints what became of that one, as JSON.
 */

import assert from "node:assert/strict";
import { guardWith, meanwhile, type Stay } from "./guard_with.ts";
import { eventually, isAlive, spawnGuard, startAgent, startBystander, tempLimaHome } from "./mod.ts";

interface Heir extends AsyncDisposable {
  readonly pid: number;
  signals(): string[];
}

const [who, signal] = Deno.args;

await using home = await tempLimaHome();
const k3s = home.instance("k3s", { conf: { stop: "hang" } });
const other = home.instance("k3s-2");
await using agent = await startAgent(k3s);
const { pid } = agent;

/** In its log an agent tells which signal ended it. */
async function otherAgent(): Promise<Heir> {
  const heir = await startAgent(other, { until: "spawned" });
  const signals = () => other.log().filter((line) => line.startsWith("Received SIG"));
  return { pid: heir.pid, signals, [Symbol.asyncDispose]: () => heir[Symbol.asyncDispose]() };
}

/** Numbers are given out in turn, and others are born too: so it is tried until it comes right. */
async function heirOf(pid: number): Promise<Heir> {
  for (let tries = 1; tries <= 50; tries++) {
    Deno.writeTextFileSync("/proc/sys/kernel/ns_last_pid", String(pid - 1));
    const heir = who === "another program" ? await startBystander(home) : await otherAgent();
    if (heir.pid === pid) return heir;
    await heir[Symbol.asyncDispose]();
  }
  throw new Error(`no process got the PID ${pid}`);
}

// The guard stays before each ps. Its journal is written before each stage, and the first ps of a stage is the proof.
const log = `${home.root}/log`;
const stays: Stay[] = Array.from({ length: 40 }, (_, n) => (
  { at: "before run /bin/ps", nth: n + 1, file: `${home.root}/ps${n}` }
));
const linesBefore = signal === "SIGTERM" ? 2 : 3;
const noted = (what: RegExp) => Deno.readTextFileSync(log).split("\n").filter((line) => what.test(line));

await using guard = spawnGuard(home, ["--stop", "k3s", "--json", "--timeout", "6"], guardWith({ log, stays }));
let heir: Heir | undefined;
while (!heir) {
  const stay = stays.shift();
  if (!stay) throw new Error(`the guard never came to the proof\n${guard.stderr}`);
  await meanwhile(stay, async () => {
    if (noted(/ after append /).length < linesBefore) return;
    agent.signal("SIGKILL");
    await agent.status;
    heir = await heirOf(pid);
    if (who !== "another program") await eventually(() => assert.equal(other.pid("ha.pid"), pid));
  });
}
for (const { file } of stays) Deno.writeTextFileSync(`${file}.go`, "");
const { status, stderr } = await guard.result();
await using _ = heir;
const sent = noted(/ before signal /).map((line) => line.replace(/.* before signal /, ""));
const result = { pid, status, sent, signals: heir.signals(), isAlive: isAlive(pid), stderr };
Deno.stdout.writeSync(new TextEncoder().encode(`${JSON.stringify(result)}\n`));
