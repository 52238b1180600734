/** The guest's side of ssh: a real sshd on loopback whose only command is standin/guest-shell. */

import assert from "node:assert/strict";
import type { Home, Instance } from "./home.ts";
import { userName } from "./home.ts";
import { standin } from "./paths.ts";
import { eventually, killChild, waitForExit } from "./processes.ts";

/** See standin/guest/command and standin/guest-shell for what each means. */
export type GuestMode =
  | "normal"
  | `slow:${number}`
  | "no-sudo"
  | "no-systemctl"
  | "refuse"
  | "ignore"
  | "lying"
  | "hang-before-ready";

export interface Guest extends AsyncDisposable {
  readonly port: number;
  /** Changes how the guest behaves from now on. */
  mode(mode: GuestMode): void;
  /** What was asked of the guest: `ssh: TEXT` for each session, and each command that it ran. */
  log(): string[];
  /** Asks the guest from within to power off, as a user who is logged in to it would. */
  powerOff(): void;
  /** Ends sshd: from now on the port refuses. */
  stop(): Promise<void>;
  /** sshd listens on the same port again. */
  listen(): Promise<void>;
  /** Whether sshd accepts the key. */
  accept(key: boolean): void;
}

/** Commands of the guest that an ordinary user finds, and those that only root's PATH has. */
const BIN = ["sudo", "sync", "systemctl", "uname", "hostname", "id", "true", "false"];
const SBIN = ["poweroff", "shutdown", "halt"];

const SSHD = "/usr/sbin/sshd";

/** Why sshGuest cannot be had here; undefined where it can. For a test's `ignore`. */
export function whyNoSshd(): string | undefined {
  for (const file of [SSHD, "/usr/bin/ssh", "/usr/bin/ssh-keygen"]) {
    try {
      Deno.statSync(file);
    } catch {
      return `${file} is not installed`;
    }
  }
  return undefined;
}

/**
 * Gives the instance a guest: sshd on a free port of 127.0.0.1, a key at LIMA_HOME/_config/user, and DIR/ssh.config.
 * A host agent that is started afterwards writes the same ssh.config.
 */
export async function sshGuest(instance: Instance, mode: GuestMode = "normal"): Promise<Guest> {
  const { home } = instance;
  const guest = instance.path("standin.guest");
  furnish(guest);
  const setMode = (mode: GuestMode) => {
    Deno.writeTextFileSync(`${guest}/mode`, `${mode}\n`);
    for (const name of BIN) copyCommand(`${guest}/bin/${name}`);
    if (mode === "no-systemctl") Deno.removeSync(`${guest}/bin/systemctl`);
  };
  setMode(mode);

  const dir = `${home.root}/sshd-${instance.name}`;
  Deno.mkdirSync(dir, { mode: 0o755 });
  key(`${dir}/host_key`);
  const identity = `${home.lima}/_config/user`;
  if (!quietlyExists(identity)) key(identity);
  Deno.copyFileSync(`${identity}.pub`, `${dir}/authorized_keys`);
  // sshd's own place to lock a session up in; only root's sshd wants it, and no system service has made it here.
  if (Deno.uid() === 0 && Deno.build.os === "linux") Deno.mkdirSync("/run/sshd", { recursive: true, mode: 0o755 });

  const port = freePort();
  Deno.writeTextFileSync(`${dir}/sshd_config`, sshdConfig(dir, port, `${standin("guest-shell")} '${instance.dir}'`));
  let sshd = await startSshd(home, dir);
  instance.conf({ ssh_port: port, ssh_user: userName() });
  instance.sshConfig({ port });

  const stop = async () => await sshd.stop();
  return {
    port,
    mode: setMode,
    log: () => instance.guestLog(),
    powerOff: () => Deno.writeTextFileSync(`${guest}/poweroff`, ""),
    stop,
    listen: async () => void (sshd = await startSshd(home, dir)),
    accept: (key) => {
      if (key) Deno.copyFileSync(`${identity}.pub`, `${dir}/authorized_keys`);
      else Deno.writeTextFileSync(`${dir}/authorized_keys`, "");
    },
    [Symbol.asyncDispose]: stop,
  };
}

