/** What the tests of `--run` share: starting it by hand or as a launchd job would, and reading what it wrote. */

import assert from "node:assert/strict";
import { eventually, type Guard, type GuardOptions, type Instance, type JournalEntry, spawnGuard } from "./needs.ts";

export interface RunOptions extends GuardOptions {
  /** Before `--run`. */
  flags?: string[];
  /** After `--`; else `limactl start NAME --foreground`. */
  command?: string[];
}

/** The command that Lima's own plist has. */
export function foreground(instance: Instance): string[] {
  return [instance.home.limactl, "start", instance.name, "--foreground"];
}

/** `lima-guard --run NAME -- limactl start NAME --foreground`. */
export function run(instance: Instance, { flags = [], command, ...options }: RunOptions = {}): Guard {
  const args = [...flags, "--run", instance.name, "--", ...command ?? foreground(instance)];
  return spawnGuard(instance.home, args, options);
}

/** Said by the guard when it has looked for the port for its session, and watches the agent too. */
const WATCHED = /: (?:no session with the guest|the session with the guest)/;

/** The same, until Lima calls the instance Running, and the guard has begun to watch it. */
export async function running(instance: Instance, { flags = [], ...options }: RunOptions = {}): Promise<Guard> {
  const guard = run(instance, { ...options, flags: ["-v", ...flags] });
  try {
    await guard.waitForLine(/: Running after /);
    await guard.waitForLine(WATCHED);
    return guard;
  } catch (error) {
    await guard[Symbol.asyncDispose]();
    throw error;
  }
}

/**
 * The environment of a launchd job that stops in `exitTimeOut` seconds: its plist says so. No launchctl is there to
 * ask (on a Mac it does not know the label).
 */
export function asJob(instance: Instance, exitTimeOut: number): Record<string, string> {
  const label = `io.lima-vm.autostart.${instance.name}`;
  const folder = `${instance.home.user}/Library/LaunchAgents`;
  Deno.mkdirSync(folder, { recursive: true });
  const text = `<plist version="1.0"><dict><key>Label</key><string>${label}</string>` +
    `<key>ExitTimeOut</key><integer>${exitTimeOut}</integer></dict></plist>\n`;
  Deno.writeTextFileSync(`${folder}/${label}.plist`, text);
  return { XPC_SERVICE_NAME: label };
}

/** Sends the signal that asks for the stop, and waits for the end. */
export async function stopRun(guard: Guard, timeoutMs = 20_000) {
  const asked = performance.now();
  guard.signal("SIGTERM");
  const result = await guard.result({ timeoutMs });
  return { ...result, seconds: (performance.now() - asked) / 1000 };
}

/** The lines of the journal. */
export function journal(instance: Instance): JournalEntry[] {
  return (instance.read("lima-guard.jsonl") ?? "").split("\n").filter((line) => line !== "")
    .map((line) => JSON.parse(line));
}

/** The events but `booted`, which comes when the guest is up, in the midst of anything else. */
export function events(instance: Instance): string[] {
  return journal(instance).map(({ event }) => event).filter((event) => event !== "booted");
}

/** The last line of that event. */
export function last(instance: Instance, event: string): JournalEntry {
  const found = journal(instance).filter((line) => line.event === event).at(-1);
  assert.ok(found, `no "${event}" in the journal: ${events(instance).join(" ")}`);
  return found;
}

/**
 * Nothing of it lives, and nothing is left that would make the next `limactl start` refuse. Only an ssh client, which
 * ends when its connection is closed, may take a moment.
 */
export async function assertDown(instance: Instance): Promise<void> {
  const living = () => instance.home.processes().filter((line) => line.includes(`${instance.dir}/`));
  assert.deepEqual(living().filter((line) => !/^\d+ (\S*\/)?ssh /.test(line)), []);
  await eventually(() => assert.deepEqual(living(), []));
  assert.deepEqual(instance.files().filter((file) => /\.(pid|tmp)$/.test(file) || file === "ha.sock"), []);
}

/** What the journal of two bad ends just now looks like; `ago` in seconds for the last one. */
export function writeBadEnds(instance: Instance, count: number, ago = 0): void {
  const boot = Deno.build.os === "linux" ? Deno.readTextFileSync("/proc/sys/kernel/random/boot_id").trim() : "";
  const lines = Array.from({ length: count }, (_, n) => ({
    time: new Date(Date.now() - (ago + (count - 1 - n) * 10) * 1000).toISOString(),
    boot,
    dir: instance.dir,
    role: "run",
    event: "end",
    requested: false,
    code: 1,
    signal: null,
    status: 1,
    ranS: 1,
  }));
  instance.write("lima-guard.jsonl", lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
}

/** A lock that another process holds. */
export function hold(path: string): Disposable {
  const file = Deno.openSync(path, { create: true, read: true, write: true });
  assert.equal(file.tryLockSync(true), true, `${path} is locked already`);
  return { [Symbol.dispose]: () => file.close() };
}

/** A program of the test's own, in its temporary home. */
export function script(instance: Instance, name: string, text: string): string {
  const path = `${instance.home.root}/${name}`;
  Deno.writeTextFileSync(path, text, { mode: 0o755 });
  return path;
}

/** The host agent's PID, once there is one. */
export function agentPid(instance: Instance): Promise<number> {
  return eventually(() => {
    const pid = instance.pid("ha.pid");
    assert.ok(pid, "no ha.pid");
    return pid;
  });
}
