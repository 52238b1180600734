/** A job of the small launchd, and the two ways to have processes: real ones, and ones that only files stand for. */

import type { Keys } from "./plist.ts";
import type { Facts } from "./words.ts";

const DEFAULT_EXIT_TIMEOUT_S = 5;
export const DEFAULT_THROTTLE_S = 10;
/** launchd's own word where it could not start the program: EX_CONFIG. */
export const CANNOT_START = 78;

/** One life of a job's main process. */
export interface Life {
  readonly pid: number;
  /** On the clock of performance.now(). */
  readonly startedMs: number;
  /** When launchd asked it to stop. */
  askedMs?: number;
  /** launchd did not wait any longer. */
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

/** The user that a job runs as. */
export interface Account {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
  readonly home: string;
  readonly groups: string;
}

/** What a job takes from its launchd. */
export interface Surroundings {
  readonly folder: string;
  readonly state: string;
  readonly isDown: boolean;
  readonly throttle: number;
  readonly mark: Readonly<Record<string, string>>;
  /** A line `key=value` of the file state/conf. */
  conf(key: string, fallback: string): string;
  /** undefined: the account is unknown. */
  accountOf(domain: string, userName: string | undefined): Account | undefined;
}

export abstract class LoadedJob implements Job {
  readonly label: string;
  readonly target: string;
  readonly lives: Life[] = [];
  isLeaving = false;
  lastExit: number | string | undefined;
  runs = 0;

  constructor(
    readonly launchd: Surroundings,
    readonly domain: string,
    readonly plist: string,
    readonly keys: Keys,
  ) {
    this.label = keys.Label;
    this.target = `${domain}/${keys.Label}`;
  }

  abstract get pid(): number | undefined;
  abstract get state(): Facts["state"];
  /** Something asks about it; false: it is gone. */
  abstract look(): boolean;
  abstract start(): void;
  abstract signal(signal: "SIGTERM" | "SIGKILL"): void;
  /** No start any more. */
  abstract dismiss(): void;
  /** Unloads it; resolves when it is gone. */
  abstract stop(): Promise<void>;

  get isAgent(): boolean {
    return this.domain !== "system";
  }

  get program(): string {
    return this.keys.Program ?? this.keys.ProgramArguments?.[0] ?? "";
  }

  get args(): readonly string[] {
    return this.keys.ProgramArguments ?? [this.program];
  }

  /** What launchd grants; agents get 60 s at most. */
  get exitTimeoutS(): number {
    const wanted = this.keys.ExitTimeOut ?? DEFAULT_EXIT_TIMEOUT_S;
    return this.isAgent ? Math.min(wanted, Number(this.launchd.conf("clamp", "60"))) : wanted;
  }

  get throttleS(): number {
    return this.keys.ThrottleInterval ?? DEFAULT_THROTTLE_S;
  }

  /** RunAtLoad, and the presence of KeepAlive, mean a first start. */
  load(): void {
    if (this.keys.RunAtLoad || (this.keys.KeepAlive ?? false) !== false) this.start();
  }

  /** Death by a signal is no success. */
  isKept(success: boolean): boolean {
    const { KeepAlive: keep = false } = this.keys;
    if (typeof keep === "boolean") return keep;
    return keep.SuccessfulExit === undefined || keep.SuccessfulExit === success;
  }

  facts(): Facts {
    const { domain, label, keys } = this;
    return {
      ...{ domain, label, path: this.plist, program: this.program, args: this.args, state: this.state },
      ...{ exitTimeoutS: this.exitTimeoutS, throttleS: this.throttleS, runs: this.runs, lastExit: this.lastExit },
      properties: [
        ...(this.keys.KeepAlive ?? false) === false ? [] : ["keepalive"],
        ...this.keys.RunAtLoad ? ["runatload"] : [],
      ],
      pid: this.pid,
      environment: keys.EnvironmentVariables ?? {},
      userName: keys.UserName,
      workingDirectory: keys.WorkingDirectory,
      out: keys.StandardOutPath,
      err: keys.StandardErrorPath,
    };
  }

  said(): string {
    const { StandardOutPath: out, StandardErrorPath: err, WorkingDirectory: cwd = "/" } = this.keys;
    const files = [...new Set([out, err])].filter((file) => file !== undefined);
    return files.map((file) => textOf(file.startsWith("/") ? file : `${cwd}/${file}`) ?? "").join("");
  }
}

export function textOf(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return undefined;
  }
}

