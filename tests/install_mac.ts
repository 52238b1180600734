/**
 * A pretended Mac for the tests of install.ts: a tree that belongs to root, with the home folders of zoe (who owns the
 * instance), ada (who may use sudo) and eve (who may nothing). Every run is a process with the real uid and groups, and
 * whose a file is, and who may write it, the kernel decides.
 */

import assert from "node:assert/strict";
import { BACKUP_SUFFIX, BAKED_IN, type InstallHost, installMain, LOG_NAME, MEMORY_SUFFIX } from "../install.ts";
import { VERSION } from "../lima_guard.ts";
import { denoFlags } from "./helpers/guard.ts";
import { project } from "./helpers/paths.ts";
import { pretendedHost } from "./install_host.ts";
import { launchdIn, type SmallLaunchd } from "./launchd/launchd.ts";

export const ROOT = { name: "root", uid: 0, gid: 0, groups: [0] };
export const ZOE = { name: "zoe", uid: 501, gid: 20, groups: [20] };
export const ADA = { name: "ada", uid: 502, gid: 20, groups: [20, 80] };
export const EVE = { name: "eve", uid: 503, gid: 20, groups: [20] };
export type Person = typeof ROOT;
const PEOPLE = [ZOE, ADA, EVE];

/** Why there is no such Mac to be had; for the name of a test that is skipped. */
export const WHY_NO_MAC: string | undefined = Deno.build.os !== "linux"
  ? "needs Linux, where root may be any user"
  : Deno.uid() !== 0
  ? "needs root, to make files of several users"
  : undefined;

/** A test on a pretended Mac. */
export function macTest(name: string, fn: () => Promise<void>): void {
  const ignore = WHY_NO_MAC !== undefined;
  Deno.test({ name: ignore ? `${name}: skipped: ${WHY_NO_MAC}` : name, ignore, fn });
}

export interface MacSettings {
  os?: "darwin" | "linux";
  arch?: "aarch64" | "x86_64";
  canAsk?: boolean;
  answer?: boolean;
  whileAsked?: string;
  isBinary?: boolean;
  /** Files below these are on another device. */
  devices?: { prefix: string; dev: number }[];
  limits?: Record<string, number>;
  freezeAt?: number;
  failAt?: number;
  hookAt?: number;
  hook?: string;
  trace?: boolean;
  /**
   * install.ts itself says what the stand-ins for Apple's tools would say (install_tools.ts), and root's run is no process:
   * so it is unless `false` is given, where a process, its user or a signal is what is tried.
   */
  quick?: boolean;
  /** Another stand-in for launchctl, of a launchd that really runs its jobs: their processes are the kernel's. */
  launchctl?: string;
}

/** Generous where only a failure would wait so long: the machine of the tests may be busy. */
const QUICK = {
  commandMs: 15_000,
  handshakeMs: 15_000,
  stopMs: 15_000,
  reapMs: 30,
  goneMs: 15_000,
  secondMs: 1,
  bootstrapMs: 6000,
  runningMs: 1000,
  steadyMs: 20,
  pollMs: 5,
};

export interface RunOptions {
  as?: Person;
  /** The program that is run; by default root's own copy. */
  program?: string;
  umask?: number;
  /** What is put before the program on the command line. */
  by?: string;
  /** Its standard input is closed. */
  isDeaf?: boolean;
  env?: Record<string, string>;
  cwd?: string;
  settings?: MacSettings;
}

export interface MacRun {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
  /** The first (or only) instance of the document on stdout. */
  // deno-lint-ignore no-explicit-any
  json(): any;
}

/** A loaded job, as the small launchd keeps it. */
export interface LoadedJob {
  readonly args: string[];
  readonly pid: number | undefined;
  readonly timeout: number;
  readonly dying: boolean;
}

/** A folder that belongs to root up to the top; the suite names one in memory. */
const MACS = Deno.env.get("LIMA_GUARD_TESTS_MACS") ?? "/opt";

/** The pretended Mac asks and shows by itself; what dax needs would be loaded at every start. */
export const WITHOUT_DAX: readonly string[] = ["--external", "npm:dax*"];

let shared: string | undefined;

