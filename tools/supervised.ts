/**
 * `--run` at work: supervisors of stand-in agents, what they are compared to, and what the system says of both. Each
 * take starts all that it compares, so that a disturbance of the machine meets them alike.
 */

import assert from "node:assert/strict";
import {
  type Conf,
  eventually,
  type Home,
  type Instance,
  killChild,
  type sshGuest,
  startAgent,
  within,
} from "../tests/helpers/mod.ts";
import type { Program, Row } from "./measure.ts";

type Command = Program["command"];
type Guest = Awaited<ReturnType<typeof sshGuest>>;
type Values = Readonly<Record<string, number>>;

/** Figures that are taken together, each for a row of its own: the n-th figure of every row is out of the n-th take. */
export function together(take: () => Promise<Values>): (name: string, unit: Row["unit"]) => Row {
  const takes: Promise<Values>[] = [];
  return (name, unit) => {
    let n = 0;
    return {
      unit,
      measure: async () => {
        const value = (await (takes[n++] ??= take()))[name];
        if (value === undefined) throw new Error(`there is no figure ${name}`);
        return value;
      },
    };
  };
}

/** What all takes need. */
export interface Bench {
  /** Called before anything is started: it does not come back once the benchmark was interrupted. */
  goOn(): Promise<void>;
  /** The guard. */
  readonly guard: Command;
  /** The environment in a home. */
  env(home: Home): Record<string, string>;
}

// --- what is started and runs until it is asked to end ----------------------------------------------------------------

/** A start is given up after this, and so is an end. */
const START_LIMIT_MS = 60_000;
/** What every further supervisor that starts at once may add: they start one after another. */
const TURN_LIMIT_MS = 4_000;
const END_LIMIT_MS = 120_000;

