/**
 * A small launchd; the only one of the tests. What it follows:
 *
 * - a job starts in a session of its own, as its user, with XPC_SERVICE_NAME, launchd's own PATH and stdin /dev/null;
 *   where its program or its log is missing, it ends with 78;
 * - a stop is SIGTERM to the main process only, and SIGKILL to it after ExitTimeOut, 5 s where the plist has none, and
 *   60 s at most for an agent;
 * - when the main process has ended, what is left of its process group gets one SIGTERM, unless AbandonProcessGroup;
 * - KeepAlive starts it again, ThrottleInterval (10 s) after its last start; death by a signal is no success;
 * - at a shutdown all jobs are stopped at once, nothing is started again, and then everything is gone;
 * - `bootout` returns before the job has ended, and `bootstrap` fails with 5 until it has; `kill` starts no timer;
 * - the system's domain is root's, a user's domain that user's and root's; a plist must be its owner's and closed to
 *   others; a disabled label is not loaded.
 *
 * Who calls is the uid of launchctl's process. The user who runs the tests counts as root. What is said are the words of
 * a recording (words.ts). Only real seconds: `exit timeout` is what a job gets. The throttle alone can be shortened.
 *
 * Below its folder: `launchctl`, `lib/Launchd.pm` and `state`, with faults at the n-th call of a tool (Launchd.pm) and
 * these lines `key=value` in state/conf:
 *
 *   disabled=5     the code of a bootstrap of a disabled label (5, or 119)
 *   busy=5         the code of a bootstrap while the job is still there (5, or 37)
 *   again=3        the code of a second bootout (3, 36 or 5)
 *   session=112    what is said of gui/UID where no user is logged in (112, 113 or 125)
 *   clamp=60       the most that an agent's ExitTimeOut counts
 *   kept=0         bootstrap says 0, and keeps no job (background items are off)
 *   dying=2 lingers=1 broken=REGEXP throttle=N agent=0     for pretended processes: see PretendedJob
 */

import assert from "node:assert/strict";
import { findWithoutEnvironments } from "../helpers/home.ts";
import { project } from "../helpers/paths.ts";
import { ps } from "../helpers/processes.ts";
import { type Account, type Job, kill, type Life, type LoadedJob, MARK, PretendedJob, RealJob, textOf } from "./job.ts";
import { eventually, type Home } from "./needs.ts";
import { readKeys } from "./plist.ts";
import { type Answer, Words } from "./words.ts";

export type { Answer, Job, Life };

const STANDINS = `${project}/tests/standin/launchd`;

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
  /**
   * Stops all jobs at once, then kills whatever they left, as a kernel does that halts. `directory`: the directory of
   * users is gone before, so that no ssh can start. `vms`: processes that are gone before any job is asked.
   */
  shutdown(before?: { directory?: boolean; vms?: readonly number[] }): Promise<void>;
  /** Everything is gone in one moment, without any request. */
  powerCut(): Promise<void>;
  /** Loads again what was loaded. */
  boot(): void;
  /** What launchctl answers; without `uid` to root. */
  control(args: readonly string[], uid?: number): Answer;
}

/** `throttle`: ThrottleInterval is multiplied by it; `user`: one that a plist may name. */
export function smallLaunchd(home: Home, options: { throttle?: number; user?: User } = {}): Launchd {
  const { throttle = 0.1, user } = options;
  const launchd = launchdIn(`${home.root}/launchd`, { throttle, mark: home.mark, leftovers: home.root });
  if (user) {
    const { name, uid, gid, groups } = user;
    const line = [name, groups.join(","), uid, gid, "", "", "", name, home.user, "/bin/sh"].join(":");
    Deno.writeTextFileSync(`${launchd.state}/users`, `${line}\n`);
  }
  return launchd;
}

interface User {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
  readonly groups: readonly number[];
}

export interface Settings {
  readonly throttle?: number;
  readonly mark?: Readonly<Record<string, string>>;
  /** The folder whose name is in the command line or the directory of whatever a job has started. */
  readonly leftovers?: string;
  /** No real processes: see PretendedJob. */
  readonly pretended?: boolean;
  /** Where launchctl is put, below the folder. */
  readonly bin?: string;
  readonly recording?: string;
}

/** A launchd that has this folder, which may be there already. */
export function launchdIn(folder: string, settings: Settings = {}): SmallLaunchd {
  return new SmallLaunchd(folder, settings);
}

