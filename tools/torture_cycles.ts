/**
 * `deno task torture --cycles N [--lanes N]`: so many starts and stops of `--run`, in so many lanes side by side (2
 * unless said). After each one nothing may be left: no process, no file but the known ones, no lock, no descriptor. Tells
 * what a cycle takes, and the memory of the guard in the first and in the last ones.
 *
 * Five kinds of cycles take turns, each with another end: vz and QEMU that are asked to stop, a host agent that is
 * killed, a lima-guard that is killed and whose agent the next one adopts, a stop during the boot.
 */

import assert from "node:assert/strict";
import {
  eventually,
  type Guest,
  type Home,
  type Instance,
  sshGuest,
  tempLimaHome,
  waitForExit,
  whyNoSshd,
} from "../tests/helpers/mod.ts";
import { agentPid, assertDown, hold, last, run, stopRun } from "../tests/launchd/run.ts";

export interface Result {
  readonly cycles: number;
  readonly seconds: readonly number[];
  /** Resident memory of each guard while its instance was Running, in KiB; empty off Linux. */
  readonly guardKiB: readonly number[];
  /** How many descriptors each of these guards had open. */
  readonly guardDescriptors: readonly number[];
  /** And how many threads. */
  readonly guardThreads: readonly number[];
  /** Of this process, before and after. */
  readonly own: { readonly before: Self; readonly after: Self };
}

interface Self {
  readonly descriptors: number;
  readonly threads: number;
  readonly KiB: number;
}

/** What may be in an instance's directory while it is down. */
const KNOWN = new Set([
  "disk",
  "ha.stderr.log",
  "ha.stdout.log",
  "lima-guard.1.jsonl",
  "lima-guard.jsonl",
  "lima-guard.lock",
  "lima-guard.previous",
  "lima-version",
  "lima.yaml",
  "ssh.config",
]);

/** Runs them; throws at the first thing that is left over. */
export async function cycles(count: number, lanes = 2): Promise<Result> {
  const all: Cycle[] = [];
  const before = self();
  let begun = 0;
  const lane = async () => {
    await using home = await tempLimaHome();
    const vm = home.instance("vm");
    await using guest = whyNoSshd() === undefined ? await sshGuest(vm) : undefined;
    const here = new Set(names(home.root));
    const others = new Set(home.processes());
    for (let turn = 0; begun < count; turn++) {
      const n = begun++;
      try {
        all.push(await oneCycle(vm, guest, turn));
        await assertNothingLeft(home, vm, here, others);
      } catch (error) {
        throw new Error(`cycle ${n}, ${KINDS[turn % KINDS.length]!.name}`, { cause: error });
      }
    }
  };
  await Promise.all(Array.from({ length: lanes }, lane));
  const seen = all.flatMap(({ seen }) => seen ?? []);
  return {
    cycles: all.length,
    seconds: all.map(({ seconds }) => seconds),
    guardKiB: seen.map(({ KiB }) => KiB),
    guardDescriptors: seen.map(({ descriptors }) => descriptors),
    guardThreads: seen.map(({ threads }) => threads),
    own: { before, after: self() },
  };
}

interface Cycle {
  readonly seconds: number;
  /** Of the guard, where its instance came to be Running. */
  readonly seen?: Self;
}

async function oneCycle(vm: Instance, guest: Guest | undefined, turn: number): Promise<Cycle> {
  const kind = KINDS[turn % KINDS.length]!;
  const began = performance.now();
  const seen = await kind(vm, guest);
  return { seconds: (performance.now() - began) / 1000, ...seen ? { seen } : {} };
}

type Kind = (vm: Instance, guest: Guest | undefined) => Promise<Self | undefined>;

/** Started, Running, stopped, and clean. */
async function upAndDown(vm: Instance, conf: Record<string, string>): Promise<Self | undefined> {
  vm.conf({ boot_ms: "", ...conf });
  await using guard = run(vm);
  await guard.waitForLine(/Running after/, { withinMs: 30_000 });
  const seen = await settled(guard.pid);
  const { status, stderr } = await stopRun(guard, 70_000);
  assert.equal(status, 0, stderr);
  assert.equal(vm.guestDisk(), "clean");
  return seen;
}

