/** Host agents and virtual machines without one, made by the stand-ins. Ready means a file or an event, never a time. */

import assert from "node:assert/strict";
import type { Conf, Home, Instance } from "./home.ts";
import { eventually, exists, isAlive, killChild, waitForExit, within } from "./processes.ts";

/** How far a start is to have come. `driver`: its PID file is there; `exit`: the process has ended. */
export type Point = "spawned" | "ha.pid" | "ssh.config" | "ha.sock" | "driver" | "event" | "running" | "exit";

export interface Agent extends AsyncDisposable {
  /** The PID of `limactl start --foreground`, which is that of the host agent. */
  readonly pid: number;
  readonly status: Promise<Deno.CommandStatus>;
  /** What `limactl start` itself printed on stderr, before it became the host agent. */
  readonly stderr: Promise<string>;
  signal(signal: Deno.Signal): void;
  isAlive(): boolean;
}

/** Starts `limactl start NAME --foreground` as launchd would, and waits until it has come as far as `until`. */
export async function startAgent(
  instance: Instance,
  { until = "running", conf = {}, env = {}, flags = ["--tty=false"], uid, gid }: {
    until?: Point;
    conf?: Conf;
    env?: Record<string, string>;
    flags?: string[];
    uid?: number;
    gid?: number;
  } = {},
): Promise<Agent> {
  instance.conf(conf);
  const child = new Deno.Command(instance.home.limactl, {
    args: ["start", instance.name, "--foreground", ...flags],
    env: { ...instance.home.env, ...env },
    clearEnv: true,
    cwd: instance.dir,
    stdin: "null",
    stdout: "null",
    stderr: "piped",
    ...(uid === undefined ? {} : { uid, gid: gid ?? uid }),
  }).spawn();
  const stderr = new Response(child.stderr).text();
  let ended: Deno.CommandStatus | undefined;
  const status = child.status.then((status) => ended = status);
  const agent: Agent = {
    pid: child.pid,
    status,
    stderr,
    signal: (signal) => child.kill(signal),
    isAlive: () => ended === undefined,
    async [Symbol.asyncDispose]() {
      killChild(child);
      await status;
      await stderr;
    },
  };
  if (until === "exit") {
    await within(status, 20_000, () => `the host agent of ${instance.name} has not ended`);
    return agent;
  }
  let failure: string | undefined;
  await eventually(async () => {
    if (hasReached(instance, child.pid, until)) return;
    if (ended) {
      failure = `limactl ended with status ${ended.code} before it had reached ${until}:\n${await stderr}\n${
        instance.log().join("\n")
      }`;
      return;
    }
    throw new Error(
      `the host agent of ${instance.name} has not reached "${until}"; files: ${instance.files().join(" ")}`,
    );
  });
  if (failure) throw new Error(failure);
  return agent;
}

/** The instance, run by a user that gets its whole home. */
export async function agentOf(instance: Instance, { uid, gid }: { uid: number; gid: number }): Promise<Agent> {
  instance.home.giveTo({ uid, gid });
  return await startAgent(instance, { uid, gid });
}

function hasReached(instance: Instance, pid: number, point: Point): boolean {
  switch (point) {
    case "spawned":
    case "exit":
      return true;
    case "ha.pid":
      return instance.pid("ha.pid") === pid;
    case "driver":
      return instance.pid("ha.pid") === pid &&
        [...driverPidFiles(instance)].some((file) => instance.pid(file) !== undefined);
    case "event":
      return instance.pid("ha.pid") === pid && instance.events().length > 0;
    case "running":
      return instance.pid("ha.pid") === pid && instance.events().some((event) => event.running === true);
    case "ha.sock":
      // The line in its log is the last thing before it waits here.
      return instance.pid("ha.pid") === pid && instance.has(point) &&
        instance.log().some((line) => line.includes("hostagent socket created"));
    default:
      return instance.pid("ha.pid") === pid && instance.has(point);
  }
}

function driverPidFiles(instance: Instance): string[] {
  return instance.files().filter((file) => file.endsWith(".pid") && file !== "ha.pid" && !file.endsWith(".drv.pid"));
}

export interface Orphan extends AsyncDisposable {
  /** The driver: QEMU, krunkit or the external driver. */
  readonly pid: number;
  /** The host agent that was, and is no more. */
  readonly agentPid: number;
  isAlive(): boolean;
  waitForExit(): Promise<void>;
}

/** A running QEMU (krunkit, external driver) whose host agent was SIGKILLed: all files are left as that leaves them. */
export async function startOrphan(
  instance: Instance,
  vmtype: "qemu" | "krunkit" | "x",
  conf: Conf = {},
): Promise<Orphan> {
  const agent = await startAgent(instance, { conf: { ...conf, vmtype } });
  agent.signal("SIGKILL");
  await agent.status;
  await agent.stderr;
  const pid = instance.pid(`${vmtype}.pid`);
  assert.ok(pid && isAlive(pid), `${vmtype} did not survive its host agent`);
  return {
    pid,
    agentPid: agent.pid,
    isAlive: () => isAlive(pid),
    waitForExit: () => waitForExit(pid),
    async [Symbol.asyncDispose]() {
      if (exists(pid) && instance.home.processes().some((line) => line.startsWith(`${pid} `))) {
        Deno.kill(pid, "SIGKILL");
      }
      await waitForExit(pid);
    },
  };
}

export function startQemuOrphan(instance: Instance, conf: Conf = {}): Promise<Orphan> {
  return startOrphan(instance, "qemu", conf);
}

/** A vz instance after its host agent was SIGKILLed, or the power cut: files, and no process. */
export async function cutOff(instance: Instance, conf: Conf = {}): Promise<number> {
  const agent = await startAgent(instance, { conf });
  agent.signal("SIGKILL");
  await agent.status;
  await agent.stderr;
  return agent.pid;
}

/** Runs the stand-in `limactl` to its end. */
export async function limactl(
  home: Home,
  args: string[],
  { env = {} }: { env?: Record<string, string> } = {},
): Promise<{ status: number; stdout: string; stderr: string }> {
  const output = await new Deno.Command(home.limactl, {
    args,
    env: { ...home.env, ...env },
    clearEnv: true,
    stdin: "null",
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { status: output.code, stdout: text(output.stdout), stderr: text(output.stderr) };
}
