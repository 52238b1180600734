/**
 * The guard in a twisted world: `main` of lima_guard.ts with the real host, of which single effects are changed as the
 * variable GUARD_WITH says (a Twist in JSON). A test runs it in the place of lima_guard.ts: `guardWith(twist)`.
 */

import assert from "node:assert/strict";
import { type Host, main, realHost } from "../../lima_guard.ts";
import type { GuardOptions } from "./guard.ts";
import { eventually } from "./processes.ts";

export interface Twist {
  /** How programs behave, by their basename. */
  readonly programs?: Readonly<Record<string, Behaviour>>;
  /** The time limits of programs are divided by this. */
  readonly limitsBy?: number;
  /** Added to the clock on the wall. */
  readonly wallMs?: number;
  /** The time since the machine's start. */
  readonly uptimeMs?: number;
  /** Pauses of a second or more are soon over, and the steady clock jumps by them. */
  readonly hurry?: boolean;
  /** The steady clock is so far ahead once this file is there. */
  readonly ahead?: { readonly file: string; readonly ms: number };
  /** How long it waits for a lock that another process holds. */
  readonly lockMs?: number;
  /** What becomes of every attempt to open a lock, or to take it. */
  readonly locks?: "other" | "unsupported";
  /** This lock cannot be opened for now: until the file that is named like it, with `.open`, is there. */
  readonly lockedOut?: string;
  /** Its own number is written into these files before it begins. */
  readonly ownPidInto?: readonly string[];
  /**
   * Signals reach only these, and processes that name this directory: should lima-guard ever take all processes for
   * its own, it is the test that fails, and not the machine. It ends with OUTSIDER at the first other one.
   */
  readonly hitsOnly?: { readonly under: string; readonly and: readonly number[] };
  /** What it does is noted in this file, a line each: `NUMBER WHAT`, the number being that of the last effect. */
  readonly log?: string;
  /** No connection can be made, for a reason that is its own and not the other side's. */
  readonly connects?: "denied" | "other";
  /** A file is found by its name in other letters too, small or capital, as on a Mac. */
  readonly foldsCase?: boolean;
  /** SIGKILL just before the n-th effect, counted from 1. An append has two: one is in the middle of its line. */
  readonly dieAt?: number;
  /**
   * Stays just before or after what it does, where that matches: makes FILE.here, and continues when there is FILE.go.
   * See `meanwhile`.
   */
  readonly stays?: readonly Stay[];
}

export interface Stay {
  /** A regular expression: `before remove .*vz\\.pid`, `after run /bin/ps`, `before stat …`, `before pause …` */
  readonly at: string;
  /** Which of those that match, counted from 1; the first unless said. */
  readonly nth?: number;
  readonly file: string;
}

/** `from` and `to`: the first and the last of its runs that behave so, counted from 1; the others are real. */
export type Behaviour = { readonly from?: number; readonly to?: number } & (Fault | Answer | Lie);

interface Fault {
  readonly does: "missing" | "hang" | "be killed";
}

interface Answer {
  readonly does: "answer";
  readonly stdout?: string;
  readonly stderr?: string;
  readonly code?: number;
}

/** Its real answer with a text replaced; the pattern is a regular expression with the flags `gm`. */
interface Lie {
  readonly does: "lie";
  readonly pattern: string;
  readonly by: string;
}

/** The exit status of a lima-guard that was about to signal a process that does not belong to the test. */
export const OUTSIDER = 99;

/** For runGuard and spawnGuard. */
export function guardWith(twist: Twist): Pick<GuardOptions, "script" | "env"> {
  return { script: "tests/helpers/guard_with.ts", env: { GUARD_WITH: JSON.stringify(twist) } };
}

/** Does something while the guard stays. It must have come there, or the test proves nothing. */
export async function meanwhile(stay: Stay, action: () => unknown): Promise<void> {
  await eventually(() => assert.ok(exists(`${stay.file}.here`), `the guard has not come to ${stay.at}`));
  await action();
  Deno.writeTextFileSync(`${stay.file}.go`, "");
}