const KINDS: readonly Kind[] = [
  function vz(vm) {
    return upAndDown(vm, { vmtype: "vz" });
  },
  async function agentKilled(vm) {
    vm.conf({ vmtype: "vz", boot_ms: "" });
    await using guard = run(vm);
    await guard.waitForLine(/Running after/, { withinMs: 30_000 });
    const seen = await settled(guard.pid);
    Deno.kill(await agentPid(vm), "SIGKILL");
    const { status, stderr } = await guard.result();
    assert.equal(status, 137, stderr);
    return seen;
  },
  function qemu(vm) {
    return upAndDown(vm, { vmtype: "qemu" });
  },
  async function guardKilled(vm) {
    vm.conf({ vmtype: "vz", boot_ms: "" });
    await using guard = run(vm);
    await guard.waitForLine(/Running after/, { withinMs: 30_000 });
    guard.signal("SIGKILL");
    await guard.status;
    await using next = run(vm);
    await next.waitForLine(/is adopted/, { withinMs: 30_000 });
    const pid = await agentPid(vm);
    const { status, stderr } = await stopRun(next, 70_000);
    assert.equal(status, 0, stderr);
    await waitForExit(pid);
    return undefined;
  },
  async function stoppedInBoot(vm) {
    vm.conf({ vmtype: "vz", boot_ms: "60000" });
    await using guard = run(vm, { flags: ["--timeout", "4"] });
    await eventually(() => assert.ok(vm.pid("vz.pid")), { withinMs: 30_000 });
    const { status, stderr } = await stopRun(guard);
    assert.equal(status, 0, stderr);
    assert.equal(last(vm, "end").requested, true);
    return undefined;
  },
];

async function assertNothingLeft(home: Home, vm: Instance, here: Set<string>, others: Set<string>): Promise<void> {
  // A session with the guest that was just being opened ends with the guard's end of it.
  await eventually(() => assertDown(vm));
  // Sessions of the guest's sshd take a moment to notice that their client is gone.
  await eventually(() => {
    const left = home.processes().filter((line) => !others.has(line) && !/sshd|guest-shell/.test(line));
    assert.deepEqual(left, [], "processes");
  });
  assert.deepEqual(vm.files().filter((file) => !KNOWN.has(file)), [], "files of the instance");
  assert.deepEqual(names(home.root).filter((name) => !here.has(name)), [], "files beside LIMA_HOME");
  const mine = ["_config", "_lima-guard", "vm"];
  assert.deepEqual(names(home.lima).filter((name) => !mine.includes(name)), [], "files in LIMA_HOME");
  assert.deepEqual(names(`${home.lima}/_lima-guard`), ["start.lock"]);
  for (const lock of [vm.path("lima-guard.lock"), `${home.lima}/_lima-guard/start.lock`]) hold(lock)[Symbol.dispose]();
}

function names(dir: string): string[] {
  return [...Deno.readDirSync(dir)].map(({ name }) => name).sort();
}

function of(pid: number | "self"): Self | undefined {
  if (Deno.build.os !== "linux") return undefined;
  const KiB = Number(/^VmRSS:\s+(\d+)/m.exec(Deno.readTextFileSync(`/proc/${pid}/status`))![1]);
  return { descriptors: names(`/proc/${pid}/fd`).length, threads: names(`/proc/${pid}/task`).length, KiB };
}

/** What a process has once that stays the same for ten looks: while it opens its session to the guest it has some more. */
async function settled(pid: number): Promise<Self | undefined> {
  let [last, same] = [of(pid), 0];
  await eventually(() => {
    const now = of(pid);
    same = now?.descriptors === last?.descriptors ? same + 1 : 0;
    last = now;
    assert.ok(same >= 10, "its descriptors still change");
  });
  return last;
}

function self(): Self {
  return of("self") ?? { descriptors: 0, threads: 0, KiB: 0 };
}

export function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;
}

/** The figures for people. */
export function tell(result: Result): string {
  const { seconds, guardKiB, guardDescriptors, guardThreads, own } = result;
  const MiB = (KiB: number) => (KiB / 1024).toFixed(1);
  const tenth = Math.max(1, Math.floor(guardKiB.length / 10));
  const rows = [
    ["cycles", `${result.cycles}, and nothing was left after any of them`],
    ["seconds a cycle", `median ${median(seconds).toFixed(2)}, longest ${Math.max(...seconds).toFixed(2)}`],
    [
      "the guard's memory, MiB",
      `first tenth ${MiB(median(guardKiB.slice(0, tenth)))}, last tenth ${MiB(median(guardKiB.slice(-tenth)))}`,
    ],
    ["the guard's descriptors", `at most ${Math.max(...guardDescriptors)}`],
    ["the guard's threads", `median ${median(guardThreads)}, at most ${Math.max(...guardThreads)}`],
    ["of this process", `descriptors ${own.before.descriptors} → ${own.after.descriptors}`],
    ["", `threads ${own.before.threads} → ${own.after.threads}`],
    ["", `memory ${MiB(own.before.KiB)} → ${MiB(own.after.KiB)} MiB`],
  ];
  return rows.map(([name, value]) => `${name!.padEnd(25)}${value}\n`).join("");
}