/** install.ts and a Deno that every user can run; made once for each process of tests. */
export function sharedFolder(): string {
  if (shared !== undefined) return shared;
  const dir = Deno.makeTempDirSync({ dir: MACS, prefix: "lima-guard-tests-" });
  Deno.chmodSync(dir, 0o755);
  globalThis.addEventListener("unload", () => Deno.removeSync(dir, { recursive: true }));
  Deno.copyFileSync(Deno.execPath(), `${dir}/deno`);
  const args = [
    "bundle",
    "-q",
    ...WITHOUT_DAX,
    ...denoFlags(),
    "-o",
    `${dir}/install.js`,
    `${project}/tests/install_here.ts`,
  ];
  const { success, stderr } = new Deno.Command(Deno.execPath(), { args, cwd: project }).outputSync();
  assert.ok(success, new TextDecoder().decode(stderr));
  fillCache(dir);
  return shared = dir;
}

/** What Deno finds out about install.js the first time takes longer than a run: every user uses and changes one cache. */
function fillCache(dir: string): void {
  const cache = `${dir}/deno-dir`;
  Deno.mkdirSync(`${dir}/state`);
  Deno.writeTextFileSync(`${dir}/state/settings.json`, "{}");
  const args = ["-c", runScript(dir, dir), "sh", `${dir}/guard`, "--install", "--help"];
  const { success, stderr } = new Deno.Command("/bin/sh", { args }).outputSync();
  assert.ok(success, new TextDecoder().decode(stderr));
  for (const { name, isDirectory } of Deno.readDirSync(cache)) {
    Deno.chmodSync(`${cache}/${name}`, isDirectory ? 0o777 : 0o666);
  }
  Deno.chmodSync(cache, 0o777);
}

const STANDINS = `${project}/tests/standin/launchd`;
const SOURCE_TOOLS = ["codesign", "id", "ls", "plutil", "sudo", "sysctl", "xattr"];

export class FakeMac implements AsyncDisposable {
  readonly state: string;
  readonly home: string;
  readonly agents: string;
  readonly system: string;
  readonly daemons: string;
  readonly guards: string;
  readonly guard: string;
  readonly source: string;
  readonly launchd: SmallLaunchd;
  /** A Deno that every user can run. */
  readonly deno = `${sharedFolder()}/deno`;

  constructor(readonly root: string, readonly settings: MacSettings) {
    this.state = `${root}/state`;
    this.home = `${root}/home/zoe`;
    this.agents = `${this.home}/Library/LaunchAgents`;
    this.system = `${root}/system`;
    this.daemons = `${this.system}/Library/LaunchDaemons`;
    this.guards = `${this.system}/usr/local/libexec`;
    this.guard = `${this.guards}/lima-guard`;
    this.source = `${root}/src/lima-guard`;
    this.launchd = launchdIn(root, { pretended: true, bin: "bin" });
  }

  static make(given: MacSettings = {}): FakeMac {
    const settings = { quick: true, ...given };
    const folder = sharedFolder();
    const mac = new FakeMac(Deno.makeTempDirSync({ dir: MACS, prefix: "mac-" }), { ...settings });
    const { root, system } = mac;
    Deno.chmodSync(root, 0o755);
    for (const name of ["alive", "exit", "sessions"]) {
      mac.folder(`${mac.state}/${name}`, ROOT, 0o777);
    }
    Deno.chmodSync(mac.state, 0o777);
    for (const dir of ["bin", "lib", "src/dist", "opt/homebrew/bin"]) mac.folder(`${root}/${dir}`);
    for (const dir of ["Library/LaunchDaemons", "usr/local", "var/root", "var/db", "var/log"]) {
      mac.folder(`${system}/${dir}`);
    }
    for (const person of PEOPLE) {
      mac.folder(`${root}/home/${person.name}`, person, 0o755);
      mac.folder(`${root}/home/${person.name}/Library`, person, 0o755);
      for (const name of ["LaunchAgents", "Logs"]) mac.folder(`${root}/home/${person.name}/Library/${name}`, person);
    }
    for (const tool of SOURCE_TOOLS) Deno.copyFileSync(`${STANDINS}/${tool}`, `${root}/bin/${tool}`);
    for (const tool of ["head", "mkdir", "rm", "rmdir", "tail", "test"]) {
      Deno.copyFileSync(`${STANDINS}/real_tool`, `${root}/bin/${tool}`);
    }
    Deno.copyFileSync("/usr/bin/setpriv", `${root}/lib/setpriv-root`);
    Deno.chmodSync(`${root}/lib/setpriv-root`, 0o4755);
    mac.write(`${root}/lib/run`, runScript(folder, root), ROOT, 0o755);
    mac.write(`${mac.state}/version`, VERSION);
    mac.write(`${mac.state}/boot`, "BOOT-1\n");
    const users = PEOPLE.map((p) =>
      `${p.name}:${p.groups}:${p.uid}:${p.gid}::0:0:User:${root}/home/${p.name}:/bin/zsh`
    );
    mac.write(`${mac.state}/users`, users.join("\n"));
    mac.write(`${mac.state}/sessions/501`, "");
    mac.write(`${root}/opt/homebrew/bin/limactl`, "#!/bin/sh\n", ROOT, 0o755);
    mac.write(`${root}/opt/homebrew/bin/colima`, "#!/bin/sh\n", ROOT, 0o755);
    mac.instance("default");
    mac.putGuard(mac.source);
    return mac;
  }

