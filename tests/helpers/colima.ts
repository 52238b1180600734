/** Colima's home, and the stand-in `colima` as a process of its own. */

import { type Home, tempLimaHome } from "./home.ts";
import { killChild } from "./processes.ts";

/** A home whose LIMA_HOME is the one that Colima finds by itself: `~/.colima/_lima`. */
export function tempColimaHome(): Promise<Home> {
  return tempLimaHome({ name: "home/.colima/_lima" });
}

/** The file of Colima's own daemon. */
export function daemonPidFile(home: Home, short = "default"): string {
  return `${home.user}/.colima/${short}/daemon/daemon.pid`;
}

/** Writes a number into the file of Colima's own daemon. */
export function writeDaemonPid(home: Home, pid: number, short = "default"): string {
  const file = daemonPidFile(home, short);
  Deno.mkdirSync(file.replace(/\/[^/]*$/, ""), { recursive: true });
  Deno.writeTextFileSync(file, String(pid));
  return file;
}

export interface Colima extends AsyncDisposable {
  readonly pid: number;
  signal(signal: Deno.Signal): void;
  isAlive(): boolean;
  /** Its status, 128 + n after signal n, and what it and limactl wrote on stderr. */
  readonly ended: Promise<{ code: number; signal: Deno.Signal | null; stderr: string }>;
}

/** `colima ARGS` without LIMA_HOME, as a person or a job of Homebrew runs it; at the head of a process group. */
export function spawnColima(home: Home, args: readonly string[], env: Record<string, string> = {}): Colima {
  const { LIMA_HOME: _, ...own } = home.env;
  const log = Deno.makeTempFileSync({ dir: home.root, prefix: "colima-" });
  const child = new Deno.Command("/bin/sh", {
    // Its host agent lives on and would keep a pipe open.
    args: ["-c", `exec "$0" "$@" 2>"$LOG"`, `${home.bin}/colima`, ...args],
    env: { ...own, ...env, LOG: log },
    clearEnv: true,
    cwd: home.root,
    detached: true,
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  let isAlive = true;
  const ended = child.status.then(({ code, signal }) => {
    isAlive = false;
    return { code, signal, stderr: Deno.readTextFileSync(log) };
  });
  return {
    pid: child.pid,
    signal: (signal) => child.kill(signal),
    isAlive: () => isAlive,
    ended,
    async [Symbol.asyncDispose]() {
      killChild(child);
      await ended;
    },
  };
}

/** `colima ARGS`, to its end. */
export async function colima(home: Home, args: readonly string[], env: Record<string, string> = {}) {
  await using run = spawnColima(home, args, env);
  return await run.ended;
}