async function startSshd(home: Home, dir: string): Promise<{ stop(): Promise<void> }> {
  const child = new Deno.Command(SSHD, {
    args: ["-D", "-e", "-f", `${dir}/sshd_config`],
    env: home.mark,
    cwd: "/",
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  const log: string[] = [];
  const reading = (async () => {
    for await (const text of child.stderr.pipeThrough(new TextDecoderStream())) log.push(text);
  })();
  let ended = false;
  const status = child.status.then(() => ended = true);
  await eventually(() => {
    if (!ended) assert.match(log.join(""), /Server listening on/, "sshd is not ready");
  });
  if (ended) throw new Error(`sshd ended: ${log.join("")}`);
  const stop = async () => {
    if (!ended) {
      const sessions = descendants(child.pid);
      killChild(child);
      await status;
      // A session outlives its listener, and holds the pipe that is being read here.
      for (const pid of sessions) {
        try {
          Deno.kill(pid, "SIGKILL");
        } catch (error) {
          if (!(error instanceof Deno.errors.NotFound)) throw error;
        }
      }
      for (const pid of sessions) await waitForExit(pid);
    }
    await reading;
  };
  return { stop };
}

/** All users may write in it: the guest's commands run as the user `nobody` where sshd is root. */
function furnish(guest: string): void {
  for (const dir of [guest, `${guest}/bin`, `${guest}/sbin`]) {
    Deno.mkdirSync(dir, { recursive: true });
    Deno.chmodSync(dir, 0o777);
  }
  Deno.writeTextFileSync(`${guest}/log`, "", { append: true });
  Deno.chmodSync(`${guest}/log`, 0o666);
  Deno.symlinkSync("/bin/sh", `${guest}/bin/sh`);
  for (const name of SBIN) copyCommand(`${guest}/sbin/${name}`);
}

/** A copy, not a link: `nobody` need not be able to read the repository. */
function copyCommand(path: string): void {
  Deno.copyFileSync(standin("guest/command"), path);
  Deno.chmodSync(path, 0o755);
}

/** The first key of this name is made; later tests get the same one. */
function key(path: string): void {
  const name = path.slice(path.lastIndexOf("/") + 1);
  const kept = keys.get(name);
  if (kept) return write(path, kept);
  const { success, stderr } = new Deno.Command("ssh-keygen", { args: ["-q", "-t", "ed25519", "-N", "", "-f", path] })
    .outputSync();
  assert.ok(success, `ssh-keygen: ${new TextDecoder().decode(stderr)}`);
  keys.set(name, { secret: Deno.readTextFileSync(path), open: Deno.readTextFileSync(`${path}.pub`) });
}
const keys = new Map<string, KeyPair>();

interface KeyPair {
  readonly secret: string;
  readonly open: string;
}

function write(path: string, { secret, open }: KeyPair): void {
  Deno.writeTextFileSync(path, secret, { mode: 0o600 });
  Deno.writeTextFileSync(`${path}.pub`, open);
}

function sshdConfig(dir: string, port: number, command: string): string {
  return `ListenAddress 127.0.0.1
Port ${port}
HostKey ${dir}/host_key
PidFile ${dir}/sshd.pid
AuthorizedKeysFile ${dir}/authorized_keys
StrictModes no
UsePAM no
AllowUsers ${userName()}
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitUserRC no
PermitUserEnvironment no
AllowTcpForwarding no
AllowAgentForwarding no
AllowStreamLocalForwarding no
X11Forwarding no
PrintMotd no
UseDNS no
LogLevel INFO
# Else bash reads the user's ~/.bashrc, which may do anything, and may wait for a lock that a killed session has left.
SetEnv SHLVL=3
ForceCommand ${command}
`;
}

/** A port where no process listens, as far as the system knows now. */
export function freePort(): number {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  listener.close();
  return (listener.addr as Deno.NetAddr).port;
}

/** A TCP port that accepts and never speaks: ssh hangs there until its own time limit. */
export function silentPort(): { readonly port: number } & Disposable {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return { port: (listener.addr as Deno.NetAddr).port, [Symbol.dispose]: () => listener.close() };
}

/** A TCP port that refuses. */
export const refusedPort = freePort;

function descendants(pid: number): number[] {
  const { stdout } = new Deno.Command("ps", { args: ["-A", "-o", "pid=,ppid="] }).outputSync();
  const pairs = new TextDecoder().decode(stdout).trim().split("\n").map((line) => line.trim().split(/\s+/).map(Number));
  const below = (parent: number): number[] =>
    pairs.filter(([, ppid]) => ppid === parent).flatMap(([child]) => [child!, ...below(child!)]);
  return below(pid);
}

function quietlyExists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}