  folder(path: string, owner: Person = ROOT, mode = 0o755): void {
    Deno.mkdirSync(path, { recursive: true });
    this.own(path, owner, mode);
  }

  own(path: string, owner: Person, mode?: number): void {
    Deno.chownSync(path, owner.uid, owner.gid);
    if (mode !== undefined) Deno.chmodSync(path, mode);
  }

  write(path: string, text: string, owner: Person = ROOT, mode = 0o644): string {
    Deno.writeTextFileSync(path, text);
    this.own(path, owner, mode);
    return path;
  }

  /** An instance of zoe's. The start of the first one has made Lima's keys. */
  instance(name: string, home = `${this.home}/.lima`): void {
    this.folder(home, ZOE);
    this.folder(`${home}/_config`, ZOE);
    this.folder(`${home}/${name}`, ZOE);
    this.write(`${home}/${name}/lima.yaml`, "", ZOE);
  }

  /** A compiled guard, as far as the stand-ins go. */
  putGuard(path: string, more = "", owner: Person = ROOT): string {
    this.folder(path.replace(/\/[^/]*$/, ""), owner);
    return this.write(path, Deno.readTextFileSync(`${STANDINS}/guard`) + more, owner, 0o755);
  }

  /** The same file by the other name that its folder has (install_host.ts). */
  firmlinked(file: string): string {
    this.folder(`${this.root}/firmlinks`);
    Deno.symlinkSync(file.replace(/(\/[^/]*){2}$/, ""), `${this.root}/firmlinks/other`);
    return file.replace(/.*(?=(\/[^/]*){2})/, `${this.root}/firmlinks/other`);
  }

  agent(name: string, text: string): string {
    return this.write(`${this.agents}/io.lima-vm.autostart.${name}.plist`, text, ZOE);
  }

  daemon(name: string, text: string): string {
    return this.write(`${this.daemons}/io.lima-vm.daemon.${name}.plist`, text);
  }

  /** launchctl as a person, before or between the runs. */
  launchctl(args: string[], as: Person = ROOT): void {
    const { code, stderr = "" } = this.launchd.control(args, as.uid);
    assert.equal(code, 0, stderr);
  }

  load(domain: string, file: string): void {
    this.launchctl(["bootstrap", domain, file]);
    this.forget();
  }

  /** Calls are counted and logged from here on. */
  forget(): void {
    for (const file of ["log", "calls", "fault", "guard_uids", "effects", "reads", "paths", "apart"]) {
      if (this.exists(`${this.state}/${file}`)) Deno.removeSync(`${this.state}/${file}`);
    }
  }

  conf(...lines: string[]): void {
    this.write(`${this.state}/conf`, lines.join("\n") + "\n");
  }

  fault(...lines: string[]): void {
    this.write(`${this.state}/fault`, lines.join("\n") + "\n");
  }

