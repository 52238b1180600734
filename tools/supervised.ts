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
import type { Program, Row, Unit } from "./measure.ts";

type Command = Program["command"];
type Guest = Awaited<ReturnType<typeof sshGuest>>;
export type Values = Readonly<Record<string, number>>;

/** Figures that are taken together, each for a row of its own: the n-th figure of every row is out of the n-th take. */
export function together(take: () => Promise<Values>): (name: string, unit: Unit) => Row {
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
/** Of a program that has no answer to SIGTERM. */
const TERMINATED = 128 + 15;

/** A program that runs until it gets a SIGTERM. On disposal it is killed. */
export class Resident implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #stderr: Promise<string>;
  readonly #status: Promise<Deno.CommandStatus>;
  ended = false;

  constructor(readonly command: Command, { home, env }: { home: Home; env: Bench["env"] }, readonly status: number) {
    const [path, ...args] = command;
    const io = { stdin: "null", stdout: "null", stderr: "piped" } as const;
    this.#child = new Deno.Command(path, { args, env: env(home), clearEnv: true, cwd: home.root, ...io }).spawn();
    this.#stderr = new Response(this.#child.stderr).text();
    this.#status = this.#child.status.then((status) => (this.ended = true, status));
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** Sends SIGTERM; the seconds until it has ended, with the status that it must leave with then. */
  async end(): Promise<number> {
    const asked = performance.now();
    this.#child.kill("SIGTERM");
    const { code } = await within(this.#status, END_LIMIT_MS, () => `${this.command.join(" ")} has not ended`);
    const seconds = (performance.now() - asked) / 1000;
    if (code !== this.status) await this.complain();
    return seconds;
  }

  async complain(): Promise<never> {
    throw new Error(`${this.command.join(" ")}: status ${(await this.#status).code}: ${await this.#stderr}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    killChild(this.#child);
    await this.#status;
    await this.#stderr;
  }
}

const JOURNAL = "lima-guard.jsonl";

/** A supervisor that has begun to start its instance; see `untilRunning`. */
function supervise({ guard, env }: Bench, instance: Instance): Resident {
  if (instance.has(JOURNAL)) instance.remove(JOURNAL);
  const { home, name } = instance;
  const start = [home.limactl, "start", name, "--foreground", "--tty=false"];
  return new Resident([...guard, "--run", name, "--", ...start], { home, env }, 0);
}

async function untilRunning(supervisor: Resident, instance: Instance, limitMs = START_LIMIT_MS): Promise<void> {
  await eventually(async () => {
    if (supervisor.ended) return await supervisor.complain();
    assert.match(instance.read(JOURNAL) ?? "", /"event":"running"/, `${instance.name} is not Running`);
  }, { withinMs: limitMs });
}

/** An instance, and the guest of its session. */
export interface WithGuest {
  readonly instance: Instance;
  readonly guest: Guest;
}

/** A supervisor whose instance is Running, and whose session with the guest is open. */
export async function supervised(bench: Bench, { instance, guest }: WithGuest): Promise<Resident> {
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

/** A program that only waits. */
export async function waiting({ goOn, env }: Bench, home: Home, command: Command): Promise<Resident> {
  await goOn();
  return new Resident(command, { home, env }, TERMINATED);
}

// --- one take each ----------------------------------------------------------------------------------------------------

/** The seconds from SIGTERM to the end: of the host agent alone, and of `--run` over the same agent. */
export async function stops(bench: Bench, withGuest: WithGuest): Promise<Values> {
  const { instance, guest } = withGuest;
  await bench.goOn();
  await using agent = await startAgent(instance);
  const began = performance.now();
  agent.signal("SIGTERM");
  const { code } = await within(agent.status, END_LIMIT_MS, () => "the host agent has not ended");
  const alone = (performance.now() - began) / 1000;
  if (code !== 0) throw new Error(`the host agent ended with status ${code}: ${instance.log().join("\n")}`);
  const before = guest.log().length;
  await using supervisor = await supervised(bench, withGuest);
  const over = await supervisor.end();
  // Not the stage that the guard names: so fast a guest may be off before it looks for the first time.
  const asked = guest.log().slice(before);
  assert.ok(asked.includes("systemctl poweroff"), `the session was of no use: ${asked.join("\n")}`);
  return { alone, over };
}

/**
 * What is started, by its name: `NAME` is the memory in MiB that it has after a rest, `NAME calls` the system calls that
 * it makes in the seconds after that.
 */
export async function atRest(
  bench: Bench,
  starts: Readonly<Record<string, () => Promise<Resident>>>,
  { restS, idleS, strace }: { restS: number; idleS: number; strace: string | undefined },
): Promise<Values> {
  await using undo = new AsyncDisposableStack();
  const residents: [string, Resident][] = [];
  for (const [name, start] of Object.entries(starts)) residents.push([name, undo.use(await start())]);
  await pause(restS * 1000);
  const values: Record<string, number> = {};
  for (const [name, { pid }] of residents) values[name] = memoryOf(pid);
  if (strace !== undefined) {
    const { goOn, env } = bench;
    const dir = Deno.makeTempDirSync({ prefix: "lg-strace-" });
    undo.defer(() => Deno.removeSync(dir, { recursive: true }));
    await goOn();
    const traces = residents.map(([name, { pid }]) => {
      // It ends itself by the signal that it gets.
      const command: Command = [strace, "-f", "-c", "-o", `${dir}/${name}`, "-p", String(pid)];
      return { name, trace: undo.use(new Resident(command, { home: { root: dir } as Home, env }, TERMINATED)) };
    });
    await pause(idleS * 1000);
    for (const { name, trace } of traces) {
      await trace.end();
      values[`${name} calls`] = callsIn(Deno.readTextFileSync(`${dir}/${name}`));
    }
  }
  for (const [, resident] of residents) await resident.end();
  return values;
}

/** After the last one is Running. */
const CROWD_REST_S = 3;

/** `stopped`: the seconds from SIGTERM to the last end of so many supervisors. */
export async function lastEndOf(bench: Bench, home: Home, many: { count: number; conf: Conf }): Promise<Values> {
  await bench.goOn();
  await using undo = new AsyncDisposableStack();
  const born = performance.now();
  const instances = Array.from({ length: many.count }, (_, i) => home.instance(`i${i}`, { conf: many.conf }));
  const supervisors = instances.map((instance) => undo.use(supervise(bench, instance)));
  const limitMs = START_LIMIT_MS + many.count * TURN_LIMIT_MS;
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

/** In MiB: what no other process shares, where the system tells that; else the resident set. */
function memoryOf(pid: number): number {
  if (Deno.build.os !== "linux") return Number(textOf("ps", "-o", "rss=", "-p", String(pid))) / 1024;
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

/** What a supervisor may need at most, if nothing of it were shared. */
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
    return undefined; // a kernel without it
  }
}
