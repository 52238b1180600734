/**
 * A pretended Mac for install.ts: its folders in a temporary directory, stand-ins for launchctl and its like on PATH,
 * and owners as a Mac has them, whoever runs the tests.
 */

import assert from "node:assert/strict";
import { type FileLook, type InstallHost, installMain, PACE, realHost } from "../../install.ts";
import { VERSION } from "../../lima_guard.ts";
import { project } from "./paths.ts";
import { isAlive } from "./processes.ts";

/** What can be told of the machine; all of it can be written as JSON, for a run in a process of its own. */
export interface MacSettings {
  /** Who runs install.ts: 501 is zoe, 0 is root. */
  uid?: number;
  canAsk?: boolean;
  /** The answer to the one question. */
  answer?: boolean;
  os?: "darwin" | "linux";
  arch?: string;
  /** Owners by path prefix, before the usual ones (what is in `system` is root's, what is in `home` is zoe's). */
  owners?: { prefix: string; uid: number; gid?: number; mode?: number }[];
  /** Whether this program is a compiled guard; else it has a folder with a `dist`. */
  isBinary?: boolean;
  pace?: Partial<typeof PACE>;
  /** Stops for ever right before the n-th effect on a file or command, having said so: to be killed there. */
  freezeAt?: number;
}

export interface MacRun {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
  /** The first (or only) instance of the document on stdout. */
  // deno-lint-ignore no-explicit-any
  json(): any;
}

/** A loaded job, as the stand-in keeps it. */
export interface LoadedJob {
  readonly args: string[];
  readonly pid: number | undefined;
  readonly timeout: number;
  readonly dying: boolean;
}

export const ZOE = { name: "zoe", uid: 501, gid: 20 };
const QUICK: typeof PACE = {
  commandMs: 1500,
  stopMs: 1500,
  reapMs: 50,
  goneMs: 1500,
  secondMs: 1,
  bootstrapMs: 1500,
  runningMs: 400,
  pollMs: 5,
  compileMs: 1000,
};

export class FakeMac implements AsyncDisposable {
  readonly state: string;
  readonly home: string;
  readonly agents: string;
  readonly daemons: string;
  readonly guards: string;
  readonly guard: string;

  constructor(readonly root: string, readonly settings: MacSettings = {}) {
    this.state = `${root}/state`;
    this.home = `${root}/home/zoe`;
    this.agents = `${this.home}/Library/LaunchAgents`;
    this.daemons = `${root}/system/Library/LaunchDaemons`;
    this.guards = `${root}/system/usr/local/libexec`;
    this.guard = `${this.guards}/lima-guard`;
  }

  static make(settings: MacSettings = {}): FakeMac {
    const mac = new FakeMac(Deno.realPathSync(Deno.makeTempDirSync({ prefix: "mac-" })), settings);
    const folders = ["jobs", "disabled", "alive", "sessions"].map((name) => `${mac.state}/${name}`);
    const others = [mac.agents, mac.daemons, `${mac.root}/src/dist`, `${mac.home}/.lima/default`, `${mac.root}/bin`];
    for (const dir of [...folders, ...others]) Deno.mkdirSync(dir, { recursive: true });
    for (const tool of ["launchctl", "sudo", "plutil", "codesign", "id"]) {
      Deno.symlinkSync(`${project}/tests/standin/launchd/${tool}`, `${mac.root}/bin/${tool}`);
    }
    Deno.writeTextFileSync(`${mac.state}/version`, VERSION);
    Deno.writeTextFileSync(`${mac.state}/users`, `zoe:*:501:20::0:0:Zoe:${mac.home}:/bin/zsh\n`);
    Deno.writeTextFileSync(`${mac.state}/sessions/501`, "");
    mac.putGuard(`${mac.root}/src/lima-guard`);
    return mac;
  }

  /** A compiled guard, as far as the stand-ins go. */
  putGuard(path: string, more = ""): string {
    Deno.mkdirSync(path.replace(/\/[^/]*$/, ""), { recursive: true });
    const text = Deno.readTextFileSync(`${project}/tests/standin/launchd/guard`);
    Deno.writeTextFileSync(path, text + more);
    Deno.chmodSync(path, 0o755);
    return path;
  }