/** A program that runs until it gets a SIGTERM. On disposal it is killed. */
export class Resident implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #stderr: Promise<string>;
  readonly status: Promise<Deno.CommandStatus>;
  ended = false;

  constructor(readonly command: Command, home: Home, env: Record<string, string>) {
    const [path, ...args] = command;
    this.#child = new Deno.Command(path, {
      args,
      env,
      clearEnv: true,
      cwd: home.root,
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).spawn();
    this.#stderr = new Response(this.#child.stderr).text();
    this.status = this.#child.status.then((status) => (this.ended = true, status));
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** Sends SIGTERM; the seconds until it has ended. A program of this project must leave with the status 0 then. */
  async end({ isGraceful = true } = {}): Promise<number> {
    const asked = performance.now();
    this.#child.kill("SIGTERM");
    const { code } = await within(this.status, END_LIMIT_MS, () => `${this.command.join(" ")} has not ended`);
    const seconds = (performance.now() - asked) / 1000;
    if (isGraceful && code !== 0) await this.complain(code);
    return seconds;
  }

  async complain(code: number): Promise<never> {
    throw new Error(`${this.command.join(" ")}: status ${code}: ${await this.#stderr}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    killChild(this.#child);
    await this.status;
  }
}

/** A supervisor that has begun to start its instance; see `untilRunning`. */
function supervise(bench: Bench, instance: Instance): Resident {
  if (instance.has(JOURNAL)) instance.remove(JOURNAL);
  const { home } = instance;
  const command: Command = [
    ...bench.guard,
    "--run",
    instance.name,
    "--",
    home.limactl,
    "start",
    instance.name,
    "--foreground",
    "--tty=false",
  ];
  return new Resident(command, home, bench.env(home));
}

const JOURNAL = "lima-guard.jsonl";

async function untilRunning(supervisor: Resident, instance: Instance, limitMs = START_LIMIT_MS): Promise<void> {
  await eventually(async () => {
    if (supervisor.ended) return await supervisor.complain((await supervisor.status).code);
    assert.match(instance.read(JOURNAL) ?? "", /"event":"running"/, `${instance.name} is not Running`);
  }, { withinMs: limitMs });
}

/** A supervisor whose instance is Running, and whose session with the guest is open. */
async function supervised(bench: Bench, instance: Instance, guest: Guest): Promise<Resident> {
  await bench.goOn();
  const before = guest.log().length;
  const supervisor = supervise(bench, instance);
  try {
    await untilRunning(supervisor, instance);
    await eventually(() => assert.ok(guest.log().length > before, "there is no session with the guest"));
    return supervisor;
  } catch (error) {
    await supervisor[Symbol.asyncDispose]();
    throw error;
  }
}

/** A `deno run` that only waits. */
function idleDeno(home: Home, env: Record<string, string>): Resident {
  const file = `${home.root}/waits.ts`;
  Deno.writeTextFileSync(file, "setInterval(() => {}, 2 ** 30);\n");
  return new Resident([Deno.execPath(), "run", "-A", file], home, env);
}

// --- one take each ----------------------------------------------------------------------------------------------------

/** An instance, and the guest of its session. */
interface WithGuest {
  readonly instance: Instance;
  readonly guest: Guest;
}

/** The seconds from SIGTERM to the end: of the host agent alone, and of `--run` over the same agent. */
export async function stops(bench: Bench, { instance, guest }: WithGuest): Promise<Values> {
  await bench.goOn();
  await using agent = await startAgent(instance);
  const began = performance.now();
  agent.signal("SIGTERM");
  const { code } = await within(agent.status, END_LIMIT_MS, () => "the host agent has not ended");
  const alone = (performance.now() - began) / 1000;
  if (code !== 0) throw new Error(`the host agent ended with status ${code}: ${instance.log().join("\n")}`);
  const before = guest.log().length;
  await using supervisor = await supervised(bench, instance, guest);
  const over = await supervisor.end();
  // Not the stage that the guard names: so fast a guest may be off before it looks for the first time.
  const asked = guest.log().slice(before);
  assert.ok(asked.includes("systemctl poweroff"), `the session was of no use: ${asked.join("\n")}`);
  return { alone, over };
}

type Residents = Readonly<Record<"deno" | "run", Resident>>;

/** Starts a supervisor and a `deno run` that only waits, and hands both over; then they are ended. */
async function atRest(
  bench: Bench,
  { instance, guest }: WithGuest,
  work: (residents: Residents) => Promise<Values>,
): Promise<Values> {
  await using run = await supervised(bench, instance, guest);
  await bench.goOn();
  await using deno = idleDeno(instance.home, bench.env(instance.home));
  const values = await work({ deno, run });
  await run.end();
  await deno.end({ isGraceful: false });
  return values;
}

/** In MiB, after a rest. */
export function memoryAtRest(bench: Bench, withGuest: WithGuest, restS: number): Promise<Values> {
  return atRest(bench, withGuest, async ({ deno, run }) => {
    await pause(restS * 1000);
    return { deno: memoryOf(deno.pid), run: memoryOf(run.pid) };
  });
}

/** Before anything is counted: compilers and the first attempts are through. */
const SETTLE_MS = 5_000;

export function callsAtRest(
  bench: Bench,
  withGuest: WithGuest,
  { minutes, strace }: { minutes: number; strace: string },
): Promise<Values> {
  const { home } = withGuest.instance;
  return atRest(bench, withGuest, async (residents) => {
    await pause(SETTLE_MS);
    await using undo = new AsyncDisposableStack();
    await bench.goOn();
    const traces = Object.entries(residents).map(([name, { pid }]) => {
      const log = `${home.root}/strace-${pid}`;
      const command: Command = [strace, "-f", "-c", "-o", log, "-p", String(pid)];
      return { name, log, trace: undo.use(new Resident(command, home, bench.env(home))) };
    });
    await pause(minutes * 60_000);
    const values: Record<string, number> = {};
    for (const { name, log, trace } of traces) {
      if (trace.ended) await trace.complain((await trace.status).code);
      await trace.end({ isGraceful: false }); // it ends itself by the same signal
      values[name] = callsIn(Deno.readTextFileSync(log));
    }
    return values;
  });
}

/** After the last one is Running. */
const CROWD_REST_S = 5;

/** `stopped`: the seconds from SIGTERM to the last end of so many supervisors. */
export async function lastEndOf(
  bench: Bench,
  home: Home,
  { count, conf }: { count: number; conf: Conf },
): Promise<Values> {
  await bench.goOn();
  await using undo = new AsyncDisposableStack();
  const born = performance.now();
  const instances = Array.from({ length: count }, (_, i) => home.instance(`i${i}`, { conf }));
  const supervisors = instances.map((instance) => undo.use(supervise(bench, instance)));
  const limitMs = START_LIMIT_MS + count * TURN_LIMIT_MS;
  for (const [i, supervisor] of supervisors.entries()) {
    await untilRunning(supervisor, instances[i]!, limitMs - (performance.now() - born));
  }
  await pause(CROWD_REST_S * 1000);
  return { stopped: Math.max(...await Promise.all(supervisors.map((supervisor) => supervisor.end()))) };
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

// --- what the system says ---------------------------------------------------------------------------------------------

/** What is looked at: what no other process shares, where the system tells that. */
export const MEMORY = Deno.build.os === "linux" ? "private" : "resident";

/** In MiB. */
function memoryOf(pid: number): number {
  if (MEMORY === "resident") return Number(textOf("ps", "-o", "rss=", "-p", String(pid))) / 1024;
  const lines = Deno.readTextFileSync(`/proc/${pid}/smaps_rollup`).matchAll(/^Private_(?:Clean|Dirty): +(\d+) kB$/gm);
  return [...lines].reduce((sum, [, kib]) => sum + Number(kib), 0) / 1024;
}

function textOf(command: string, ...args: string[]): string {
  return new TextDecoder().decode(new Deno.Command(command, { args, stdin: "null" }).outputSync().stdout).trim();
}

/** The last line of strace's table: share, seconds, microseconds per call, calls, errors (if any), `total`. */
function callsIn(summary: string): number {
  const total = /^\s*100\.00\s+[\d.]+\s+(?:\d+\s+)?(\d+)\s+(?:\d+\s+)?total$/m.exec(summary)?.[1];
  if (total === undefined && summary.trim() !== "") throw new Error(`strace said: ${summary}`);
  return Number(total ?? 0);
}

/** Why strace cannot count here; undefined where it can. */
export function whyNoStrace(strace: string | undefined): string | undefined {
  if (strace === undefined) return "strace is not installed";
  // 1 and more: only a parent may trace, or no process at all.
  const scope = Number(quietly("/proc/sys/kernel/yama/ptrace_scope") ?? 0);
  return scope > 0 && Deno.uid() !== 0 ? `kernel.yama.ptrace_scope is ${scope}` : undefined;
}

/** What so many supervisors may need at most, if nothing of theirs were shared. */
const BYTES_EACH = 100_000_000;

/** Why so many supervisors cannot be had; undefined where they can. */
export function whyNoRoomFor(supervisors: number): string | undefined {
  const isTooMuch = supervisors * BYTES_EACH > Deno.systemMemoryInfo().available / 2;
  return isTooMuch ? `${supervisors} supervisors might need more than half of the free memory` : undefined;
}

function quietly(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return undefined; // a kernel without it, or a thread that has ended
  }
}
