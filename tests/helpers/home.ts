/**
 * A LIMA_HOME of its own for every test: `await using home = await tempLimaHome()`. Whatever runs in it when the test
 * ends is killed, by PID, and only what was started for it; then nothing may be left that names it.
 */

import assert from "node:assert/strict";
import { standin } from "./paths.ts";
import { eventually } from "./processes.ts";

/** The mark in the environment of everything a test starts, by which it is found again. */
const MARK = "STANDIN_HOME";

const PROGRAMS = ["limactl", "colima", "qemu-system-x86_64", "krunkit", "lima-driver-x"];

export interface Home extends AsyncDisposable {
  /** The temporary directory of the test, with symlinks resolved; everything else is inside it. */
  readonly root: string;
  /** LIMA_HOME. */
  readonly lima: string;
  /** HOME. */
  readonly user: string;
  /** A directory for PATH, with links to the stand-ins `limactl`, `colima`, `qemu-system-x86_64`, `krunkit`, `lima-driver-x`. */
  readonly bin: string;
  /** `bin`/limactl. */
  readonly limactl: string;
  /** To be in the environment of every process that a test starts: LIMA_HOME, HOME, PATH and the mark. */
  readonly env: Readonly<Record<string, string>>;
  /** Only the mark: for processes which are to know nothing of Lima. */
  readonly mark: Readonly<Record<string, string>>;
  /** Makes LIMA_HOME/NAME with lima.yaml, a disk and the stand-in's configuration. */
  instance(name: string, options?: InstanceOptions): Instance;
  /** `_disks/NAME` with its data disk; `inUseBy` is the target of the lock. */
  disk(name: string, options?: { inUseBy?: string }): Disk;
  /** `_networks/NAME`: `pid` is the text of usernet_NAME.pid, `sockets` are bound and refuse connections. */
  network(name?: string, options?: { pid?: number | string; sockets?: boolean }): Network;
  /** Allows the stand-in `limactl` to do to this process what the real one does to any: see standin/limactl. */
  mayBeSignalled(pid: number): void;
  /** The instance that the stand-in `limactl start` would have created, were it the real one. */
  wouldHaveCreated(): string | undefined;
  /** Gives everything to another user, for tests that run the guard as that user. */
  giveTo(user: { uid: number; gid: number }): void;
  /** Lines `PID COMMAND` of the processes that belong to this test and still live. */
  processes(): string[];
}

export interface Disk {
  readonly dir: string;
  readonly lock: string;
  /** The target of in_use_by; undefined where there is none. */
  inUseBy(): string | undefined;
}

export interface Network {
  readonly dir: string;
  readonly pidFile: string;
  readonly sockets: readonly string[];
}

export interface InstanceOptions {
  /** Keys of standin.conf: see the head of standin/limactl. `vmtype` goes into lima.yaml too. */
  conf?: Conf;
  /** Lines to add to lima.yaml; or the whole text with `wholeYaml`. */
  yaml?: string;
  wholeYaml?: string;
}

export type Conf = Record<string, string | number>;

/** What a PID file holds unless its age is the matter: written long enough ago to be complete. */
const SETTLED_SECONDS = 60;

/** An instance directory and the files in it. Paths are relative to the directory. */
export class Instance {
  readonly dir: string;
  constructor(readonly home: Home, readonly name: string) {
    this.dir = `${home.lima}/${name}`;
  }

  path(file: string): string {
    return `${this.dir}/${file}`;
  }

  /** Writes a file; `ageSeconds` sets its modification time back. */
  write(file: string, text: string, { mode, ageSeconds }: { mode?: number; ageSeconds?: number } = {}): string {
    const path = this.path(file);
    Deno.writeTextFileSync(path, text);
    if (mode !== undefined) Deno.chmodSync(path, mode);
    if (ageSeconds !== undefined) {
      const then = new Date(Date.now() - ageSeconds * 1000);
      Deno.utimeSync(path, then, then);
    }
    return path;
  }

  /** A PID file: a number gets Lima's line end, a text is written unchanged. A minute old, unless stated. */
  pidFile(
    file: string,
    content: number | string,
    { ageSeconds = SETTLED_SECONDS }: { ageSeconds?: number } = {},
  ): string {
    return this.write(file, typeof content === "number" ? `${content}\n` : content, { ageSeconds });
  }

