/**
 * A small launchd. What it follows:
 *
 * - a job starts in a session of its own, with XPC_SERVICE_NAME, launchd's own PATH and stdin /dev/null;
 * - a stop is SIGTERM to the main process only, and SIGKILL to it after ExitTimeOut, 5 s where the plist has none;
 * - when the main process has ended, what is left of its process group gets one SIGTERM, unless AbandonProcessGroup;
 * - KeepAlive starts it again, ThrottleInterval (10 s) after its last start; death by a signal is no success;
 * - at a shutdown all jobs are stopped at once, nothing is started again, and then everything is gone;
 * - `bootout` returns before the job has ended, and `bootstrap` fails with 5 until it has; `kill` starts no timer.
 *
 * Only real seconds: `exit timeout` is what the guard is told and what it gets. The throttle alone can be shortened.
 */

import assert from "node:assert/strict";
import { findWithoutEnvironments } from "../helpers/home.ts";
import { ps } from "../helpers/processes.ts";
import { eventually, type Home } from "./needs.ts";
import { type Keys, readPlist } from "./plist.ts";

const DEFAULT_EXIT_TIMEOUT_S = 5;
const DEFAULT_THROTTLE_S = 10;
const SYSTEM_PATH = "/usr/bin:/bin:/usr/sbin:/sbin";
/** The mark of everything that a job started, by which a power cut finds it. */
const MARK = "STANDIN_LAUNCHD";

/** One life of a job's main process. */
export interface Life {
  readonly pid: number;
  /** On the clock of performance.now(). */
  readonly startedMs: number;
  /** When launchd asked it to stop. */
  askedMs?: number;
  /** launchd lost its patience. */
  killed: boolean;
  ended?: { readonly code: number; readonly signal: string | null; readonly atMs: number };
}

export interface Job {
  readonly label: string;
  readonly target: string;
  readonly lives: readonly Life[];
  /** The main process, while it runs. */
  readonly pid: number | undefined;
  /** What its processes wrote to StandardOutPath and StandardErrorPath. */
  said(): string;
}

export interface Launchd extends AsyncDisposable {
  /** To be in front of a PATH on which launchctl is this one's. */
  readonly bin: string;
  /** Called before a job is booted out. */
  onBootout: () => void;
  /** Loads a plist; its status is launchctl's. */
  bootstrap(domain: string, plist: string): number;
  job(label: string): Job;
  /** Waits until the job's main process has been started so many times. */
  started(label: string, times: number, withinMs?: number): Promise<Life>;
  /** Waits until the main process that runs, or ran last, has ended. */
  ended(label: string, withinMs?: number): Promise<Life>;
  /** Stops all jobs at once, then kills whatever they left, as a kernel does that halts. */
  shutdown(): Promise<void>;
  /** Everything is gone in one moment, with nobody asked. */
  powerCut(): Promise<void>;
  /** Loads again what was loaded. */
  boot(): void;
  /** What launchctl answers. */
  control(args: readonly string[]): Answer;
}

interface Answer {
  readonly code: number;
  readonly stdout?: string;
  readonly stderr?: string;
}

/** `throttle`: ThrottleInterval is multiplied by it; `user`: the owner of the jobs, where root runs the tests. */
export function smallLaunchd(home: Home, options: { throttle?: number; user?: User } = {}): Launchd {
  return new SmallLaunchd(home, options.throttle ?? 0.1, options.user);
}

interface User {
  readonly uid: number;
  readonly gid: number;
}

class SmallLaunchd implements Launchd {
  readonly bin: string;
  readonly jobs = new Map<string, LoadedJob>();
  #listener: Deno.UnixListener;
  #serving: Promise<void>;
  #isDown = false;

  onBootout: () => void = () => {};

  constructor(readonly home: Home, readonly throttle: number, readonly user: User | undefined) {
    this.bin = `${home.root}/launchd`;
    Deno.mkdirSync(this.bin);
    const stub = new URL("launchctl", import.meta.url).pathname;
    // A copy: it looks for the socket beside itself.
    Deno.copyFileSync(stub, `${this.bin}/launchctl`);
    Deno.chmodSync(`${this.bin}/launchctl`, 0o755);
    this.#listener = Deno.listen({ transport: "unix", path: `${this.bin}/launchd.sock` });
    this.#serving = this.#serve();
  }

  async #serve(): Promise<void> {
    for await (const conn of this.#listener) await this.#answer(conn).catch(() => {});
  }

