/** Facts made by hand, for the deciding functions: a test states only those that matter. Plain data, no files. */

import type { Observation } from "../lima_guard.ts";
import type {
  AgentHealth,
  FileStamp,
  Instance,
  ProcessRow,
  Role,
  StateFile,
  Verdict,
  VerifiedProcess,
} from "./facts.ts";

export const HOME = "/Users/zoe/.lima";
export const DIR = `${HOME}/k3s`;
export const PLACE: Instance = { name: "k3s", home: HOME, dir: DIR, owner: 501 };

/** How every file here looked. */
export const STAMP: FileStamp = { dev: 1, ino: 2, size: 4, mtimeMs: 1_790_000_000_000, text: "789\n" };

/** A process of the owner, in the state most processes are in. */
export function row(command: string, more: Partial<ProcessRow> = {}): ProcessRow {
  return { pid: 789, ppid: 1, uid: 501, stat: "S", started: "Sun Nov 22 23:16:54 2026", command, ...more };
}

const COMMANDS: Record<Role, string> = {
  "host agent": `limactl hostagent --pidfile ${DIR}/ha.pid --socket ${DIR}/ha.sock k3s`,
  QEMU: `qemu-system-aarch64 -netdev user,id=net0,hostfwd=tcp:127.0.0.1:60022-:22 -pidfile ${DIR}/qemu.pid`,
  krunkit: `krunkit --device virtio-blk,path=${DIR}/disk,format=raw`,
  "external driver": `lima-driver-x --inst-dir ${DIR}`,
  usernet: `limactl usernet -p ${HOME}/_networks/user-v2/usernet_user-v2.pid`,
};

/** A process proven to be the instance's. */
export function proven(role: Role, pid: number, more: Partial<VerifiedProcess> = {}): VerifiedProcess {
  return { role, row: row(COMMANDS[role], { pid }), named: true, ...more };
}

export const dead = (pid: number): Verdict => ({ kind: "dead", why: `PID ${pid} is dead: no process has this PID` });
export const ours = (role: Role, pid: number): Verdict => ({
  kind: "ours",
  why: `PID ${pid} is this instance's ${role}`,
  role,
});
/** The most common case of another program: a boot service that got the number of the host agent before the reboot. */
export const recycled = (pid: number): Verdict => ({
  kind: "not ours",
  why: `PID ${pid} is not ours: it is "/usr/libexec/sirittsd", none of Lima's programs`,
});
export const notOurs = (why: string): Verdict => ({ kind: "not ours", why });
export const stale = (why: string): Verdict => ({ kind: "stale", why });
export const unknown = (why: string): Verdict => ({ kind: "unknown", why });

/** The path of a file that is named by its place in the instance directory, or, after `_`, in LIMA_HOME. */
export function at(file: string): string {
  return file.startsWith("_") ? `${HOME}/${file}` : `${DIR}/${file}`;
}

/** What a file claims; those outside the instance directory are shared with other instances. */
export function claim(file: string, verdict: Verdict, { sockets = [], undeletable }: {
  sockets?: string[];
  undeletable?: string;
} = {}): StateFile {
  const scope = file.startsWith("_") ? "shared" : "instance";
  const place = {
    path: at(file),
    stamp: STAMP,
    scope,
    sockets: sockets.map((path) => ({ path: at(path), stamp: STAMP })),
  } as const;
  return { ...place, verdict, ...(undeletable === undefined ? {} : { undeletable }) };
}

/** A host agent that is well: it answers, and is long past its boot. */
export function signs(more: Partial<AgentHealth> = {}): AgentHealth {
  return { answers: true, ageS: 86_400, silentS: 0, neverReported: false, wasRunning: true, ...more };
}

/** An instance of which nothing is alive and nothing is left: what Lima calls Stopped. */
export function observation(more: Partial<Observation> = {}): Observation {
  return {
    instance: PLACE,
    stateFiles: [],
    alive: [],
    unknowns: [],
    startBlockers: [],
    held: [],
    notes: [],
    ...more,
  };
}