  /** The text of a file; undefined where there is none. */
  read(file: string): string | undefined {
    try {
      return Deno.readTextFileSync(this.path(file));
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      throw error;
    }
  }

  /** The number in a PID file. */
  pid(file: string): number | undefined {
    const text = this.read(file)?.trim();
    return text ? Number(text) : undefined;
  }

  /** Is there anything of this name, a dangling link included? */
  has(file: string): boolean {
    try {
      Deno.lstatSync(this.path(file));
      return true;
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return false;
      throw error;
    }
  }

  remove(file: string): void {
    Deno.removeSync(this.path(file), { recursive: true });
  }

  /** The names in the directory, sorted, without what belongs to the stand-ins. */
  files(): string[] {
    return [...Deno.readDirSync(this.dir)].map((entry) => entry.name)
      .filter((name) => !name.startsWith("standin.")).sort();
  }

  /** Adds to standin.conf; an empty value takes a key out. */
  conf(values: Conf): void {
    const lines = (this.read("standin.conf") ?? "").split("\n").filter((line) => line !== "");
    const all = new Map(lines.map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]));
    for (const [key, value] of Object.entries(values)) {
      if (value === "") all.delete(key);
      else all.set(key, String(value));
    }
    this.write("standin.conf", [...all].map(([key, value]) => `${key}=${value}\n`).join(""));
  }

  /** A unix socket that no process listens on any more: connecting is refused. */
  staleSocket(file: string): string {
    return staleSocket(this.path(file));
  }

  /** A unix socket that accepts connections and never says a word. */
  silentSocket(file: string): { path: string } & Disposable {
    return silentSocket(this.path(file));
  }

  /** ssh.config in Lima's shape. `text` writes something else, for example a truncated one. */
  sshConfig({ port, user = userName(), text }: { port?: number; user?: string; text?: string } = {}): string {
    return this.write("ssh.config", text ?? sshConfig(this, port ?? 9, user), { mode: 0o600 });
  }

  /** The events of ha.stdout.log, without their times. */
  events(): Record<string, unknown>[] {
    return (this.read("ha.stdout.log") ?? "").split("\n").filter((line) => line.startsWith("{"))
      .map((line) => JSON.parse(line).status);
  }

  /** The messages of ha.stderr.log. */
  log(): string[] {
    return (this.read("ha.stderr.log") ?? "").split("\n").filter((line) => line.startsWith("{"))
      .map((line) => JSON.parse(line).msg);
  }

  /** One record for every host agent that was started. */
  starts(): { pid: number; pgid: number; command: string; env: Record<string, string> }[] {
    return (this.read("standin.starts") ?? "").split("\n").filter((line) => line !== "").map((line) =>
      JSON.parse(line)
    );
  }

  /** How the guest's file system was left: `dirty` means that its power was cut (or is still on). */
  guestDisk(): string | undefined {
    return this.read("standin.guest/disk")?.trim();
  }

  /** What was asked of the guest: the ssh commands and the commands they ran. */
  guestLog(): string[] {
    return (this.read("standin.guest/log") ?? "").split("\n").filter((line) => line !== "");
  }
}

/** A unix socket file without a listener. Deno unlinks what it has bound when it closes, hence the other name. */
export function staleSocket(path: string): string {
  const bound = `${path}~`;
  const listener = Deno.listen({ transport: "unix", path: bound });
  Deno.renameSync(bound, path);
  listener.close();
  return path;
}

/** The kernel accepts for a listener that never does: the client is connected and hears nothing. */
export function silentSocket(path: string): { path: string } & Disposable {
  const listener = Deno.listen({ transport: "unix", path });
  return { path, [Symbol.dispose]: () => listener.close() };
}

export function userName(): string {
  return ownName ??= new TextDecoder().decode(new Deno.Command("id", { args: ["-un"] }).outputSync().stdout).trim();
}
let ownName: string | undefined;

function sshConfig(instance: Instance, port: number, user: string): string {
  return `# This SSH config file can be passed to 'ssh -F'.
# This file is created by Lima, but not used by Lima itself currently.
# Modifications to this file will be lost on restarting the Lima instance.
Host lima-${instance.name.replaceAll(/[._]/g, "-")}
  IdentityFile "${instance.home.lima}/_config/user"
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  NoHostAuthenticationForLocalhost yes
  PreferredAuthentications publickey
  Compression no
  BatchMode yes
  IdentitiesOnly yes
  GSSAPIAuthentication no
  Ciphers "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
  User ${user}
  ControlMaster auto
  ControlPath "${instance.dir}/ssh.sock"
  ControlPersist yes
  Hostname 127.0.0.1
  Port ${port}
`;
}