  async #answer(conn: Deno.Conn): Promise<void> {
    using _conn = conn;
    const bytes = new Uint8Array(65_536);
    let text = "";
    while (!text.endsWith("\n\0\n")) {
      const n = await conn.read(bytes);
      if (n === null) return;
      text += new TextDecoder().decode(bytes.subarray(0, n));
    }
    const { code, stdout = "", stderr = "" } = this.control(text.slice(0, -3).split("\0"));
    await conn.write(new TextEncoder().encode([code, stdout, stderr].join("\0")));
  }

  control([verb, ...args]: readonly string[]): Answer {
    const [first = "", second = ""] = args;
    const known = (target: string) => [...this.jobs.values()].find((job) => job.target === target);
    const missing = (target: string, code: number): Answer => {
      const [domain, label] = [target.slice(0, target.lastIndexOf("/")), target.slice(target.lastIndexOf("/") + 1)];
      return { code, stderr: `Could not find service "${label}" in domain for ${domain}\n` };
    };
    switch (verb) {
      case "print": {
        const job = known(first);
        return job ? { code: 0, stdout: job.print() } : missing(first, 113);
      }
      case "print-disabled":
        return { code: 0, stdout: "\n\tdisabled services = {\n\t}\n" };
      case "kickstart": {
        const job = known(args.at(-1) ?? "");
        if (!job) return missing(args.at(-1) ?? "", 113);
        if (job.isLeaving) {
          return { code: 37, stderr: "Could not kickstart service: 37: Operation already in progress\n" };
        }
        job.kickstart();
        return { code: 0 };
      }
      case "kill": {
        const job = known(second);
        if (!job) return missing(second, 113);
        job.signal(/^(?:SIG)?KILL$|^9$/.test(first) ? "SIGKILL" : "SIGTERM");
        return { code: 0 };
      }
      case "bootout": {
        const job = known(first);
        if (!job) return { code: 3, stderr: "Boot-out failed: 3: No such process\n" };
        this.onBootout();
        void job.stop().then(() => this.jobs.delete(job.label));
        return { code: 0 };
      }
      case "bootstrap": {
        const code = this.bootstrap(first, second);
        return code === 0 ? { code } : { code, stderr: `Bootstrap failed: ${code}: Input/output error\n` };
      }
      default:
        return { code: 64, stderr: `Unrecognized subcommand: ${verb}\n` };
    }
  }

  bootstrap(domain: string, plist: string): number {
    let keys: Keys;
    try {
      keys = readPlist(Deno.readTextFileSync(plist)) as unknown as Keys;
    } catch {
      return 5;
    }
    if (!keys.Label || this.jobs.has(keys.Label)) return 5;
    const job = new LoadedJob(this, domain, plist, keys);
    this.jobs.set(keys.Label, job);
    job.load();
    return 0;
  }

  job(label: string): LoadedJob {
    const job = this.jobs.get(label);
    assert.ok(job, `no job ${label}`);
    return job;
  }

  started(label: string, times: number, withinMs = 20_000): Promise<Life> {
    return eventually(() => {
      const job = this.job(label);
      const life = job.lives[times - 1];
      assert.ok(life, `${label} was started ${job.lives.length} times:\n${job.said()}`);
      return life;
    }, { withinMs });
  }

  ended(label: string, withinMs = 20_000): Promise<Life> {
    const job = this.job(label);
    const life = job.lives.at(-1);
    assert.ok(life, `${label} was never started`);
    return eventually(() => {
      assert.ok(life.ended, `${label} has not ended:\n${job.said()}`);
      return life;
    }, { withinMs });
  }

  async shutdown(): Promise<void> {
    this.#isDown = true;
    await Promise.all([...this.jobs.values()].map((job) => job.stop()));
    await this.#killAll();
  }

  async powerCut(): Promise<void> {
    this.#isDown = true;
    for (const job of this.jobs.values()) job.dismiss();
    await this.#killAll();
    await Promise.all([...this.jobs.values()].map((job) => job.stop()));
  }

  boot(): void {
    this.#isDown = false;
    for (const job of [...this.jobs.values()]) {
      const next = new LoadedJob(
        this,
        job.domain,
        job.plist,
        readPlist(Deno.readTextFileSync(job.plist)) as unknown as Keys,
      );
      next.lives.push(...job.lives);
      this.jobs.set(job.label, next);
      next.load();
    }
  }

  get isDown(): boolean {
    return this.#isDown;
  }

  /** Whatever a job started, in whichever group or session it is by now. */
  async #killAll(): Promise<void> {
    await eventually(() => {
      const mains = [...this.jobs.values()].flatMap((job) => job.lives.map(({ pid }) => pid));
      const found = marked(this.home.root, mains);
      for (const pid of found) kill(pid, "SIGKILL");
      assert.deepEqual(found, [], "processes that do not die");
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.powerCut();
    this.#listener.close();
    await this.#serving;
  }
}