  #lines(name: string): string[] {
    const path = `${this.state}/${name}`;
    return this.exists(path) ? Deno.readTextFileSync(path).trim().split("\n") : [];
  }

  /** The calls of the tools: `UID: COMMAND LINE`. */
  log(): string[] {
    return this.#lines("log");
  }

  effects(): string[] {
    return this.#lines("effects");
  }

  /** Which files were read: `UID PATH`. */
  reads(): string[] {
    return this.#lines("reads");
  }

  /** With which PATH tools were called. */
  paths(): string[] {
    return [...new Set(this.#lines("paths"))];
  }

  /** What a quick run could not answer by itself. */
  apart(): string[] {
    return this.#lines("apart");
  }

  /** Who has run lima-guard. */
  guardUids(): number[] {
    return [...new Set(this.#lines("guard_uids").map(Number))].sort();
  }

  job(domain: string, label: string): LoadedJob | undefined {
    const job = this.launchd.jobs.get(`${domain}/${label}`);
    if (!job) return undefined;
    const isAlive = job.pid !== undefined && this.exists(`${this.state}/alive/${job.pid}`);
    return {
      args: [...job.args],
      pid: isAlive ? job.pid : undefined,
      timeout: job.exitTimeoutS,
      dying: job.isLeaving,
    };
  }

  /** The job is not loaded any more, without a word to its process. */
  lose(domain: string, label: string): void {
    this.launchctl(["standin-lose", `${domain}/${label}`]);
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
    return this.launchd.isDisabled(domain, label);
  }

  /** The lines of the log of all installs, root's and the users'. */
  logged(): Record<string, unknown>[] {
    const folders = [`${this.system}/var/log`, ...PEOPLE.map((p) => `${this.root}/home/${p.name}/Library/Logs`)];
    const files = folders.map((folder) => `${folder}/${LOG_NAME}`).filter((file) => this.exists(file));
    return files.flatMap((file) => Deno.readTextFileSync(file).trim().split("\n").map((line) => JSON.parse(line)));
  }

  /** Every file with its owner, mode and text, except for the stand-ins' state, the locks and the log. */
  tree(): string[] {
    const rows: string[] = [];
    const walk = (dir: string) => {
      for (const { name, isDirectory, isSymlink, isFile } of Deno.readDirSync(dir)) {
        const path = `${dir}/${name}`;
        if (path === this.state || /-install\.(lock|log)$/.test(name)) continue;
        const { uid, gid, mode } = Deno.lstatSync(path);
        const text = isSymlink ? Deno.readLinkSync(path) : isFile ? Deno.readTextFileSync(path).slice(0, 20_000) : "";
        rows.push(`${path.slice(this.root.length)} ${uid}:${gid} ${((mode ?? 0) & 0o7777).toString(8)} ${text}`);
        if (isDirectory) walk(path);
      }
    };
    walk(this.root);
    return rows.sort();
  }

  #command(program: string, args: string[], options: RunOptions) {
    const { as = ROOT, umask = 0o022, by = "", isDeaf = false, env = {}, cwd = "/" } = options;
    const home = as.uid === 0 ? `${this.system}/var/root` : `${this.root}/home/${as.name}`;
    const words = ["--reuid", String(as.uid), "--regid", String(as.gid), "--groups", as.groups.join(","), "--"];
    const shell = [
      "/bin/sh",
      "-c",
      `umask ${umask.toString(8)}; exec ${by} "$@"${isDeaf ? " <&-" : ""}`,
      "sh",
      program,
      ...args,
    ];
    return {
      args: [...words, ...shell],
      cwd,
      clearEnv: true,
      env: { PATH: "/usr/bin:/bin:/usr/sbin:/sbin", HOME: home, ...env },
      stdin: "null" as const,
    };
  }

  /** Starts lima-guard --install and so on, to be killed. */
  start(args: string[], options: RunOptions = {}): Deno.ChildProcess {
    this.prepare(options);
    const command = this.#command(options.program ?? this.source, withRole(args), options);
    return new Deno.Command("setpriv", { ...command, stdout: "piped", stderr: "piped" }).spawn();
  }

  /** Writes down what the next run finds; every run does it by itself. */
  prepare(options: RunOptions = {}): void {
    this.write(`${this.state}/settings.json`, JSON.stringify(this.#settings(options)));
  }

  #settings({ settings }: RunOptions): MacSettings {
    const { limits, ...all } = { ...this.settings, ...settings };
    return { ...all, limits: { ...QUICK, ...limits } };
  }

  /** Runs lima-guard with these arguments; without a role among them it is an install. */
  async run(args: string[], options: RunOptions = {}): Promise<MacRun> {
    const { as = ROOT, settings, ...process } = options;
    const isQuick = settings?.quick ?? this.settings.quick;
    if (isQuick && as.uid === 0 && Object.keys(process).length === 0) return await this.#runHere(args, options);
    this.prepare(options);
    const command = this.#command(options.program ?? this.source, withRole(args), options);
    const { code, stdout, stderr } = await new Deno.Command("setpriv", command).output();
    return macRun(code, new TextDecoder().decode(stdout), new TextDecoder().decode(stderr));
  }

  /** Root's run without a process: for what neither the process nor its user, environment and umask decide. */
  async #runHere(args: string[], options: RunOptions): Promise<MacRun> {
    const home = `${this.system}/var/root`;
    let [out, err] = ["", ""];
    const own: Partial<InstallHost> = {
      settle: () => void Deno.umask(0o022),
      env: (name) => ({ PATH: "/usr/bin:/bin:/usr/sbin:/sbin", HOME: home })[name],
      onSignal: () => () => {},
      stdout: (text) => void (out += text),
      stderr: (text) => err += text,
    };
    const ask = (words: string[], uid: number) => this.launchd.control(words, uid);
    const host = pretendedHost({ root: this.root, binary: this.source, home, ask, own }, this.#settings(options));
    const status = await installMain(withRole(args), host);
    return macRun(status, out, err);
  }

  /** A line as a person types it, where `lima-guard` is the binary, sudo and launchctl are on the PATH; yes to all. */
  async type(line: string, as: Person): Promise<{ code: number; output: string }> {
    this.prepare();
    const program = line.replace(/(?<![\w/])lima-guard (?=--)/, `${this.source} `);
    const typed = line.includes(" --yes ") ? program : program.replace(/ (?=--(un)?install )/, " --yes ");
    const env: Record<string, string> = { PATH: `${this.root}/bin:/usr/bin:/bin`, LIMA_HOME: "/nonsense" };
    if (line.includes("sudo")) env["HOME"] = `${this.root}/home/eve`;
    const { code, stdout, stderr } = await new Deno.Command(
      "setpriv",
      this.#command("/bin/sh", ["-c", typed], { as, env }),
    ).output();
    return { code, output: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.launchd[Symbol.asyncDispose]();
    await Deno.remove(this.root, { recursive: true });
  }
}

function macRun(status: number, stdout: string, stderr: string): MacRun {
  const json = () => {
    const document = JSON.parse(stdout);
    assert.equal(document.version, 1);
    assert.equal(typeof document.changed, "boolean");
    return document.instances[0];
  };
  return { status, stdout, stderr, json };
}

function withRole(args: string[]): string[] {
  const hasRole = args.some((a) => /^--(install|check|uninstall)$/.test(a));
  return hasRole ? args : ["--install", ...args];
}

/** The guard's `--install` on this Mac: a process that runs the product. */
function runScript(folder: string, root: string): string {
  // What the code cache holds is not looked for in the tests, and saves a third of their time.
  const baked = BAKED_IN.filter((flag) => flag !== "--no-code-cache").join(" ");
  const flags = `run -q --no-check --no-config --no-lock ${baked}`;
  const env = `DENO_DIR=${folder}/deno-dir DENO_NO_UPDATE_CHECK=1 NO_COLOR=1`;
  return `#!/bin/sh\nexec /usr/bin/env ${env} ${folder}/deno ${flags} ${folder}/install.js ${root} "$@"\n`;
}

// ── a Mac with one job ──

export const DAEMON = "io.lima-vm.daemon.default";
export const AGENT = "io.lima-vm.autostart.default";
export const PLISTS = new URL("./testdata/plists/", import.meta.url);

export function limactl(mac: FakeMac, name = "default"): string[] {
  return [`${mac.root}/opt/homebrew/bin/limactl`, "start", name, "--foreground"];
}

/** A plist of the test data, for the pretended zoe. */
export function fixture(mac: FakeMac, name: string): string {
  const text = Deno.readTextFileSync(new URL(`${name}.plist`, PLISTS));
  return text.replaceAll("/Users/zoe", mac.home).replaceAll("/opt/homebrew", `${mac.root}/opt/homebrew`);
}

/** A Mac with a running daemon (or agent) as Lima makes it, and the person who may change it. */
export function macWith(kind: "daemon" | "agent", settings: MacSettings = {}, name = `lima-2.2-${kind}`) {
  const mac = FakeMac.make(settings);
  const text = fixture(mac, name);
  const file = kind === "daemon" ? mac.daemon("default", text) : mac.agent("default", text);
  const domain = kind === "daemon" ? "system" : "gui/501";
  mac.load(domain, file);
  const label = kind === "daemon" ? DAEMON : AGENT;
  const as = kind === "daemon" ? ROOT : ZOE;
  const guard = kind === "daemon" ? mac.guard : `${mac.home}/.local/libexec/lima-guard`;
  return { mac, file, text, domain, label, as, guard, job: () => mac.job(domain, label) };
}

/** The job's arguments under the guard. */
export function guarded(mac: FakeMac, guard = mac.guard, ...options: string[]): string[] {
  return [guard, "--run", "default", ...options, "--", ...limactl(mac)];
}

export function listed(dir: string): string[] {
  return [...Deno.readDirSync(dir)].map((e) => e.name).sort();
}

export const BESIDE = [BACKUP_SUFFIX, MEMORY_SUFFIX];
