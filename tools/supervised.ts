/**
 * `--run` at work: supervisors of stand-in agents, what they are compared to, and what the system says of both. Each
 * take starts all that it compares, so that a disturbance of the machine meets them alike.
 */

import assert from "node:assert/strict";
import {
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

/** A supervisor whose instance is Running and, where there is a guest, whose line to it is there. */
async function supervised(bench: Bench, instance: Instance, guest?: Guest): Promise<Resident> {
  await bench.goOn();
  const before = guest?.log().length ?? 0;
  const supervisor = supervise(bench, instance);
  try {
    await untilRunning(supervisor, instance);
    await eventually(() => assert.ok(!guest || guest.log().length > before, "there is no line to the guest"));
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

const WAITING = ["sleep", "1000000"] as const;

// --- one take each ----------------------------------------------------------------------------------------------------

/** From the start of a program, which a prefix starts, to the moment that its first word names, in milliseconds. */
export function untilFirstWord(prefix: readonly string[], home: Home, env: Record<string, string>): number {
  const stamp = ["perl", "-MTime::HiRes=time", "-e", 'printf "%.3f\\n", time'];
  const [path = "", ...args] = [...prefix, ...stamp];
  const started = Date.now();
  const { code, stdout, stderr } = new Deno.Command(path, { args, env, clearEnv: true, cwd: home.root, stdin: "null" })
    .outputSync();
  const word = new TextDecoder().decode(stdout).trim();
  if (code !== 0 || !/^\d+\.\d+$/.test(word)) {
    throw new Error(`${path} ${args.join(" ")}: status ${code}: ${word} ${new TextDecoder().decode(stderr)}`);
  }
  return Number(word) * 1000 - started;
}

/** The seconds from SIGTERM to the end: of the host agent alone, and of `--run` over the same agent. */
export async function stops(bench: Bench, instance: Instance, guest?: Guest): Promise<Values> {
  await bench.goOn();
  await using agent = await startAgent(instance);
  const began = performance.now();
  agent.signal("SIGTERM");
  const { code } = await within(agent.status, END_LIMIT_MS, () => "the host agent has not ended");
  const alone = (performance.now() - began) / 1000;
  if (code !== 0) throw new Error(`the host agent ended with status ${code}: ${instance.log().join("\n")}`);
  const before = guest?.log().length;
  await using supervisor = await supervised(bench, instance, guest);
  const over = await supervisor.end();
  // Not the stage that the guard names: so fast a guest may be off before it looks for the first time.
  const asked = guest?.log().slice(before);
  assert.ok(!asked || asked.includes("systemctl poweroff"), `the line was of no use: ${asked?.join("\n")}`);
  return { alone, over, added: over - alone };
}

/** Programs at rest, by the names of their rows. */
export interface AtRest {
  readonly home: Home;
  readonly supervisors: Readonly<Record<string, { bench: Bench; instance: Instance; guest?: Guest }>>;
  /** Prefixes of a command that only waits: other supervisors. */
  readonly others: Readonly<Record<string, Command>>;
  /** The row of a `deno run` that only waits. */
  readonly deno: string;
}

/** Starts them all, and hands them over. Then all are ended; the supervisors in an orderly way. */
async function atRest(
  what: AtRest,
  bench: Bench,
  work: (residents: Readonly<Record<string, Resident>>) => Promise<Values>,
): Promise<Values> {
  await using undo = new AsyncDisposableStack();
  const residents: Record<string, Resident> = {};
  for (const [name, { bench, instance, guest }] of Object.entries(what.supervisors)) {
    residents[name] = undo.use(await supervised(bench, instance, guest));
  }
  await bench.goOn();
  const env = bench.env(what.home);
  residents[what.deno] = undo.use(idleDeno(what.home, env));
  for (const [name, prefix] of Object.entries(what.others)) {
    residents[name] = undo.use(new Resident([...prefix, ...WAITING], what.home, env));
  }
  const values = await work(residents);
  for (const [name, resident] of Object.entries(residents)) {
    await resident.end({ isGraceful: name in what.supervisors });
  }
  return values;
}

/** `RSS ROW` and `PSS ROW` in MiB, after a rest. */
export function memoryAtRest(what: AtRest, bench: Bench, restS: number): Promise<Values> {
  return atRest(what, bench, async (residents) => {
    await pause(restS * 1000);
    return Object.fromEntries(
      Object.entries(residents).flatMap(([name, { pid }]) =>
        Object.entries(memoryOf(pid)).map(([kind, MiB]) => [`${kind} ${name}`, MiB])
      ),
    );
  });
}

/** Before anything is counted: compilers and the first attempts are through. */
const SETTLE_MS = 5_000;

/** `CPU ROW` in ms, `CPU+ ROW` with children that have ended, `switches ROW`; `calls ROW` of those that are traced. */
export function usedAtRest(
  what: AtRest,
  bench: Bench,
  { minutes, traced, strace }: { minutes: number; traced: readonly string[]; strace: string | undefined },
): Promise<Values> {
  return atRest(what, bench, async (residents) => {
    await pause(SETTLE_MS);
    await using undo = new AsyncDisposableStack();
    await bench.goOn();
    const traces = strace === undefined ? [] : traced.map((name) => {
      const log = `${what.home.root}/strace-${residents[name]!.pid}`;
      const command: Command = [strace, "-f", "-c", "-o", log, "-p", String(residents[name]!.pid)];
      return { name, log, trace: undo.use(new Resident(command, what.home, bench.env(what.home))) };
    });
    const others = Object.entries(residents).filter(([name]) => !traced.includes(name));
    const before = others.map(([, { pid }]) => ({ used: usedBy(pid), switches: switchesOf(pid) }));
    await pause(minutes * 60_000);
    const values: Record<string, number> = {};
    others.forEach(([name, { pid }], i) => {
      const { used, switches } = before[i]!;
      for (const [kind, value] of Object.entries(usedBy(pid))) values[`${kind} ${name}`] = value - used[kind]!;
      // A thread that has ended has taken its count along.
      const more = [...switchesOf(pid)].map(([thread, count]) => count - (switches.get(thread) ?? 0));
      values[`switches ${name}`] = more.reduce((sum, count) => sum + count, 0);
    });
    for (const { name, log, trace } of traces) {
      if (trace.ended) await trace.complain((await trace.status).code);
      await trace.end({ isGraceful: false }); // it ends itself by the same signal
      values[`calls ${name}`] = callsIn(Deno.readTextFileSync(log));
    }
    return values;
  });
}

/** `started`: seconds until all are Running; `MiB`: the sum of their memory; `stopped`: from SIGTERM to the last end. */
export async function crowdOfSupervisors(bench: Bench, instances: readonly Instance[], restS: number): Promise<Values> {
  await bench.goOn();
  await using undo = new AsyncDisposableStack();
  const born = performance.now();
  const supervisors = instances.map((instance) => undo.use(supervise(bench, instance)));
  const limitMs = START_LIMIT_MS + instances.length * TURN_LIMIT_MS;
  for (const [i, supervisor] of supervisors.entries()) {
    await untilRunning(supervisor, instances[i]!, limitMs - (performance.now() - born));
  }
  const started = (performance.now() - born) / 1000;
  await pause(restS * 1000);
  const memories = supervisors.map(({ pid }) => memoryOf(pid));
  const stopped = Math.max(...await Promise.all(supervisors.map((supervisor) => supervisor.end())));
  const sum = memories.reduce((sum, { RSS = NaN, PSS = RSS }) => sum + PSS, 0);
  return { started, MiB: sum, "MiB each": sum / instances.length, stopped };
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

// --- what the system says ---------------------------------------------------------------------------------------------

/** In MiB. PSS shares out what several processes have in common; only Linux tells it. */
function memoryOf(pid: number): Values {
  if (Deno.build.os !== "linux") return { RSS: Number(psOf(pid, "rss")) / 1024 };
  const text = Deno.readTextFileSync(`/proc/${pid}/smaps_rollup`);
  const of = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(text)?.[1]) / 1024;
  return { RSS: of("Rss"), PSS: of("Pss") };
}

/** CPU time in ms; with the children that it has waited for, only Linux tells it. */
function usedBy(pid: number): Values {
  if (Deno.build.os !== "linux") {
    const fields = psOf(pid, "time").split(/[-:]/).map(Number); // [[DAYS-]HOURS:]MINUTES:SECONDS.HUNDREDTHS
    const [seconds = NaN, minutes = 0, hours = 0, days = 0] = fields.reverse();
    return { CPU: (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000 };
  }
  const stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
  const [utime = NaN, stime = NaN, cutime = NaN, cstime = NaN] = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
    .slice(11, 15).map((ticks) => Number(ticks) * 1000 / ticksPerSecond());
  return { CPU: utime + stime, "CPU+": utime + stime + cutime + cstime };
}

/** How often each thread has gone to sleep by itself; only Linux tells it. */
function switchesOf(pid: number): Map<string, number> {
  if (Deno.build.os !== "linux") return new Map();
  const threads = [...Deno.readDirSync(`/proc/${pid}/task`)].map(({ name }) => name);
  return new Map(threads.map((thread) => {
    const status = quietly(`/proc/${pid}/task/${thread}/status`) ?? "";
    return [thread, Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(status)?.[1] ?? 0)];
  }));
}

let ticks: number | undefined;

function ticksPerSecond(): number {
  return ticks ??= Number(textOf("getconf", "CLK_TCK"));
}

function psOf(pid: number, column: string): string {
  return textOf("ps", "-o", `${column}=`, "-p", String(pid));
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