  agent(name: string, text: string): string {
    return this.#put(`${this.agents}/io.lima-vm.autostart.${name}.plist`, text);
  }

  daemon(name: string, text: string): string {
    return this.#put(`${this.daemons}/io.lima-vm.daemon.${name}.plist`, text);
  }

  #put(path: string, text: string): string {
    Deno.writeTextFileSync(path, text);
    Deno.chmodSync(path, 0o644);
    return path;
  }

  /** Loads a plist as launchd would, before the test begins. */
  async load(domain: string, file: string): Promise<void> {
    const { success, stderr } = await new Deno.Command(`${this.root}/bin/launchctl`, {
      args: ["bootstrap", domain, file],
      env: { ...this.env, STANDIN_ROOT: "1" },
    }).output();
    assert.ok(success, new TextDecoder().decode(stderr));
    this.forget();
  }

  /** Calls are counted and logged from here on. */
  forget(): void {
    for (const file of ["log", "calls", "fault"]) this.#remove(`${this.state}/${file}`);
  }

  #remove(path: string): void {
    try {
      Deno.removeSync(path);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }

  conf(...lines: string[]): void {
    Deno.writeTextFileSync(`${this.state}/conf`, lines.join("\n") + "\n");
  }

  fault(...lines: string[]): void {
    Deno.writeTextFileSync(`${this.state}/fault`, lines.join("\n") + "\n");
  }

  log(): string[] {
    return this.#lines(`${this.state}/log`);
  }

  #lines(path: string): string[] {
    try {
      return Deno.readTextFileSync(path).trim().split("\n");
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
      return [];
    }
  }

  job(domain: string, label: string): LoadedJob | undefined {
    const lines = this.#lines(`${this.state}/jobs/${domain.replace("/", "_")},${label}`);
    if (lines.length === 0) return undefined;
    const value = (key: string) => lines.find((l) => l.startsWith(`${key} `))?.slice(key.length + 1);
    const pid = Number(value("pid") ?? 0);
    return {
      args: lines.filter((l) => l.startsWith("arg ")).map((l) => l.slice(4)),
      pid: pid && this.#isAlive(pid) ? pid : undefined,
      timeout: Number(value("timeout")),
      dying: value("dying") !== undefined,
    };
  }

  #isAlive(pid: number): boolean {
    return pid < 900_000 ? isAlive(pid) : this.exists(`${this.state}/alive/${pid}`);
  }

  exists(path: string): boolean {
    try {
      Deno.lstatSync(path);
      return true;
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
      return false;
    }
  }

  isDisabled(domain: string, label: string): boolean {
    return this.exists(`${this.state}/disabled/${domain.replace("/", "_")},${label}`);
  }

  /** For the environment of everything that runs on it. */
  more: Record<string, string> = {};

  get env(): Record<string, string> {
    return {
      ...this.more,
      PATH: `${this.root}/bin:${Deno.env.get("PATH")}`,
      STANDIN_LAUNCHD: this.state,
      STANDIN_LAUNCHD_LIB: `${project}/tests/standin/launchd`,
      HOME: this.home,
    };
  }

  /** The host of install.ts on this machine: the real one, but for what makes it a Mac and zoe's. */
  async host(out: { stdout: string; stderr: string }): Promise<InstallHost> {
    const { settings } = this;
    const real = await realHost({
      canAsk: false,
      isVerbose: false,
      env: this.env,
      print: (text) => void (out.stderr += text),
    });
    const src = `${this.root}/src`;
    const host: InstallHost = {
      ...real,
      os: settings.os ?? "darwin",
      uid: settings.uid ?? ZOE.uid,
      arch: settings.arch ?? "aarch64",
      canAsk: settings.canAsk ?? false,
      pace: { ...QUICK, ...settings.pace },
      env: (name) => this.env[name],
      folders: {
        daemons: this.daemons,
        logs: `${this.root}/system/Library/Logs/lima-guard`,
        guards: this.guards,
        boot: ["/", this.root],
      },
      self: settings.isBinary === false ? { folder: src } : { binary: `${src}/lima-guard` },
      programs: ["23212f75"],
      lookAt: (path) => this.pretend(real.lookAt(path)),
      alive: (pid) => this.#isAlive(pid) ? "yes" : "no",
      confirm: () => Promise.resolve(settings.answer ?? true),
      progress: () => ({ finish: () => {} }),
      compile: () => Promise.resolve({ argv: ["deno"], code: 1, stdout: "", stderr: "no network", late: false }),
      onSignal: () => () => {},
      stdout: (text) => void (out.stdout += text),
      stderr: (text) => void (out.stderr += text),
    };
    return settings.freezeAt === undefined ? host : freezing(host, settings.freezeAt);
  }

  /** Whose a file would be on a Mac. */
  pretend(look: FileLook | undefined): FileLook | undefined {
    if (!look) return undefined;
    const { path } = look;
    const told = this.settings.owners?.find(({ prefix }) => path.startsWith(prefix));
    if (told) return { ...look, uid: told.uid, gid: told.gid ?? 0, mode: told.mode ?? look.mode };
    if (path.startsWith(`${this.root}/home`)) return { ...look, uid: ZOE.uid, gid: ZOE.gid };
    if (path.startsWith(this.root)) return { ...look, uid: 0, gid: 0 };
    return look;
  }

  /** Runs install.ts in this process. */
  async run(args: string[]): Promise<MacRun> {
    const out = { stdout: "", stderr: "" };
    const status = await installMain(args, await this.host(out));
    const json = () => {
      const document = JSON.parse(out.stdout);
      assert.equal(document.version, 1);
      return document.instances[0];
    };
    return { status, ...out, json };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.root, { recursive: true });
  }
}

