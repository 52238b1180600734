/** The process that `guardWith` of guard_with.ts starts. It loads nothing of the tests: it is started a thousand times. */

import { type Host, main, realHost } from "../../lima_guard.ts";
import type { Answer, Fault, Twist } from "./guard_with.ts";

/** The exit status of a lima-guard that was about to signal a process that does not belong to the test. */
export const OUTSIDER = 99;

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

/** Whether a path is there; a link that leads nowhere is. */
export function exists(path: string): boolean {
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
  // As runAsProgram of lima_guard.ts does it: only then does Deno keep its compiled code for the next start.
  void main(Deno.args, twisted(realHost(), twist)).then((status) => Deno.lstat("/").finally(() => Deno.exit(status)));
}