/**
 * A job whose processes are files, so that thousands of installs take no time: state/alive/PID is one that lives,
 * state/exit/PID its status once it does not. What happens by itself happens at a look at the job.
 */
export class PretendedJob extends LoadedJob {
  #pid: number | undefined;
  #dying: number | undefined;
  #again = false;
  #rest = 0;
  /** How often it was printed since its start. */
  #looks = 0;

  get pid(): number | undefined {
    return this.#pid;
  }

  get state(): Facts["state"] {
    if (this.#dying !== undefined) return "SIGTERMed";
    return this.#pid !== undefined ? "running" : this.#again ? "spawn scheduled" : "not running";
  }

  get #alive(): string {
    return `${this.launchd.state}/alive/${this.#pid}`;
  }

  override look(): boolean {
    if (this.#dying !== undefined) {
      if (--this.#dying > 0) return true;
      if (this.#pid !== undefined && this.launchd.conf("lingers", "0") === "0") remove(this.#alive);
      return false;
    }
    if (this.#pid !== undefined && textOf(this.#alive) === undefined) {
      this.lastExit = Number(textOf(`${this.launchd.state}/exit/${this.#pid}`) ?? "0");
      this.#rest = Number(this.launchd.conf("throttle", "0"));
      this.#pid = undefined;
      this.#again = this.isKept(this.lastExit === 0);
    }
    if (this.#pid !== undefined || !this.#again) return true;
    if (this.#rest-- > 0) return true;
    this.#again = false;
    this.start();
    return true;
  }

  override start(): void {
    if (this.#pid !== undefined) return;
    const broken = this.launchd.conf("broken", "");
    if (broken !== "" && new RegExp(broken).test(this.program)) return;
    const numbers = `${this.launchd.state}/pid`;
    this.#pid = Number(textOf(numbers) ?? "900000") + 1;
    this.#looks = 0;
    this.runs++;
    Deno.writeTextFileSync(numbers, String(this.#pid));
    Deno.writeTextFileSync(this.#alive, "");
    // The program under test, and the stand-in that ends it, are of other users.
    Deno.chmodSync(this.#alive, 0o666);
  }

  printed(): void {
    this.#looks++;
  }

  override signal(): void {
    if (this.#pid === undefined) return;
    Deno.writeTextFileSync(`${this.launchd.state}/exit/${this.#pid}`, "143");
    remove(this.#alive);
  }

  override dismiss(): void {
    if (this.#dying !== undefined) return;
    // Not stopped before: its guest loses power, as after launchd's 5 s. One that KeepAlive has only just started, or
    // that is no host agent yet, has no guest.
    const hasGuest = this.#pid !== undefined && this.#looks > 0 && this.launchd.conf("agent", "1") !== "0";
    if (hasGuest && this.exitTimeoutS < 60) Deno.writeTextFileSync(`${this.launchd.state}/cut_off`, this.label);
    this.#dying = Number(this.launchd.conf("dying", "2"));
    this.isLeaving = true;
  }

  override stop(): Promise<void> {
    this.dismiss();
    return Promise.resolve();
  }
}

function remove(path: string): void {
  try {
    Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

const SYSTEM_PATH = "/usr/bin:/bin:/usr/sbin:/sbin";
/** The mark of everything that a job started, by which a power cut finds it. */
export const MARK = "STANDIN_LAUNCHD";

export class RealJob extends LoadedJob {
  #main: Deno.ChildProcess | undefined;
  #next: ReturnType<typeof setTimeout> | undefined;
  #isScheduled = false;
  #over: Promise<void> = Promise.resolve();
  #limit: ReturnType<typeof setTimeout> | undefined;

  get pid(): number | undefined {
    return this.#main?.pid;
  }

  get state(): Facts["state"] {
    const life = this.#main ? this.lives.at(-1) : undefined;
    if (life) return life.killed ? "SIGKILLed" : life.askedMs ? "SIGTERMed" : "running";
    return this.#isScheduled ? "spawn scheduled" : "not running";
  }

  override look(): boolean {
    return true;
  }

  override signal(signal: "SIGTERM" | "SIGKILL"): void {
    if (this.#main) send(this.#main, signal);
  }

  override dismiss(): void {
    this.isLeaving = true;
    this.#isScheduled = false;
    clearTimeout(this.#next);
  }

  override async stop(): Promise<void> {
    this.dismiss();
    const [main, life] = [this.#main, this.lives.at(-1)];
    if (main && life && life.askedMs === undefined) {
      life.askedMs = performance.now();
      send(main, "SIGTERM");
      if (this.exitTimeoutS > 0) {
        this.#limit = setTimeout(() => {
          life.killed = true;
          send(main, "SIGKILL");
        }, this.exitTimeoutS * 1000);
      }
    }
    await this.#over;
  }

  override start(): void {
    clearTimeout(this.#next);
    this.#isScheduled = false;
    if (this.#main) return;
    this.runs++;
    const startedMs = performance.now();
    const command = this.#command();
    if (!command) {
      this.lastExit = CANNOT_START;
      this.#scheduleNext(startedMs, false);
      return;
    }
    const main = command.spawn();
    const life: Life = { pid: main.pid, startedMs, killed: false };
    this.lives.push(life);
    this.#main = main;
    this.#over = main.status.then((status) => this.#reap(life, status));
  }

  /** undefined: launchd cannot start it, which it says with 78. */
  #command(): Deno.Command | undefined {
    const { keys, launchd, domain } = this;
    const account = launchd.accountOf(domain, keys.UserName);
    if (!account || !this.program.startsWith("/") || !isThere(this.program)) return undefined;
    const cwd = keys.WorkingDirectory !== undefined && isThere(keys.WorkingDirectory) ? keys.WorkingDirectory : "/";
    // The shell becomes the job: files are opened after chdir and as the user, and the PID stays.
    const opens = '(: >>"$LAUNCHD_OUT" && : >>"$LAUNCHD_ERR") 2>/dev/null';
    const script = `${opens} || exit ${CANNOT_START}; exec >>"$LAUNCHD_OUT" 2>>"$LAUNCHD_ERR" "$0" "$@"`;
    const words = ["/bin/sh", "-c", script, this.program, ...this.args.slice(1)];
    const isOther = account.uid !== Deno.uid();
    const who = [`--reuid=${account.uid}`, `--regid=${account.gid}`, `--groups=${account.groups}`, "--"];
    const [program = "", ...args] = isOther ? ["/usr/bin/setpriv", ...who, ...words] : words;
    // Without overwriting what the plist has, and only for jobs of a user: a daemon of root has no HOME.
    const { name, home } = account;
    const own = home === "" ? {} : { HOME: home, USER: name, LOGNAME: name, SHELL: "/bin/sh" };
    return new Deno.Command(program, {
      args,
      env: {
        ...launchd.mark,
        [MARK]: launchd.folder,
        LAUNCHD_OUT: keys.StandardOutPath ?? "/dev/null",
        LAUNCHD_ERR: keys.StandardErrorPath ?? "/dev/null",
        XPC_SERVICE_NAME: this.label,
        PATH: `${launchd.folder}:${SYSTEM_PATH}`,
        ...own,
        ...keys.EnvironmentVariables,
      },
      clearEnv: true,
      cwd,
      detached: true,
      stdin: "null",
      stdout: "null",
      stderr: "null",
    });
  }

  #reap(life: Life, { code, signal }: Deno.CommandStatus): void {
    clearTimeout(this.#limit);
    life.ended = { code, signal, atMs: performance.now() };
    this.#main = undefined;
    this.lastExit = signal ?? code;
    if (!this.keys.AbandonProcessGroup) kill(-life.pid, "SIGTERM");
    this.#scheduleNext(life.startedMs, code === 0 && signal === null);
  }

  #scheduleNext(startedMs: number, success: boolean): void {
    if (this.isLeaving || this.launchd.isDown || !this.isKept(success)) return;
    const throttleMs = this.throttleS * 1000 * this.launchd.throttle;
    this.#isScheduled = true;
    this.#next = setTimeout(() => this.start(), Math.max(0, startedMs + throttleMs - performance.now()));
  }
}

function isThere(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
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
export function kill(pid: number, signal: Deno.Signal): void {
  if (!(Math.abs(pid) > 1)) throw new Error(`PID ${pid}`);
  try {
    Deno.kill(pid, signal);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}