/** A host that stops for ever before its n-th effect; a line on stderr says that it has come there. */
function freezing(host: InstallHost, at: number): InstallHost {
  let n = 0;
  const reached = () => {
    if (++n !== at) return;
    Deno.stderr.writeSync(new TextEncoder().encode("frozen\n"));
    while (true) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  };
  const before = <A extends unknown[], R>(effect: (...args: A) => R) => (...args: A): R => {
    reached();
    return effect(...args);
  };
  return {
    ...host,
    remove: before(host.remove),
    rename: before(host.rename),
    sync: before(host.sync),
    run: before(host.run),
    // In two halves: a file that was begun is the worst moment.
    writeNew: (path, bytes, mode, gid) => {
      reached();
      if (n + 1 === at) Deno.writeFileSync(path, bytes.subarray(0, bytes.length / 2));
      reached();
      host.writeNew(path, bytes, mode, gid);
    },
  };
}

// ── a Mac with one job ──

export const DAEMON = "io.lima-vm.daemon.default";
export const AGENT = "io.lima-vm.autostart.default";
export const LIMACTL = ["/opt/homebrew/bin/limactl", "start", "default", "--foreground"];
export const PLISTS = new URL("../testdata/plists/", import.meta.url);

/** A plist of the test data, for the pretended zoe. */
export function fixture(mac: FakeMac, name: string): string {
  return Deno.readTextFileSync(new URL(`${name}.plist`, PLISTS)).replaceAll("/Users/zoe", mac.home);
}

/** A Mac with a running daemon (or agent) as Lima makes it. */
export async function macWith(kind: "daemon" | "agent", settings: MacSettings = {}, name = `lima-2.2-${kind}`) {
  const mac = FakeMac.make(settings);
  const text = fixture(mac, name);
  const file = kind === "daemon" ? mac.daemon("default", text) : mac.agent("default", text);
  const domain = kind === "daemon" ? "system" : "gui/501";
  await mac.load(domain, file);
  const label = kind === "daemon" ? DAEMON : AGENT;
  return { mac, file, text, domain, label, job: () => mac.job(domain, label) };
}

/** The job's arguments under the guard. */
export function guarded(mac: FakeMac, guard = mac.guard): string[] {
  return [guard, "--run", "default", "--", ...LIMACTL];
}

/** Arguments that put an agent's guard where its user can. */
export function own(mac: FakeMac): string[] {
  return ["--guard-dir", `${mac.home}/libexec`];
}

export function listed(dir: string): string[] {
  return [...Deno.readDirSync(dir)].map((e) => e.name).sort();
}