export class SmallLaunchd implements Launchd {
  readonly bin: string;
  readonly state: string;
  readonly throttle: number;
  readonly mark: Readonly<Record<string, string>>;
  readonly jobs = new Map<string, LoadedJob>();
  readonly overrides = new Map<string, Map<string, boolean>>();
  onBootout: () => void = () => {};
  readonly #words: Words;
  readonly #leftovers: string;
  readonly #isPretended: boolean;
  readonly #listener: Deno.UnixListener;
  readonly #serving: Promise<void>;
  #isDown = false;

  constructor(readonly folder: string, settings: Settings) {
    const { throttle = 0.1, mark = {}, leftovers = folder, pretended = false, bin = "", recording } = settings;
    this.throttle = throttle;
    this.mark = mark;
    this.#leftovers = leftovers;
    this.#isPretended = pretended;
    this.#words = new Words(recording);
    this.state = `${folder}/state`;
    this.bin = bin === "" ? folder : `${folder}/${bin}`;
    for (const dir of [this.bin, `${folder}/lib`, this.state, `${this.state}/sessions`]) {
      Deno.mkdirSync(dir, { recursive: true });
    }
    Deno.chmodSync(this.state, 0o777);
    // Copies: a stand-in looks for its launchd above itself.
    for (const [name, to] of [["launchctl", this.bin], ["Launchd.pm", `${folder}/lib`]] as const) {
      Deno.copyFileSync(`${STANDINS}/${name}`, `${to}/${name}`);
    }
    Deno.chmodSync(`${this.bin}/launchctl`, 0o755);
    Deno.writeTextFileSync(`${this.state}/sessions/${Deno.uid()}`, "");
    const path = `${folder}/lib/launchd.sock`;
    this.#listener = Deno.listen({ transport: "unix", path });
    Deno.chmodSync(path, 0o666);
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
    const [uid, ...args] = text.slice(0, -3).split("\0");
    const { code, stdout = "", stderr = "" } = this.control(args, Number(uid));
    const rest = new TextEncoder().encode([code, stdout, stderr].join("\0"));
    for (let at = 0; at < rest.length;) at += await conn.write(rest.subarray(at));
  }

  conf(key: string, fallback: string): string {
    const line = (textOf(`${this.state}/conf`) ?? "").split("\n").find((one) => one.startsWith(`${key}=`));
    return line === undefined ? fallback : line.slice(key.length + 1);
  }