/** `name` is the directory of LIMA_HOME inside the temporary one, for tests of odd spellings. */
export function tempLimaHome({ name = "lima" }: { name?: string } = {}): Promise<Home> {
  // Short: a socket's path has 104 bytes on macOS. Resolved: Lima resolves LIMA_HOME, and /tmp is a link there.
  const root = Deno.realPathSync(Deno.makeTempDirSync({ dir: "/tmp", prefix: "lg-" }));
  Deno.chmodSync(root, 0o755);
  const [lima, user, bin] = [`${root}/${name}`, `${root}/home`, `${root}/bin`];
  for (const dir of [lima, `${lima}/_config`, user, bin]) Deno.mkdirSync(dir, { recursive: true });
  for (const program of PROGRAMS) Deno.symlinkSync(standin(program), `${bin}/${program}`);
  return Promise.resolve(new TempHome(root, lima, user, bin));
}

class TempHome implements Home {
  readonly limactl: string;
  readonly mark: Readonly<Record<string, string>>;
  readonly env: Readonly<Record<string, string>>;

  constructor(readonly root: string, readonly lima: string, readonly user: string, readonly bin: string) {
    this.limactl = `${bin}/limactl`;
    this.mark = { [MARK]: root };
    this.env = {
      ...this.mark,
      LIMA_HOME: lima,
      HOME: user,
      USER: userName(),
      LOGNAME: userName(),
      TMPDIR: root,
      PATH: `${bin}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin`,
    };
  }

  instance(name: string, { conf = {}, yaml = "", wholeYaml }: InstanceOptions = {}): Instance {
    const instance = new Instance(this, name);
    Deno.mkdirSync(instance.dir);
    const text = wholeYaml ??
      `vmType: ${conf.vmtype ?? "vz"}\nimages:\n- location: /nowhere/guest.img\nmounts: []\n${yaml}`;
    instance.write("lima.yaml", text);
    instance.write("lima-version", "2.2.0");
    instance.write("disk", "the guest's disk image\n");
    instance.conf(conf);
    return instance;
  }

  disk(name: string, { inUseBy }: { inUseBy?: string } = {}): Disk {
    const dir = `${this.lima}/_disks/${name}`;
    const lock = `${dir}/in_use_by`;
    Deno.mkdirSync(dir, { recursive: true });
    Deno.writeTextFileSync(`${dir}/datadisk`, "an additional disk\n");
    if (inUseBy !== undefined) Deno.symlinkSync(inUseBy, lock);
    return {
      dir,
      lock,
      inUseBy() {
        try {
          return Deno.readLinkSync(lock);
        } catch (error) {
          if (error instanceof Deno.errors.NotFound) return undefined;
          throw error;
        }
      },
    };
  }

  network(name = "user-v2", { pid, sockets = false }: { pid?: number | string; sockets?: boolean } = {}): Network {
    const dir = `${this.lima}/_networks/${name}`;
    const pidFile = `${dir}/usernet_${name}.pid`;
    const paths = ["ep", "fd", "qemu"].map((kind) => `${dir}/${name}_${kind}.sock`);
    Deno.mkdirSync(dir, { recursive: true });
    if (pid !== undefined) {
      Deno.writeTextFileSync(pidFile, typeof pid === "number" ? `${pid}\n` : pid);
      const then = new Date(Date.now() - SETTLED_SECONDS * 1000);
      Deno.utimeSync(pidFile, then, then);
    }
    if (sockets) paths.forEach(staleSocket);
    return { dir, pidFile, sockets: paths };
  }

  mayBeSignalled(pid: number): void {
    Deno.writeTextFileSync(`${this.lima}/standin.may-signal`, `${pid}\n`, { append: true });
  }

  wouldHaveCreated(): string | undefined {
    try {
      return Deno.readTextFileSync(`${this.lima}.would-have-created`).trim();
    } catch {
      return undefined;
    }
  }

  giveTo({ uid, gid }: { uid: number; gid: number }): void {
    const give = (path: string) => {
      const info = Deno.lstatSync(path);
      if (info.isSymlink) return;
      Deno.chownSync(path, uid, gid);
      if (info.isDirectory) { for (const entry of Deno.readDirSync(path)) give(`${path}/${entry.name}`); }
    };
    give(this.root);
  }

