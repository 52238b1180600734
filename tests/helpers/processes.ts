/** Processes that tests start, watch and wait for: everything goes by PID, nothing by name. */

import assert from "node:assert/strict";
import type { Home } from "./home.ts";
import { standin } from "./paths.ts";

/** Only a failure waits so long; the machine may be busy. */
const LIMIT_MS = 30_000;

/** Retries until the assertion no longer throws; after the time limit, the last failure is thrown. */
export async function eventually<T>(
  assertion: () => T | Promise<T>,
  { withinMs = LIMIT_MS }: { withinMs?: number } = {},
): Promise<T> {
  const end = performance.now() + withinMs;
  while (true) {
    try {
      return await assertion();
    } catch (failure) {
      if (performance.now() >= end) throw failure;
    }
    await pause(10);
  }
}

/** Only for loops that look again; a test that needs it to be right is wrong. */
function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Ends the waiting for a promise that may never settle, with a message instead of a test that hangs. */
export async function within<T>(promise: Promise<T>, ms: number, what: () => string): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`Not within ${ms} ms: ${what()}`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Does a process of this number exist? A zombie does. */
export function exists(pid: number): boolean {
  assert.ok(Number.isInteger(pid) && pid > 1 && pid < 2 ** 31, `not a PID: ${pid}`);
  try {
    Deno.kill(pid, 0 as unknown as Deno.Signal);
    return true;
  } catch (error) {
    return error instanceof Deno.errors.PermissionDenied;
  }
}

/** What `ps` says about a process; undefined where there is none. */
export function ps(
  pid: number,
): { ppid: number; pgid: number; uid: number; stat: string; command: string } | undefined {
  const { stdout } = new Deno.Command("ps", {
    args: ["-ww", "-o", "ppid=,pgid=,uid=,stat=,command=", "-p", String(pid)],
    env: { LC_ALL: Deno.build.os === "darwin" ? "UTF-8" : "C.UTF-8" },
    stdin: "null",
    stderr: "null",
  }).outputSync();
  const line = new TextDecoder().decode(stdout).replace(/\n$/, "");
  const match = /^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\S+)\s+(.*)$/s.exec(line);
  if (!match) return undefined;
  const [, ppid, pgid, uid, stat, command] = match;
  return { ppid: Number(ppid), pgid: Number(pgid), uid: Number(uid), stat: stat!, command: command! };
}

/** Alive and not a zombie. */
export function isAlive(pid: number): boolean {
  return exists(pid) && stateOf(pid) !== "Z";
}

/** The letter that `ps` begins its `stat` with; that of a zombie where there is no process. Waiting asks it often. */
function stateOf(pid: number): string {
  if (Deno.build.os !== "linux") return ps(pid)?.stat[0] ?? "Z";
  try {
    // The name before it is the program's own choice, brackets included.
    return /^.*\) (\S)/s.exec(Deno.readTextFileSync(`/proc/${pid}/stat`))?.[1] ?? "Z";
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || (error as { code?: string }).code === "ESRCH") return "Z";
    throw error;
  }
}

/** Waits until a process that need not be our child is gone (or a zombie). */
export function waitForExit(pid: number, { withinMs = LIMIT_MS }: { withinMs?: number } = {}): Promise<void> {
  return eventually(() => assert.ok(!isAlive(pid), `process ${pid} is still alive: ${ps(pid)?.command}`), { withinMs });
}

/** The number of a process that has just ended: no process has it, until the system hands it out again. */
export async function deadPid(): Promise<number> {
  const child = new Deno.Command("true", { stdin: "null", stdout: "null", stderr: "null" }).spawn();
  await child.status;
  return child.pid;
}

/** SIGKILL to an own child that may have ended; the handle knows, even before its status was awaited. */
export function killChild(child: Deno.ChildProcess): void {
  try {
    child.kill("SIGKILL");
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
  }
}

/** A PID of the right range that no system gives to a process of its own: ESRCH without any race. */
export const IMPOSSIBLE_PID = 4_194_303;

export interface Bystander extends AsyncDisposable {
  readonly pid: number;
  /** What `ps` shows as its command. */
  readonly command: string;
  /** The signals it has received, as far as they can be caught. */
  signals(): string[];
  /** Alive, not stopped, and never signalled at all. */
  assertAlive(): void;
  end(): Promise<void>;
}

/**
 * A process that has nothing to do with Lima, whatever its command line says: the one that must survive every test.
 */
export async function startBystander(
  home: Home,
  { command = ["/usr/libexec/sirittsd"], uid, gid, leadsGroup = false }: {
    command?: string[];
    uid?: number;
    gid?: number;
    /** Its process group is its own: the group of the tests may have no number here, where its leader is elsewhere. */
    leadsGroup?: boolean;
  } = {},
): Promise<Bystander> {
  const log = Deno.makeTempFileSync({ dir: home.root, prefix: "bystander-" });
  Deno.chmodSync(log, 0o666);
  const child = new Deno.Command(standin("bystander"), {
    args: [log, ...command],
    env: home.mark,
    cwd: home.root,
    stdin: "null",
    stdout: "null",
    stderr: "inherit",
    detached: leadsGroup,
    ...(uid === undefined ? {} : { uid, gid: gid ?? uid }),
  }).spawn();
  const lines = () => Deno.readTextFileSync(log).split("\n").filter((line) => line !== "");
  await eventually(() => assert.match(Deno.readTextFileSync(log), /^ready \d+$/m));
  const signals = () => lines().filter((line) => line.startsWith("SIG"));
  const end = async () => {
    killChild(child);
    await child.status;
  };
  return {
    pid: child.pid,
    command: command.join(" "),
    signals,
    assertAlive() {
      assert.deepEqual(signals(), [], `the bystander ${child.pid} was signalled`);
      assert.ok(isAlive(child.pid), `the bystander ${child.pid} is dead`);
      assert.notEqual(stateOf(child.pid), "T", `the bystander ${child.pid} was stopped`);
    },
    end,
    [Symbol.asyncDispose]: end,
  };
}

/** A process that has ended and that its parent does not wait for. */
export async function zombie(home: Home): Promise<{ readonly pid: number } & AsyncDisposable> {
  const parent = new Deno.Command("perl", {
    args: ["-e", "$| = 1; my $pid = fork // die; exit 0 unless $pid; print qq($pid\\n); <STDIN>"],
    env: home.mark,
    cwd: home.root,
    stdin: "piped",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  const reader = parent.stdout.getReader();
  const { value } = await reader.read();
  const pid = Number(new TextDecoder().decode(value));
  await eventually(() => assert.equal(stateOf(pid), "Z"));
  return {
    pid,
    async [Symbol.asyncDispose]() {
      await parent.stdin.close();
      await reader.cancel();
      await parent.status;
    },
  };
}