class LoadedJob implements Job {
  readonly label: string;
  readonly target: string;
  readonly lives: Life[] = [];
  isLeaving = false;
  #main: Deno.ChildProcess | undefined;
  #next: ReturnType<typeof setTimeout> | undefined;
  #over: Promise<void> = Promise.resolve();
  #patience: ReturnType<typeof setTimeout> | undefined;
  #lastExit = "(never exited)";

  constructor(
    readonly launchd: SmallLaunchd,
    readonly domain: string,
    readonly plist: string,
    readonly keys: Keys,
  ) {
    this.label = keys.Label;
    this.target = `${domain}/${keys.Label}`;
  }

  get pid(): number | undefined {
    return this.#main?.pid;
  }

  get exitTimeoutS(): number {
    return this.keys.ExitTimeOut ?? DEFAULT_EXIT_TIMEOUT_S;
  }

  /** RunAtLoad, and the presence of KeepAlive, mean a first start. */
  load(): void {
    if (this.keys.RunAtLoad || (this.keys.KeepAlive ?? false) !== false) this.#start();
  }

  kickstart(): void {
    clearTimeout(this.#next);
    if (!this.#main) this.#start();
  }

  signal(signal: Deno.Signal): void {
    if (this.#main) send(this.#main, signal);
  }

  /** No start any more. */
  dismiss(): void {
    this.isLeaving = true;
    clearTimeout(this.#next);
  }

  /** Unloads it; resolves when the main process has ended, and its group was told. */
  async stop(): Promise<void> {
    this.dismiss();
    const [main, life] = [this.#main, this.lives.at(-1)];
    if (main && life && life.askedMs === undefined) {
      life.askedMs = performance.now();
      send(main, "SIGTERM");
      if (this.exitTimeoutS > 0) {
        this.#patience = setTimeout(() => {
          life.killed = true;
          send(main, "SIGKILL");
        }, this.exitTimeoutS * 1000);
      }
    }
    await this.#over;
  }

  #start(): void {
    const { keys, launchd } = this;
    const cwd = keys.WorkingDirectory ?? "/";
    const [out, err] = [keys.StandardOutPath ?? "/dev/null", keys.StandardErrorPath ?? "/dev/null"];
    const argv = [...keys.ProgramArguments ?? []];
    const program = keys.Program ?? argv[0] ?? "";
    const main = new Deno.Command("/bin/sh", {
      // The shell becomes the job: files are opened after chdir, and the PID stays.
      args: ["-c", `exec "$0" "$@" >>"$LAUNCHD_OUT" 2>>"$LAUNCHD_ERR"`, program, ...argv.slice(1)],
      env: {
        ...launchd.home.mark,
        [MARK]: launchd.home.root,
        LAUNCHD_OUT: out,
        LAUNCHD_ERR: err,
        XPC_SERVICE_NAME: this.label,
        PATH: `${launchd.bin}:${SYSTEM_PATH}`,
        ...keys.EnvironmentVariables,
      },
      clearEnv: true,
      cwd,
      detached: true,
      stdin: "null",
      stdout: "null",
      stderr: "null",
      ...launchd.user ? { uid: launchd.user.uid, gid: launchd.user.gid } : {},
    }).spawn();
    const life: Life = { pid: main.pid, startedMs: performance.now(), killed: false };
    this.lives.push(life);
    this.#main = main;
    this.#over = main.status.then((status) => this.#reap(life, status));
  }

  #reap(life: Life, { code, signal }: Deno.CommandStatus): void {
    clearTimeout(this.#patience);
    life.ended = { code, signal, atMs: performance.now() };
    this.#main = undefined;
    this.#lastExit = signal ? `(never exited cleanly: ${signal})` : String(code);
    if (!this.keys.AbandonProcessGroup) kill(-life.pid, "SIGTERM");
    if (this.isLeaving || this.launchd.isDown || !this.#isKept(code === 0 && signal === null)) return;
    const throttleMs = (this.keys.ThrottleInterval ?? DEFAULT_THROTTLE_S) * 1000 * this.launchd.throttle;
    const waitMs = Math.max(0, life.startedMs + throttleMs - performance.now());
    this.#next = setTimeout(() => this.#start(), waitMs);
  }

  #isKept(success: boolean): boolean {
    const { KeepAlive: keep = false } = this.keys;
    return typeof keep === "boolean" ? keep : keep.SuccessfulExit === success;
  }

  said(): string {
    const { StandardOutPath: out, StandardErrorPath: err, WorkingDirectory: cwd = "/" } = this.keys;
    const files = [...new Set([out, err])].filter((file) => file !== undefined);
    return files.map((file) => {
      try {
        return Deno.readTextFileSync(file.startsWith("/") ? file : `${cwd}/${file}`);
      } catch {
        return "";
      }
    }).join("");
  }

  print(): string {
    const { keys, lives } = this;
    const life = this.#main ? lives.at(-1) : undefined;
    const state = life ? life.killed ? "SIGKILLed" : life.askedMs ? "SIGTERMed" : "running" : "not running";
    const argv = keys.ProgramArguments ?? [];
    const block = (
      name: string,
      lines: readonly string[],
    ) => [`\t${name} = {`, ...lines.map((line) => `\t\t${line}`), "\t}", ""];
    const kept = keys.KeepAlive ? ["keepalive"] : [];
    return [
      `${this.target} = {`,
      `\tactive count = ${life ? 1 : 0}`,
      `\tpath = ${this.plist}`,
      `\ttype = ${this.domain === "system" ? "LaunchDaemon" : "LaunchAgent"}`,
      `\tstate = ${state}`,
      "",
      `\tprogram = ${keys.Program ?? argv[0] ?? ""}`,
      ...block("arguments", argv),
      ...keys.WorkingDirectory ? [`\tworking directory = ${keys.WorkingDirectory}`, ""] : [],
      `\tstdout path = ${keys.StandardOutPath ?? "/dev/null"}`,
      `\tstderr path = ${keys.StandardErrorPath ?? "/dev/null"}`,
      ...block("default environment", [`PATH => ${SYSTEM_PATH}`]),
      ...block("environment", [
        ...Object.entries(keys.EnvironmentVariables ?? {}).map(([name, value]) => `${name} => ${value}`),
        `XPC_SERVICE_NAME => ${this.label}`,
      ]),
      `\tdomain = ${this.domain}`,
      `\tminimum runtime = ${keys.ThrottleInterval ?? DEFAULT_THROTTLE_S}`,
      `\texit timeout = ${this.exitTimeoutS}`,
      `\truns = ${lives.length}`,
      ...life ? [`\tpid = ${life.pid}`] : [],
      "\timmediate reason = speculative",
      `\tlast exit code = ${this.#lastExit}`,
      "",
      ...block("resource coalition", ["ID = 731", "type = resource", "state = active", "active count = 1"]),
      `\tproperties = ${[...kept, "runatload", "inferred program"].join(" | ")}`,
      "}",
      "",
    ].join("\n");
  }
}

function send(child: Deno.ChildProcess, signal: Deno.Signal): void {
  try {
    child.kill(signal);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // it has ended
  }
}

/** A negative number is the process group of a job that this launchd started. */
function kill(pid: number, signal: Deno.Signal): void {
  assert.ok(Math.abs(pid) > 1);
  try {
    Deno.kill(pid, signal);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** Processes with the mark of this launchd in their environment; on a Mac, which may not show it, see below. */
function marked(root: string, mains: readonly number[]): number[] {
  if (Deno.build.os !== "linux") return ofJobs(findWithoutEnvironments(root).map(({ pid }) => pid), mains);
  return [...Deno.readDirSync("/proc")].filter(({ name }) => /^\d+$/.test(name)).flatMap(({ name }) => {
    try {
      const environment = Deno.readTextFileSync(`/proc/${name}/environ`).split("\0");
      // A zombie has no environment to be read.
      return environment.includes(`${MARK}=${root}`) ? [Number(name)] : [];
    } catch {
      return [];
    }
  });
}

/** What the test itself has started is no job, unless it is the main process of one. */
function ofJobs(pids: readonly number[], mains: readonly number[]): number[] {
  return pids.filter((pid) => pid !== Deno.pid && (mains.includes(pid) || ps(pid)?.ppid !== Deno.pid));
}