  processes(): string[] {
    return processesThatName(this.root);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await eventually(() => {
      for (const line of this.processes()) kill(Number(line.split(" ")[0]));
      assert.deepEqual(this.processes(), [], "processes that do not die");
    });
    removeTree(this.root);
    assert.deepEqual(this.processes(), [], `processes that still name ${this.root}`);
    // The first thread of a killed QEMU is a zombie while the others still have its sockets.
    await eventually(() => assert.deepEqual(socketsUnder(this.root), [], `sockets still open under ${this.root}`));
  }
}

function kill(pid: number): void {
  try {
    Deno.kill(pid, "SIGKILL");
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** A test may have made a directory read-only, or left a tree that another user owns. */
function removeTree(root: string): void {
  try {
    Deno.removeSync(root, { recursive: true });
  } catch {
    new Deno.Command("chmod", { args: ["-R", "u+rwX", root], stderr: "null" }).outputSync();
    Deno.removeSync(root, { recursive: true });
  }
}

/**
 * Processes, but this one, that name a directory: in their command line, working directory or, on Linux, environment.
 * A Mac shows no environment of Apple's own programs: what a test starts must be found without.
 */
function processesThatName(root: string): string[] {
  const found = Deno.build.os === "linux" ? fromProc(root, { environments: true }) : fromPs(root);
  return found.filter(({ pid }) => pid !== Deno.pid).map(({ pid, command }) => `${pid} ${command}`);
}

interface Found {
  readonly pid: number;
  readonly command: string;
}

/** The processes that name a directory in their command line or working directory, this one too. */
export function findWithoutEnvironments(root: string): Found[] {
  return Deno.build.os === "linux" ? fromProc(root, { environments: false }) : fromPs(root);
}

function fromProc(root: string, { environments }: { environments: boolean }): Found[] {
  const found: Found[] = [];
  for (const { name } of Deno.readDirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const command = quietly(() => Deno.readTextFileSync(`/proc/${name}/cmdline`)) ?? "";
    if (command === "") continue; // a zombie, or a thread of the kernel
    const environment = environments ? quietly(() => Deno.readTextFileSync(`/proc/${name}/environ`)) ?? "" : "";
    const cwd = quietly(() => Deno.readLinkSync(`/proc/${name}/cwd`)) ?? "";
    if (names(command, root) || names(environment, root) || names(cwd, root)) {
      found.push({ pid: Number(name), command: command.replaceAll("\0", " ").trim() });
    }
  }
  return found;
}

function fromPs(root: string): Found[] {
  const said = (program: string, args: string[]) =>
    new TextDecoder().decode(new Deno.Command(program, { args, stdin: "null", stderr: "null" }).outputSync().stdout);
  const ps = said("ps", ["-A", "-ww", "-o", "pid=,stat=,command="]);
  return findIn(root, ps, said("lsof", ["-n", "-P", "-w", "-d", "cwd", "-F", "pn"]));
}

/** From the text of `ps -A -ww -o pid=,stat=,command=` and of `lsof -d cwd -F pn`. */
export function findIn(root: string, ps: string, lsof: string): Found[] {
  const inside = new Set<number>();
  let pid = 0;
  for (const line of lsof.split("\n")) {
    if (line.startsWith("p")) pid = Number(line.slice(1));
    if (line.startsWith("n") && names(line.slice(1), root)) inside.add(pid);
  }
  return ps.split("\n").flatMap((line): Found[] => {
    const [, number, stat = "Z", command = ""] = /^\s*(\d+)\s+(\S+)\s+(.*)$/.exec(line) ?? [];
    const found = { pid: Number(number), command };
    return !stat.startsWith("Z") && (names(command, root) || inside.has(found.pid)) ? [found] : [];
  });
}

/** The path itself or something in it, not a longer name that begins alike. */
function names(text: string, root: string): boolean {
  for (let at = text.indexOf(root); at >= 0; at = text.indexOf(root, at + 1)) {
    if (!/[\w-]/.test(text[at + root.length] ?? "")) return true;
  }
  return false;
}

function socketsUnder(root: string): string[] {
  if (Deno.build.os !== "linux") return [];
  return Deno.readTextFileSync("/proc/net/unix").split("\n").filter((line) => names(line, root));
}

function quietly<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined; // gone meanwhile, or not ours to look at
  }
}