  /** A line of state/users: as `id -P` prints it, but with the groups in the field of the password. */
  #user(who: string): Account | undefined {
    const fields = (textOf(`${this.state}/users`) ?? "").split("\n").map((line) => line.split(":"))
      .find(([name, , uid]) => name === who || uid === who);
    if (!fields) return undefined;
    const [name = "", groups = "", uid, gid] = fields;
    return { name, groups, uid: Number(uid), gid: Number(gid), home: fields.at(-2) ?? "/" };
  }

  accountOf(domain: string, userName: string | undefined): Account | undefined {
    const own = { name: "", uid: Deno.uid() ?? 0, gid: Deno.gid() ?? 0, home: "", groups: String(Deno.gid()) };
    if (domain === "system") return userName === undefined ? own : this.#user(userName);
    const uid = domain.replace(/.*\//, "");
    return this.#user(uid) ?? (Number(uid) === own.uid ? own : undefined);
  }

  control(args: readonly string[], uid = Deno.uid() ?? 0): Answer {
    const [verb = "", ...rest] = args;
    const verbs: Record<string, () => Answer> = {
      "print": () => this.#print(rest[0] ?? "", uid),
      "print-disabled": () => this.#printDisabled(rest[0] ?? ""),
      "kickstart": () => this.#kickstart(rest, uid),
      "kill": () => this.#kill(rest[0] ?? "", rest[1] ?? "", uid),
      "bootout": () => this.#bootout(rest.at(-1) ?? "", uid),
      "bootstrap": () => this.#bootstrap(rest[0] ?? "", rest[1] ?? "", uid),
      "enable": () => this.#override(rest[0] ?? "", { uid, disabled: false }),
      "disable": () => this.#override(rest[0] ?? "", { uid, disabled: true }),
      "managername": () => ({ code: 0, stdout: "Aqua\n" }),
      "manageruid": () => ({ code: 0, stdout: `${uid}\n` }),
      // No words of launchctl's: the other stand-ins, and the tests, ask so.
      "standin-jobs": () => ({ code: 0, stdout: this.#list() }),
      "standin-lose": () => ({ code: this.jobs.delete(rest[0] ?? "") ? 0 : 1 }),
      "standin-lint": () => ({ code: readKeys(rest[0] ?? "") ? 0 : 1 }),
    };
    return verbs[verb]?.() ?? { code: 64, stderr: `Unrecognized subcommand: ${verb}\n` };
  }

  #isRoot(uid: number): boolean {
    return uid === 0 || uid === Deno.uid();
  }

  /** Who may change a domain. */
  #owns(domain: string, uid: number): boolean {
    return this.#isRoot(uid) || domain.endsWith(`/${uid}`);
  }

  #hasSession(domain: string): boolean {
    const uid = /^gui\/(\d+)$/.exec(domain)?.[1];
    return uid === undefined || textOf(`${this.state}/sessions/${uid}`) !== undefined;
  }

  /** The job that a call is about; it may be gone by now. */
  #find(target: string): LoadedJob | undefined {
    const job = this.jobs.get(target);
    if (job && !job.look()) this.jobs.delete(target);
    return this.jobs.get(target);
  }

  #missing(domain: string, label: string): Answer {
    const stderr = `Bad request.\nCould not find service "${label}" in domain for ${domain}\n`;
    return this.#words.refusal("print.never-loaded", { domain, label }, { code: 113, stderr });
  }

  #print(target: string, uid: number): Answer {
    const at = parseTarget(target);
    if (!at) return USAGE;
    const { domain, label } = at;
    if (domain !== "system" && !this.#owns(domain, uid)) return { code: 125, stderr: NO_ACTION };
    if (!this.#hasSession(domain)) return { code: Number(this.conf("session", "112")) };
    if (label === undefined) {
      const labels = [...this.jobs.values()].filter((job) => job.domain === domain).map((job) => job.label);
      const services = labels.map((one) => `\t\t       0      - \t${one}\n`).join("");
      // The variables of a login session are any that a person has set there.
      const environment = "\tenvironment = {\n\t\tTOKEN => of the session\n\t}\n";
      // What was once enabled or disabled stays there by its label, also where no job has it any more.
      const overrides = [...this.overrides.get(domain) ?? []];
      const labelled = overrides.map(([one, is]) => `\t\t"${one}" => ${is ? "disabled" : "enabled"}\n`).join("");
      const blocks = `${environment}\tservices = {\n${services}\t}\n\tdisabled services = {\n${labelled}\t}\n`;
      return { code: 0, stdout: `${domain} = {\n\ttype = login\n${blocks}}\n` };
    }
    const job = this.#find(target);
    if (!job) return this.#missing(domain, label);
    if (job instanceof PretendedJob) job.printed();
    // What `launchctl setenv` has set, for every job of the domain.
    const [variable, value] = this.conf("setenv", "").split("=");
    const session = value === undefined ? "" : `\tinherited environment = {\n\t\t${variable} => ${value}\n\t}\n\n`;
    return { code: 0, stdout: this.#words.print(job.facts()).replace(/^(?=\tdefault environment)/m, () => session) };
  }

  #printDisabled(domain: string): Answer {
    if (!parseTarget(domain)) return USAGE;
    return { code: 0, stdout: this.#words.disabled(domain, this.overrides.get(domain) ?? new Map()) };
  }

  /** What is in the plist counts until it was enabled or disabled once. */
  #isOff(domain: string, { Label, Disabled = false }: LoadedJob["keys"]): boolean {
    return this.overrides.get(domain)?.get(Label) ?? Disabled;
  }

  isDisabled(domain: string, label: string): boolean {
    return this.overrides.get(domain)?.get(label) ?? false;
  }

  #override(target: string, { uid, disabled }: { uid: number; disabled: boolean }): Answer {
    const { domain, label } = parseTarget(target) ?? {};
    if (domain === undefined || label === undefined) return USAGE;
    if (!this.#owns(domain, uid)) return { code: 1, stderr: "Operation not permitted\n" };
    const labels = this.overrides.get(domain) ?? new Map<string, boolean>();
    this.overrides.set(domain, labels.set(label, disabled));
    return { code: 0 };
  }

  #kickstart(args: readonly string[], uid: number): Answer {
    const target = args.at(-1) ?? "";
    const at = parseTarget(target);
    if (at?.label === undefined) return USAGE;
    if (!this.#owns(at.domain, uid)) return { code: 1, stderr: "Operation not permitted\n" };
    const job = this.#find(target);
    if (!job) return this.#missing(at.domain, at.label);
    if (job.isLeaving) return { code: 37, stderr: "Could not kickstart service: 37: Operation already in progress\n" };
    if (args.includes("-k")) job.signal("SIGKILL");
    job.start();
    return args.includes("-p") ? { code: 0, stdout: `${job.pid}\n` } : { code: 0 };
  }

  #kill(signal: string, target: string, uid: number): Answer {
    const at = parseTarget(target);
    if (at?.label === undefined) return USAGE;
    if (!this.#owns(at.domain, uid)) return { code: 1, stderr: "Operation not permitted\n" };
    const job = this.#find(target);
    if (!job) return this.#missing(at.domain, at.label);
    job.signal(/^(?:SIG)?KILL$|^9$/.test(signal) ? "SIGKILL" : "SIGTERM");
    return { code: 0 };
  }

  #bootout(target: string, uid: number): Answer {
    const at = parseTarget(target);
    if (at?.label === undefined) return USAGE;
    const failed = (code: number, why: string): Answer => ({ code, stderr: `Boot-out failed: ${code}: ${why}\n` });
    if (!this.#owns(at.domain, uid)) return failed(1, "Operation not permitted");
    const job = this.#find(target);
    const { domain, label } = at;
    if (!job) return this.#words.refusal("bootout.never", { domain, label }, failed(3, "No such process"));
    if (job.isLeaving) return failed(Number(this.conf("again", "3")), "Operation now in progress");
    this.onBootout();
    const gone = job.stop();
    // One with pretended processes goes at a look.
    if (job instanceof RealJob) void gone.then(() => this.jobs.delete(target));
    return { code: 0 };
  }

  bootstrap(domain: string, plist: string): number {
    return this.control(["bootstrap", domain, plist]).code;
  }

  #bootstrap(domain: string, path: string, uid: number): Answer {
    if (parseTarget(domain)?.label !== undefined || !parseTarget(domain)) return USAGE;
    const failed = (code: number, why: string): Answer => ({ code, stderr: `Bootstrap failed: ${code}: ${why}\n` });
    if (!this.#owns(domain, uid)) return failed(1, "Operation not permitted");
    if (!this.#hasSession(domain)) return failed(125, "Domain does not support specified action");
    if (!this.#isClosed(domain, path)) return failed(122, "Path had bad ownership/permissions");
    const keys = readKeys(path);
    if (!keys) return failed(5, "Input/output error");
    const [label, target] = [keys.Label, `${domain}/${keys.Label}`];
    const refused = (name: string, key: string): Answer => {
      const code = Number(this.conf(key, "0"));
      const own = failed(code || 5, "Input/output error");
      return code ? own : this.#words.refusal(`bootstrap.${name}`, { domain, label }, own);
    };
    if (this.#isOff(domain, keys)) return refused("disabled", "disabled");
    const there = this.#find(target);
    if (there) return refused(there.isLeaving ? "ending" : "loaded-already", "busy");
    if (this.conf("kept", "1") === "0") return { code: 0 };
    const job = this.#make(domain, path, keys);
    this.jobs.set(target, job);
    job.load();
    return { code: 0 };
  }

  #make(...[domain, path, keys]: [string, string, LoadedJob["keys"]]): LoadedJob {
    return this.#isPretended ? new PretendedJob(this, domain, path, keys) : new RealJob(this, domain, path, keys);
  }

  /** launchd looks at the file that it reads: its owner, and that no other user may write it. */
  #isClosed(domain: string, path: string): boolean {
    try {
      const { uid, mode } = Deno.statSync(path);
      const owner = domain === "system" ? 0 : Number(domain.replace(/.*\//, ""));
      return (uid === owner || (owner === 0 && uid === Deno.uid())) && ((mode ?? 0) & 0o022) === 0;
    } catch {
      return true; // what it is not, the reader says
    }
  }

  /** PID, uid and arguments of each job with a process, for the stand-in of lima-guard. */
  #list(): string {
    return [...this.jobs.values()].filter((job) => job.pid !== undefined).map((job) =>
      [job.pid, this.accountOf(job.domain, job.keys.UserName)?.uid ?? 0, ...job.args].join("\t") + "\n"
    ).join("");
  }

  job(label: string): LoadedJob {
    const job = [...this.jobs.values()].find((one) => one.label === label);
    assert.ok(job, `no job ${label}`);
    return job;
  }

  started(label: string, times: number, withinMs = 40_000): Promise<Life> {
    return eventually(() => {
      const job = this.job(label);
      const life = job.lives[times - 1];
      assert.ok(life, `${label} was started ${job.lives.length} times:\n${job.said()}`);
      return life;
    }, { withinMs });
  }

  ended(label: string, withinMs = 40_000): Promise<Life> {
    const job = this.job(label);
    const life = job.lives.at(-1);
    assert.ok(life, `${label} was never started`);
    return eventually(() => {
      assert.ok(life.ended, `${label} has not ended:\n${job.said()}`);
      return life;
    }, { withinMs });
  }

  async shutdown(
    { directory = false, vms = [] }: { directory?: boolean; vms?: readonly number[] } = {},
  ): Promise<void> {
    this.#isDown = true;
    if (directory) this.#loseDirectory();
    for (const pid of vms) kill(pid, "SIGKILL");
    await Promise.all([...this.jobs.values()].map((job) => job.stop()));
    await this.#killAll();
  }

  /** From now on an ssh that is started knows no user any more. */
  #loseDirectory(): void {
    const ssh = `${this.bin}/ssh`;
    const text =
      `#!/bin/sh\necho "ssh $*" >>'${this.state}/refused'\necho "No user exists for uid $(id -u)" >&2\nexit 255\n`;
    Deno.writeTextFileSync(ssh, text, { mode: 0o755 });
  }

  async powerCut(): Promise<void> {
    this.#isDown = true;
    for (const job of this.jobs.values()) job.dismiss();
    await this.#killAll();
    await Promise.all([...this.jobs.values()].map((job) => job.stop()));
  }

  boot(): void {
    this.#isDown = false;
    for (const [target, job] of [...this.jobs]) {
      const keys = readKeys(job.plist);
      this.jobs.delete(target);
      if (!keys || this.#isOff(job.domain, keys)) continue;
      const next = this.#make(job.domain, job.plist, keys);
      next.lives.push(...job.lives);
      this.jobs.set(target, next);
      next.load();
    }
  }

  get isDown(): boolean {
    return this.#isDown;
  }

  /** Whatever a job started, in whichever group or session it is by now. */
  async #killAll(): Promise<void> {
    if (this.#isPretended) return;
    await eventually(() => {
      const mains = [...this.jobs.values()].flatMap((job) => job.lives.map(({ pid }) => pid));
      const found = marked(this.folder, this.#leftovers, mains);
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

const USAGE: Answer = { code: 64, stderr: "Usage: launchctl <subcommand> ...\n" };
const NO_ACTION = "Domain does not support specified action\n";

function parseTarget(target: string): { domain: string; label: string | undefined } | undefined {
  const [, domain, label] = /^(system|(?:gui|user)\/\d+)(?:\/(.+))?$/.exec(target) ?? [];
  return domain === undefined ? undefined : { domain, label };
}

/** Processes with the mark of this launchd in their environment; on a Mac, which may not show it, see below. */
function marked(...[folder, root, mains]: [string, string, readonly number[]]): number[] {
  if (Deno.build.os !== "linux") return ofJobs(findWithoutEnvironments(root).map(({ pid }) => pid), mains);
  return [...Deno.readDirSync("/proc")].filter(({ name }) => /^\d+$/.test(name)).flatMap(({ name }) => {
    try {
      const environment = Deno.readTextFileSync(`/proc/${name}/environ`).split("\0");
      // A zombie has no environment to be read.
      return environment.includes(`${MARK}=${folder}`) ? [Number(name)] : [];
    } catch {
      return [];
    }
  });
}

/** What the test itself has started is no job, unless it is the main process of one. */
function ofJobs(pids: readonly number[], mains: readonly number[]): number[] {
  return pids.filter((pid) => pid !== Deno.pid && (mains.includes(pid) || ps(pid)?.ppid !== Deno.pid));
}