/** The same where it may end without coming there. Returns whether it came. */
export async function ifItStays(stay: Stay, guard: Promise<unknown>, action: () => unknown): Promise<boolean> {
  let ended = false;
  void guard.then(() => ended = true, () => ended = true);
  const came = await eventually(() => {
    const here = exists(`${stay.file}.here`);
    assert.ok(here || ended, `the guard neither ends nor comes to ${stay.at}`);
    return here;
  }, { withinMs: 60_000 });
  if (came) await meanwhile(stay, action);
  return came;
}

function twisted(real: Host, twist: Twist): Host {
  const { programs = {}, wallMs = 0, hurry = false, ahead } = twist;
  const waits = (twist.stays ?? []).map((stay) => ({ ...stay, matches: 0 }));
  let [effects, jumpedMs] = [0, 0];

  const note = (what: string): void => {
    if (twist.log) Deno.writeTextFileSync(twist.log, `${effects} ${what}\n`, { append: true });
    for (const wait of waits) {
      if (new RegExp(wait.at).test(what) && ++wait.matches === (wait.nth ?? 1)) stay(wait.file);
    }
  };
  /** The world is about to be changed. Dying after it is dying before the next one. */
  const effect = (what: string): void => {
    effects++;
    note(what);
    if (effects === twist.dieAt) Deno.kill(Deno.pid, "SIGKILL");
  };
  const around = <T>(what: string, action: () => T): T => {
    effect(`before ${what}`);
    const value = action();
    note(`after ${what}`);
    return value;
  };
  const aroundSlow = async <T>(what: string, action: () => Promise<T>): Promise<T> => {
    effect(`before ${what}`);
    const value = await action();
    note(`after ${what}`);
    return value;
  };

  const runs: Record<string, number> = {};
  const run: Host["run"] = async (command, limitMs) => {
    const name = command.argv[0].replace(/.*\//, "");
    runs[name] = (runs[name] ?? 0) + 1;
    const how = programs[name];
    const limit = limitMs / (twist.limitsBy ?? 1);
    const isTwisted = how && runs[name] >= (how.from ?? 1) && runs[name] <= (how.to ?? Infinity);
    if (!isTwisted) return await real.run(command, limit);
    if (how.does !== "lie") return await real.run({ ...command, argv: instead(name, how) }, limit);
    const answer = await real.run(command, limit);
    if (answer.trouble) return answer;
    return { ok: { ...answer.ok, stdout: answer.ok.stdout.replaceAll(new RegExp(how.pattern, "gm"), how.by) } };
  };
  const isMissing = (path: string) => programs[path.replace(/.*\//, "")]?.does === "missing";

  return {
    ...real,
    wallMs: () => real.wallMs() + wallMs,
    clockMs: () => real.clockMs() + jumpedMs + (ahead && exists(ahead.file) ? ahead.ms : 0),
    uptimeMs: () => twist.uptimeMs ?? real.uptimeMs(),
    pause: (ms) => {
      note(`before pause ${ms}`);
      if (!hurry || ms < 1000) return real.pause(ms);
      jumpedMs += ms;
      return real.pause(20);
    },
    stat: (path, follow) => {
      note(`before stat ${path}`);
      const asked = isMissing(path) ? "/nonexistent" : path;
      return real.stat(twist.foldsCase ? onDisk(real, asked) : asked, follow);
    },
    read: (path, most) => {
      note(`before read ${path}`);
      return real.read(path, most);
    },
    remove: (path) => around(`remove ${path}`, () => real.remove(path)),
    rename: (from, to) => around(`rename ${from}`, () => real.rename(from, to)),
    append: (path, text) => {
      effect(`before append ${path}`);
      const half = Math.floor(text.length / 2);
      const written = real.append(path, text.slice(0, half));
      effect(`half append ${path}`);
      if (written.trouble) return written;
      const rest = real.append(path, text.slice(half));
      note(`after append ${path}`);
      return rest;
    },
    openLock: (path, create) => {
      const isLockedOut = path === twist.lockedOut && real.stat(`${path}.open`).trouble !== undefined;
      if (twist.locks === "other" || isLockedOut) return { trouble: "other", why: "Too many open files (os error 24)" };
      const opened = around(`openLock ${path}`, () => real.openLock(path, create));
      if (opened.trouble) return opened;
      if (twist.locks) opened.ok.tryLock = () => ({ trouble: "unsupported", why: "Operation not supported" });
      const lock = opened.ok;
      return {
        ok: {
          tryLock: () => around("tryLock", () => lock.tryLock()),
          lockWithin: (ms) => aroundSlow("lockWithin", () => lock.lockWithin(twist.lockMs ?? ms)),
          read: () => lock.read(),
          write: (text) => around("write", () => lock.write(text)),
          close: () => around("close", () => lock.close()),
        },
      };
    },
    makeDir: (path) => around(`makeDir ${path}`, () => real.makeDir(path)),
    copyTail: (from, to, most) => around(`copyTail ${from}`, () => real.copyTail(from, to, most)),
    signal: (pid, signal) => {
      if (twist.hitsOnly && !isInside(pid, twist.hitsOnly)) endAtOutsider(pid, signal);
      return around(`signal ${pid} ${signal}`, () => real.signal(pid, signal));
    },
    run: (command, limitMs) => aroundSlow(`run ${command.argv[0]}`, () => run(command, limitMs)),
    start: (command) => around(`start ${command.argv[0]}`, () => real.start(command)),
    connect: (to, limitMs) =>
      twist.connects
        ? Promise.resolve({ trouble: twist.connects, why: "it cannot be asked" })
        : aroundSlow("connect", () => real.connect(to, limitMs)),
    stdout: (text) => around("stdout", () => real.stdout(text)),
  };
}

/** A path as it is spelt on the disk, where it is there in other letters. */
function onDisk(real: Host, path: string): string {
  return path.split("/").slice(1).reduce((dir, name) => {
    const other = (real.list(dir || "/").ok ?? []).find((entry) => entry.toLowerCase() === name.toLowerCase());
    return `${dir}/${real.stat(`${dir}/${name}`).ok ? name : other ?? name}`;
  }, "");
}

function isInside(pid: number, { under, and }: NonNullable<Twist["hitsOnly"]>): boolean {
  if (and.includes(pid)) return true;
  const { stdout } = new Deno.Command("ps", { args: ["-ww", "-o", "command=", "-p", String(pid)] }).outputSync();
  const command = new TextDecoder().decode(stdout).trim();
  // Gone, or ended and not waited for: the signal could reach no process.
  return command === "" || command.endsWith("<defunct>") || command.includes(`${under}/`);
}

function endAtOutsider(pid: number, signal: string): never {
  Deno.stderr.writeSync(new TextEncoder().encode(`about to send ${signal} to the outsider ${pid}\n`));
  Deno.exit(OUTSIDER);
}

/** What is run in the place of a program; always something real. */
function instead(name: string, how: Fault | Answer): [string, ...string[]] {
  if (how.does === "answer") {
    const { stdout = "", stderr = "", code = 0 } = how;
    return ["/bin/sh", "-c", 'printf %s "$1"; printf %s "$2" >&2; exit "$3"', "sh", stdout, stderr, String(code)];
  }
  if (how.does === "missing") return [`/nonexistent/${name}`];
  // The child in the background holds the pipes too: ending the shell alone is not enough.
  return ["/bin/sh", "-c", how.does === "hang" ? "sleep 1000 & sleep 1000" : "kill -9 $$"];
}

/** Effects are synchronous, and so is the waiting in between. */
function stay(file: string): void {
  Deno.writeTextFileSync(`${file}.here`, "");
  const nothing = new Int32Array(new SharedArrayBuffer(4));
  while (!exists(`${file}.go`)) Atomics.wait(nothing, 0, 0, 5);
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

if (import.meta.main) {
  const twist: Twist = JSON.parse(Deno.env.get("GUARD_WITH") ?? "{}");
  for (const file of twist.ownPidInto ?? []) Deno.writeTextFileSync(file, `${Deno.pid}\n`);
  Deno.exit(await main(Deno.args, twisted(realHost(), twist)));
}
