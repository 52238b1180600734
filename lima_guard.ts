#!/usr/bin/env -S deno run -A
// deno-lint-ignore-file no-import-prefix -- one file that runs alone needs its versions inline
/**
 * lima-guard: start and stop Lima instances under launchd without harm to other programs.
 *
 *   lima-guard --pre  INSTANCE…            remove what stops it from starting, and an orphaned VM; never starts it
 *   lima-guard --stop INSTANCE… | --all    stop gracefully, then hard, inside one time budget
 *   lima-guard --run  INSTANCE -- COMMAND  --pre, then run COMMAND; on SIGTERM do --stop; exit with its status
 *   lima-guard --status [INSTANCE…]        what lima-guard sees, why, and what it would do; read-only
 *   lima-guard --install | --check | --uninstall INSTANCE…                 what install.ts does
 *
 * Every role is the same loop: observe (look at files and processes) → plan (pure: facts in, steps with reasons out) →
 * act (one step after the other, each looked at again just before). `--dry-run` prints the plan and leaves.
 *
 * Three laws, in this order:
 *   1. No other program is ever signalled: a PID is signalled only after proof that it is this instance's process, taken
 *      again immediately before the signal.
 *   2. Unknown is an answer: what could not be found out permits no destructive step (deleting a PID file is one) and
 *      never counts as success.
 *   3. A requested stop ends in time: gracefully if the guest lets us, hard if it does not.
 *
 * Signals: --run stops its instance at the first SIGTERM, SIGINT or SIGHUP; under launchd further ones change nothing.
 * Elsewhere a further SIGINT or SIGTERM at least 1 s later (for --stop: the first one) skips to the next stage.
 *
 * Exit statuses: 0 done, or nothing to do · 1 a step failed · 64 usage · 66 no such instance · 75 could not find out,
 * or another lima-guard is using it: try again · 77 not permitted. --run: the command's own, 128 + n if signal n killed it,
 * 126 and 127 as in a shell, and 0 after a requested stop that succeeded.
 *
 * Part I (below) decides: no clock, no file, no process. Part II looks and acts. Part III is the real host, the command
 * line and the only exit. CONTRIBUTING.md has the map.
 *
 * Exports exist for install.ts and for the tests.
 * @module
 */

import { parseArgs } from "jsr:@std/cli@1.0.29/parse-args";
import { BaseHandler } from "jsr:@std/log@0.224.14/base-handler";
import { Logger } from "jsr:@std/log@0.224.14/logger";
import { basename } from "jsr:@std/path@1.1.4/posix/basename";
import { dirname } from "jsr:@std/path@1.1.4/posix/dirname";
import { join } from "jsr:@std/path@1.1.4/posix/join";

// ══════════════════════════════════════════════════════════════════════════════════════════ part I: what it decides ══

// ──────────────────────────────────────────────────────────────────────────────────────────────── names and numbers ──

/** The version that `--version` prints; the tag of a release is `v` and this. */
export const VERSION = "0.1.0";

/** Exit statuses, named; 64 and above are those of sysexits(3). */
export const EXIT = { done: 0, failed: 1, usage: 64, noInstance: 66, tryAgain: 75, denied: 77 } as const;

/** Lima's file names inside an instance directory (`pkg/limatype/filenames`). */
const LIMA_YAML = "lima.yaml";
const HA_PID = "ha.pid";
const HA_SOCK = "ha.sock";
const QMP_SOCK = "qmp.sock";
const SSH_CONFIG = "ssh.config";
const HA_STDOUT = "ha.stdout.log";
const BOOT_MARKER = "boot-session.tmp";

/** Our own files inside an instance directory; Lima ignores names that are none of its own there. */
const LOCK_FILE = "lima-guard.lock";
const JOURNAL_FILE = "lima-guard.jsonl";
const OLD_JOURNAL_FILE = "lima-guard.1.jsonl";
/** A journal that has reached this size is set aside, and the one before it is dropped. */
const JOURNAL_LIMIT_BYTES = 1024 * 1024;

/** Linux's highest possible pid_max; macOS ends at 99 998. Larger numbers never reach kill(2). */
const PID_MAX = 4_194_304;
/** A PID file holds one number and a line end; whatever is longer is none. */
const PID_FILE_LIMIT_BYTES = 64;
/** Lima writes PID files in place: one that is younger and looks cut short may be being written. */
const YOUNG_FILE_MS = 5_000;
/** Lima's own limit for `/v1/info` (`pkg/store.Inspect`). */
const ANSWER_LIMIT_MS = 3_000;
/** A vz host agent may not answer for up to 12 min while its guest boots (usernet, lease and ssh each have a limit). */
const BOOT_WINDOW_S = 15 * 60;
/** A host agent beyond the boot window that answers no request for so long is hung. */
const SILENCE_MS = 60_000;
/** ps answers in some 10 ms; one that needs longer than this counts as failed. */
const PS_LIMIT_MS = 5_000;
/** lsof needed more than 10 s on busy Macs; in a stop it gets only what remains of the stage. */
const LSOF_LIMIT_MS = 15_000;
/** A vz VM process ends by itself shortly after its client: holders of a disk are named only after this time. */
const HOLDER_RETRY_MS = 10_000;
const LOCK_WAIT_MS = 10_000;
/** kill(pid, 0) costs 3 µs: while a process is about to end it is asked this often. */
const POLL_MS = 50;
/** A zombie, or a PID given to another program, shows only in ps: asked this often in a long wait. */
const PS_POLL_MS = 2_000;
/** The whole grant of a stop where neither launchd nor the user says otherwise: what launchd grants agents at most. */
export const DEFAULT_BUDGET_S = 60;
/** A signal that skips a stage must not be the echo of the one before (a closing terminal sends several). */
const SKIP_APART_MS = 1_000;
/** sockaddr_un.sun_path: 104 bytes on macOS, 108 on Linux, the final NUL included. */
const SOCKET_PATH_MAX = { darwin: 104, linux: 108 } as const;

/** Lima's rule for instance names (`pkg/identifiers`), and the suffixes that mean a file on its command line. */
const NAME_RULE = /^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$/;
const NAME_LIMIT = 76;

/** What is wrong with an instance name, or undefined. Lima's own rules. */
export function nameTrouble(name: string): string | undefined {
  if (name.length === 0) return "it is empty";
  if (name.length > NAME_LIMIT) return `it has ${name.length} characters, Lima allows ${NAME_LIMIT}`;
  if (!NAME_RULE.test(name)) return "Lima allows letters and digits, joined by single `.`, `_` or `-`";
  if (/\.ya?ml$/i.test(name)) return "Lima takes a name that ends in .yml or .yaml for a file";
  return undefined;
}

/** The instance's host name in ssh.config, as Lima writes it. */
function sshHost(name: string): string {
  return `lima-${name.replaceAll(/[._]/g, "-")}`;
}

/** The worst of some exit statuses; 0 where there is none. */
export function worst(statuses: readonly number[]): number {
  const worstFirst: readonly number[] = [EXIT.failed, EXIT.usage, EXIT.denied, EXIT.noInstance, EXIT.tryAgain];
  return worstFirst.find((s) => statuses.includes(s)) ?? EXIT.done;
}

/** The first pause of a growing series, and the last: of the restart back-off, of waiting while blocked, of a session that broke. */
const FIRST_PAUSE_MS = 5_000;
const LAST_PAUSE_MS = 300_000;

/** The pause after `n` pauses: 5 s, doubling to 5 min. */
export function backoffMs(n: number): number {
  return Math.min(LAST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** Math.min(n, 10));
}

/** launchd's time limit for a job whose plist has no ExitTimeOut (measured by many; the manual says "system-defined"). */
export const LAUNCHD_DEFAULT_S = 5;

/** Flags of `colima start` that are followed by a value. */
export const COLIMA_VALUES: ReadonlySet<string> = new Set(
  ("--profile -p --runtime -r --cpus -c --cpu --cpu-type --memory -m --disk -d --root-disk --arch -a --hostname --disk-image -i " +
    "--disk-image-mirror --port-forwarder --network-mode --network-interface --vm-type -t --model-runner " +
    "--gateway-address --editor --mount -V --mount-type --ssh-port --kubernetes-version --kubernetes-disable --k3s-arg " +
    "--k3s-listen-port --env --dns -n --dns-host --registry-mirror --downloader").split(" "),
);

/** How long launchctl may take in all; it can block while launchd is busy. */
const LAUNCHCTL_LIMIT_MS = 5_000;

/** How many letters differ; two that changed places count as two. */
function distance(a: string, b: string): number {
  let above = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (const [i, letter] of [...a].entries()) {
    const row = [i + 1];
    for (const [j, other] of [...b].entries()) {
      row.push(Math.min((row[j] ?? 0) + 1, (above[j + 1] ?? 0) + 1, (above[j] ?? 0) + (letter === other ? 0 : 1)));
    }
    above = row;
  }
  return above[b.length] ?? Infinity;
}

/** The word of a list that was probably meant: at most two letters differ, and most are the same. */
function nearest(word: string, known: readonly string[]): string | undefined {
  if (word.length > 2 * NAME_LIMIT) return undefined;
  const [best] = known.map((k) => ({ k, d: distance(word.toLowerCase(), k.toLowerCase()) })).sort((a, b) => a.d - b.d);
  return best && best.d <= 2 && best.d * 2 < word.length ? best.k : undefined;
}

// ──────────────────────────────────────────────────────────────────────────────────────────────────────────── facts ──

/** One instance and where it lives. `home` is LIMA_HOME with its links resolved, as Lima itself does. */
interface Instance {
  readonly name: string;
  readonly home: string;
  readonly dir: string;
  /** uid of the owner of `dir`: everything of this instance must belong to it. */
  readonly owner: number;
  /** The owner's user name, where another user (root, an administrator) reads the message: `sudo -H -u OWNER`. */
  readonly sudoUser?: string | undefined;
}

/** What a process can be to an instance. The command says what it is; a PID file only says where to look. */
type Role = "host agent" | "QEMU" | "krunkit" | "external driver" | "usernet";

/** One row of ps. `started` is only ever compared with another reading, never used as a date for identity. */
interface ProcessRow {
  readonly pid: number;
  readonly ppid: number;
  readonly uid: number;
  readonly stat: string;
  readonly started: string;
  readonly command: string;
}

interface VerifiedProcess {
  readonly role: Role;
  readonly row: ProcessRow;
  /** Named by a PID file of the right kind. `false`: found only by scanning ps. */
  readonly named: boolean;
}

/** What is known about the thing a file names. `stale` is for files that name no process (a lock, a config). */
type Verdict =
  | {
    readonly kind: "dead" | "not ours" | "stale" | "unknown";
    readonly why: string;
    /** Lima believes in a zombie. */
    readonly reason?: "zombie";
    /** The owner of the process that the file names, where it is known. */
    readonly uid?: number | undefined;
    /** What shows the missing fact, where that is not the file or the process that it names. */
    readonly hint?: string;
  }
  | { readonly kind: "ours"; readonly why: string; readonly role: Role; readonly uid?: undefined; hint?: undefined };

/** A file as it was when it was judged; it is removed only if it is unchanged. */
interface FileStamp {
  readonly dev: number;
  readonly ino: number;
  readonly size: number;
  readonly mtimeMs: number;
  readonly text: string | undefined;
}

type StampedPath = Pick<StateFile, "path" | "stamp">;

/** A file that says that a process lives, that a disk is in use, or which port is used. */
interface StateFile {
  readonly path: string;
  readonly verdict: Verdict;
  readonly stamp: FileStamp;
  /** An instance's own file, or one that other instances of this LIMA_HOME share. */
  readonly scope: "instance" | "shared";
  /** Sockets that are removed with it. */
  readonly sockets: readonly StampedPath[];
  /** Why the file could not be removed, where that is known beforehand. */
  readonly undeletable?: string;
  /** What is wrong with its directory, where that is why. */
  readonly remedy?: "mode" | "owner";
}

interface Diagnostic {
  readonly what: string;
  readonly because: string;
  readonly hint?: string;
  /** 75 unless only a permission is missing. */
  readonly status?: 75 | 77;
  /** May appear while the machine starts: under launchd it is waited for. */
  readonly waitsFor?: "volume";
}

/** What the host agent showed of itself. Seconds. */
interface AgentHealth {
  /** Undefined where it could not be asked. */
  readonly answers: boolean | undefined;
  /** The smallest of: since its start, since the machine's, since the last wake. */
  readonly ageS: number;
  /** Seconds since the first unanswered request; one that could not be asked is none. */
  readonly silentS: number;
  /** It has written no event since its start: it never got past the start of its driver. */
  readonly neverReported: boolean;
  /** It has reported that the guest is up. */
  readonly wasRunning: boolean;
}

/** All facts about one instance: plain data, printable, the only input of the deciding functions. */
export interface Observation {
  readonly instance: Instance;
  /** Set if the instance does not exist: why. */
  readonly missing?: string;
  readonly stateFiles: readonly StateFile[];
  readonly alive: readonly VerifiedProcess[];
  readonly agent?: AgentHealth;
  /** Questions about this instance's processes that got no answer. */
  readonly unknowns: readonly Diagnostic[];
  /** Makes `limactl start` fail and must not be fixed automatically. */
  readonly startBlockers: readonly Diagnostic[];
  /** Warnings; `limactl start` still succeeds. */
  readonly notes: readonly Diagnostic[];
  /**
   * Evidence that the disk is in use, or that it could not be found out. While there is any, no file of the instance is
   * removed: the files are what leads the next look to it.
   */
  readonly held: readonly Diagnostic[];
  /** All processes were searched; every later look of the same run searches them again. */
  readonly searched?: boolean;
  /** `boot-session.tmp` (Lima ≥ 2.2.1), which goes with the last PID file. */
  readonly bootMarker?: FileStamp;
  /** The marker is of another boot: Lima ≥ 2.2.1 then believes no PID file beside it. */
  readonly isOldMarker?: boolean;
}

type Findings = Pick<Plan, "blockers" | "notes">;

/** What is known of an instance before anything has been looked at. */
function emptyObservation(instance: Instance): Observation {
  return { instance, stateFiles: [], alive: [], unknowns: [], startBlockers: [], held: [], notes: [] };
}

/** A process that has a file open for writing. */
interface Holder extends Pick<ProcessRow, "pid" | "command"> {
  readonly path: string;
  /** The file's device and inode; undefined where lsof does not know them. */
  readonly dev: number | undefined;
  readonly ino: number | undefined;
}

/** Whether two spellings name one directory, by device and inode. */
type SameDirectory = (named: string, ours: string) => "same" | "different" | "cannot tell";
/** Whether a path names a file: only then a program's path may hold a blank. */
type IsFile = (path: string) => boolean;

type Judgement =
  /** `renamed`: by the whole grammar of a host agent, under the name of a program that is none of Lima's. */
  | { readonly kind: "ours"; readonly role: Role; readonly renamed?: true }
  | { readonly kind: "not ours"; readonly why: string }
  /** With a role: it has the shape of one, and only the instance that it belongs to is unknown. */
  | { readonly kind: "unknown"; readonly why: string; readonly role?: Role };

/** The state of an instance. `clear` is what Lima calls Stopped, with nothing in the way of a start. */
type State =
  | "clear"
  | "running"
  | "booting"
  | "hung"
  | "orphan"
  | "stale"
  | "blocked"
  | "unknown"
  | "missing"
  | "stopped";

/** One thing to do. `outcome` is filled in by acting; the dry run prints the same words without it. */
interface Step {
  readonly kind: "remove" | StopStage | "start";
  readonly what: string;
  readonly because: string;
  readonly path?: string;
  readonly stamp?: FileStamp;
  readonly outcome?: Outcome;
}

type Outcome =
  | {
    readonly kind: "done" | "already gone" | "process changed" | "no end in time" | "skipped by a signal";
    readonly note?: string;
  }
  | { readonly kind: "skipped" | "refused" | "failed" | "alive"; readonly why: string };

const DONE: Outcome = { kind: "done" };

interface Plan {
  /** The state that was found; in a report, `stopped` after a stop. */
  readonly state: State;
  readonly because: string;
  readonly status: number;
  readonly steps: readonly Step[];
  readonly blockers: readonly Diagnostic[];
  readonly notes: readonly Diagnostic[];
}

/** The stop stages in their order: the graceful ones first. */
const GRACEFUL_STAGES = ["guest", "agent", "driver"] as const;
const GRACEFUL: ReadonlySet<string> = new Set(GRACEFUL_STAGES);
const STOP_STAGES = [...GRACEFUL_STAGES, "kill"] as const;
type StopStage = typeof STOP_STAGES[number];
type Stage = StopStage | "clean up";

type StopEnd = typeof GRACEFUL_STAGES[number] | "killed" | "unknown" | "already stopped" | "gone before the request";

/** A launchd job of an instance, as its plist and launchctl show it. */
interface JobStatus {
  readonly label: string;
  readonly plist: string;
  readonly wrapped: boolean;
  readonly loaded: "yes" | "no" | "unknown";
  readonly disabled: boolean;
  /** Seconds from SIGTERM to SIGKILL: what launchd has in force, else what the plist will bring. 0 is no limit. */
  readonly exitTimeoutS: number;
  /** As many seconds were asked for: they are the `--timeout` of its command too. */
  readonly isAskedFor?: true;
  readonly target: string;
  /** launchctl's 125: the domain of the screen's user is not there, since no user is logged in. */
  readonly noLogin?: true;
  /** `KeepAlive {SuccessfulExit: true}`: started again after a good stop, and never after a failure. */
  readonly restartsAfterSuccess?: boolean;
  /** A daemon without UserName. */
  readonly runsAsRoot?: true;
  /** `RunAtLoad` or `KeepAlive`: it starts when it is loaded. */
  readonly startsAtLoad?: true;
}

/** How the last stop ended, for a monitor. */
type LastStopKind = "none" | "graceful" | "cut by agent" | "killed" | "cut off" | "by itself" | "unknown";

/** A stop under way: who does it, since when, in which stage, and when its budget ends. */
type Stopping = Pick<LockRecord, "pid" | "role"> & Readonly<Record<"since" | "stage" | "until", string | null>>;

/** Whether the guest was ready, by the events of its host agent; null where there are none to read. */
interface Readiness {
  readonly ready: boolean | null;
  readonly errors: readonly string[];
  /** What the host agent waits for. */
  readonly waits?: string;
}

/** What the holder of an instance's lock writes into it, one line of JSON. Believed only while the lock is held. */
interface LockRecord {
  readonly pid: number;
  /** The holder's start time as ps shows it; empty where the holder must not be signalled. */
  readonly started: string;
  readonly dir: string;
  readonly role: string;
  readonly phase: string;
}

type JournalLine =
  & Readonly<Record<"time" | "boot" | "dir" | "role" | "event", string>>
  & Readonly<Record<string, unknown>>;

/** The result for one instance: the fields that `--json` prints. */
export interface Report extends Omit<Plan, "because" | "steps"> {
  readonly name: string;
  /** Whose instance it is, in root's `--all`; and its LIMA_HOME, wherever instances were listed. */
  readonly owner?: string;
  readonly home?: string | undefined;
  readonly stage: StopEnd | null;
  readonly seconds: Readonly<Record<string, number>>;
  readonly steps: readonly (Pick<Step, "kind" | "what" | "because"> & { readonly outcome: string })[];
  /** The result in one line, for people. */
  readonly summary: string;
}

function report(name: string, state: State, status: number, summary: string, more: Partial<Report> = {}): Report {
  const empty = { stage: null, seconds: {}, steps: [], blockers: [], notes: [] };
  return { name, state, status, ...empty, ...more, summary };
}

/** What `--status` adds to a report. */
interface Details {
  readonly evidence: readonly { file: string; holds: string | null; verdict: Verdict["kind"]; because: string }[];
  readonly limactlStart: string;
  /** Undefined where they could not be found out. */
  readonly jobs?: readonly JobStatus[] | undefined;
  readonly supervisor: number | null;
  readonly lastStop: string;
  readonly lastStopKind: LastStopKind;
  readonly lastStopAt: string | null;
  readonly lastRepair: string | null;
  readonly lastRepairAt: string | null;
  /** Whether the guest was ever ready since its host agent started; null where that is not known, or none lives. */
  readonly ready: boolean | null;
  readonly stopping: Stopping | null;
  readonly guardVersion: string | null;
  /** The last lines of the journal in words, for people only. */
  readonly recent: readonly string[];
  /** How often lima-guard started it since the host did, and for how long the restart back-off lasts. */
  readonly starts: number | null;
  readonly brakeSeconds: number | null;
}

// ────────────────────────────────────────────────────────────────────────────────────────────────────────── parsers ──

/**
 * Reads the text of a PID file: one decimal number, white space around it, nothing else, and a number that may be
 * the PID of a process. 0, 1 and negative numbers mean a group, all processes or launchd to kill(2): not a PID.
 */
export function readPid(text: string): { pid: number } | { not: string } {
  const digits = text.trim();
  if (digits === "") return { not: "it is empty" };
  if (text.length > PID_FILE_LIMIT_BYTES) return { not: "it is too long" };
  if (!/^[0-9]+$/.test(digits)) return { not: "it holds something else than one decimal number" };
  const pid = Number(digits);
  if (pid <= 1) return { not: `${pid} is never a Lima process` };
  if (pid > PID_MAX) return { not: `${digits} is larger than any PID` };
  return { pid };
}

/** `true` only for a number that kill(2) takes for one process: Deno.kill reads 2**32, NaN and 0.5 as 0, a group. */
export function isPid(pid: number): boolean {
  return Number.isInteger(pid) && pid > 1 && pid <= PID_MAX;
}

/** ps with these columns prints the same on macOS and Linux; the last one is as long as it is. */
export const PS_COLUMNS = "pid=,ppid=,uid=,stat=,lstart=,command=";
const PS_ROW = /^ *(\d+) +(\d+) +(-?\d+) +(\S+) +(\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}) *(.*)$/s;

/**
 * Reads the output of `ps -ww -o pid=,ppid=,uid=,stat=,lstart=,command=`. Rows that cannot be understood are kept: a
 * process without a row is then unknown, not dead.
 */
export function readPs(text: string): { rows: ProcessRow[]; unreadable: string[] } {
  const rows: ProcessRow[] = [];
  const unreadable: string[] = [];
  for (const line of text.split("\n").filter((line) => line !== "")) {
    const [, pid, ppid, owner, stat = "", started = "", command = ""] = PS_ROW.exec(line) ?? [];
    // Apple's ps prints a uid as a signed number: 4294967294 as -2.
    const uid = Number(owner) + (owner?.startsWith("-") ? 2 ** 32 : 0);
    if (!Number.isSafeInteger(Number(pid))) unreadable.push(line);
    else rows.push({ pid: Number(pid), ppid: Number(ppid), uid, stat, started, command });
  }
  return { rows, unreadable };
}

/** Whether a process was stopped by a signal, and not ended by it. */
function isStopped({ stat }: ProcessRow): boolean {
  return stat.startsWith("T");
}

/**
 * Reads `lsof -F pcanDi`: the processes that have one of the files open for writing. A reader is no holder: a VM that
 * serves a shared folder keeps files of other instances open for hours.
 */
export function readLsof(text: string): Holder[] {
  const fieldsOf = (lines: string): Record<string, string> =>
    Object.fromEntries(lines.split("\n").map((line) => [line.slice(0, 1), line.slice(1)]));
  const number = (text: string | undefined) => text ? Number(text) : undefined;
  const holders = text.split(/\n(?=p)/).flatMap((process) => {
    // A file's fields come in an order of lsof's own, so a file is complete when the next one begins.
    const parts = process.split(/\n(?=f)/).map(fieldsOf);
    const { p, c: command = "" } = parts[0] ?? {};
    const pid = Number(p);
    return parts.flatMap(({ a = "", n: path, D, i }) =>
      path !== undefined && isPid(pid) && /[uw]/.test(a) ? [{ pid, command, path, dev: number(D), ino: number(i) }] : []
    );
  });
  return holders.filter((h, i) => holders.findIndex((o) => o.pid === h.pid && o.path === h.path) === i);
}

/** The port in Lima's ssh.config, or undefined where the file is cut short. Lima reads the first `Port ` line too. */
export function readSshPort(text: string): number | undefined {
  return portOf(/^[ \t]*Port (\d{1,5})[ \t\r]*$/m.exec(text)?.[1]);
}

function portOf(text = ""): number | undefined {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : 0;
  return port >= 1 && port <= 65535 ? port : undefined;
}

/** The lines of a block under a top-level key of a YAML file, without empty ones and comments. */
function yamlBlock(yaml: string, key: string): string[] {
  const lines = yaml.split(/\r?\n/);
  const at = lines.findIndex((line) => line.startsWith(`${key}:`) && /^[ \t]*(#.*)?$/.test(line.slice(key.length + 1)));
  const rest = at < 0 ? [] : lines.slice(at + 1);
  const end = rest.findIndex((line) => /^[^ \t#-]/.test(line));
  return (end < 0 ? rest : rest.slice(0, end)).filter((line) => /^[ \t]*[^ \t#]/.test(line));
}

/** A YAML value on its own line: plain or quoted, with a comment behind it; undefined for whatever is more than that. */
function yamlScalar(text: string): string | undefined {
  const value = text.trim();
  const quoted = /^"([^"\\]*)"(?:[ \t]+#.*)?$/.exec(value) ?? /^'([^']*)'(?:[ \t]+#.*)?$/.exec(value);
  if (quoted) return quoted[1] || undefined;
  const comment = value.search(/(^|[ \t])#/);
  const plain = (comment < 0 ? value : value.slice(0, comment)).trimEnd();
  return plain === "" || /^[&*!|>{}[\],"'%@`]|:$|: /.test(plain) ? undefined : plain;
}

/** The value of a key directly under a top-level key. */
function yamlValue(yaml: string, block: string, key: string): string | undefined {
  const lines = yamlBlock(yaml, block);
  const start = `${/^[ \t]*/.exec(lines[0] ?? "")?.[0]}${key}:`;
  const line = lines.find((l) => /^[ \t]/.test(start) && l.startsWith(start) && /[ \t]/.test(l[start.length] ?? ""));
  return line === undefined ? undefined : yamlScalar(line.slice(start.length));
}

/** The names under `additionalDisks` of a lima.yaml, in both of its list forms. */
function readDiskNames(yaml: string): string[] {
  const flow = /^additionalDisks:[ \t]*\[([^[\]]*)\][ \t]*(?:#.*)?\r?$/m.exec(yaml)?.[1];
  if (flow !== undefined) return (flow.match(/\{[^{}]*\}|[^,{}]+/g) ?? []).flatMap(flowName);
  const lines = yamlBlock(yaml, "additionalDisks");
  const dash = /^([ \t]*)-[ \t]/.exec(lines[0] ?? "")?.[1];
  let keys = "";
  return lines.flatMap((line) => {
    const item = dash === undefined ? null : new RegExp(`^${dash}-([ \\t]+)(.*)$`).exec(line);
    if (item) keys = `${dash} ${item[1]}`;
    const text = item ? item[2] ?? "" : keys !== "" && line.startsWith(`${keys}name:`) ? line.slice(keys.length) : "";
    if (/^\{[^[]*\}[ \t]*(#.*)?$/.test(text)) return flowName(text.replace(/[ \t]+#.*$/, ""));
    const name = /^name:[ \t]+(.*)$/.exec(text)?.[1] ?? (item && !/^[^ "']*:([ \t]|$)/.test(text) ? text : "");
    return yamlScalar(name) ?? [];
  });
}

/** The name in one item of a list on one line: `data`, `"data"` or `{name: data, …}`. */
function flowName(item: string): string[] {
  const text = item.trim();
  const name = text.startsWith("{") ? /[{,][ \t]*["']?name["']?:[ \t]+([^,}]*)/.exec(text)?.[1] ?? "" : text;
  const value = yamlScalar(name);
  // A comma within quotes cuts an item in two, and no disk's name has one.
  return value === undefined || !NAME_RULE.test(value) ? [] : [value];
}

/** `paths.varRun` of Lima's networks.yaml, or Lima's default. */
export function readVarRun(yaml: string): string {
  const path = yamlValue(yaml, "paths", "varRun") ?? "";
  return path.startsWith("/") ? path : "/private/var/run/lima";
}

type LimaYaml = Readonly<{ localPort: number | undefined; disks: readonly string[]; sockets: readonly string[] }>;

/** What a lima.yaml says, as far as it is read here. By pattern: it may add a blocker, never permit a step. */
export function readLimaYaml(text: string): LimaYaml {
  const sockets = yamlBlock(text, "networks").flatMap((line) => {
    const value = /^[ \t]*(?:-[ \t]+)?socket:[ \t]+(.*)$/.exec(line)?.[1];
    return value === undefined ? [] : yamlScalar(value) ?? [];
  });
  return { localPort: portOf(yamlValue(text, "ssh", "localPort")), disks: readDiskNames(text), sockets };
}

/** The last event of a host agent, in ha.stdout.log; others may follow. It is missing after SIGKILL and after a crash. */
function exitEvent(haStdout: string): Record<string, unknown> | undefined {
  return jsonLines(haStdout).find((event) => isObject(event?.["status"]) && event["status"]["exiting"] === true);
}

/** How long Lima waits for krunkit before it kills it, without a word in the log. */
const KRUNKIT_END_MS = 30_000;

/**
 * What a host agent wrote in its last stop, if that is that it could not stop its guest: the guest's power went with the
 * agent (lima-vm/lima#5087). Level and phrase count together, since Lima 2.3 warns in the same words and stops the guest
 * all the same. Children share the file: lines of theirs mean nothing, wherever they stand. So a crash is the agent's own
 * where its last event is missing, and the guest's where there is no driver to outlive it.
 */
export function readCut(haStderr: string, haStdout = "", driver?: Role): string | undefined {
  const lines = haStderr.split("\n");
  const events = jsonLines(haStderr);
  const words = events.map((event) => typeof event?.["msg"] === "string" ? event["msg"] : "");
  const begin = words.findLastIndex((msg) => /^(Shutting down|Received SIG)/.test(msg));
  // A QEMU that has just ended has no socket either, and is not killed then.
  const hasEnded = words.indexOf("QEMU has already exited", begin + 1) >= 0;
  const cut = words.find((msg, i) =>
    i > begin &&
    (events[i]?.["level"] === "fatal"
      ? /CanRequestStop|timeout while waiting for stop/.test(msg)
      : /forcibly killing QEMU/.test(msg) && !hasEnded)
  );
  if (cut !== undefined) return cut;
  const exit = exitEvent(haStdout);
  const crash = lines.slice(begin + 1).find((l) => /^(panic: |fatal error: |SIG[A-Z]+: )/.test(l));
  if (exit === undefined) return driver === undefined ? crash : undefined;
  const tookMs = Date.parse(String(exit["time"])) - Date.parse(String(events[begin]?.["time"]));
  return driver === "krunkit" && tookMs >= KRUNKIT_END_MS
    ? "krunkit did not end in time, and Lima kills it then"
    : undefined;
}

/**
 * Reads `launchctl print DOMAIN/LABEL`. Its text is no API: what is not there is simply not known, and only lines with
 * exactly one tab are the job's own.
 */
export function readPrint(
  text: string,
): Record<"pid" | "exitTimeoutS", number | undefined> & Record<"state" | "program" | "path", string | undefined> {
  const values = (name: string) => [...text.matchAll(new RegExp(`^\\t${name} = (.*)$`, "gm"))].map((m) => m[1]);
  // Arguments and environment are printed as they are, between these and the numbers, and may hold any line.
  const value = (name: string) => values(name)[0];
  const number = (name: string) =>
    /^\d{1,9}$/.test(values(name).at(-1) ?? "") ? Number(values(name).at(-1)) : undefined;
  return {
    pid: number("pid"),
    exitTimeoutS: number("exit timeout"),
    state: value("state"),
    program: value("program"),
    path: value("path"),
  };
}

/** The value of a key in a plain plist or dictionary itself, and not in a dictionary within it, which may have it too. */
function entryOf(dict: string, key: string): string {
  let [depth, isWanted, value] = [0, false, ""];
  for (const part of dict.split(/(<\/?dict>|<key>[^<]*<\/key>)/)) {
    if (part === "</dict>" && --depth <= 0) break;
    const own = depth <= 1 ? /^<key>([^<]*)<\/key>$/.exec(part)?.[1] : undefined;
    if (own !== undefined) isWanted = value === "" && own.trim() === key;
    else if (isWanted) value += part;
    if (part === "<dict>") depth++;
  }
  return value.trim();
}

function plainText(xml: string): string {
  const entities: Record<string, string> = { lt: "<", gt: ">", quot: '"', apos: "'", amp: "&" };
  const letter = (code: number) => code <= 0x10ffff ? String.fromCodePoint(code) : "";
  return xml.replaceAll(
    /&(?:(lt|gt|quot|apos|amp)|#(\d+)|#x([\da-f]+));/gi,
    (_, name, decimal, hex) =>
      name === undefined ? letter(decimal ? Number(decimal) : parseInt(hex, 16)) : entities[name.toLowerCase()] ?? "",
  );
}

function readPlistString(dict: string, key: string): string | undefined {
  const found = /^<string>([\s\S]*?)<\/string>/.exec(entryOf(dict, key))?.[1];
  return found === undefined ? undefined : plainText(found);
}

/** The command of a job, without the shell that only waits for a path: `/bin/sh -c "/bin/wait4path DIR && exec …"`. */
function unwaited(args: readonly string[]): readonly string[] {
  const line = args.length === 3 && args[0] === "/bin/sh" && args[1] === "-c" ? args[2] ?? "" : "";
  const rest = /^\/bin\/wait4path \S+ && exec (.+)$/s.exec(line.trim())?.[1];
  if (rest === undefined || /[|;&<>$`(){}\\]/.test(rest)) return args;
  return [...rest.matchAll(/'([^']*)'|"([^"]*)"|(\S+)/g)].map((m) => m[1] ?? m[2] ?? m[3] ?? "");
}

/** The words of lima-guard's own: those before the `--` of its command. */
function ownWords(words: readonly string[]): readonly string[] {
  return words.includes("--") ? words.slice(0, words.indexOf("--")) : words;
}

function isGuarded(words: readonly string[], name: string): boolean {
  const own = ownWords(words);
  // The program may have any name: then its grammar tells.
  const isGuard = /^lima-guard/.test(basename(own[0] ?? "")) ||
    /^(limactl(\..*)?|colima)$/.test(basename(words[own.length + 1] ?? ""));
  if (!isGuard || !own.includes("--run")) return false;
  return own.some((word, i) => i > 0 && word === name && own[i - 1] !== "--lima-home" && own[i - 1] !== "--timeout");
}

/** The Lima instance that `colima ARGS` starts, if any: by `--profile`, else by its argument, else by COLIMA_PROFILE. */
export function instanceOfColima(args: readonly string[], fromEnv = ""): string | undefined {
  const words: string[] = [];
  let given: string | undefined;
  for (let i = 1; i < args.length; i++) {
    const word = args[i] ?? "";
    const [head = ""] = word.split("=", 1);
    // Letters may stand together, and the last one have a value: `-fp dev`, `-fpdev`.
    const letter = /^-[^-]/.test(head) ? [...head.slice(1)].find((l) => COLIMA_VALUES.has(`-${l}`)) : undefined;
    const flag = letter === undefined ? head : `-${letter}`;
    if (!word.startsWith("-")) words.push(word);
    if (!COLIMA_VALUES.has(flag)) continue;
    const behind = letter === undefined ? word.slice(head.length) : word.slice(word.indexOf(letter) + 1);
    const value = behind === "" ? args[++i] ?? "" : behind.replace(/^=/, "");
    if (flag === "--profile" || flag === "-p") given = value;
  }
  const profile = given ?? words[1] ?? fromEnv;
  if (words[0] !== "start") return undefined;
  if (["", "colima", "default"].includes(profile)) return "colima";
  return profile.startsWith("colima-") ? profile : `colima-${profile}`;
}

type JobPlist =
  & Readonly<Record<"label" | "userName" | "workingDirectory" | "limaHome", string | undefined>>
  & Readonly<Record<"restartsAfterSuccess" | "startsAtLoad", boolean>>
  & Readonly<{ command: readonly string[]; exitTimeoutS: number; variable(key: string): string | undefined }>;

/**
 * What the plist of a launchd job says, as far as it is read here: by pattern, since nothing is changed on its word.
 * `exitTimeoutS` is launchd's default where it has none; 0 means no limit, which no shutdown grants.
 * `restartsAfterSuccess`: it is started again after status 0, and never after anything else.
 */
export function readJobPlist(text: string): JobPlist {
  const escape = (cdata: string) => cdata.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  // Without comments and blanks in its tags, and with the text of its CDATA sections as any other text.
  const plist = text.replaceAll(/<!--[\s\S]*?-->/g, "").replaceAll(/<!\[CDATA\[([\s\S]*?)\]\]>/g, (_, t) => escape(t))
    .replaceAll(/<(\/?[a-z]+)\s+>/g, "<$1>");
  const string = (key: string) => readPlistString(plist, key);
  const array = /^<array>([\s\S]*?)<\/array>/.exec(entryOf(plist, "ProgramArguments"))?.[1] ?? "";
  const args = [...array.matchAll(/<string>([\s\S]*?)<\/string>/g)].map((m) => plainText(m[1] ?? ""));
  // `Program` is what launchd runs, whatever the first of its arguments says.
  const command = [string("Program") ?? args[0], ...args.slice(1)].filter((word) => word !== undefined);
  const timeout = /^<integer>\s*(\d{1,9})\s*<\/integer>/.exec(entryOf(plist, "ExitTimeOut"))?.[1];
  const variables = entryOf(plist, "EnvironmentVariables");
  const variable = (key: string) => readPlistString(variables, key);
  return {
    label: string("Label"),
    command,
    userName: string("UserName"),
    workingDirectory: string("WorkingDirectory"),
    variable,
    limaHome: optionOf(unwaited(command), "--lima-home") ?? variable("LIMA_HOME"),
    exitTimeoutS: Number(timeout ?? LAUNCHD_DEFAULT_S),
    restartsAfterSuccess: /^<true\s*\/>/.test(entryOf(entryOf(plist, "KeepAlive"), "SuccessfulExit")),
    startsAtLoad: ["RunAtLoad", "KeepAlive"].some((key) => /^<(true\s*\/|dict)>/.test(entryOf(plist, key))),
  };
}

/** How a job runs an instance, whatever its label: by lima-guard, by limactl or colima alone, or not at all. */
export function howItRuns({ command, variable }: JobPlist, name: string): "guarded" | "bare" | undefined {
  const args = unwaited(command);
  if (isGuarded(args, name)) return "guarded";
  const program = basename(args[0] ?? "");
  const start = /^limactl(\.|$)/.test(program) ? args.indexOf("start") : -1;
  const isStarted = program === "colima"
    ? instanceOfColima(args, variable("COLIMA_PROFILE")) === name
    : start > 0 && args.slice(start + 1).includes(name);
  return isStarted ? "bare" : undefined;
}

/** Reads ha.stdout.log (events) and ha.stderr.log of a living host agent. */
export function readReadiness(events: string, log: string): Readiness {
  const seen = jsonLines(events).map((line) => line?.["status"]).filter(isObject);
  const lines = jsonLines(log);
  // A start at a terminal writes one sentence into both.
  if (seen.length === 0 && !lines.some(Boolean)) return { ready: null, errors: [] };
  const ready = seen.some((status) => status["running"] === true);
  const last = seen.findLast((status) => status["running"] === true || status["degraded"] === true);
  const given = Array.isArray(last?.["errors"]) ? last["errors"].map(String) : ["no error is given"];
  const errors = last?.["degraded"] === true ? given : [];
  const shape = /^(Waiting for the .*requirement \d+ of \d+: .+|The .*requirement \d+ of \d+ is satisfied)$/;
  const asked = lines.findLast((line) => shape.test(String(line?.["msg"])));
  const [, number, of, what] = /requirement (\d+) of (\d+): (.+)$/.exec(String(asked?.["msg"])) ?? [];
  if (ready || what === undefined) return { ready, errors };
  return { ready, errors, waits: `${what.trim()}, requirement ${number} of ${of}, since ${asked?.["time"]}` };
}

function textOfFact(fact: unknown): string {
  return typeof fact === "string" ? fact : JSON.stringify(fact) ?? "";
}

/** Reads the record in a lock file; undefined where it is damaged or of another directory. */
export function readLockRecord(text: string, dir: string, same?: SameDirectory): LockRecord | undefined {
  const record = jsonObject(text.split("\n", 1)[0] ?? "");
  const { pid, started, dir: named, role, phase } = record ?? {};
  if (typeof named !== "string" || typeof pid !== "number" || !isPid(pid)) return undefined;
  if (typeof started !== "string" || typeof role !== "string" || typeof phase !== "string") return undefined;
  return named === dir || same?.(named, dir) === "same" ? { pid, started, dir: named, role, phase } : undefined;
}

/** Reads a journal: damaged lines and those of another directory (a clone brings them along) do not count. */
export function readJournal(text: string, dir: string, same?: SameDirectory): JournalLine[] {
  const texts = ["time", "boot", "dir", "role", "event"];
  const lines = jsonLines(text).filter((line): line is JournalLine =>
    line !== undefined && texts.every((name) => typeof line[name] === "string")
  );
  const others = new Set(lines.map((line) => line.dir)).values().filter((named) => named !== dir);
  const own = new Set([dir, ...others.filter((named) => same?.(named, dir) === "same")]);
  return lines.filter((line) => own.has(line.dir));
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

function jsonObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined; // torn last line after a power loss: ignore
  }
}

/** Each line of a log or journal that is JSON; undefined for any other. */
const jsonLines = (text: string) => text.split("\n").map(jsonObject);

function cutIn(line: JournalLine): string | undefined {
  return typeof line["cut"] === "string" ? line["cut"] : undefined;
}

function isSeconds(value: unknown): value is Record<string, number> {
  return isObject(value) && Object.values(value).every((v) => typeof v === "number");
}

/** The value of an option in a job's command, before its `--`. */
export function optionOf(args: readonly string[], option: string): string | undefined {
  const own = ownWords(args);
  const joined = own.find((word) => word.startsWith(`${option}=`))?.slice(option.length + 1);
  return joined ?? (own.includes(option) ? own[own.indexOf(option) + 1] : undefined);
}

// ──────────────────────────────────────────────────────────────────────────────────────────────── proof of identity ──

/** Pattern of a Lima command line: program, subcommand, and the flag before its path. */
interface Shape {
  readonly role: Role;
  readonly program: RegExp;
  readonly word?: string;
  /** The text directly before the path. */
  readonly flag: RegExp;
  /** What may follow the directory in the path, as patterns; the directory is what counts. */
  readonly tails: readonly string[];
  /** What the directory of another spelling may consist of; anything unless said. */
  readonly other?: string;
}

const LIMACTL = /^limactl(\.ventura)?$/;
/** The PID file of a usernet, below LIMA_HOME. */
const USERNET_FILE = String.raw`/_networks/(?<network>[^/ ]+)/usernet_\k<network>\.pid`;

/**
 * The commands of Lima 1.0 to 2.3 (`pkg/instance/start.go`, `pkg/driver/*`, `pkg/networks/usernet`). RHEL calls its QEMU
 * qemu-kvm.
 */
const SHAPES: readonly Shape[] = [
  { role: "host agent", program: LIMACTL, word: "hostagent", flag: / --pidfile /g, tails: [String.raw`/ha\.pid`] },
  { role: "usernet", program: LIMACTL, word: "usernet", flag: / -p /g, tails: [USERNET_FILE] },
  { role: "QEMU", program: /^qemu-(system-.+|kvm)$/, flag: / -pidfile /g, tails: [String.raw`/qemu\.pid`] },
  { role: "krunkit", program: /^krunkit$/, flag: /[ ,]path=/g, tails: ["/disk", "/diffdisk"], other: "[^,]*?" },
  { role: "external driver", program: /^lima-driver-.+$/, flag: / --inst-dir /g, tails: [""] },
];

interface PidFileKind {
  readonly name: RegExp;
  /** What it may name; a file that names a process of the instance with another role is stale. */
  readonly roles: readonly Role[];
  /** The sockets beside it that go with it; `$1` is the group of the name. */
  readonly sockets?: readonly string[];
  /** `limactl start` reads it, and believes any living PID in it. */
  readonly isReadByStart?: true;
  /** A host agent of Lima 2.2 signals any PID in it while it stops (row 24). */
  readonly isSignalled?: true;
  readonly hasNoLineEnd?: true;
}

/** On vz the host agent is the VM: vz.pid holds its number. */
const DRIVER_ROLES: readonly Role[] = SHAPES.map(({ role }) => role).filter((role) => role !== "usernet");

/** The first row whose name fits is the kind of a file. A new kind of PID file is a row here, a new program one of SHAPES. */
const PID_FILES: readonly PidFileKind[] = [
  { name: /^ha\.pid$/, roles: ["host agent"], sockets: [HA_SOCK], isReadByStart: true },
  { name: /^(vz|qemu|krunkit|wsl2)\.pid$/, roles: DRIVER_ROLES, isReadByStart: true },
  { name: /\.drv\.pid$/, roles: ["external driver"], isSignalled: true, hasNoLineEnd: true },
  { name: /^lima-driver-/, roles: ["external driver"], isSignalled: true },
  { name: /^usernet_(.*)\.pid$/s, roles: ["usernet"], sockets: ["$1_fd.sock", "$1_qemu.sock", "$1_ep.sock"] },
  { name: /^/, roles: DRIVER_ROLES },
];

/** The kind of a PID file, by its name. */
export function kindOfPidFile(path: string): PidFileKind {
  return PID_FILES.find(({ name }) => name.test(basename(path)))!;
}

/**
 * Judges one process by its owner and its command; see SHAPES. `sameDirectory` is asked only about directories that
 * a command of Lima's shape names in another spelling, `isFile` only about programs whose path may hold a blank. Not
 * ours deletes files, so it needs a reason that cannot be a spelling: another owner, another directory, or a program
 * that is none of Lima's and was not given this instance's files either.
 */
export function judge(
  row: ProcessRow,
  instance: Instance,
  sameDirectory: SameDirectory,
  isFile: IsFile = () => false,
): Judgement {
  const whole = compareWhole(row.command, instance.dir, sameDirectory, isFile);
  if (whole === "same" && row.uid === instance.owner) {
    return { kind: "ours", role: "host agent", ...limaProgram(row.command) === undefined ? { renamed: true } : {} };
  }
  // Not all at once: each comparison may look at files. What is whole and of another directory proves nothing.
  const found = SHAPES.values().map((shape) => {
    const program = programOf(row.command, shape, isFile);
    const is = program && compareShape(row.command, shape, instance, sameDirectory);
    return { role: shape.role, is: is === "same" && program === "doubtful" ? "cannot tell" : is };
  });
  if (row.uid !== instance.owner) {
    const role = found.find(({ is }) => is === "same")?.role ?? (whole === "same" ? "host agent" : undefined);
    if (role === undefined) return notOurs(`it belongs to uid ${row.uid}`);
    return cannotTell(`it looks like this instance's ${role} and belongs to uid ${row.uid}`, role);
  }
  const first = found.find(({ is }) => is !== undefined);
  const role = first?.role ?? (whole === "cannot tell" ? "host agent" : undefined);
  if (role === undefined) return judgeProgram(row.command, instance, sameDirectory, isFile);
  if (first?.is === "same") return { kind: "ours", role };
  if (first?.is === "different") return notOurs(`it is the ${role} of another directory`);
  return cannotTell(`it may be a ${role}, and its command does not say of which instance`, role);
}

function notOurs(why: string): Judgement {
  return { kind: "not ours", why };
}

function cannotTell(why: string, role?: Role): Judgement & { kind: "unknown" } {
  return { kind: "unknown", why, ...(role === undefined ? {} : { role }) };
}

/** What can still be said of a process of our user whose command has none of the shapes. */
function judgeProgram(command: string, instance: Instance, sameDirectory: SameDirectory, isFile: IsFile): Judgement {
  if (command === "") return cannotTell("ps shows no command for it");
  const raw = limaProgram(command);
  if (!raw) {
    // A process whose arguments name this instance's PID file may be a renamed Lima program.
    const names = SHAPES.some((s) => compareShape(command, s, instance, sameDirectory) === "same");
    const all = JSON.stringify(command);
    if (names) return cannotTell(`it is none of Lima's programs, and names this instance's own files: ${all}`);
    return notOurs(`it is ${JSON.stringify(programWords(command, isFile))}, none of Lima's programs`);
  }
  const program = unwrapped(raw);
  const isLimactl = program.startsWith("limactl");
  // Its subcommand is the first word that is no option, nor may be the value of one.
  const word = RegExp.escape(raw);
  if (isLimactl && new RegExp(`(^|/)${word}( -[^ ]*( [^- ][^ ]*)?)* (start|restart)( |$)`).test(command)) {
    return cannotTell("it is a `limactl start`, which becomes a host agent under the same PID");
  }
  if (isLimactl && !/ (hostagent|usernet)( |$)/.test(command) && command.includes(" ")) {
    return notOurs("it is a limactl that is no host agent");
  }
  if (program.startsWith("qemu-system-") && command.includes(" ") && !command.includes("/qemu.pid")) {
    return notOurs("it is a QEMU without the PID file that Lima gives to each of its own");
  }
  return cannotTell(`it may be Lima's ${program}, and its command does not tell whose`);
}

/**
 * Holds a command against one shape. The path must stand directly after its flag and end there: found anywhere else
 * it proves nothing, and neither does a prefix (`k3s` is not `k3s-2`).
 */
function compareShape(command: string, shape: Shape, instance: Instance, sameDirectory: SameDirectory) {
  const ours = shape.role === "usernet" ? instance.home : instance.dir;
  const own = spellings(ours).map(RegExp.escape).join("|");
  const other = new RegExp(`^${shape.other ?? ".*"}$`, "s");
  const answers = command.matchAll(shape.flag).toArray().flatMap((flag) =>
    shape.tails.map((tail) => {
      const rest = command.slice(flag.index + flag[0].length);
      const end = `${tail}${tail === "" ? "(?=$| -)" : "(?=$|[ ,])"}`;
      if (new RegExp(`^(${own})${end}`, "s").test(rest)) return "same";
      const ends = rest.matchAll(new RegExp(end, "gs")).map(({ index }) => rest.slice(0, index)).toArray();
      const others = ends.filter((dir) => other.test(dir));
      if (others[0] === undefined) return "no";
      // A path may continue behind a blank, and what stands before it may look like its end.
      const named = others.filter((dir) => dir.startsWith("/")).map((dir) => sameDirectory(dir, ours));
      return named.includes("same") ? "same" : named[0] ?? "cannot tell";
    })
  );
  return (["same", "cannot tell", "different"] as const).find((answer) => answers.includes(answer));
}

/** Programs that run, trace, edit or print what is named behind them: Lima's grammar there proves nothing. */
const WRAPPERS = new RegExp(
  "^-?(ba|z|da|k|fi|t?c|a)?sh$|^(busybox|sudo|doas|su|env|exec|nice|nohup|setsid|time|g?timeout|caffeinate|arch|script|" +
    "watch|xargs|strace|ltrace|dtruss|dtrace|gdb|lldb|vim?|nvim|view|ed|emacs|nano|less|more|cat|tail|head|[ef]?grep|" +
    "rg|sed|awk|ps|pgrep|pkill|kill|echo|printf|python[0-9.]*|perl[0-9.]*|ruby|node|deno|ssh|tmux|screen|launchctl|" +
    "php[0-9.]*|lua[0-9.]*|luajit|tclsh[0-9.]*|expect|bun|java|osascript|pwsh|rscript|julia|make|docker|podman|logger|" +
    "open|tee|xxd|diff|file|stat|ls|cp|mv|rm|ln|touch|chmod|chown|curl|wget|rsync|scp|login|dbus-run-session)$",
  "i",
);

/**
 * Holds a command against the whole grammar of a host agent, `PROGRAM [flags] hostagent --pidfile DIR/ha.pid --socket
 * DIR/ha.sock`, whatever the program is called: Rancher Desktop shipped `limactl.ventura`, people keep `limactl-2.1`.
 */
function compareWhole(command: string, ours: string, same: SameDirectory, isFile: IsFile) {
  const [head = "", rest = ""] = inTwo(command, " hostagent --pidfile ");
  const [dir, after = ""] = inTwo(rest, "/ha.pid --socket ");
  // No regular expression for the whole: it would try each of the thousand options of a linker against all the others.
  const words = head.split(" ");
  const program = words.slice(0, words.findLastIndex((word, i) => i === 0 || !word.startsWith("-")) + 1).join(" ");
  const isSame = dir !== "" && (after === `${dir}/ha.sock` || after.startsWith(`${dir}/ha.sock `));
  if (rest === "" || program === "" || !isSame || !isOneProgram(program, isFile)) return "no" as const;
  if (spellings(ours).includes(dir)) return "same" as const;
  return dir.startsWith("/") ? same(dir, ours) : "cannot tell" as const;
}

/** The text before the first of these, and the text behind it; without it all is before it. */
function inTwo(text: string, by: string): [string, string?] {
  const at = text.indexOf(by);
  return at < 0 ? [text] : [text.slice(0, at), text.slice(at + by.length)];
}

/** Whether a text is one program and not a wrapper with its argument. Only the path of a program may hold blanks. */
function isOneProgram(text: string, isFile: IsFile): boolean {
  const words = text.split(" ");
  if (WRAPPERS.test(basename(words[0] ?? "")) || WRAPPERS.test(basename(text))) return false;
  if (!text.startsWith("/")) return !/[ /]/.test(text);
  if (words.length === 1 || isFile(text)) return true;
  const starts = words.slice(1).map((_, i) => words.slice(0, i + 1).join(" "));
  return !starts.some(isFile) && words.slice(1).every((w) => !/^[-/]/.test(w)) && /^[^/].*\//.test(words.at(-1) ?? "");
}

/** The program of a command: the file that it begins with, else as far as its text shows (a path continues behind a blank). */
function programWords(command: string, isFile: IsFile): string {
  const words = command.startsWith("/") ? command.slice(0, 1024).split(" ") : []; // PATH_MAX
  const file = words.map((_, i) => words.slice(0, i + 1).join(" ")).find(isFile);
  return file ?? /^\/[^ ]*(?: [^-/ ][^ ]*\/[^ ]*)*|^[^ ]*/.exec(command)?.[0] ?? "";
}

/**
 * Whether a command begins with the shape's program and has its word: a bare name, or an absolute path with that
 * basename. A path may hold blanks, but `/usr/bin/strace bin/limactl …` is ambiguous: then it is checked whether the file exists.
 */
function programOf(command: string, shape: Shape, isFile: IsFile) {
  const name = limaProgram(command);
  if (name === undefined || !shape.program.test(unwrapped(name))) return undefined;
  const word = shape.word === undefined ? "(?= |$)" : `(?: -[^ ]*)* ${shape.word} `;
  const path = new RegExp(`^((?:/.*?/)?${RegExp.escape(name)})${word}`, "s").exec(command)?.[1];
  if (path !== undefined && (!path.includes(" ") || isOneProgram(path, isFile) && isFile(path))) {
    return "certain" as const;
  }
  return shape.word === undefined || command.includes(` ${shape.word} `) ? "doubtful" as const : undefined;
}

/**
 * The Lima program a command may be running: the first word's basename, or, for an absolute path that may hold
 * blanks, the basename of any beginning that ends before a blank. `(limactl)` and `[qemu-system-x86]` are what ps
 * prints where it cannot read the arguments.
 */
function limaProgram(command: string): string | undefined {
  const plain = command.replace(/^[([]([^)\]]*)[)\]].*$/s, "$1");
  const isLimas = (name: string) => SHAPES.some(({ program }) => program.test(unwrapped(name)));
  const first = basename(plain.split(" ", 1)[0] ?? "");
  if (isLimas(first) || !plain.startsWith("/")) return isLimas(first) ? first : undefined;
  return plain.split(" ").filter((w) => w.includes("/")).map((w) => basename(w)).find(isLimas);
}

/** nixpkgs wraps programs: what runs in the end is `.limactl-wrapped`. */
function unwrapped(name: string): string {
  return name.replace(/^\.(.+)-wrapped$/, "$1");
}

/** A path as ps may print it: as it is, or with the bytes that it cannot print as macOS's vis(3) writes them. */
function spellings(path: string): string[] {
  const vis = [...new TextEncoder().encode(path)].map(visByte).join("");
  return vis === path ? [path] : [path, vis];
}

/** One byte as vis(3) with VIS_TAB|VIS_NL|VIS_NOSLASH prints it in the C locale (Apple's ps: adv_cmds `print.c`). */
function visByte(byte: number): string {
  const low = byte & 0x7f;
  if (byte === 0xa0 || byte === 0x09 || byte === 0x0a) return `\\${byte.toString(8).padStart(3, "0")}`;
  const isControl = low < 0x20 || low === 0x7f;
  const char = low === 0x7f ? "?" : String.fromCharCode(isControl ? low + 0x40 : low);
  if (byte >= 0x80) return isControl ? `M^${char}` : `M-${char}`;
  return isControl ? `^${char}` : char;
}

function names(processes: readonly VerifiedProcess[]): string {
  return processes.map((p) => `${p.role} ${p.row.pid}`).join(" and ");
}

// ───────────────────────────────────────────────────────────────────────────────────────────────── commands to type ──

/** A path as a POSIX shell takes it, for commands that a person is to type. */
export function quote(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

const shellWords = (words: readonly string[]) => words.map(quote).join(" ");

const HELP_COMMAND = "lima-guard --help";

/** An instance as a command has to name it; without its name it is a whole LIMA_HOME. */
type Addressee = Pick<Instance, "home" | "sudoUser"> & { readonly name?: string };

function asOwner({ sudoUser }: Addressee): string[] {
  return sudoUser === undefined ? [] : ["sudo", "-H", "-u", sudoUser];
}

/** It names LIMA_HOME, since in the shell where it is typed a variable may name another one. */
function guardCommand(instance: Addressee, ...options: string[]): string {
  const words = [...asOwner(instance), "lima-guard", ...options, "--lima-home", instance.home];
  return shellWords([...words, ...instance.name === undefined ? [] : [instance.name]]);
}

/** The command of a role again; for `--run`, whose command is not known here, a look. */
function roleCommand(role: string, instance: Addressee): string {
  return guardCommand(instance, role === "run" ? "--status" : `--${role}`);
}

/** The `limactl` command for one instance: `limactlCommand(instance, "start", instance.name)`. */
function limactlCommand(instance: Instance, ...words: string[]): string {
  return `${shellWords(asOwner(instance))} LIMA_HOME=${quote(instance.home)} ${shellWords(["limactl", ...words])}`
    .trim();
}

/** Looks at files. Paths are whole, so that it works from any folder. */
const lookCommand = (...paths: string[]) => shellWords(["ls", "-ld", ...paths]);
/** Lists a folder, hidden entries too. */
const listCommand = (dir: string) => shellWords(["ls", "-la", dir]);
const tailCommand = (path: string) => shellWords(["tail", path]);
/** Shows a binary plist as text. */
const plistCommand = (path: string) => shellWords(["plutil", "-p", path]);
/** Shows which processes have these files or sockets open. */
const lsofCommand = (...paths: string[]) => shellWords(["lsof", "--", ...paths]);
/** Shows which process listens on a port; without sudo lsof shows only the user's own. */
const listenerCommand = (port: number) => shellWords(["sudo", "lsof", "-nP", `-iTCP:${port}`, "-sTCP:LISTEN"]);
/** Takes a path out of the way, and keeps what it is. */
const moveOut = (path: string) => shellWords(["mv", path, `${path}.away`]);
/** Removes a file of root's. */
const removeCommand = (path: string) => shellWords(["sudo", "rm", path]);
/** Gives a folder and all in it to a user, by name or number; without one the person puts a name there. */
const chownCommand = (dir: string, user: string | number = "USER") =>
  shellWords(["sudo", "chown", "-R", String(user), dir]);

/** Shows whole command lines: of these processes, or of all. */
function psCommand(...pids: readonly number[]): string {
  const which = pids.length === 0 ? ["-A", "-o", "pid,command"] : ["-p", pids.join(",")];
  return shellWords(["ps", "-ww", ...which]);
}

/** Ends the ssh master that has this control socket. ssh expands `%` in it. */
function sshExitCommand(instance: Instance, socket: string): string {
  const control = ["-S", socket.replaceAll("%", "%%"), "-O", "exit"];
  return shellWords([...asOwner(instance), "ssh", ...control, sshHost(instance.name)]);
}

/** What makes a file removable, where that is known. */
function remedyCommand(instance: Instance, { path, remedy }: StateFile): string {
  if (remedy === "mode") return shellWords([...asOwner(instance), "chmod", "u+rwx", dirname(path)]);
  if (remedy === "owner") return chownCommand(dirname(path), instance.owner);
  return lookCommand(dirname(path), path);
}

/** A `launchctl` line; only root changes what is in the system domain. */
function launchctl(target: string, ...words: string[]): string {
  return shellWords([...target.startsWith("system/") ? ["sudo"] : [], "launchctl", ...words]);
}

/**
 * What starts a job, from what is known of it: one that is not loaded has nothing to kick, and one that is loaded need not
 * start by itself. Without a user at the screen no login agent can be started. Undefined where there is nothing to type.
 */
function startJobCommand(
  job: Pick<JobStatus, "target" | "plist" | "loaded" | "disabled" | "noLogin" | "startsAtLoad">,
): string | undefined {
  const { target, plist } = job;
  const kick = launchctl(target, "kickstart", target);
  const load = [launchctl(target, "bootstrap", dirname(target), plist), ...job.startsAtLoad ? [] : [kick]];
  const start = job.noLogin ? [] : job.loaded === "no" ? load : [kick];
  const commands = [...job.disabled ? [launchctl(target, "enable", target)] : [], ...start];
  return commands.length === 0 ? undefined : commands.join(" && ");
}

/** The `kill` line for a process that only a person may judge; with sudo where it is not the instance's owner's. */
function killCommand(instance: Instance, { pid, uid }: Pick<ProcessRow, "pid" | "uid">, signal?: string): string {
  const sudo = uid === instance.owner ? asOwner(instance) : ["sudo"];
  return shellWords([...sudo, "kill", ...signal === undefined ? [] : [`-${signal}`], String(pid)]);
}

/** What settles an unknown process: a look at it, then its end. */
function settleCommand(instance: Instance, process: Pick<ProcessRow, "pid" | "uid">): string {
  return `${psCommand(process.pid)}; if it is a process of this VM: ${killCommand(instance, process)}`;
}

// ──────────────────────────────────────────────────────────────────────────────────────────────── the plan of --pre ──

/**
 * Decides what `--pre` does. R1 the instance is missing; R2 a proven process lives; R3 something is unknown: the first that
 * holds decides alone. Otherwise R4 and R5 (stale files are removed, with their sockets) and R6 (what must not be fixed
 * automatically is named) both count. R0: none of them holds.
 */
export function planPre(seen: Observation, budgetS = DEFAULT_BUDGET_S): Plan {
  const { instance, missing: because } = seen;
  if (because !== undefined) {
    const hint = "limactl start would silently create a new VM of this name";
    const blockers = [{ what: instance.dir, because, hint }];
    return plan(seen, "missing", because, { blockers, status: EXIT.noInstance });
  }
  return planAlive(seen, budgetS) ?? planUnknown(seen) ?? planFiles(seen);
}

/** R3: nothing is touched while something about this instance's processes is unknown. */
function planUnknown(seen: Observation): Plan | undefined {
  const blockers = unknownsOf(seen);
  if (blockers.length === 0) return undefined;
  return plan(seen, "unknown", "nothing is touched while this is unknown", { blockers });
}

function plan(
  { notes }: Observation,
  state: State,
  because: string,
  more: Partial<Pick<Plan, "steps" | "blockers" | "status">> = {},
): Plan {
  const { steps = [], blockers = [], status = statusOfBlockers(blockers) } = more;
  return { state, because, status, steps, blockers, notes };
}

/** 77 where only permissions are missing, 75 where anything else is in the way too. */
function statusOfBlockers(blockers: readonly Diagnostic[]): number {
  if (blockers.length === 0) return EXIT.done;
  return blockers.every((b) => b.status === EXIT.denied) ? EXIT.denied : EXIT.tryAgain;
}

function filesWith(seen: Observation, scope: StateFile["scope"], kind: Verdict["kind"]): StateFile[] {
  return seen.stateFiles.filter((c) => c.scope === scope && c.verdict.kind === kind);
}

/** Whether the PID file of a driver has this verdict. */
function hasDriverFile(seen: Observation, kind: "ours" | "dead"): boolean {
  return filesWith(seen, "instance", kind).some((c) => kindOfPidFile(c.path).roles === DRIVER_ROLES);
}

/** R2: what to do about processes that are proven to be this instance's; undefined where there are none. */
function planAlive(seen: Observation, budgetS: number): Plan | undefined {
  const [agent] = hostAgentsOf(seen);
  const drivers = driversOf(seen);
  const health = seen.agent;
  const hung = agent && health && hungBecause(agent, health);
  if (agent && hung === undefined) {
    const pid = `host agent ${agent.row.pid}`;
    if (health?.answers && hasDriverFile(seen, "ours")) {
      return plan(seen, "running", `${pid} answers and its driver is alive`, { blockers: severalAgents(seen) });
    }
    if (isStopped(agent.row) && !health?.answers) {
      const hint = killCommand(seen.instance, agent.row, "CONT");
      const because = `${pid} is stopped by a signal (ps: ${agent.row.stat})`;
      return plan(seen, "unknown", because, { blockers: [{ what: pid, because, hint }] });
    }
    // An agent that boots has not written one yet.
    const driver = hasDriverFile(seen, "dead") ? "its driver has died" : "its driver is not up";
    const isUnasked = health !== undefined && health.answers === undefined;
    const isOver = health?.answers === false && (health.wasRunning || health.ageS >= BOOT_WINDOW_S);
    const silent = isOver ? "does not answer, and its boot is over" : "is alive and does not answer yet";
    const shown = isUnasked ? "is alive and cannot be asked" : silent;
    const because = `${pid} ${health?.answers ? `answers, ${driver}` : shown}`;
    const hint = isUnasked
      ? lookCommand(join(seen.instance.dir, HA_SOCK))
      : `it is left alone; to end it: ${guardCommand(seen.instance, "--stop")}`;
    const blockers = [{ what: pid, because, hint }];
    return plan(seen, isOver || isUnasked ? "unknown" : "booting", because, { blockers });
  }
  if (!agent && drivers.length === 0) return undefined;
  const unknown = planUnknown(seen);
  if (unknown) return unknown;
  const because = hung ?? `${names(drivers)} ${drivers.length > 1 ? "run" : "runs"} without a host agent`;
  return plan(seen, agent ? "hung" : "orphan", because, { steps: stopSteps(seen, because, budgetS) });
}

/** More than one host agent is more than one VM on one disk: a start is not the answer, and 0 neither. */
function severalAgents(seen: Observation): Diagnostic[] {
  const agents = hostAgentsOf(seen);
  if (agents.length < 2) return [];
  const because = "several host agents of it live, and each may write to its disk";
  const hint = `${psCommand(...agents.map((p) => p.row.pid))}; to end them: ${guardCommand(seen.instance, "--stop")}`;
  return [{ what: names(agents), because, hint }];
}

/** Hung: beyond the boot window, and no answer for a minute, or no event since its start. Undefined: it is not. */
function hungBecause(agent: VerifiedProcess, health: AgentHealth): string | undefined {
  const { ageS, answers, neverReported, silentS } = health;
  const isSilent = answers === false && silentS * 1000 >= SILENCE_MS;
  if (ageS < BOOT_WINDOW_S || !(neverReported || isSilent)) return undefined;
  const age = `host agent ${agent.row.pid} is ${Math.floor(ageS / 60)} min old`;
  return neverReported ? `${age} and has not written one event` : `${age} and silent for ${Math.floor(silentS)} s`;
}

/** What about this instance's processes could not be found out: R3's reasons. */
function unknownsOf(seen: Observation): Diagnostic[] {
  return [...filesWith(seen, "instance", "unknown").map(unknownFile(seen.instance)), ...seen.unknowns];
}

/** A file whose verdict is unknown, with what settles it: the process ends, or the file is moved away. */
function unknownFile(instance: Instance): (stateFile: StateFile) => Diagnostic {
  return ({ path, verdict, stamp }) => {
    const number = readPid(stamp.text ?? "");
    const hint = "pid" in number
      ? settleCommand(instance, { ...number, uid: verdict.uid ?? instance.owner })
      : `${lookCommand(path)}; if this VM does not run: move it out of the folder`;
    return { what: path, because: verdict.why, hint: verdict.hint ?? hint };
  };
}

/** R4 to R6. Nothing is removed while the disk is in use. */
function planFiles(seen: Observation): Plan {
  const { instance, held, startBlockers } = seen;
  if (held[0]) {
    return plan(seen, "blocked", held[0].because, { blockers: [...held, ...startBlockers], status: EXIT.tryAgain });
  }
  const steps = removals(seen);
  const shared = filesWith(seen, "shared", "unknown").map(unknownFile(instance));
  const blockers = [...undeletableFiles(seen), ...shared, ...startBlockers];
  if (blockers[0]) return plan(seen, "blocked", blockers[0].because, { steps, blockers });
  if (steps.length > 0) return plan(seen, "stale", removableFiles(seen)[0]?.verdict.why ?? "", { steps });
  return plan(seen, "clear", "nothing claims to be running");
}

function undeletableFiles(seen: Observation): Diagnostic[] {
  return seen.stateFiles.filter((c) => isStale(c) && c.undeletable !== undefined).map((c) => ({
    what: c.path,
    because: `it is stale (${c.verdict.why}) and cannot be removed: ${c.undeletable}`,
    hint: remedyCommand(seen.instance, c),
    status: EXIT.denied,
  }));
}

/** Stale: no live process, disk or config backs the file. */
function isStale({ verdict: { kind } }: StateFile): boolean {
  return kind === "dead" || kind === "not ours" || kind === "stale";
}

/** R4 and R5 as steps; the boot marker goes with the last PID file of the instance, and never before it. */
function removals(seen: Observation): Step[] {
  const going = removableFiles(seen);
  // Sockets before the PID file, so that a crash in between can be resumed.
  const steps = going.flatMap((c) => [
    ...c.sockets.map((socket) => removal(socket, `it belongs to ${basename(c.path)}`)),
    removal(c, c.verdict.why),
  ]);
  const pidFiles = pidFilesOf(seen);
  const isLast = pidFiles.length > 0
    ? pidFiles.every((c) => going.includes(c))
    : seen.isOldMarker && ownOf(seen).length === 0;
  if (!isLast || !seen.bootMarker) return steps;
  const marker = { path: join(seen.instance.dir, BOOT_MARKER), stamp: seen.bootMarker };
  const because = pidFiles.length > 0 ? "it goes with the last PID file, as in Lima ≥ 2.2.1" : "it is of another boot";
  return [...steps, removal(marker, because)];
}

function pidFilesOf({ stateFiles }: Pick<Observation, "stateFiles">): StateFile[] {
  return stateFiles.filter((c) => c.scope === "instance" && c.path.endsWith(".pid"));
}

function removal({ path, stamp }: StampedPath, because: string): Step {
  return { kind: "remove", what: `remove ${path}`, because, path, stamp };
}

function removableFiles(seen: Observation): StateFile[] {
  return seen.stateFiles.filter((c) => isStale(c) && c.undeletable === undefined);
}

/**
 * Stale PID files of external drivers: while it stops, a host agent of Lima 2.2 signals any PID in them (row 24). So
 * they go before anything is stopped, and even where something else is unknown: no other program is ever signalled.
 */
function urgentRemovals(seen: Observation): Step[] {
  // Lima signals whatever integer it reads, 1 too; of other text nothing, and such a file is what leads to the search of
  // all processes. Of what is no small regular file the text is not known here, but Lima reads through a link.
  const stateFiles = seen.stateFiles.filter(({ stamp }) =>
    stamp.text === undefined || /^\s*[+-]?\d+\s*$/.test(stamp.text)
  );
  return removals({ ...seen, stateFiles }).filter((s) => kindOfPidFile(s.path ?? "").isSignalled);
}

/**
 * When each stage must have ended, in seconds after the request. tail = min(9, T/2) is for killing and cleaning up,
 * whatever grace came to: on a real guest a kill needed 0.9 s and a clean-up 0.04 s. `guest` is for a guest that has not
 * acknowledged: Lima's own stop needs 30 s of grace. One that has acknowledged has all of grace. 60 s gives 21, 51, 54,
 * 57, and 3 s of reserve.
 */
export function stageLimits(budgetS: number): Record<Stage, number> {
  const tail = Math.min(9, budgetS / 2);
  const grace = budgetS - tail;
  return {
    guest: Math.min(120, Math.max(grace / 3, grace - 30)),
    agent: grace,
    driver: grace,
    kill: grace + tail / 3,
    "clean up": grace + (tail * 2) / 3,
  };
}

/** A stop: the stages, and the files around them. While something is unknown only the urgent ones go. */
function stopSteps(seen: Observation, because: string, budgetS: number): Step[] {
  const urgent = urgentRemovals(seen);
  const later = unknownsOf(seen).length > 0 ? [] : removals(seen);
  const isLater = ({ path }: Step) => urgent.every((step) => step.path !== path);
  return [...urgent, ...stageSteps(seen, because, budgetS), ...later.filter(isLater)];
}

/** The stop stages for what is alive, most graceful first. Each is taken only while something is left. */
function stageSteps(seen: Observation, because: string, budgetS: number): Step[] {
  const limits = stageLimits(budgetS);
  const agents = hostAgentsOf(seen);
  const drivers = driversOf(seen);
  const how = drivers.some((p) => p.role === "QEMU") ? "QMP system_powerdown, then SIGTERM" : "SIGTERM";
  const stages: readonly (readonly [StopStage, boolean, string, string])[] = [
    ["guest", true, "ask the guest over ssh to power off", because],
    ["agent", agents.length > 0, `SIGTERM to ${names(agents)}`, "Lima's own graceful stop follows"],
    ["driver", drivers.length > 0, `${how} to ${names(drivers)}`, "only where no host agent is left to do it"],
    ["kill", true, `SIGKILL to ${names([...agents, ...drivers])}`, "only what is still alive then"],
  ];
  return stages.flatMap(([kind, isNeeded, what, reason]) =>
    isNeeded ? [{ kind, what: `${what}, until ${Math.round(limits[kind])} s`, because: reason }] : []
  );
}

function hostAgentsOf({ alive }: Pick<Observation, "alive">): VerifiedProcess[] {
  return alive.filter((p) => p.role === "host agent");
}

/** Proven processes that carry the VM; usernet serves other instances too and is never stopped here. */
function driversOf(seen: Observation): VerifiedProcess[] {
  return seen.alive.filter((p) => p.role !== "host agent" && p.role !== "usernet");
}

/** The processes that are the instance's own: a usernet serves others too, and outlives it. */
function ownOf({ alive }: Pick<Observation, "alive">): VerifiedProcess[] {
  return alive.filter((p) => p.role !== "usernet");
}

function aliveWords(processes: readonly VerifiedProcess[]): string {
  return `${names(processes)} ${processes.length > 1 ? "are" : "is"} alive`;
}

// ─────────────────────────────────────────────────────────────────────────── the plan of --stop, the table of --run ──

/**
 * Decides what `--stop` does. What is unknown is left alone; what is proven is stopped all the same. A hung host agent
 * needs no rule: every stage ends in time, and `kill` takes what is left.
 */
export function planStop(seen: Observation, budgetS: number): Plan {
  if (seen.missing !== undefined) return planPre(seen);
  const own = ownOf(seen);
  if (own.length === 0) {
    const unknown = planUnknown(seen);
    if (unknown) return unknown;
    if (seen.held.length > 0) {
      return plan(seen, "unknown", "its disk is in use", { blockers: seen.held, status: EXIT.tryAgain });
    }
    const more = { steps: removals(seen), blockers: undeletableFiles(seen) };
    return plan(seen, "stopped", "no process of it is alive", more);
  }
  const because = aliveWords(own);
  const more = { steps: stopSteps(seen, because, budgetS), blockers: unknownsOf(seen) };
  return plan(seen, hostAgentsOf(seen).length === 0 ? "orphan" : "running", because, more);
}

/**
 * Whether the port in ssh.config is this instance's own now. A stopped instance keeps its last port in the file, and
 * meanwhile it may lead into another guest, with the same key. So: the proven QEMU forwards this very port, or the
 * proven host agent wrote the file, which it does after ha.pid at each start (`pkg/hostagent`).
 */
export function isOwnPort(
  seen: Observation,
  file: { port: number | undefined; mtimeMs: number; haPidMtimeMs: number | undefined },
): boolean {
  if (file.port === undefined) return false;
  const forwards = seen.alive.flatMap((p) => [...p.row.command.matchAll(/hostfwd=tcp:[^,: ]*:(\d+)-/g)]);
  if (forwards.length > 0) return forwards.some((m) => Number(m[1]) === file.port);
  return hostAgentsOf(seen).length > 0 && file.haPidMtimeMs !== undefined && file.mtimeMs >= file.haPidMtimeMs;
}

const HUNG_AGENT = "the hung host agent was killed";

/**
 * PIDs of unknown ownership that a host agent of Lima 2.2 may signal while it stops: it believes the PID
 * files of external drivers. Such a file may not be removed; and the driver of Lima 2.0, which has no arguments, is one
 * that must end.
 */
function mayBeSignalledByLima(seen: Observation): Diagnostic[] {
  const isDoubtful = ({ path, verdict }: StateFile) => verdict.kind === "unknown" && kindOfPidFile(path).isSignalled;
  const because = (why: string) => `Lima's host agent may signal the process that it names, while it stops: ${why}`;
  return seen.stateFiles.filter(isDoubtful).map(({ path, verdict }) => ({ what: path, because: because(verdict.why) }));
}

/** The states of `--run`. One state for all waiting (volume, lock, back-off); the cause is logged. */
type RunState = "preparing" | "supervising" | "stopping" | "leaving";

/** What can happen to it: preparing came to an end in one of three ways, the job ended, a stop was asked or done. */
type RunEvent = "clear" | "healthy" | "refused" | "ended" | "stop" | "stopped";

type RunAction = "start" | "adopt" | "stop" | "leave" | "ignore" | "impossible";

/** The cells of states × events in which something is done. */
const RUN_TABLE: Readonly<Record<RunState, Partial<Record<RunEvent, readonly [RunState, RunAction]>>>> = {
  preparing: {
    clear: ["supervising", "start"],
    healthy: ["supervising", "adopt"],
    refused: ["leaving", "leave"],
    stop: ["stopping", "stop"],
  },
  supervising: { ended: ["leaving", "leave"], stop: ["stopping", "stop"] },
  stopping: { stopped: ["leaving", "leave"] },
  leaving: {},
};

/**
 * What `--run` does at an event, and the state after it. Before the command runs it waits, and leaves only when asked to;
 * once it runs lima-guard never leaves while it lives. During a stop other events are ignored: a look that began before
 * may still bring its answer, and the end of the command is what the stop stages are for.
 */
export function transition(state: RunState, event: RunEvent): readonly [RunState, RunAction] {
  const isOver = state === "stopping" || state === "leaving";
  return RUN_TABLE[state][event] ?? [state, isOver ? "ignore" : "impossible"];
}

/** A run that ended badly within this time of its start counts for the restart back-off; one that lasted so long resets it. */
const SHORT_RUN_S = 60;
const LONG_RUN_S = 600;

/**
 * How long the restart back-off still lasts, in milliseconds. launchd starts a job again every 10 s without end; after the
 * second bad end in a row the next start waits until 5 s after the last end, then 10, 20 … 5 min. It is kept in the
 * journal, so that it survives a restart of lima-guard.
 */
export function restartBackoffMs(lines: readonly JournalLine[], nowMs: number): number {
  let [bad, lastMs] = [0, 0];
  for (const line of lines) {
    if (line.event !== "end" || line.role !== "run") continue;
    const ranS = typeof line["ranS"] === "number" ? line["ranS"] : 0;
    if (line["requested"] === true || ranS >= LONG_RUN_S) bad = 0;
    else if (line["status"] !== 0 && ranS < SHORT_RUN_S) [bad, lastMs] = [bad + 1, Date.parse(line.time)];
  }
  if (bad < 2 || Number.isNaN(lastMs)) return 0;
  const pause = backoffMs(bad - 2);
  // A clock that was stepped back must not make the pause longer than it is.
  return Math.max(0, Math.min(pause, lastMs + pause - nowMs));
}

/** The budget of a stop: what launchd grants, which `--timeout` can only shorten. */
export function budgetOf(grantedS: number | undefined, wantedS: number): number {
  return Math.min(grantedS === undefined || grantedS === 0 ? DEFAULT_BUDGET_S : grantedS, wantedS);
}

// ─────────────────────────────────────────────────────────────────────────────────────────────── verdicts and words ──

/** An outcome as it is printed, in the log, the journal and the JSON document. */
function outcomeWords(outcome: Outcome): string {
  if (outcome.kind === "process changed") return "skipped: the process changed";
  if (outcome.kind === "alive") return `failed: ${outcome.why}`;
  if ("why" in outcome) return `${outcome.kind}: ${outcome.why}`;
  return outcome.note === undefined ? outcome.kind : `${outcome.kind}; ${outcome.note}`;
}

/** The result of a stop in one line. `cut` is what the host agent logged where it could not stop its guest. */
export function describeStop(end: StopEnd, seconds: number, cut?: string, isAgentHung = false): string {
  const took = `in ${seconds.toFixed(1)} s`;
  if (end === "agent" && cut !== undefined) return `stopped by the host agent ${took}, which cut the guest off: ${cut}`;
  if (end === "already stopped") return "already stopped";
  if (end === "gone before the request") return "gone before the request: the VM was no longer there";
  if (end === "killed") return `stopped hard (killed) ${took}`;
  if (end === "unknown") return `stopped ${took}; not known whether gracefully: its host agent did not report its end`;
  if (!GRACEFUL.has(end)) return `unknown: stage ${end}`;
  const hung = isAgentHung ? `; ${HUNG_AGENT}` : "";
  return `stopped gracefully by the ${end === "agent" ? "host agent" : end} ${took}${hung}`;
}

/** A step in one line, with its outcome where it has one. */
export function describeStep(step: Step): string {
  const outcome = step.outcome === undefined ? "" : `: ${outcomeWords(step.outcome)}`;
  return `${step.what}${step.because.length === 0 ? "" : ` (${step.because})`}${outcome}`;
}

function describeDiagnostic(word: string, { what, because, hint }: Diagnostic): string {
  const text = [word, what, because].filter((w) => w !== "").join(": ");
  return hint === undefined ? text : `${text} (hint: ${hint})`;
}

// ── --status
/** Printed where nothing was found: Lima may still refuse, because of its lima.yaml for example. */
export const STARTS = "nothing seen that would keep it";

/**
 * What `limactl start` would say. It believes every living PID in ha.pid and DRIVER.pid, and asks
 * ha.sock (`pkg/store.Inspect`); the words are those of Lima 2.2. It never promises a start.
 */
export function limaWouldSay(seen: Observation, haSock: "answers" | "there" | "absent"): string {
  if (seen.missing !== undefined) return "creates a NEW VM of this name";
  // The driver of another vmType may have a PID file too, and any other program.
  const files = pidFilesOf(seen).filter((c) => kindOfPidFile(c.path).isReadByStart);
  for (const { path, verdict, stamp: { text } } of files) {
    const words = verdict.kind === "not ours" ? numberTrouble(text ?? "") : undefined;
    if (words !== undefined) return `refuses: ${words} (${basename(path)})`;
  }
  const living = files.filter((c) => c.verdict.kind !== "dead" || c.verdict.reason === "zombie");
  const agent = living.some((c) => basename(c.path) === HA_PID);
  const driver = living.find((c) => basename(c.path) !== HA_PID);
  const rebooted = seen.bootMarker ? ` (Lima 2.2.1 and later start where ${BOOT_MARKER} is of another boot)` : "";
  if (agent && haSock === "absent") {
    return `refuses: failed to connect to ha.sock: no such file or directory${rebooted}`;
  }
  if (agent && haSock === "there") return `refuses: failed to get Info from ha.sock${rebooted}`;
  if (agent && !driver) return `refuses: host agent is running but driver is not${rebooted}`;
  if (agent) return "says that it is already running, and exits with 0";
  if (driver) return `refuses: ${basename(driver.path, ".pid")} driver is running but host agent is not${rebooted}`;
  const unnamed = ownOf(seen);
  if (unnamed.length > 0) return `would start a second VM: it does not find ${names(unnamed)}`;
  const others = filesWith(seen, "shared", "not ours");
  if (others.some((c) => kindOfPidFile(c.path).roles.includes("usernet"))) return "refuses: failed to stop usernet";
  const [unsure] = unknownsOf(seen);
  if (unsure) return `cannot be known, because of ${unsure.what}`;
  const [startBlocker] = [
    ...seen.held,
    ...seen.startBlockers,
    ...undeletableFiles(seen),
    ...seen.stateFiles.filter((c) => !["dead", "ours"].includes(c.verdict.kind)).map(unknownFile(seen.instance)),
  ];
  return startBlocker ? `may refuse, because of ${startBlocker.what}` : STARTS;
}

/** What Lima says of a PID file that holds no PID of a process: Go reads 0 and -1, and refuses them in its own words. */
function numberTrouble(text: string): string | undefined {
  const number = text.trim();
  if (!/^[+-]?\d+$/.test(number) || Math.abs(Number(number)) >= 2 ** 63) return "strconv.Atoi: parsing …";
  if (Number(number) === 0) return "os: process not initialized";
  return Number(number) === -1 ? "os: process already released" : undefined;
}

function endWords(line: JournalLine): string {
  const { stage, seconds, signal, status } = line as Record<string, unknown>;
  const total = isSeconds(seconds) ? seconds["total"] ?? 0 : 0;
  if (typeof stage === "string") return describeStop(stage as StopEnd, total, cutIn(line));
  return `ended by itself with ${typeof signal === "string" ? signal : `status ${textOfFact(status)}`}`;
}

/** The verdict on the last stop, from the journal: what was recorded, and what must have happened where nothing was. */
export function lastStop(
  lines: readonly JournalLine[],
  boot: string,
  alive: boolean,
): Pick<Details, "lastStop" | "lastStopKind" | "lastStopAt"> {
  const known = lines.filter((l) => l.event === "start" || l.event === "end");
  // A host agent that was adopted belongs to the run before it, which did not end then.
  const isAdopted = (start: JournalLine, next: JournalLine | undefined) =>
    next?.["adopted"] === true && next.boot === start.boot && start.boot !== "" &&
    lines.slice(lines.indexOf(start), lines.indexOf(next)).some((l) => l["pid"] === next["pid"]);
  const relevant = known.filter((l, i) => l.event === "end" || !isAdopted(l, known[i + 1]));
  // The run that continues now has no stop yet: the one before it counts.
  const last = (alive && relevant.at(-1)?.event === "start" ? relevant.slice(0, -1) : relevant).at(-1);
  const lastStopAt = last?.event === "end" && !Number.isNaN(Date.parse(last.time)) ? last.time : null;
  const verdict = (lastStopKind: LastStopKind, lastStop: string) => ({ lastStop, lastStopKind, lastStopAt });
  if (!last) return verdict("none", "none recorded");
  if (last.event === "end") return verdict(kindOfEnd(last), endWords(last));
  if (boot === "" || last.boot === "") return verdict("unknown", "unknown: whether the host rebooted is not known");
  if (last.boot !== boot) return verdict("cut off", "cut off: no stop was recorded and the host rebooted");
  return verdict("cut off", "cut off: lima-guard was killed before it could record the end");
}

function kindOfEnd(end: JournalLine): LastStopKind {
  const stage = end["stage"];
  if (typeof stage !== "string") return "by itself";
  if (cutIn(end) !== undefined) return "cut by agent";
  if (stage === "killed") return "killed";
  if (stage === "gone before the request") return "by itself";
  // Another version may have other words: they are no proof of a good end.
  return GRACEFUL.has(stage) || stage === "already stopped" ? "graceful" : "unknown";
}

/** Whether the guest lost its power in that stop, or may have. */
function isBadEnd(end: JournalLine): boolean {
  return ["killed", "cut by agent", "unknown"].includes(kindOfEnd(end));
}

/** Whether the holder of the lock is a `--run` whose command was started: the last `start` line is its own. */
function hasStarted(holder: LockRecord | undefined): holder is LockRecord {
  return holder?.role === "run" && ["starting", "supervising", "stopping"].includes(holder.phase);
}

/** The stop that the holder of the lock does now. `stages` are those that what lives needs, in their order. */
export function stopUnderWay(
  holder: LockRecord | undefined,
  lines: readonly JournalLine[],
  stages: readonly string[],
): Stopping | null {
  if (holder === undefined || holder.phase !== "stopping") return null;
  const began = lines.findLastIndex((l) => l.event === "stop");
  const since = lines.slice(began).some((l) => l.event === "end") ? undefined : lines[began];
  const sinceMs = since === undefined ? NaN : Date.parse(since.time);
  const { pid, role } = holder;
  if (since === undefined || Number.isNaN(sinceMs)) return { pid, role, since: null, stage: null, until: null };
  const begun = lines.slice(began).filter((l) => l.event === "stage").map((l) => textOfFact(l["stage"]));
  const done = STOP_STAGES.findLastIndex((stage) => begun.includes(stage));
  const stage = STOP_STAGES.slice(done + 1).find((name) => stages.includes(name)) ?? "clean up";
  const end = new Date(sinceMs + (typeof since["budgetS"] === "number" ? since["budgetS"] : NaN) * 1000);
  const until = Number.isNaN(end.getTime()) ? null : end.toISOString();
  return { pid, role, since: new Date(sinceMs).toISOString(), stage, until };
}

/** A line of the journal for people, in the time of the local clock. */
export function journalWords(line: JournalLine): string {
  // A journal may hold anything: an object need not even have a text.
  const said = (name: string) => textOfFact(line[name]);
  const when = localTime(line.time, "medium");
  const words: Record<string, string> = {
    start: line["adopted"] ? `host agent ${said("pid")} adopted` : `started, PID ${said("pid")}`,
    running: "running",
    signal: `${said("signal")} received`,
    stop: `stop began, time limit ${said("budgetS")} s, alive: ${said("alive")}`,
    stage: `stage ${said("stage")}: ${said("outcome")}`,
    pre: `${said("state")} found, status ${said("status")}`,
    end: endWords(line),
  };
  return `${when}  --${line.role}: ${Object.hasOwn(words, line.event) ? words[line.event] : line.event}`;
}

/**
 * What is wrong with the launchd jobs of an instance. `unread`: what could not be read, another job may be there;
 * `supervised`: a lima-guard runs or stops it, or why that is unknown.
 */
export function judgeJobs(
  { jobs, unread }: { readonly jobs: readonly JobStatus[]; readonly unread: readonly Diagnostic[] },
  instance: Instance,
  { state, supervised }: { readonly state: State; readonly supervised: boolean | { readonly why: string } },
): Findings {
  const each = jobs.map((job) => judgeJob(job, instance, state));
  const blockers = each.flatMap((findings) => findings.blockers);
  const notes = each.flatMap((findings) => findings.notes);
  if (jobs.length === 0 && unread.length === 0) notes.push({ what: instance.name, because: "no launchd job found" });
  if (jobs.length > 1) blockers.unshift(twoJobs(jobs, instance));
  const isGuarded = jobs.some((j) => j.wrapped) && state === "running";
  if (isGuarded && typeof supervised === "object") {
    const what = join(instance.dir, LOCK_FILE);
    const because = `whether lima-guard supervises it is unknown: ${supervised.why}`;
    notes.push({ what, because, hint: lsofCommand(what) });
  } else if (isGuarded && !supervised) {
    const because = "it runs without its job (started by hand): it will be cut off at the next shutdown";
    const job = jobs.find((j) => j.wrapped && !j.noLogin);
    const start = job && startJobCommand(job);
    const hint = [guardCommand(instance, "--stop"), ...start === undefined ? [] : [start]].join(" && ");
    blockers.push({ what: instance.name, because, hint });
  }
  return { blockers, notes: [...unread, ...notes] };
}

/** The instance has several jobs. Lima itself has one at login and one at boot, and a command that knows these two only. */
function twoJobs(jobs: readonly JobStatus[], instance: Instance): Diagnostic {
  const { name } = instance;
  const isDaemon = (job: JobStatus) => job.target.startsWith("system/");
  const isBoth = jobs.some(isDaemon) && !jobs.every(isDaemon);
  const extra = jobs.find((job) => !job.wrapped) ?? jobs.at(-1)!;
  const isLimas = [`io.lima-vm.autostart.${name}`, `io.lima-vm.daemon.${name}`].includes(extra.label);
  return {
    what: name,
    because: isBoth
      ? "it is registered twice, at login and at boot"
      : `it has ${jobs.length} launchd jobs: ${jobs.map(({ label }) => label).join(", ")}`,
    hint: isBoth && isLimas
      ? limactlCommand(instance, "autostart", "disable", name)
      : `${launchctl(extra.target, "bootout", extra.target)}; then move its plist away: ${lookCommand(extra.plist)}`,
  };
}

function judgeJob(job: JobStatus, instance: Instance, state: State): Findings {
  const { label: what, wrapped, exitTimeoutS } = job;
  const wrap = guardCommand(instance, "--install");
  const start = startJobCommand(job);
  const bootout = launchctl(job.target, "bootout", job.target);
  const isShort = wrapped && exitTimeoutS !== 0 && exitTimeoutS < DEFAULT_BUDGET_S;
  const short = `launchd gives it ${exitTimeoutS} s for a stop, of ${DEFAULT_BUDGET_S} s that a guest may need`;
  // What is the case, why it matters, and what to type.
  type Row = readonly [boolean | undefined, string, string | undefined];
  const blockers: readonly Row[] = [
    [isShort && !job.isAskedFor, short, wrap],
    [
      job.runsAsRoot,
      "its plist has no UserName: launchd runs it as root, and limactl refuses to run as root",
      `${bootout}; then name its user as UserName in its plist: ${lookCommand(job.plist)}`,
    ],
    [
      wrapped && job.restartsAfterSuccess,
      "its KeepAlive {SuccessfulExit: true} starts it again after a good stop, and not after a failure",
      `set SuccessfulExit to false in ${quote(job.plist)}`,
    ],
    [job.disabled, "it is disabled and will not start", start],
  ];
  const isOff = !job.disabled && job.loaded === "no" && state !== "running";
  const noLogin = "no user is logged in at the screen, and a login agent runs only then: a headless Mac wants a daemon";
  const notes: readonly Row[] = [
    [!wrapped, "lima-guard does not run it", wrap],
    [isShort && job.isAskedFor, `${short}, as was asked for`, undefined],
    [isOff, "it is not loaded: launchd does not start it", start],
    [job.noLogin, noLogin, undefined],
  ];
  const found = (rows: readonly Row[]) =>
    rows.flatMap(([isSo, because, hint]): Diagnostic[] =>
      isSo ? [hint === undefined ? { what, because } : { what, because, hint }] : []
    );
  return { blockers: found(blockers), notes: found(notes) };
}

/** Whether a state needs a person. */
export function needsPerson(state: State): boolean {
  return !["running", "clear", "stopped", "booting"].includes(state);
}

/** The worst thing that came of some steps, as an exit status. A stage that failed is made good by the next one. */
function statusOfSteps(steps: readonly Step[]): number {
  const isBad = ({ kind, outcome }: Step) =>
    outcome?.kind === "alive" || (kind === "remove" && outcome?.kind === "failed");
  return steps.some(isBad) ? EXIT.failed : EXIT.done;
}

function reportPlan(instance: Instance, p: Plan, steps = p.steps): Report {
  const { blockers, notes } = p;
  // Blockers are printed below the line, each with its reason.
  const summary = blockers.length > 0 ? p.state : `${p.state}: ${p.because}`;
  return report(instance.name, p.state, p.status, summary, { steps: steps.map(bare), blockers, notes });
}

function bare({ kind, what, because, outcome }: Step): Report["steps"][number] {
  return { kind, what, because, outcome: outcome === undefined ? "planned" : outcomeWords(outcome) };
}

/** A recorded time for people: their own, to the minute or second. What is no time is shown as it was written. */
function localTime(recorded: string, timeStyle: "short" | "medium" = "short"): string {
  const time = new Date(recorded);
  return Number.isNaN(time.getTime()) ? recorded : time.toLocaleString("sv-SE", { dateStyle: "short", timeStyle });
}

/** The status for people: a line each, and for what needs a person, or was asked for by name, everything known. */
function formatStatus(reports: readonly (Report & Partial<Details>)[], verbose: boolean): string {
  if (reports.length === 0) return "no instance\n";
  const width = Math.max(4, ...reports.map((r) => r.name.length));
  const rows = reports.map((r) => {
    const [first] = r.jobs ?? [];
    const job = !r.jobs ? "unknown" : !first ? "none" : first.wrapped ? "guarded" : "not guarded";
    return [r.name.padEnd(width), r.state.padEnd(8), job.padEnd(11), r.lastStop ?? ""].join("  ").trimEnd();
  });
  const head = ["NAME".padEnd(width), "STATE".padEnd(8), "JOB".padEnd(11), "LAST STOP"].join("  ");
  const reported = reports.filter((r) => verbose || reports.length === 1 || r.status !== EXIT.done);
  return [head, ...rows, ...reported.flatMap((r) => ["", ...formatDetails(r, verbose)])].join("\n") + "\n";
}

/** All that is known of one instance, line by line, for people. */
export function formatDetails(r: Report & Partial<Details>, verbose = false): string[] {
  const reported: string[] = [r.summary];
  // A reason that stands above already is not printed again.
  const once = (before: string, because: string, after = "") => {
    const isKnown = reported.some((text) => text.includes(because));
    reported.push(because);
    return isKnown ? "" : `${before}${because}${after}`;
  };
  const remark = (word: string) => ({ what, because, hint }: Diagnostic) =>
    `  ${word}: ${what}${once(": ", because)}${hint === undefined ? "" : ` (hint: ${hint})`}`;
  const s = r.stopping;
  const lines = [
    `${r.name}: ${r.summary}`,
    s && `  lima-guard --${s.role}, PID ${s.pid}, is stopping it${stoppingWords(s)}`,
    ...(r.evidence ?? []).map(({ file, holds, because, verdict }) =>
      `  ${basename(file)}${holds ? ` (${holds})` : ""}${once(": ", because) || `: ${verdict}`}`
    ),
    r.limactlStart && `  limactl start: ${r.limactlStart}`,
    ...r.steps.map(({ what, because }) => `  --pre would ${what}${once(" (", because, ")")}`),
    r.supervisor && `  supervised by ${`lima-guard --run ${r.guardVersion ?? ""}`.trim()}, PID ${r.supervisor}`,
    ...(r.jobs ?? []).map((j) => `  job ${j.label}: ${j.wrapped ? "guarded" : "not guarded"}, loaded: ${j.loaded}`),
    r.lastRepair && `  last repair: ${r.lastRepair}`,
    r.brakeSeconds && `  the restart back-off lasts ${r.brakeSeconds} s, after ${r.starts} starts`,
    ...r.blockers.map(remark("look")),
    ...r.notes.map(remark("note")),
    ...verbose ? (r.recent ?? []).map((line) => `  ${line}`) : [],
  ];
  return lines.filter((line) => typeof line === "string");
}

function stoppingWords({ since, stage, until }: Stopping): string {
  const local = (time: string) => new Date(time).toLocaleTimeString("sv-SE");
  if (since === null) return "";
  return ` since ${local(since)}, stage ${stage}${until === null ? "" : `, until ${local(until)} at the latest`}`;
}

/** The JSON document of a run; the field names are stable. */
function toJson(role: string | null, reports: readonly Report[], more: Record<string, unknown> = {}): string {
  const instances = reports.map(({ summary: _, ...fields }) => ({ ...fields, recent: undefined }));
  return `${JSON.stringify({ version: 1, role, ...more, instances }, null, 2)}\n`;
}

/** The results for people: a line each, with what is in the way below it. */
function formatReports(reports: readonly Report[], dryRun: boolean): string {
  const lines = reports.flatMap((r) => [
    `${r.name}: ${r.summary}`,
    ...dryRun ? r.steps.map(({ kind, what, because }) => `  would ${describeStep({ kind, what, because })}`) : [],
    ...r.blockers.map((b) => `  ${describeDiagnostic("blocked", b)}`),
    ...r.notes.map((n) => `  ${describeDiagnostic("note", n)}`),
  ]);
  return lines.length === 0 ? "no instance\n" : `${lines.join("\n")}\n`;
}

// ═══════════════════════════════════════════════════════════════════════════════════ part II: how it looks and acts ══

// ───────────────────────────────────────────────────────────────────────────────────────────────────────── the host ──

/** Result of an effect that can fail: a value, or the kind of error and the system's own words. */
type Result<T> =
  | { readonly ok: T; readonly trouble?: undefined }
  | { readonly ok?: undefined; readonly trouble: ErrorKind; readonly why: string };

/** The kinds of errors that are treated differently. */
type ErrorKind = "absent" | "denied" | "refused" | "read-only" | "unsupported" | "limit" | "full" | "other";

/** A file as lstat(2) or stat(2) shows it. `mode` is the nine permission bits. */
interface FileInfo extends Omit<FileStamp, "text"> {
  readonly kind: "file" | "directory" | "link" | "FIFO" | "socket" | "device";
  /** Where a link points. */
  readonly target?: string;
  readonly uid: number;
  readonly mode: number;
}

/** How a command ended. A command killed by a signal has no exit status: treat as failed. */
interface CommandResult {
  readonly code: number;
  readonly signal: string | undefined;
  readonly stdout: string;
  readonly stderr: string;
}

/** A command to run: argv, what to change in the environment (undefined unsets), what to write to its stdin. */
interface Command {
  readonly argv: readonly [string, ...string[]];
  readonly env?: Readonly<Record<string, string>>;
  readonly unset?: readonly string[];
  /** It is for another user: nothing of our environment, and `/` as its working directory. */
  readonly apart?: true;
  /** Is given what sends it a SIGINT: it is in a session of its own, which no terminal reaches. */
  readonly onStart?: (interrupt: () => void) => void;
  /** The command that `--run` supervises: it has lima-guard's stdout and stderr, and its process group. */
  readonly supervised?: boolean;
}

/** A long-lived child process, signalled by its handle only: a handle cannot be recycled. */
interface Child {
  readonly pid: number;
  readonly ended: Promise<{ code: number; signal: string | undefined }>;
  kill(signal: Signal): void;
  say(text: string): Promise<void>;
  /** Calls back for each line of its stdout, and with the last line of its stderr known so far. */
  onLine(take: (line: string) => void): void;
  lastWords(): string;
}

/** The signals that lima-guard sends or receives. */
type Signal = "SIGTERM" | "SIGKILL" | "SIGINT" | "SIGHUP" | "SIGCONT";

/** A held connection to a unix socket. */
interface Connection {
  write(text: string): Promise<void>;
  /** The next bytes as text; undefined at the end of the connection. */
  read(): Promise<string | undefined>;
  close(): void;
}

/** A file or directory that can be locked with flock(2). */
interface LockFile {
  /** `false`: held by another process. `unsupported`: this file system has no locks. */
  tryLock(): Result<boolean>;
  /** Taken within the time; woken by the release, not by polling. However often it is asked, one request is pending. */
  lockWithin(ms: number): Promise<boolean>;
  read(): string;
  write(text: string): void;
  close(): void;
}

/**
 * Everything that touches the world. Files are looked at synchronously: microseconds each, and a volume that hangs has
 * the VM's disk on it too. Whatever waits is a promise with a limit.
 */
export interface Host {
  readonly os: "darwin" | "linux";
  readonly uid: number;
  /** This process, and its program: the compiled binary, or Deno and the script that it runs. */
  readonly self: { readonly pid: number; readonly program: string; readonly script?: string };
  env(name: string): string | undefined;
  /** Milliseconds since 1970, for comparing with file times only. */
  wallMs(): number;
  /** Milliseconds on a clock that is never stepped; all limits are counted on it. */
  clockMs(): number;
  uptimeMs(): number;
  pause(ms: number): Promise<void>;

  stat(path: string, follow?: "follow links"): Result<FileInfo>;
  list(dir: string): Result<string[]>;
  /** The text of a regular file, or its last `most` bytes. Never call it on what `stat` did not call a file. */
  read(path: string, most: number): Result<string>;
  realPath(path: string): Result<string>;
  /** Why the file could not be changed although its mode permits it (a read-only volume), or undefined. */
  writeTrouble(path: string): string | undefined;
  remove(path: string): Result<void>;
  rename(from: string, to: string): Result<void>;
  /** Appends and waits until it is on the disk. Creates the file with mode 0644. */
  append(path: string, text: string): Result<void>;
  openLock(path: string, create: boolean | "with its folder"): Result<LockFile>;
  /** Copies the last `most` bytes of a file, into a folder that is made where it is missing. */
  copyTail(from: string, to: string, most: number): Result<void>;

  /** kill(pid, 0): gone, there, or there and another user's. */
  alive(pid: number): "no" | "yes" | "another user's";
  /** The caller has proven the process just now. */
  signal(pid: number, signal: Signal): Result<void>;
  /** Runs a command to its end; at the limit it and all its children are killed, and there is no answer. */
  run(command: Command, limitMs: number): Promise<Result<CommandResult>>;
  start(command: Command): Result<Child>;
  connect(socket: string | { port: number }, limitMs: number): Promise<Result<Connection>>;
  onSignal(signal: Signal, take: () => void): void;

  /** How wide the terminal is now that stderr goes to; undefined where that is none. */
  columns(): number | undefined;
  /** Why the text was not written; a reader that went away has what it wanted. */
  stdout(text: string): string | undefined;
  stderr(text: string): void;
}

/** How long an observation may take: a stop has less time than a start. */
const START_TIMEOUTS = {
  // How long a PID file that may be half written is waited for.
  youngMs: YOUNG_FILE_MS,
  psMs: PS_LIMIT_MS,
  lsofMs: LSOF_LIMIT_MS,
  // For how long a silent agent is asked again, and a disk's holder waited for.
  silenceMs: SILENCE_MS,
  holderMs: HOLDER_RETRY_MS,
};
type Timeouts = Readonly<typeof START_TIMEOUTS>;
const STOP_TIMEOUTS: Timeouts = {
  ...START_TIMEOUTS,
  youngMs: YOUNG_FILE_MS / 10,
  lsofMs: PS_LIMIT_MS,
  silenceMs: 0,
  holderMs: 0,
};

/** What every function that acts needs: the host, the options, the log, and what this run has found out. */
interface Context {
  readonly host: Host;
  readonly role: string;
  readonly dryRun: boolean;
  readonly budgetS: number;
  /** `--timeout`, or Infinity. */
  readonly limitS: number;
  /** `--wait`: for how long `--status` looks again. */
  readonly waitS: number | undefined;
  /** The program of `--on-event`. */
  readonly onEvent: string | undefined;
  say(level: "debug" | "info" | "warn" | "error", instance: { readonly name: string }, text: string): void;
  /** A stage of a long wait, shown to the person who waits. */
  stage(instance: Instance, stage: string, deadlineMs: number): void;
  /** How many times a person asked to skip a stage, and the wake-up of that moment. */
  readonly skips: { count: number; readonly wakeUp: WakeUp };
  /** Answers that serve for a while: when they were got, on the host's clock. */
  readonly cache: {
    boot?: { readonly id: string; readonly askedMs: number };
    home?: { readonly path: string; readonly atMs: number; readonly listed: Result<string[]>; foreign?: Findings };
  };
  /** Of work that a stop may overtake: from then on it must not touch anything. */
  readonly abort: AbortSignal | undefined;
}

/** Ends work that a stop has overtaken. Asked right before each effect, and in every wait. */
function throwIfOvertaken({ abort }: Context): void {
  abort?.throwIfAborted();
}

/** Something that several tasks can wait for: `notify` wakes all that wait then. */
class WakeUp {
  #next = Promise.withResolvers<void>();
  /** Resolves at the next `notify`. However often it is asked, one promise is pending. */
  next = () => this.#next.promise;
  notify(): void {
    this.#next.resolve();
    this.#next = Promise.withResolvers<void>();
  }
}

function secondsLeft(host: Host, deadlineMs: number): number {
  return Math.max(0, Math.round((deadlineMs - host.clockMs()) / 1000));
}

// ────────────────────────────────────────────────────────────────────────────────────────── files, lock and journal ──

/** What can be looked at of a path: itself, or the first folder above it that may be entered and is there. */
function nearestVisible(host: Host, path: string): string {
  let at = path;
  while (at !== dirname(at) && host.stat(at).trouble !== undefined) at = dirname(at);
  return at;
}

function sameDirectoryOn(host: Host): SameDirectory {
  return (named, ours) => {
    const [a, b] = [host.stat(named, "follow links"), host.stat(ours, "follow links")];
    if (a.trouble || b.trouble) return "cannot tell";
    return a.ok.dev === b.ok.dev && a.ok.ino === b.ok.ino ? "same" : "different";
  };
}

function stampOf({ dev, ino, size, mtimeMs }: FileInfo, text?: string): FileStamp {
  return { dev, ino, size, mtimeMs, text };
}

/** lstat, and the text where it is a small regular file; nothing else is ever opened: a FIFO would hang us. */
function statWithText(host: Host, path: string): { info: FileInfo; stamp: FileStamp; trouble?: string } | undefined {
  const look = host.stat(path);
  if (look.trouble === "absent") return undefined;
  const nothing = { dev: 0, ino: 0, size: 0, mtimeMs: 0, text: undefined };
  if (look.trouble) return { info: { ...nothing, kind: "file", uid: 0, mode: 0 }, stamp: nothing, trouble: look.why };
  const { size, kind } = look.ok;
  const unread = { info: look.ok, stamp: stampOf(look.ok) };
  if (kind !== "file" || size > PID_FILE_LIMIT_BYTES) return unread;
  const text = host.read(path, PID_FILE_LIMIT_BYTES + 1);
  if (text.trouble === "absent") return undefined;
  return text.trouble ? { ...unread, trouble: text.why } : { info: look.ok, stamp: stampOf(look.ok, text.ok) };
}

/** The last bytes of a file; what is no regular file is never opened. */
function readEnd(host: Host, path: string, most: number, follow?: "follow links"): Result<string> {
  const look = host.stat(path, follow);
  if (look.trouble) return look;
  return look.ok.kind === "file" ? host.read(path, most) : { trouble: "other", why: `${path} is a ${look.ok.kind}` };
}

/** How much of a log or journal is read: its end, some hundred lines. */
const TAIL_BYTES = 65_536;

function tailOf(host: Host, path: string, most = TAIL_BYTES): string {
  return readEnd(host, path, most).ok ?? "";
}

/** How much of a text is read: its end. */
const TEXT_LIMIT_BYTES = 1_048_576;

function readText(host: Host, path: string): Result<string> {
  return readEnd(host, path, TEXT_LIMIT_BYTES, "follow links");
}

function textOf(host: Host, path: string): string {
  return readText(host, path).ok ?? "";
}

/** What is unknown because a file or folder cannot be read. One that is absent, or a link that leads nowhere, says nothing. */
function unreadNotes(host: Host, what: string, tried: Result<unknown>, unknown: string): Diagnostic[] {
  if (tried.trouble === undefined || tried.trouble === "absent") return [];
  return [{ what, because: `${unknown}: ${tried.why}`, hint: lookCommand(nearestVisible(host, what)) }];
}

/** The lock of one instance: one lima-guard at a time works on it. */
type InstanceLock = ReturnType<typeof ownLock>;

const NO_LOCK: InstanceLock = { setPhase: () => {}, release: () => {} };

/** An open lock file. Without a record the directory is locked, or a file that may not be written. */
interface OpenLock {
  readonly file: LockFile;
  readonly hasRecord: boolean;
}

/** What became of an attempt: the lock is this process's (`why`: there are none here), another one's, or cannot be tried. */
type LockAttempt = { lock: InstanceLock; why?: string } | { held: OpenLock } | { why: string };

/** Opens the file that is locked; where it may not be made or written, what can be read: the file, else the directory. */
function openLockFile(host: Host, instance: Instance, create: boolean): Result<OpenLock> {
  const path = join(instance.dir, LOCK_FILE);
  const own = host.openLock(path, create);
  if (!own.trouble) return { ok: { file: own.ok, hasRecord: true } };
  if (own.trouble !== "denied" && own.trouble !== "read-only") return own; // it permits nothing
  const readable = host.openLock(path, false);
  // A file that only its owner may read can be locked all the same.
  const isNone = readable.trouble === "absent" || readable.trouble === "denied" && host.uid === instance.owner;
  const file = isNone ? host.openLock(instance.dir, false) : readable;
  return file.trouble ? file : { ok: { file: file.ok, hasRecord: false } };
}

/** Looks whether another process holds an instance's lock. Makes no file, and keeps no lock. */
function probeLock(host: Host, instance: Instance): LockAttempt {
  const opened = openLockFile(host, instance, false);
  if (opened.trouble === "absent") return { lock: NO_LOCK };
  if (opened.trouble) return { why: opened.why };
  const tried = opened.ok.file.tryLock();
  if (tried.ok === false) return { held: opened.ok };
  opened.ok.file.close();
  if (tried.trouble === undefined) return { lock: NO_LOCK };
  return tried.trouble === "unsupported" ? { lock: NO_LOCK, why: tried.why } : { why: tried.why };
}

/** Tries to take an instance's lock. Where the file system has no locks, that is a warning. */
function acquireLock(ctx: Context, instance: Instance): LockAttempt {
  const opened = openLockFile(ctx.host, instance, true);
  if (opened.trouble) return { why: opened.why };
  const taken = opened.ok.file.tryLock();
  if (taken.ok === false) return { held: opened.ok };
  if (taken.trouble === "unsupported") {
    ctx.say("warn", instance, `continues without a lock: this file system has none (${taken.why})`);
  } else if (taken.trouble) {
    opened.ok.file.close();
    return { why: taken.why };
  }
  return { lock: ownLock(ctx, instance, opened.ok) };
}

/** A lock that this process has now, with its record. */
function ownLock(ctx: Context, instance: Instance, { file, hasRecord }: OpenLock) {
  let start = "";
  // Says in the record what the holder is doing. `started`, once given, stays.
  const setPhase = (phase: string, started = start) => {
    start = started;
    const record: LockRecord = { pid: ctx.host.self.pid, started, dir: instance.dir, role: ctx.role, phase };
    if (hasRecord) file.write(`${JSON.stringify(record)}\n`);
  };
  setPhase("working");
  return { setPhase, release: () => file.close() };
}

/** What the holder of an instance's lock has written into it; a link to the directory is another name of the instance. */
function recordIn(host: Host, file: LockFile, { dir }: Instance): LockRecord | undefined {
  return readLockRecord(file.read(), dir, sameDirectoryOn(host));
}

/** The record of the process that holds the instance's lock now, or why that is not known. */
function holderOf(host: Host, instance: Instance): { record?: LockRecord; why?: string } {
  const tried = probeLock(host, instance);
  if (!("held" in tried)) return tried.why === undefined ? {} : { why: tried.why };
  const record = recordIn(host, tried.held.file, instance);
  tried.held.file.close();
  return record ? { record } : { why: "a process holds its lock, and has left no record" };
}

/** The end of the journal, with that of the one before: a rotation loses nothing. A full one would take 10 MiB of memory. */
function journalOf(host: Host, { dir }: Instance, most?: number): JournalLine[] {
  const young = tailOf(host, join(dir, JOURNAL_FILE), most);
  const old = young.length < TAIL_BYTES ? tailOf(host, join(dir, OLD_JOURNAL_FILE)) : "";
  return readJournal(`${old}\n${young}`, dir, sameDirectoryOn(host));
}

/** Writes one line through to the disk. A journal that cannot be written never stops a start or a stop. */
async function journal(ctx: Context, instance: Instance, event: string, more: Record<string, unknown> = {}) {
  const { host } = ctx;
  const path = join(instance.dir, JOURNAL_FILE);
  const look = host.stat(path);
  if (look.ok && look.ok.kind !== "file") return ctx.say("warn", instance, `no journal: ${path} is a ${look.ok.kind}`);
  const isFull = look.ok !== undefined && look.ok.size >= JOURNAL_LIMIT_BYTES;
  const aside = isFull ? host.rename(path, join(instance.dir, OLD_JOURNAL_FILE)) : undefined;
  if (aside?.trouble) ctx.say("warn", instance, `the journal is full and cannot be set aside: ${aside.why}`);
  const time = new Date(host.wallMs()).toISOString();
  const line = { time, boot: await bootId(ctx), dir: instance.dir, role: ctx.role, event, ...more };
  // A line that a full disk cut short must not spoil the next one.
  const torn = look.ok !== undefined && look.ok.size > 0 && !(host.read(path, 1).ok ?? "\n").endsWith("\n");
  const lines = ctx.onEvent !== undefined && event === "start" ? journalOf(host, instance) : [];
  const before = lines.findLast((l) => l.event === "start" || l.event === "end");
  throwIfOvertaken(ctx);
  const written = host.append(path, `${torn ? "\n" : ""}${JSON.stringify(line)}\n`);
  if (written.trouble) ctx.say("warn", instance, `no journal: ${written.why}`);
  for (const name of eventsOf(line, before)) announce(ctx, instance, name, line);
}

/** What `--on-event` is run at, from a new line of the journal and the last start or end before it. */
export function eventsOf(line: JournalLine, before: JournalLine | undefined): string[] {
  if (line.event === "pre") return line["status"] === EXIT.done ? ["repaired"] : [];
  if (line.event === "running") return ["running"];
  if (line.event === "start") {
    return before?.event === "start" && !line["adopted"] ? ["cut off", "started"] : ["started"];
  }
  if (line.event !== "end") return [];
  if (typeof line["stage"] !== "string") return ["ended"];
  return [isBadEnd(line) ? "killed" : "stopped"];
}

/** How long the program of `--on-event` may run. */
const EVENT_LIMIT_S = 30;

/**
 * Runs $0 with $1 as its stdin for at most $2 seconds, and prints its status. It must be the leader of its process
 * group, which it ends as a whole: a program that hangs, floods or ignores SIGTERM ends too, also after lima-guard.
 */
export const EVENT_SCRIPT = `[ "$(ps -o pgid= -p $$ | tr -d ' ')" = $$ ] || exit 126
{ sleep "$2"; kill -9 -$$; } >/dev/null 2>&1 &
"$0" >/dev/null 2>&1 <<END
$1
END
s=$?
(echo "$s")
kill -9 -$$`;

/** Starts the program of `--on-event` and does not wait for it. */
function announce(ctx: Context, at: Partial<Instance> & { name: string }, event: string, line: object): void {
  const { host, onEvent } = ctx;
  if (onEvent === undefined || ctx.dryRun) return;
  const facts = line as Record<string, unknown>;
  const { total } = (facts["seconds"] ?? {}) as Record<string, unknown>;
  const text = (fact: unknown) => String(fact ?? "");
  const env = {
    LIMA_GUARD_EVENT: event,
    LIMA_GUARD_INSTANCE: at.name,
    LIMA_GUARD_HOME: at.home ?? "",
    LIMA_GUARD_BECAUSE: text(facts["because"] ?? facts["state"]),
    LIMA_GUARD_STATUS: text(facts["status"]),
    LIMA_GUARD_STAGE: text(facts["stage"]),
    LIMA_GUARD_SECONDS: text(total ?? (typeof facts["seconds"] === "number" ? facts["seconds"] : undefined)),
  };
  const argv = ["/bin/sh", "-c", EVENT_SCRIPT, onEvent, JSON.stringify(line), String(EVENT_LIMIT_S)] as const;
  const child = host.start({ argv, env });
  if (child.trouble) return ctx.say("warn", at, `event ${event}: ${onEvent}: ${child.why}`);
  const beganMs = host.clockMs();
  let status: string | undefined;
  child.ok.onLine((printed) => status = printed);
  void child.ok.ended.then(() => {
    const isLate = host.clockMs() - beganMs >= EVENT_LIMIT_S * 1000;
    const none = isLate ? `no end within ${EVENT_LIMIT_S} s` : "it was killed before its end";
    const because = status === undefined ? none : `status ${status}`;
    if (status !== "0") ctx.say("warn", at, `event ${event}: ${onEvent}: ${because}`);
  });
}

/** A question that took all its time is not asked again for so long: each line of a stop's journal would wait for it. */
const BOOT_ID_PAUSE_MS = 60_000;

/** The identity of this boot. Not a date: the clock may be stepped. */
async function bootId({ host, cache }: Context): Promise<string> {
  const known = cache.boot;
  if (known && (known.id !== "" || host.clockMs() - known.askedMs < BOOT_ID_PAUSE_MS)) return known.id;
  const file = "/proc/sys/kernel/random/boot_id";
  const direct = host.os === "linux" ? host.read(file, 64).ok?.trim() : undefined;
  // A compiled program may not read /proc: Deno allows that under --allow-all only.
  const argv = host.os === "linux"
    ? ["/bin/cat", file] as const
    : ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"] as const;
  const answer = direct ? undefined : await host.run({ argv }, PS_LIMIT_MS);
  // Where it cannot be had it is empty: asked again, and compared with nothing.
  const id = direct ?? (answer?.ok?.code === 0 ? answer.ok.stdout.trim() : "");
  if (id !== "" || answer?.trouble === "limit") cache.boot = { id, askedMs: host.clockMs() };
  return id;
}

function journalTrouble(host: Host, { dir }: Instance): string | undefined {
  const probe = readEnd(host, join(dir, JOURNAL_FILE), 1);
  return probe.trouble === undefined || probe.trouble === "absent" ? undefined : probe.why;
}

/** What the journal last knew of it in this boot: started, or Running, and no end; unknown where it cannot tell. */
async function lastKnown(ctx: Context, instance: Instance): Promise<"start" | "running" | "unknown" | undefined> {
  if (journalTrouble(ctx.host, instance) !== undefined) return "unknown";
  const known = ["start", "running", "adopted", "end"];
  const last = journalOf(ctx.host, instance).findLast((line) => known.includes(line.event));
  if (!last || last.event === "end") return undefined;
  const boot = await bootId(ctx);
  if (boot === "" || last.boot === "") return "unknown";
  if (last.boot !== boot) return undefined;
  return last.event === "start" && last["adopted"] !== true ? "start" : "running";
}

/** Takes one removal step: only while the file still looks as it was judged, and never a directory. */
function removeStep(host: Host, step: Step): Step {
  const path = step.path ?? "";
  const now = statWithText(host, path);
  const took = (outcome: Outcome): Step => ({ ...step, outcome });
  if (!now) return took({ kind: "already gone" });
  if (now.info.kind === "directory") return took({ kind: "skipped", why: "it is a directory" });
  const then = step.stamp;
  const isSame = (["dev", "ino", "size", "mtimeMs"] as const).every((fact) => then?.[fact] === now.stamp[fact]) &&
    (then?.text === undefined || then.text === now.stamp.text);
  if (!then || !isSame) return took({ kind: "skipped", why: "the file changed" });
  const removed = host.remove(path);
  if (removed.trouble === "absent") return took({ kind: "already gone" });
  return took(removed.trouble ? { kind: "failed", why: removed.why } : DONE);
}

// ──────────────────────────────────────────────────────────────────────────────────────────────────────── observing ──

// ── PID files
/** A PID file as it was found: its number, or the verdict that needs no process. */
type PidFile =
  & Pick<StateFile, "path" | "scope" | "stamp">
  & ({ readonly pid: number; readonly verdict?: undefined } | { readonly pid?: undefined; readonly verdict: Verdict });

/**
 * Looks at the PID files of an instance and of its networks, and at the processes they name: one ps for all of them,
 * none where no named process lives. A socket that answers without a proven owner, and a PID file that is garbage, lead
 * to one search of all processes. Where that finds no owner, the answer still stands: unknown.
 */
async function observeProcesses(ctx: Context, instance: Instance, timeouts = START_TIMEOUTS, searchAll = false) {
  const { host } = ctx;
  const listed = host.list(instance.dir);
  if (listed.trouble) {
    const hint = lookCommand(nearestVisible(host, instance.dir));
    return { stateFiles: [], alive: [], unknowns: [{ what: instance.dir, because: listed.why, hint }] };
  }
  const pidFiles = await readPidFiles(host, instance, listed.ok, timeouts.youngMs);
  const pids = pidFiles.flatMap(({ pid }) => pid ?? []);
  const judged = await judgePids(host, instance, pids, timeouts.psMs);
  const stateFiles = await Promise.all(pidFiles.map((m) => stateFileOf(host, instance, m, judged)));
  const alive = [...judged.values()].flatMap(({ row, judgement }): VerifiedProcess[] =>
    row && judgement?.kind === "ours" ? [{ role: judgement.role, row, named: true }] : []
  );
  const isGarbage = ({ scope, verdict }: PidFile) => scope === "instance" && verdict?.kind === "not ours";
  const answering = await answeringSockets(host, instance, listed.ok, alive);
  const searched = searchAll || pidFiles.some(isGarbage) || answering.length > 0;
  const found = searched
    ? await scanAllProcesses(host, instance, alive, answering, timeouts.psMs)
    : { alive: [], unknowns: [] };
  const seen = { stateFiles, alive: [...alive, ...found.alive], unknowns: found.unknowns, searched };
  const marker = statWithText(host, join(instance.dir, BOOT_MARKER));
  if (marker?.info.kind !== "file" || marker.trouble !== undefined) return seen;
  const boot = marker.stamp.text === undefined ? "" : await bootId(ctx);
  // Lima ≥ 2.2.1 compares the text with the boot's identity; an empty one counts as another boot. In doubt it is ours.
  return { ...seen, bootMarker: marker.stamp, isOldMarker: boot !== "" && marker.stamp.text?.trim() !== boot };
}

/** Reads every PID file; again if one is so young that Lima may still be writing it. */
async function readPidFiles(host: Host, instance: Instance, entries: readonly string[], youngMs: number) {
  const own = entries.filter((e) => e.endsWith(".pid")).sort().map((e) => join(instance.dir, e));
  const networks = join(instance.home, "_networks");
  const shared = (host.list(networks).ok ?? []).sort().map((n) => join(networks, n, `usernet_${n}.pid`));
  const read = () => [
    ...own.flatMap((p) => readPidFile(host, p, "instance") ?? []),
    ...shared.flatMap((p) => readPidFile(host, p, "shared") ?? []),
  ];
  const pidFiles = read();
  const isCut = ({ path, stamp: { text } }: PidFile) =>
    text === "" || text?.endsWith("\n") === false && !kindOfPidFile(path).hasNoLineEnd;
  const youngest = Math.min(...pidFiles.filter(isCut).map((m) => Math.abs(host.wallMs() - m.stamp.mtimeMs)));
  if (!(youngest < youngMs)) return pidFiles;
  await host.pause(youngMs - youngest);
  return read();
}

function readPidFile(host: Host, path: string, scope: PidFile["scope"]): PidFile | undefined {
  const file = statWithText(host, path);
  if (!file) return undefined;
  const { info, stamp, trouble } = file;
  const verdict = (kind: "not ours" | "unknown", why: string) => ({ path, scope, stamp, verdict: { kind, why } });
  if (info.kind === "directory") return verdict("unknown", "it is a directory, which Lima never makes");
  if (info.kind !== "file") return verdict("not ours", `it is a ${info.kind}, not a PID file`);
  if (trouble !== undefined) return verdict("unknown", `it cannot be read: ${trouble}`);
  if (info.size > PID_FILE_LIMIT_BYTES) return verdict("not ours", `it is not a PID file: ${info.size} bytes`);
  const number = readPid(stamp.text ?? "");
  if ("not" in number) return verdict("not ours", `it is not a PID: ${number.not}`);
  return { path, scope, stamp, pid: number.pid };
}

// ── processes
/** Verdict per PID: its row where it lives, and what it is to the instance. */
type Judgements = Map<number, { row?: ProcessRow; judgement?: Judgement; dead?: { why: string; reason?: "zombie" } }>;

async function judgePids(host: Host, instance: Instance, pids: readonly number[], psMs: number): Promise<Judgements> {
  const judged: Judgements = new Map(pids.map((pid) => [pid, { dead: { why: "no process has this PID" } }]));
  const living = [...judged.keys()].filter((pid) => host.alive(pid) !== "no");
  if (living.length === 0) return judged;
  const table = await ps(host, living, psMs);
  for (const pid of living) {
    const row = table.ok?.rows.find((r) => r.pid === pid);
    if (table.trouble) judged.set(pid, { judgement: cannotTell(table.why) });
    else if (!row) judged.set(pid, withoutRow(host, instance, table.ok, pid));
    else if (row.stat.startsWith("Z")) {
      judged.set(pid, { dead: { why: "it is a zombie: ended, and not waited for", reason: "zombie" } });
    } else if (pid === host.self.pid) judged.set(pid, { row, judgement: notOurs("it is lima-guard itself") });
    else judged.set(pid, { row, judgement: judge(row, instance, sameDirectoryOn(host), isFileOn(host)) });
  }
  return judged;
}

type PsTable = ReturnType<typeof readPs>;

/** Whether a process lives although ps shows no row for it: a row that cannot be read, or ps had none to show. */
function isThereWithoutRow(host: Host, { unreadable }: PsTable, pid: number): boolean {
  return unreadable.length > 0 || host.alive(pid) === "yes";
}

function withoutRow(host: Host, { owner }: Instance, { unreadable }: PsTable, pid: number) {
  const now = host.alive(pid);
  if (now === "no") return { dead: { why: "it ended a moment ago" } };
  // Another user than us is another user than the owner only where we are the owner.
  if (now === "another user's" && unreadable.length === 0 && owner === host.uid) {
    return { judgement: notOurs("it belongs to another user") };
  }
  return { judgement: cannotTell("ps shows no row for it that could be read") };
}

/** Asks ps about some PIDs, or about all processes. None of them alive is an answer too: no rows. */
async function ps(host: Host, which: readonly number[] | "all", limitMs: number): Promise<Result<PsTable>> {
  // procps looks through all processes for -p (3 s for 30 000 of them), and only at those named for -q.
  const select = which === "all" ? ["-A"] : [host.os === "linux" ? "-q" : "-p", which.join(",")];
  // NixOS has no /bin/ps.
  const places = ["/bin/ps", "/usr/bin/ps", "/run/current-system/sw/bin/ps"];
  const program = places.find(isFileOn(host));
  if (program === undefined) return { trouble: "absent", why: `there is no ps: looked for ${places.join(", ")}` };
  const argv = [program, ...select, "-ww", "-o", PS_COLUMNS] as const;
  const answer = await host.run({ argv, ...psEnvironment(host) }, limitMs);
  if (answer.trouble) return { trouble: answer.trouble, why: `ps gave no answer: ${answer.why}` };
  const { code, signal, stdout, stderr } = answer.ok;
  const isNone = code === 1 && stdout === "" && stderr === "" && which !== "all";
  if (signal !== undefined) return { trouble: "other", why: `ps was killed by ${signal}` };
  if (code !== 0 && !isNone) return { trouble: "other", why: `ps failed with status ${code}: ${stderr.trim()}` };
  // Apple's ps ends so where its sysctl fails.
  if (code === 0 && stdout.trim() === "") return { trouble: "other", why: `ps printed nothing: ${stderr.trim()}` };
  return { ok: readPs(stdout) };
}

/**
 * All processes, and what makes it doubtful that these are all: a row that cannot be read, or none of lima-guard itself
 * with its command. What a row proves holds all the same.
 */
async function allProcesses(host: Host, limitMs: number): Promise<{ rows: readonly ProcessRow[]; doubt?: string }> {
  const table = await ps(host, "all", limitMs);
  if (table.trouble) return { rows: [], doubt: table.why };
  const { rows, unreadable } = table.ok;
  if (unreadable.length > 0) return { rows, doubt: "ps printed rows that cannot be read" };
  if (rows.some((row) => row.pid === host.self.pid && row.command !== "")) return { rows };
  return { rows, doubt: "ps did not list lima-guard itself with its command" };
}

/** What ps and lsof need: LC_ALL=C would hide each byte beyond ASCII; zone and language keep start times comparable. */
function psEnvironment(host: Host): Pick<Command, "env" | "unset"> {
  return {
    env: { TZ: "UTC0", LC_TIME: "C", LC_CTYPE: host.os === "darwin" ? "UTF-8" : "C.UTF-8" },
    unset: ["LC_ALL", "LANG", "COLUMNS", "PS_FORMAT", "PS_PERSONALITY", "PS_COLORS"],
  };
}

function isFileOn(host: Host): IsFile {
  return (path) => host.stat(path, "follow links").ok?.kind === "file";
}

/** A state file, and whether the instance's owner could remove it. */
function makeStateFile(
  host: Host,
  { owner }: Instance,
  file: Omit<StateFile, "sockets" | "undeletable" | "remedy"> & Partial<StateFile>,
) {
  const fixed = file.verdict.kind === "ours" ? {} : whyUndeletable(host, owner, file.path);
  return { sockets: [], ...file, ...fixed } satisfies StateFile;
}

async function stateFileOf(host: Host, instance: Instance, pidFile: PidFile, judged: Judgements): Promise<StateFile> {
  const { path, scope, stamp } = pidFile;
  const first = pidFile.verdict ?? verdictOf(basename(path), pidFile.pid, judged);
  // A usernet whose socket answers may live whatever its PID file says. Its other two sockets are for drivers: not asked.
  const socket = scope === "shared" ? path.replace(/usernet_([^/]+)\.pid$/, "$1_ep.sock") : undefined;
  const answer = first.kind !== "ours" && socket !== undefined && await socketAnswer(host, socket);
  const why = answer ? `${first.why}; but ${socket} ${answer.did}` : "";
  const verdict = answer ? { kind: "unknown" as const, why, hint: socketCommand(socket, answer) } : first;
  return makeStateFile(host, instance, { path, scope, stamp, verdict, sockets: socketsOf(host, path) });
}

function verdictOf(file: string, pid: number, judged: Judgements): Verdict {
  const { row, judgement, dead } = judged.get(pid) ?? {};
  if (!judgement) return { ...dead, kind: "dead", why: `PID ${pid} is dead: ${dead?.why}` };
  if (judgement.kind !== "ours") {
    const uid = judgement.kind === "unknown" && row ? { uid: row.uid } : {};
    return { kind: judgement.kind, why: `PID ${pid} is ${judgement.kind}: ${judgement.why}`, ...uid };
  }
  const why = `PID ${pid} is this instance's ${judgement.role}`;
  // A usernet names its own PID file, and so its network.
  const isOwn = judgement.role !== "usernet" || `${row?.command} `.includes(`/${file} `);
  if (isOwn && kindOfPidFile(file).roles.includes(judgement.role)) return { kind: "ours", why, role: judgement.role };
  return { kind: "not ours", why: `${why}, which ${file} never names` };
}

/** The sockets that go with a PID file, as far as they are there; only sockets, whatever else has their name. */
function socketsOf(host: Host, pidFile: string): StampedPath[] {
  const { name, sockets = [] } = kindOfPidFile(pidFile);
  return sockets.flatMap((socket) => {
    const path = join(dirname(pidFile), basename(pidFile).replace(name, socket));
    const file = statWithText(host, path);
    return file?.info.kind === "socket" ? [{ path, stamp: file.stamp }] : [];
  });
}

/** Why a file could not be removed by a user, as far as that can be seen without trying. */
function whyUndeletable(host: Host, owner: number, path: string): Pick<StateFile, "undeletable" | "remedy"> {
  const dir = host.stat(dirname(path), "follow links");
  if (dir.trouble) return { undeletable: dir.why };
  if (owner !== 0 && (dir.ok.uid !== owner || (dir.ok.mode & 0o300) !== 0o300)) {
    const mode = dir.ok.mode.toString(8).padStart(4, "0");
    const undeletable = `its directory belongs to uid ${dir.ok.uid} and has mode ${mode}`;
    return { undeletable, remedy: dir.ok.uid === owner ? "mode" : "owner" };
  }
  const undeletable = host.writeTrouble(path);
  return undeletable === undefined ? {} : { undeletable };
}

/** A socket that took a connection although no proven process owns it, and what it did. */
type Answering = Awaited<ReturnType<typeof answeringSockets>>[number];

/** The sockets that answer without a proven owner. */
async function answeringSockets(
  host: Host,
  instance: Instance,
  entries: readonly string[],
  alive: readonly VerifiedProcess[],
) {
  const drivers = entries.filter((e) => e.endsWith(".drv.sock"));
  const sockets: { file: string; owner: readonly Role[] }[] = [
    { file: HA_SOCK, owner: ["host agent"] },
    // It serves one client at a time, and a host agent must not find it taken: it is asked only where none lives.
    { file: QMP_SOCK, owner: ["QEMU", "host agent"] },
    ...drivers.map((file) => ({ file, owner: ["external driver"] as const })),
  ];
  const unowned = sockets.filter((s) => !isOwned(s, alive));
  const asked = await Promise.all(unowned.map(async ({ file, owner }) => {
    const path = join(instance.dir, file);
    const answer = await socketAnswer(host, path);
    return answer === undefined ? [] : [{ path, owner, answer }];
  }));
  return asked.flat();
}

function isOwned({ owner }: { owner: readonly Role[] }, alive: readonly VerifiedProcess[]): boolean {
  return alive.some((p) => owner.includes(p.role));
}

/** Shows who is at the other end of a socket, or what is in its place: lsof would see nothing there either. */
function socketCommand(path: string, { isSeen }: { isSeen: boolean }): string {
  return isSeen ? lsofCommand(path) : lookCommand(path);
}

/** What a socket did when it was asked, in words, and whether it could be looked at; undefined where nothing listens. */
async function socketAnswer(host: Host, socket: string) {
  // A link to a socket connects like the socket itself.
  const look = host.stat(socket, "follow links");
  const isSeen = look.trouble === undefined || look.trouble === "absent";
  if (!isSeen) return { did: `cannot be looked at (${look.why})`, isSeen };
  if (look.ok?.kind !== "socket") return undefined;
  const connection = await host.connect(socket, ANSWER_LIMIT_MS);
  connection.ok?.close();
  if (connection.trouble === "refused" || connection.trouble === "absent") return undefined;
  const did = connection.trouble === undefined ? "takes connections" : `cannot be asked (${connection.why})`;
  return { did, isSeen };
}

/** Searches all processes for those of the instance that no PID file names, and for the owners of some sockets. */
async function scanAllProcesses(
  host: Host,
  instance: Instance,
  known: readonly VerifiedProcess[],
  answering: readonly Answering[],
  psMs: number,
): Promise<Pick<Observation, "alive" | "unknowns">> {
  const what = `all processes, for those of ${instance.name} that no PID file names`;
  const { rows, doubt } = await allProcesses(host, psMs);
  if (doubt !== undefined) {
    const unknowns = [{ what, because: doubt, hint: psCommand() }];
    return { alive: [], unknowns: [...unknowns, ...answering.map((a) => unownedSocket(a, []))] };
  }
  const alive: VerifiedProcess[] = [];
  const unknowns: Diagnostic[] = [];
  const naming: { pid: number; program: string }[] = [];
  for (const row of rows) {
    if (row.stat.startsWith("Z") || row.pid === host.self.pid || known.some((p) => p.row.pid === row.pid)) continue;
    if (spellings(instance.dir).some((dir) => row.command.includes(`${dir}/`))) {
      naming.push({ pid: row.pid, program: programWords(row.command, isFileOn(host)) });
    }
    const judgement = judge(row, instance, sameDirectoryOn(host), isFileOn(host));
    if (judgement.kind === "not ours" || judgement.role === undefined || judgement.role === "usernet") continue;
    // A renamed host agent needs a second witness.
    const isProven = judgement.kind === "ours" && isPid(row.pid) &&
      (!judgement.renamed || answering.some((a) => a.owner[0] === "host agent"));
    if (isProven) alive.push({ role: judgement.role, row, named: false });
    else if (!isPid(row.pid) || host.alive(row.pid) !== "no") {
      const why = !isPid(row.pid)
        ? `it looks like a ${judgement.role}, and this number never gets a signal`
        : judgement.kind === "ours"
        ? "it may be a host agent under another name"
        : judgement.why;
      unknowns.push({ what: `PID ${row.pid}`, because: why, hint: settleCommand(instance, row) });
    }
  }
  const unowned = answering.filter((a) => !isOwned(a, [...known, ...alive]));
  return { alive, unknowns: [...unknowns, ...unowned.map((a) => unownedSocket(a, naming))] };
}

function unownedSocket({ path, answer }: Answering, naming: readonly { pid: number; program: string }[]): Diagnostic {
  const who = naming.map(({ pid, program }) => `PID ${pid} (${program})`).join(", ");
  const because = `it ${answer.did}, and no process was found that is proven to own it` +
    (who === "" ? "" : `; these name the instance's files: ${who}`);
  const look = naming.length === 0 ? "" : `; ${psCommand(...naming.map((r) => r.pid))}`;
  return { what: path, because, hint: `${socketCommand(path, answer)}${look}` };
}

// ── for a start
/**
 * Observes an instance: its processes, and, where none is alive, its disks and whatever else may keep Lima from
 * starting it. `searchAll`: an earlier look of this run had to search all processes. `forStop`: nothing is asked that only
 * keeps Lima from starting.
 */
async function observe(
  ctx: Context,
  instance: Instance,
  { timeouts = START_TIMEOUTS, searchAll = false, forStop = false } = {},
): Promise<Observation> {
  const { host } = ctx;
  const missing = missingInstance(host, instance.dir);
  const nothing = emptyObservation(instance);
  if (missing?.state === "missing") return { ...nothing, missing: missing.because };
  let processes = await observeProcesses(ctx, instance, timeouts, searchAll);
  // It was started and has not ended: its files may have been removed by hand.
  const isLost = !forStop && !searchAll && ownOf(processes).length === 0 && await lastKnown(ctx, instance);
  if (isLost) processes = await observeProcesses(ctx, instance, timeouts, true);
  const [agent] = hostAgentsOf(processes);
  const home = forStop ? undefined : homeLook(ctx, instance.home);
  const foreign = home ? home.foreign ??= foreignEntries(host, home.path, home.listed) : { blockers: [], notes: [] };
  const seen: Observation = { ...nothing, ...processes, notes: foreign.notes };
  if (agent) {
    const notes = [...seen.notes, ...bootMarkerNotes(seen)];
    return { ...seen, notes, agent: await observeAgent(host, instance, agent, timeouts.silenceMs) };
  }
  if (ownOf(seen).length > 0) return seen;
  const yaml = readLimaYaml(textOf(host, join(instance.dir, LIMA_YAML)));
  const disks = await observeDisks(ctx, instance, yaml, processes.stateFiles, timeouts);
  // Which disks the instance uses, and so whether one is in use, is unknown without a readable lima.yaml.
  const unread = missing ? [{ what: join(instance.dir, LIMA_YAML), because: missing.because, hint: missing.hint }] : [];
  const held = [...unread, ...disks.held];
  const more = [...sshConfigFile(host, instance), ...await colimaDaemonFile(host, instance, timeouts)];
  const whole = { ...seen, stateFiles: [...processes.stateFiles, ...disks.stateFiles, ...more], held };
  if (forStop) return whole;
  const start = await observeStart(host, instance, yaml, processes.stateFiles);
  return {
    ...whole,
    startBlockers: [...foreign.blockers, ...start.blockers, ...disks.blockers],
    notes: [...foreign.notes, ...start.notes],
  };
}

/** Whatever else may keep Lima from starting an instance of which nothing is alive. */
async function observeStart(host: Host, instance: Instance, yaml: LimaYaml, stateFiles: readonly StateFile[]) {
  const networks = await observeNetworks(host, instance, stateFiles);
  return {
    blockers: [
      ...longPath(host, instance),
      ...sshConfigDirectory(host, instance),
      ...await takenPort(host, yaml),
      ...yamlBlockers(host, instance, yaml),
      ...networks.blockers,
    ],
    notes: [
      ...networks.notes,
      ...lostDisk(host, instance),
      ...await socketNotes(host, yaml),
      ...await sshMasterNotes(host, instance),
    ],
  };
}

function bootMarkerNotes({ instance, isOldMarker }: Observation): Diagnostic[] {
  if (!isOldMarker) return [];
  const because =
    "it is of another boot: limactl ≥ 2.2.1 takes the living host agent for stopped, and would start a second";
  const hint = `stop it first: ${guardCommand(instance, "--stop")}`;
  return [{ what: join(instance.dir, BOOT_MARKER), because, hint }];
}

/** What lima.yaml shows that no start survives: it is empty, or names a disk whose volume may not be mounted yet. */
function yamlBlockers(host: Host, instance: Instance, yaml: LimaYaml): Diagnostic[] {
  const path = join(instance.dir, LIMA_YAML);
  if (host.stat(path, "follow links").ok?.size === 0) {
    const because = "it is empty (a full disk, or an edit that was cut off)";
    return [{ what: path, because, hint: `restore it from a backup: ${lookCommand(path)}` }];
  }
  return yaml.disks.flatMap((disk) => {
    const dir = join(instance.home, "_disks", disk);
    const [image, lock] = [join(dir, "datadisk"), join(dir, "in_use_by")];
    const what = [dir, image].find((path) => host.stat(path, "follow links").trouble === "absent");
    if (what !== undefined) {
      const because = `additional disk ${disk} is not there (its volume may not be mounted)`;
      return [{ what, because, hint: listCommand(nearestVisible(host, dirname(what))), waitsFor: "volume" as const }];
    }
    const kind = host.stat(lock).ok?.kind ?? "link";
    if (kind === "link") return [];
    return [{ what: lock, because: `it is a ${kind}, and Lima reads a link there`, hint: moveOut(lock) }];
  });
}

/** An instance that has run and has no disk: Lima would start it with an empty one. */
function lostDisk(host: Host, instance: Instance): Diagnostic[] {
  const isThere = (file: string) => host.stat(join(instance.dir, file)).trouble !== "absent";
  if (!["serial.log", "vz-identifier"].some(isThere) || ["disk", "diffdisk", "basedisk"].some(isThere)) return [];
  const because = "it has run, and its disk is gone: limactl start would begin with an empty disk";
  return [{ what: instance.dir, because, hint: listCommand(instance.dir) }];
}

/** `networks: socket: PATH` that does not answer. */
async function socketNotes(host: Host, yaml: LimaYaml): Promise<Diagnostic[]> {
  const paths = yaml.sockets.filter((path) => path.startsWith("/"));
  const notes = await Promise.all(paths.map(async (what) => {
    const connection = await host.connect(what, ANSWER_LIMIT_MS);
    connection.ok?.close();
    return connection.trouble ? [{ what, because: `this network's socket does not answer: ${connection.why}` }] : [];
  }));
  return notes.flat();
}

/** An ssh master (`ControlPersist`) that outlived its host agent: OpenSSH of the next start uses it, with its old forwards. */
async function sshMasterNotes(host: Host, instance: Instance): Promise<Diagnostic[]> {
  const what = join(instance.dir, "ssh.sock");
  const answer = await socketAnswer(host, what);
  if (answer === undefined) return [];
  const because = `an ssh master of a run that is over ${answer.did}, and may keep forwarded ports`;
  return [{ what, because, hint: answer.isSeen ? sshExitCommand(instance, what) : socketCommand(what, answer) }];
}

/** Why a directory shows no instance, and what that is worth: only an absent lima.yaml is a missing instance. */
function missingInstance(host: Host, dir: string) {
  const path = join(dir, LIMA_YAML);
  const look = host.stat(path, "follow links");
  const hint = "limactl start would silently create a new VM of this name";
  const missing = { state: "missing", status: EXIT.noInstance, hint } as const;
  if (look.trouble === "absent") return { ...missing, because: `no such instance: it has no ${LIMA_YAML}` };
  if (look.ok && look.ok.kind !== "file") {
    return { ...missing, because: `no such instance: ${path} is a ${look.ok.kind}` };
  }
  const failed = look.trouble ? look : host.read(path, 1);
  if (!failed.trouble) return undefined;
  const because = `${LIMA_YAML} cannot be read: ${failed.why}`;
  const ls = lookCommand(nearestVisible(host, path));
  if (failed.trouble !== "denied") return { state: "unknown", status: EXIT.tryAgain, because, hint: ls } as const;
  const settings = "System Settings, Privacy & Security: give lima-guard Full Disk Access";
  const access = host.os === "darwin" ? `; where the mode permits it: ${settings}` : "";
  return { state: "blocked", status: EXIT.denied, because, hint: `${ls}${access}` } as const;
}

/** What the host agent shows of itself; one that is silent beyond the boot window is asked for a whole minute. */
async function observeAgent(host: Host, instance: Instance, agent: VerifiedProcess, silenceMs: number) {
  const begin = host.clockMs();
  const socket = join(instance.dir, HA_SOCK);
  let [answers, silentMs] = [await hasAnswer(host, socket), begin];
  const ageS = await agentAge(host, agent);
  while (!answers && ageS >= BOOT_WINDOW_S && host.clockMs() - begin < silenceMs) {
    if (answers === undefined) silentMs = host.clockMs();
    await host.pause(ANSWER_LIMIT_MS / 2);
    if (host.alive(agent.row.pid) === "no") break;
    answers = await hasAnswer(host, socket);
  }
  const silentS = (host.clockMs() - silentMs) / 1000;
  const log = host.stat(join(instance.dir, HA_STDOUT));
  const haPid = host.stat(join(instance.dir, HA_PID));
  // Lima makes the log a moment before ha.pid. One that was emptied later (to save space) proves nothing.
  const untouched = log.ok && haPid.ok && log.ok.mtimeMs <= haPid.ok.mtimeMs + SILENCE_MS;
  const neverReported = untouched === true && log.ok?.kind === "file" && log.ok.size === 0;
  const wasRunning = hasReportedRunning(host, instance) === true;
  return { answers, ageS, silentS, neverReported, wasRunning } satisfies AgentHealth;
}

/** Whether the agent says anything at all to `GET /v1/info`; an HTTP error is an answer. Undefined: it cannot be asked. */
async function hasAnswer(host: Host, socket: string): Promise<boolean | undefined> {
  const look = host.stat(socket, "follow links");
  const connection = look.ok?.kind === "socket" ? await host.connect(socket, ANSWER_LIMIT_MS) : undefined;
  const trouble = look.trouble ?? connection?.trouble ?? "absent";
  if (!connection?.ok) return ["absent", "refused", "limit", "full"].includes(trouble) ? false : undefined;
  const ask = async () => {
    await connection.ok.write("GET /v1/info HTTP/1.0\r\nHost: lima-hostagent\r\n\r\n");
    return (await connection.ok.read())?.startsWith("HTTP/") === true;
  };
  const answer = await Promise.race([ask(), host.pause(ANSWER_LIMIT_MS).then(() => false)]);
  connection.ok.close();
  return answer;
}

/**
 * Whether the host agent has reported that its guest is up; undefined where its log is not used, after a start at a
 * terminal. Lima deletes the log at each start.
 */
function hasReportedRunning(host: Host, instance: Instance): boolean | undefined {
  const path = join(instance.dir, HA_STDOUT);
  // Of a longer log only the end is read. No boot writes that much.
  if ((host.stat(path).ok?.size ?? 0) > TEXT_LIMIT_BYTES) return true;
  const log = textOf(host, path);
  return readReadiness(log, "").ready ?? (/^[^{]/.test(log) ? undefined : false);
}

/** Seconds that an agent has been able to work: no clock that was stepped, and no sleep, may make it look older. */
async function agentAge(host: Host, agent: VerifiedProcess): Promise<number> {
  // ps ran with TZ=UTC0.
  const started = Date.parse(`${agent.row.started.replaceAll(/ +/g, " ")} UTC`);
  const age = Math.min(host.wallMs() - started, host.uptimeMs()) / 1000;
  if (!(age >= BOOT_WINDOW_S) || host.os !== "darwin") return Number.isFinite(age) ? Math.max(0, age) : 0;
  const answer = await host.run({ argv: ["/usr/sbin/sysctl", "-n", "kern.waketime"] }, PS_LIMIT_MS);
  const woke = Number(/sec = (\d+)/.exec(answer.ok?.stdout ?? "")?.[1] ?? Number.NaN);
  if (!Number.isFinite(woke)) return 0;
  return woke === 0 ? age : Math.max(0, Math.min(age, host.wallMs() / 1000 - woke));
}

/** For how long one look through LIMA_HOME serves all instances of a run: a thousand of them would take a million. */
const HOME_FRESH_MS = 1_000;

/** A LIMA_HOME, listed once for all instances of a run. */
function homeLook({ host, cache }: Context, path: string): NonNullable<Context["cache"]["home"]> {
  const known = cache.home;
  if (known?.path === path && host.clockMs() - known.atMs < HOME_FRESH_MS) return known;
  return cache.home = { path, listed: host.list(path), atMs: host.clockMs() };
}

/** Entries of LIMA_HOME that are no instances, and what they do to `limactl start`: rows 26 and 27. */
function foreignEntries(host: Host, home: string, entries: Result<string[]>): Findings {
  const blockers: Diagnostic[] = [];
  const notes: Diagnostic[] = [];
  if (entries.trouble !== undefined && entries.trouble !== "absent") {
    const because = `limactl start lists it, and it cannot be listed: ${entries.why}`;
    const status = entries.trouble === "denied" ? EXIT.denied : EXIT.tryAgain;
    blockers.push({ what: home, because, hint: lookCommand(home), status });
  }
  for (const entry of (entries.ok ?? []).filter((e) => !/^[._]/.test(e)).sort()) {
    const path = join(home, entry);
    if (host.stat(path).ok?.kind !== "directory") continue;
    if (!NAME_RULE.test(entry) || entry.length > NAME_LIMIT) {
      const because = "its name is no instance name, and `limactl start` refuses to work beside it";
      const hint = entry === "lost+found"
        ? "the top of a volume cannot be LIMA_HOME: move the instances into a folder of it, and name that one"
        : `move it out of ${home}, or let its name begin with a dot`;
      blockers.push({ what: path, because, hint });
    } else if (host.stat(join(path, LIMA_YAML)).trouble === "absent") {
      const because = "it holds no lima.yaml; Lima up to 2.1 refuses to start any instance beside it";
      notes.push({ what: path, because, hint: `move it out of ${home}` });
    }
  }
  return { blockers, notes };
}

function longPath(host: Host, instance: Instance): Diagnostic[] {
  const socket = join(instance.dir, HA_SOCK);
  const [bytes, most] = [new TextEncoder().encode(socket).length, SOCKET_PATH_MAX[host.os] - 1];
  if (bytes <= most) return [];
  const because = `its path has ${bytes} bytes and a socket's may have ${most}, so that no host agent can start`;
  return [{ what: socket, because, hint: "move LIMA_HOME to a shorter path" }];
}

async function takenPort(host: Host, yaml: LimaYaml): Promise<Diagnostic[]> {
  const port = yaml.localPort;
  if (port === undefined) return [];
  const connection = await host.connect({ port }, POLL_MS * 10);
  connection.ok?.close();
  if (connection.trouble) return [];
  const because = "ssh.localPort of lima.yaml, and a process listens there already";
  return [{ what: `port ${port}`, because, hint: listenerCommand(port) }];
}

function sshConfigDirectory(host: Host, instance: Instance): Diagnostic[] {
  const path = join(instance.dir, SSH_CONFIG);
  if (host.stat(path).ok?.kind !== "directory") return [];
  const because = "it is a directory, which Lima can neither read nor replace";
  return [{ what: path, because, hint: `move it out of the folder; ${listCommand(path)}` }];
}

/** The PID file of Colima's own daemon: one that names another process is removed before the start. */
async function colimaDaemonFile(host: Host, instance: Instance, timeouts: Timeouts): Promise<StateFile[]> {
  if (basename(instance.home) !== "_lima" || !/^colima(-|$)/.test(instance.name)) return [];
  // Colima believes its number and sends it SIGTERM at every stop and start (`cmd/daemon`, `pkill -F`).
  const short = instance.name === "colima" ? "default" : instance.name.slice("colima-".length);
  const pidFile = readPidFile(host, join(dirname(instance.home), short, "daemon", "daemon.pid"), "shared");
  if (!pidFile) return [];
  const { path, stamp, scope } = pidFile;
  const verdict = pidFile.verdict ?? await judgeDaemon(host, instance, pidFile.pid, short, timeouts.psMs);
  return verdict ? [makeStateFile(host, instance, { path, stamp, verdict, scope })] : [];
}

/** Undefined where the process is Colima's daemon for this profile. */
async function judgeDaemon(host: Host, instance: Instance, pid: number, short: string, psMs: number) {
  const verdict = (kind: "dead" | "not ours" | "unknown", why: string) => ({ kind, why });
  const dead = verdict("dead", `PID ${pid} is dead: no process has this PID`);
  if (host.alive(pid) === "no") return dead;
  const table = await ps(host, [pid], psMs);
  if (table.trouble) return verdict("unknown", table.why);
  const row = table.ok.rows.find((r) => r.pid === pid);
  if (!row && isThereWithoutRow(host, table.ok, pid)) return verdict("unknown", `ps shows no row for PID ${pid}`);
  if (!row || row.stat.startsWith("Z")) return dead;
  const [program, behind] = inTwo(row.command, ` daemon start ${short}`);
  if ((behind === "" || behind?.startsWith(" ")) && row.uid === instance.owner) {
    if (unwrapped(basename(program)) === "colima") return undefined;
    return verdict("unknown", `PID ${pid} may be Colima's daemon under another name`);
  }
  const words = JSON.stringify(programWords(row.command, isFileOn(host)));
  return verdict("not ours", `PID ${pid} is ${words}, not Colima's daemon`);
}

/** A cut ssh.config alone makes Lima 2.1 and later refuse; it is written again at every start. */
function sshConfigFile(host: Host, instance: Instance): StateFile[] {
  const path = join(instance.dir, SSH_CONFIG);
  const look = host.stat(path);
  if (look.ok?.kind !== "file") return [];
  const text = host.read(path, 65_536);
  if (text.trouble || readSshPort(text.ok) !== undefined) return [];
  const verdict = { kind: "stale" as const, why: "it is cut short: no port in it, and Lima refuses to read it" };
  return [makeStateFile(host, instance, { path, verdict, stamp: stampOf(look.ok), scope: "instance" })];
}

// ── networks
/** A start may fail on it, and nothing is removed because of it. */
const NETWORKS_UNREAD = "whether its networks are in order is unknown: it cannot be read";

/** usernet sockets that answer for no PID file (row 22), and socket_vmnet's PID files (row 23). */
async function observeNetworks(host: Host, instance: Instance, stateFiles: readonly StateFile[]): Promise<Findings> {
  const unnamed: string[] = [];
  const dir = join(instance.home, "_networks");
  const networks = host.list(dir);
  for (const network of (networks.ok ?? []).sort()) {
    const named = stateFiles.some((c) => c.path === join(dir, network, `usernet_${network}.pid`));
    const socket = join(dir, network, `${network}_ep.sock`);
    if (!named && await socketAnswer(host, socket) !== undefined) unnamed.push(socket);
  }
  const [first] = unnamed;
  const because = "a usernet answers that no PID file names; Lima starts another beside it" +
    (unnamed.length > 1 ? ` (${unnamed.length} of them)` : "");
  const notes: Diagnostic[] = first === undefined ? [] : [{ what: first, because, hint: lsofCommand(...unnamed) }];
  const vmnet = await observeSocketVmnet(host, instance);
  return {
    notes: [...notes, ...vmnet.notes],
    blockers: [...unreadNotes(host, dir, networks, NETWORKS_UNREAD), ...vmnet.blockers],
  };
}

async function observeSocketVmnet(host: Host, instance: Instance): Promise<Findings> {
  const config = join(instance.home, "_config", "networks.yaml");
  const text = readText(host, config);
  const dir = readVarRun(text.ok ?? "");
  const listed = host.list(dir);
  const notes = [
    ...unreadNotes(host, config, text, NETWORKS_UNREAD),
    ...unreadNotes(host, dir, listed, NETWORKS_UNREAD),
  ];
  const files = (listed.ok ?? []).filter((e) => e.endsWith("_socket_vmnet.pid")).sort();
  const pidFiles = files.flatMap((f) => readPidFile(host, join(dir, f), "shared") ?? []);
  const named = pidFiles.flatMap(({ path: what, pid }) =>
    pid !== undefined && host.alive(pid) !== "no" ? [{ what, pid }] : []
  );
  if (named.length === 0) return { blockers: [], notes };
  const table = await ps(host, named.map((n) => n.pid), PS_LIMIT_MS);
  const blockers: Diagnostic[] = [];
  for (const { what, pid } of named) {
    const row = table.ok?.rows.find((r) => r.pid === pid);
    if (table.trouble) blockers.push({ what, because: table.why, hint: psCommand(pid) });
    // Its options may be spelt in several ways: a program of that name is one.
    if (!row || /^(\/.*\/)?socket_vmnet( |$)/.test(row.command)) continue;
    const because = `PID ${pid} is ${JSON.stringify(programWords(row.command, isFileOn(host)))}, not socket_vmnet; ` +
      "Lima would take it for the running network, or signal it as root";
    // A script of another name may run it: no start is refused for that.
    if (/socket_vmnet/.test(row.command)) notes.push({ what, because, hint: psCommand(pid) });
    else blockers.push({ what, because, hint: removeCommand(what), status: EXIT.denied });
  }
  return { blockers, notes };
}

// ── disks
/** The lock of an additional disk: a link to the directory of the instance that uses it. */
interface DiskLock extends StampedPath {
  readonly disk: string;
  readonly target: string;
  readonly whose: "own" | "gone" | "another's" | "unknown";
}

/**
 * Disk locks that nothing backs (rows 16 to 18), and, on macOS, the disk of a vz instance whose agent is dead:
 * its VM is a process of its own that no PID file names. lsof reports who has a disk open for writing; it never
 * proves anything. It is asked only where something is of this boot: no VM survives a reboot.
 */
async function observeDisks(
  ctx: Context,
  instance: Instance,
  yaml: LimaYaml,
  stateFiles: readonly StateFile[],
  timeouts: Timeouts,
) {
  const { host } = ctx;
  const used = yaml.disks;
  const { locks: all, unread } = diskLocks(host, instance);
  const locks = all.filter((l) => l.whose === "own" || used.includes(l.disk));
  const blockers = await Promise.all(
    locks.filter((l) => l.whose === "another's").map(async (l) => ({
      what: l.path,
      because: `disk ${l.disk} is in use by ${l.target}`,
      hint: `${await stopOther(host, l.target)}, or take the disk out of lima.yaml`,
    })),
  );
  const isThere = (file: string) => host.stat(join(instance.dir, file)).trouble !== "absent";
  const ownVm = host.os === "darwin" && ["vz.pid", "vz-identifier"].some(isThere) &&
    stateFiles.some((c) => basename(c.path) === HA_PID && isStale(c));
  const voidLocks = locks.filter((l) => l.whose !== "another's");
  if (voidLocks.length === 0 && !ownVm) return { stateFiles: [], blockers, held: unread };
  const recent = await isOfThisBoot(ctx, instance, [...pidFilesOf({ stateFiles }), ...voidLocks]);
  const images = [
    ...voidLocks.filter((l) => recent || l.whose !== "own").map((l) => join(dirname(l.path), "datadisk")),
    ...ownVm && recent ? [join(instance.dir, "disk"), join(instance.dir, "diffdisk")] : [],
  ];
  const held = [...unread, ...await heldImages(host, instance, images, timeouts)];
  return { stateFiles: voidLocks.map((l) => diskStateFile(host, instance, l)), blockers, held };
}

/** Stops the instance of another directory; where there is none, or its user is not known, that is looked at. */
async function stopOther(host: Host, dir: string): Promise<string> {
  const [home, name] = [dirname(dir), basename(dir)];
  const isInstance = nameTrouble(name) === undefined &&
    host.stat(join(dir, LIMA_YAML), "follow links").ok !== undefined;
  const other = isInstance ? await addressed(host, home, name) : undefined;
  return other === undefined ? lookCommand(nearestVisible(host, dir)) : guardCommand(other, "--stop");
}

/** Which of some disk images a process has open for writing, or that this is unknown. */
async function heldImages(host: Host, instance: Instance, paths: readonly string[], { holderMs, lsofMs }: Timeouts) {
  const images = paths.filter((path) => {
    const look = host.stat(path, "follow links");
    return look.trouble === undefined ? ["file", "device"].includes(look.ok.kind) : look.trouble !== "absent";
  });
  const holders = await holdersOf(host, images, holderMs, lsofMs);
  if (!holders.trouble) return await Promise.all(holders.ok.map((holder) => holderNote(host, instance, holder)));
  const because = `whether a process has it open is unknown: ${holders.why}`;
  return [{ what: images.join(" "), because, hint: lsofCommand(...images) }];
}

/** The locks of all disks, and what of them could not be read: it may say that a disk of the instance is in use. */
function diskLocks(host: Host, instance: Instance): { locks: DiskLock[]; unread: Diagnostic[] } {
  const disks = join(instance.home, "_disks");
  const locks: DiskLock[] = [];
  const unread: Diagnostic[] = [];
  const cannotRead = (path: string, tried: Result<unknown>) =>
    unread.push(...unreadNotes(host, path, tried, "whether a disk is in use is unknown: it cannot be read"));
  const entries = host.list(disks);
  cannotRead(disks, entries);
  for (const disk of (entries.ok ?? []).sort()) {
    const path = join(disks, disk, "in_use_by");
    const look = host.stat(path);
    cannotRead(path, look);
    if (look.ok?.target === undefined) continue;
    const whole = `${dirname(path)}/${look.ok.target}`;
    const target = look.ok.target.startsWith("/") ? look.ok.target : host.realPath(whole).ok ?? whole;
    locks.push({ path, disk, stamp: stampOf(look.ok), target, whose: diskLockOwner(host, instance, target) });
  }
  return { locks, unread };
}

function diskLockOwner(host: Host, instance: Instance, target: string): DiskLock["whose"] {
  if (target === instance.dir) return "own";
  const holder = host.stat(target, "follow links");
  if (holder.trouble) return holder.trouble === "absent" ? "gone" : "unknown";
  return sameDirectoryOn(host)(target, instance.dir) === "same" ? "own" : "another's";
}

function diskStateFile(host: Host, instance: Instance, lock: DiskLock): StateFile {
  const { path, stamp, target, whose } = lock;
  const says = `it says ${target}, which`;
  const verdict: Verdict = whose === "unknown"
    ? { kind: "unknown", why: `${says} cannot be looked at`, hint: lookCommand(nearestVisible(host, target)) }
    : { kind: "stale", why: whose === "own" ? "it says this instance, of which nothing is alive" : `${says} is gone` };
  return makeStateFile(host, instance, { path, stamp, verdict, scope: "shared" });
}

async function holderNote(host: Host, instance: Instance, { pid, command, path }: Holder): Promise<Diagnostic> {
  const because = `PID ${pid} (${command}) has it open for writing, and did not close it`;
  const uid = (await ps(host, [pid], PS_LIMIT_MS / 5)).ok?.rows[0]?.uid ?? instance.owner;
  const kill = killCommand(instance, { pid, uid });
  return { what: path, because, hint: `${psCommand(pid)}; if it is a VM that is not needed: ${kill}` };
}

/**
 * Whether a PID file, a disk lock or the last line of the journal is of this boot. In doubt it is: only the journal can say
 * that nothing is. The dates cannot, for the clock may have been stepped since.
 */
async function isOfThisBoot(ctx: Context, instance: Instance, files: readonly StampedPath[]): Promise<boolean> {
  const { host } = ctx;
  const booted = host.wallMs() - host.uptimeMs() - 60_000;
  if (files.some(({ stamp }) => stamp.mtimeMs >= booted)) return true;
  if (journalTrouble(host, instance) !== undefined) return true;
  const last = journalOf(host, instance).at(-1);
  const boot = await bootId(ctx);
  return last === undefined || last.boot === boot || last.boot === "" || boot === "";
}

/** Who has one of the files open for writing; retries until they have closed it or time is up. */
async function holdersOf(host: Host, paths: readonly string[], retryMs: number, limitMs: number) {
  const end = host.clockMs() + retryMs;
  for (;;) {
    const holders = paths.length === 0 ? { ok: [] } : await lsof(host, paths, limitMs);
    if (holders.trouble || holders.ok.length === 0 || host.clockMs() >= end) return holders;
    await host.pause(PS_POLL_MS / 2);
  }
}

async function lsof(host: Host, paths: readonly string[], limitMs: number): Promise<Result<Holder[]>> {
  const program = ["/usr/sbin/lsof", "/usr/bin/lsof"].find(isFileOn(host));
  if (program === undefined) return { trouble: "absent", why: "there is no lsof on this machine" };
  const argv = [program, "-n", "-P", "-w", "-F", "pcanDi", "--", ...paths] as const;
  const answer = await host.run({ argv, ...psEnvironment(host) }, limitMs);
  if (answer.trouble) return { trouble: answer.trouble, why: `lsof gave no answer: ${answer.why}` };
  const { code, signal, stdout, stderr } = answer.ok;
  const isList = stdout.split("\n").every((line) => /^(p\d+|[cfanDi].*|)$/.test(line));
  // Status 1 is "none of them", "not all of them" and "an error"; an error without a list says something.
  const understood = signal === undefined &&
    (code === 0 && stdout !== "" || code === 1 && (readLsof(stdout).length > 0 || stderr.trim() === ""));
  if (!understood) return { trouble: "other", why: `lsof failed (${signal ?? code}): ${stderr.trim()}` };
  if (!isList) return { trouble: "other", why: "lsof printed something that is no list" };
  const holders = readLsof(stdout).filter((h) => h.pid !== host.self.pid);
  return { ok: holders.map((h) => ({ ...h, path: namedProcesses(host, paths, h) })) };
}

/** The path that was asked about: lsof prints another one through a link, and `\\xc3` in the C locale. */
function namedProcesses(host: Host, paths: readonly string[], h: Holder): string {
  const isFile = (path: string) => {
    const info = host.stat(path, "follow links").ok;
    return info !== undefined && info.ino === h.ino && (h.dev === undefined || info.dev === h.dev);
  };
  // It was asked about these files only: one that is found to be none of them counts for all.
  return paths.find(isFile) ?? paths.find((p) => p === h.path) ?? paths.join(" ");
}

// ── finding instances
/** The Lima homes of one run, as they were named: links are resolved again at every look. */
interface Homes {
  /** `--lima-home` or LIMA_HOME named it: no other home is looked at. */
  readonly isExplicit: boolean;
  /** The first is LIMA_HOME, or ~/.lima. */
  readonly paths: readonly string[];
}

/** LIMA_HOME as Lima finds it: the option, the environment, ~/.lima and then the homes of other programs. */
function limaHomes(host: Host, option: string | undefined): Homes | { why: string } {
  const userHome = host.env("HOME");
  const given = option ?? (host.env("LIMA_HOME") || undefined);
  if (given !== undefined) {
    const path = expandHome(given, userHome);
    return { isExplicit: true, paths: [path.startsWith("/") ? path : realHome(host, path)] };
  }
  if (!userHome) return { why: "neither --lima-home nor LIMA_HOME nor HOME is set" };
  return { isExplicit: false, paths: homesByName(host, userHome, host.env) };
}

/** `~/…` as a path, where the home of the user is known. */
export function expandHome(path: string, userHome: string | undefined): string {
  return userHome ? path.replace(/^~(?=\/)/, () => userHome) : path;
}

/** Where Lima, Colima (by its own rule), Rancher Desktop and Finch have their instances. */
function homesByName(host: Host, userHome: string, env: (name: string) => string | undefined): string[] {
  const isThere = (path: string | undefined) => path && host.stat(path, "follow links").ok ? path : undefined;
  const xdg = env("XDG_CONFIG_HOME");
  const colima = isThere(env("COLIMA_HOME")) ?? isThere(join(userHome, ".colima")) ??
    (xdg ? join(xdg, "colima") : join(userHome, ".config/colima"));
  return [
    join(userHome, ".lima"),
    join(colima, "_lima"),
    join(userHome, "Library/Application Support/rancher-desktop/lima"),
    "/Applications/Finch/lima/data",
  ];
}

/** A home with its links resolved; the path itself where it is not there. */
function realHome(host: Host, path: string): string {
  return host.realPath(path).ok ?? path;
}

/** Why a Lima home cannot be looked into; undefined where it can. A link that leads nowhere says where it points. */
function homeTrouble(host: Host, path: string): { because: string; status: number } | undefined {
  const look = host.stat(path, "follow links");
  if (look.ok) return look.ok.kind === "directory" ? undefined : { because: "no directory", status: EXIT.noInstance };
  const status = look.trouble === "denied" ? EXIT.denied : EXIT.tryAgain;
  if (look.trouble !== "absent") return { because: look.why, status };
  const target = host.stat(path).ok?.target;
  const because = target === undefined ? "there is no such directory" : `it is a link to ${target}, which is not there`;
  return { because, status: EXIT.noInstance };
}

/** The home that has an instance of this name: the first, else the single other one; a report where several have. */
async function homeOf(ctx: Context, homes: Homes, name: string): Promise<{ home: string } | { report: Report }> {
  const { host } = ctx;
  const isThere = (home: string) => host.stat(join(home, name, LIMA_YAML), "follow links").trouble !== "absent";
  const first = realHome(host, homes.paths[0] ?? "");
  if (homes.isExplicit || isThere(first)) return { home: first };
  const hits = [...new Set(homes.paths.slice(1).map((path) => realHome(host, path)))].filter(isThere);
  const [hit] = hits;
  if (hit === undefined) return { home: first };
  if (hits.length === 1) {
    ctx.say("info", { name }, `found in ${hit}`);
    return { home: hit };
  }
  const blockers = await Promise.all(hits.map(async (home) => ({
    what: join(home, name),
    because: "several Lima homes have an instance of this name",
    hint: roleCommand(ctx.role, await addressed(host, home, name) ?? { name, home }),
  })));
  return { report: report(name, "blocked", EXIT.usage, "several instances of this name", { blockers }) };
}

/** Where an instance lives; a report where nothing may be done about it. That it is another user's changes with no volume. */
type FoundInstance = { instance: Instance } | { report: Report; isOthers?: true };

async function findInstance(ctx: Context, homes: Homes, name: string): Promise<FoundInstance> {
  const { host } = ctx;
  const at = await homeOf(ctx, homes, name);
  if ("report" in at) return at;
  const { home } = at;
  const dir = join(home, name);
  const refuse = (state: State, status: number, because: string, hint: string, what = dir) => ({
    report: report(name, state, status, state, { blockers: [{ what, because, hint }] }),
  });
  const look = host.stat(dir, "follow links");
  if (look.trouble !== undefined && look.trouble !== "absent") {
    const status = look.trouble === "denied" ? EXIT.denied : EXIT.tryAgain;
    const state = status === EXIT.denied ? "blocked" : "unknown";
    return refuse(state, status, look.why, lookCommand(nearestVisible(host, dir)));
  }
  if (look.trouble || look.ok.kind !== "directory") {
    const living = await livingWithout(ctx, { name, home, dir, owner: host.uid });
    if (living) return living;
    const trouble = homeTrouble(host, homes.paths[0] ?? home);
    const hint = `${listCommand(nearestVisible(host, dirname(home)))}; --lima-home DIR names another LIMA_HOME`;
    if (trouble) return refuse("missing", EXIT.noInstance, `no such instance: ${trouble.because}`, hint, home);
    const because = look.trouble === "absent" ? "no such instance" : "no such instance: no directory";
    const refused = refuse("missing", EXIT.noInstance, because, await nameHint(ctx, home, name));
    return { report: { ...refused.report, notes: lostLocks(host, { name, home, dir, owner: host.uid }) } };
  }
  const entries = homeLook(ctx, home).listed.ok ?? [];
  const onDisk = entries.includes(name) ? undefined : entries.find((e) => e.toLowerCase() === name.toLowerCase());
  if (onDisk !== undefined) {
    const because = `there is no ${name} here, but ${onDisk}`;
    const hint = roleCommand(ctx.role, await addressed(host, home, onDisk) ?? { name: onDisk, home });
    return refuse("missing", EXIT.noInstance, because, hint);
  }
  return await permitted(ctx, { name, home, dir, owner: look.ok.uid }, refuse);
}

/** An instance as the person who reads a message has to address it; undefined where its user is not known here. */
async function addressed(host: Host, home: string, name: string): Promise<Addressee | undefined> {
  const uid = host.stat(join(home, name), "follow links").ok?.uid ?? host.uid;
  if (uid === host.uid) return { name, home };
  const sudoUser = (await userName(host, uid)).ok;
  return sudoUser === undefined ? undefined : { name, home, sudoUser };
}

/** What to type where a home has no instance of this name: the name that was probably meant, and a look at the home. */
async function nameHint({ host, role }: Context, home: string, name: string): Promise<string> {
  const look = `${listCommand(home)}; --lima-home DIR names another LIMA_HOME`;
  const meant = nearest(name, allInstances(host, home).ok ?? []);
  if (meant === undefined) return look;
  const other = await addressed(host, home, meant) ?? { name: meant, home };
  return `did you mean ${meant}? ${roleCommand(role, other)}; ${look}`;
}

/** Disks that say that an instance uses them which is gone. */
function lostLocks(host: Host, gone: Instance): Diagnostic[] {
  return diskLocks(host, gone).locks.filter(({ target }) => target === gone.dir).map(({ path, disk }) => ({
    what: path,
    because: `it says that disk ${disk} is in use by this instance, which is gone`,
    hint: limactlCommand(gone, "disk", "unlock", disk),
  }));
}

/** The last questions of `findInstance`: is there a readable lima.yaml, and is the instance ours to work on? */
async function permitted(
  ctx: Context,
  at: Instance,
  refuse: (state: State, status: number, because: string, hint: string) => FoundInstance,
): Promise<FoundInstance> {
  const { host, role } = ctx;
  const { dir, owner } = at;
  const isOwn = owner === host.uid;
  const missing = missingInstance(host, dir);
  const living = missing?.state === "missing" && (isOwn || role === "status") && await livingWithout(ctx, at);
  if (living) return living;
  if (missing && isOwn && (missing.state === "missing" || role !== "stop")) {
    return refuse(missing.state, missing.status, missing.because, missing.hint);
  }
  if (isOwn) return { instance: at };
  const user = await userName(host, owner);
  const sudoUser = user.ok;
  const instance = { ...at, sudoUser };
  if (role === "status") return { instance };
  if (user.trouble) {
    const because = `it belongs to uid ${owner}, and which user that is could not be found out: ${user.why}`;
    return refuse("unknown", EXIT.tryAgain, because, lookCommand(dir));
  }
  if (sudoUser === undefined) {
    const because = `no user here has uid ${owner}: is it a copied home?`;
    const isHomeToo = host.stat(at.home, "follow links").ok?.uid === owner;
    const me = host.uid === 0 ? undefined : (await userName(host, host.uid)).ok;
    const copied = isHomeToo ? at.home : host.realPath(dir).ok ?? dir;
    return { ...refuse("blocked", EXIT.denied, because, chownCommand(copied, me)), isOthers: true };
  }
  const because = `it belongs to ${sudoUser}, and files of another user in it would lock its own lima-guard out`;
  const hint = guardCommand(instance, `--${role}`) + (role === "run" ? " -- COMMAND" : "");
  return { ...refuse("blocked", EXIT.denied, because, hint), isOthers: true };
}

/** What the user database prints; undefined where it has no such user. Without an answer there may be one. */
async function askUsers(host: Host, ...argv: Command["argv"]): Promise<Result<string | undefined>> {
  const answer = await host.run({ argv }, PS_LIMIT_MS);
  if (answer.trouble) return { trouble: answer.trouble, why: `${argv[0]} gave no answer: ${answer.why}` };
  const { code, signal, stdout } = answer.ok;
  if (signal !== undefined) return { trouble: "other", why: `${argv[0]} was killed by ${signal}` };
  return { ok: (code === 0 ? stdout.trim() : "") || undefined };
}

/** The name of a user; undefined where no user has this number. */
function userName(host: Host, uid: number): Promise<Result<string | undefined>> {
  return askUsers(host, "/usr/bin/id", "-un", String(uid));
}

/** An entry of the user database. */
interface UserEntry {
  readonly name: string;
  readonly home: string;
  readonly uid: number;
  readonly gid: number;
}

/** A user of the user database, by uid or name; our own where none is given. Undefined where there is none. */
async function userEntry(host: Host, who = String(host.uid)): Promise<Result<UserEntry | undefined>> {
  const answer = host.os === "darwin"
    ? await askUsers(host, "/usr/bin/id", "-P", who)
    : await askUsers(host, "/usr/bin/getent", "passwd", who);
  const fields = (answer.ok ?? "").split(":");
  const [name, home, uid, gid] = [fields[0], fields.at(-2), Number(fields[2]), Number(fields[3])];
  const user = name && home?.startsWith("/") ? { name, home, uid, gid } : undefined;
  return answer.trouble ? answer : { ok: user };
}

/** All instances of a LIMA_HOME, by Lima's own rule: real directories with a valid name and a lima.yaml. */
function allInstances(host: Host, home: string): Result<string[]> {
  const entries = host.list(home);
  if (entries.trouble) return entries;
  const isInstance = (name: string) =>
    nameTrouble(name) === undefined && host.stat(join(home, name)).ok?.kind === "directory" &&
    host.stat(join(home, name, LIMA_YAML), "follow links").trouble !== "absent";
  return { ok: entries.ok.filter(isInstance).sort() };
}

/** One instance to serve, and where to look for it. */
interface Requested {
  readonly name: string;
  readonly homes: Homes;
  /** The home it was listed in. */
  readonly home: string | undefined;
}

/** All instances of these homes, and of those that this user's living host agents name: one ps. */
async function everyInstance(ctx: Context, homes: Homes) {
  const { host } = ctx;
  const trouble = homeTrouble(host, homes.paths[0] ?? "");
  if (trouble && (homes.isExplicit || trouble.status !== EXIT.noInstance)) return trouble;
  const { rows, doubt } = homes.isExplicit ? { rows: [] } : await allProcesses(host, PS_LIMIT_MS);
  const living = runningInstances(rows.filter((row) => row.uid === host.uid));
  const all = [...homes.paths, ...living.map((one) => one.home)].map((path) => realHome(host, path));
  // Two spellings of one directory are one home: macOS does not tell upper case from lower.
  const once = all.filter((home, i) => all.findIndex((other) => isSameDirectory(host, home, other)) === i);
  const listed = once.map((home) => ({ home, names: allInstances(host, home) }));
  const wanted = listed.flatMap(({ home, names }): Requested[] =>
    (names.ok ?? []).map((name) => ({ name, home, homes: { isExplicit: true, paths: [home] } }))
  );
  for (const { name, dir } of once.flatMap((home) => linkedInstances(host, home))) {
    ctx.say("info", { name }, `${dir} is a link, which --all and Lima's own list leave out`);
  }
  const unlisted = living.filter(notAmong(host, wanted));
  // After a stop all processes are looked at again.
  const isAtOnce = ctx.role !== "stop";
  // Whether that is all could not be found out.
  const unknown = [
    ...isAtOnce ? await Promise.all(unlisted.map((one) => stillLives(ctx, one))) : [],
    ...listed.flatMap(({ home, names }) =>
      names.trouble === undefined || names.trouble === "absent"
        ? []
        : notListed(names.why, home, lookCommand(nearestVisible(host, home)))
    ),
    ...isAtOnce ? doubtReports(doubt) : [],
  ];
  const isAny = wanted.length + unknown.length + unlisted.length > 0 || doubt !== undefined;
  if (isAny || homes.isExplicit) return { ok: wanted, unknown };
  if (trouble && host.stat(homes.paths[0] ?? "").ok?.kind === "link") return trouble;
  const there = trouble ? trouble.because : "no instance is there";
  const because = `${there}, nor is one in ${homes.paths.slice(1).join(", ")}; and no host agent of this user lives`;
  return { because, status: EXIT.noInstance };
}

/** What lives and is not served: its lima.yaml is gone, or it was started through a link that leads out of the home. */
function notAmong(host: Host, served: readonly Requested[]): (one: RunningInstance) => boolean {
  const dirs = served.map(({ home, name }) => realHome(host, join(home ?? "", name)));
  const known = new Set(dirs);
  return ({ dir }) =>
    !known.has(realHome(host, dir)) && dirs.every((other) => sameDirectoryOn(host)(other, dir) !== "same");
}

/** What of this user lives after `--stop --all` although none of these instances is it. */
function leftOver(ctx: Context, homes: Homes, served: readonly Requested[]): Promise<Report[]> {
  const { host } = ctx;
  const isMeant = ({ home }: RunningInstance) => !homes.isExplicit || isSameDirectory(host, home, homes.paths[0] ?? "");
  const isLeft = notAmong(host, served);
  return livingReports(ctx, (one) => one.uid === host.uid && isMeant(one) && isLeft(one), PS_LIMIT_MS / 5);
}

/** What of a directory without a lima.yaml lives, or that this was not found out; undefined where nothing does. */
async function livingWithout(ctx: Context, { name, dir, owner }: Instance): Promise<FoundInstance | undefined> {
  const isIt = (one: RunningInstance) => one.uid === owner && isSameDirectory(ctx.host, one.dir, dir);
  const [living] = ctx.role === "run" ? [] : await livingReports(ctx, isIt);
  return living && { report: { ...living, name } };
}

/** What is meant of all that lives, each with the next command for it, and whether that is all could not be found out. */
async function livingReports(ctx: Context, isMeant: (one: RunningInstance) => boolean, psMs = PS_LIMIT_MS) {
  const { rows, doubt } = await allProcesses(ctx.host, psMs);
  const living = runningInstances(rows).filter(isMeant);
  return [...await Promise.all(living.map((one) => stillLives(ctx, one))), ...doubtReports(doubt)];
}

/** Links to instance directories: `--all` leaves them out, as Lima does. */
function linkedInstances(host: Host, home: string): { name: string; dir: string }[] {
  const named = (host.list(home).ok ?? []).map((name) => ({ name, dir: join(home, name) }));
  return named.filter(({ name, dir }) =>
    nameTrouble(name) === undefined && host.stat(dir).ok?.kind === "link" &&
    host.stat(join(dir, LIMA_YAML), "follow links").ok !== undefined
  );
}

/** The directory of a living process of Lima's, and whose it is. */
type RunningInstance = ReturnType<typeof runningInstances>[number];

/** The instance directory that a command of Lima's names: a host agent's, or that of a driver, which may be alone. */
function instanceNamed(command: string): { dir: string; state: "running" | "orphan" } | undefined {
  const agent = / hostagent (?:.* )?--pidfile[ =](\/.*?)\/ha\.pid(?= |$)/.exec(command)?.[1];
  if (limaProgram(command) === undefined) {
    const isWhole = agent !== undefined && compareWhole(command, agent, () => "different", () => false) === "same";
    return isWhole ? { dir: agent, state: "running" } : undefined;
  }
  if (agent !== undefined) return { dir: agent, state: "running" };
  const driver = [
    / -pidfile (\/.*?)\/qemu\.pid(?= |$)/,
    /[ ,]path=(\/[^,]*?)\/(?:disk|diffdisk)(?=$|[ ,])/,
    / --inst-dir (\/.*?)(?=$| -)/,
  ];
  const dir = driver.map((shape) => shape.exec(command)?.[1]).find((dir) => dir !== undefined);
  return dir === undefined ? undefined : { dir, state: "orphan" };
}

/** The instances of living host agents, and of drivers without one, by the paths in their commands. */
function runningInstances(rows: readonly ProcessRow[]) {
  const found = rows.filter((row) => !row.stat.startsWith("Z")).flatMap(({ pid, uid, command }) => {
    const named = instanceNamed(command);
    return named ? [{ pid, uid, home: dirname(named.dir), name: basename(named.dir), ...named }] : [];
  });
  const agentsFirst = [...found.filter((o) => o.state === "running"), ...found.filter((o) => o.state === "orphan")];
  return agentsFirst.filter((one, i) => agentsFirst.findIndex((o) => o.uid === one.uid && o.dir === one.dir) === i);
}

/** What lives although no lima-guard serves it. Without its lima.yaml none can: a person has to end the process. */
async function stillLives({ host, role }: Context, { uid, pid, name, home, dir, state }: RunningInstance) {
  const user = (await userName(host, uid)).ok;
  const owner = user ?? `uid ${uid}`;
  const instance = { name, home, dir, owner: uid, sudoUser: uid === host.uid ? undefined : user };
  if (role === "pre" && uid !== host.uid) {
    const because = `it runs and belongs to ${owner}; root does not touch it`;
    const hint = user === undefined ? psCommand(pid) : guardCommand(instance, "--pre");
    const blockers = [{ what: dir, because, hint }];
    return report(name, "blocked", EXIT.denied, "it belongs to another user", { blockers });
  }
  const isGone = missingInstance(host, dir)?.state === "missing";
  const because = `PID ${pid} of ${owner} still lives${isGone ? `, and its ${LIMA_YAML} is gone` : ""}`;
  const canServe = !isGone && (uid === host.uid || user !== undefined);
  const hint = canServe ? guardCommand(instance, `--${role}`) : settleCommand(instance, { pid, uid });
  const summary = `of ${owner}, in ${home}: still lives`;
  return report(name, state, EXIT.failed, summary, { owner, home, blockers: [{ what: dir, because, hint }] });
}

function notListed(because: string, what = "ps", hint = psCommand()): Report {
  return report("*", "unknown", EXIT.tryAgain, "unknown", { blockers: [{ what, because, hint }] });
}

/** Whether that is all could not be found out. */
const doubtReports = (doubt: string | undefined) => doubt === undefined ? [] : [notListed(doubt)];

function isSameDirectory(host: Host, a: string, b: string): boolean {
  return realHome(host, a) === realHome(host, b) || sameDirectoryOn(host)(a, b) === "same";
}

// ────────────────────────────────────────────────────────────────────────────────────────────────────────── launchd ──

const JOBS_UNREAD = "whether it holds a launchd job of this instance is unknown";

/** The launchd jobs of an instance, by reading the plists of both folders: whatever the label, the program counts. */
async function jobsOf(host: Host, instance: Instance) {
  const agents = join(host.env("HOME") ?? "/", "Library/LaunchAgents");
  // sudo of macOS keeps HOME: the folder tells whose jobs they are.
  const uid = host.stat(agents, "follow links").ok?.uid ?? host.uid;
  const folders = [
    { folder: "/Library/LaunchDaemons", domains: ["system"] },
    { folder: agents, domains: [`gui/${uid}`, `user/${uid}`] },
  ];
  const jobs: JobStatus[] = [];
  const unread: Diagnostic[] = [];
  for (const { folder, domains } of folders) {
    const listed = host.list(folder);
    const plists = (listed.ok ?? []).filter((f) => f.endsWith(".plist")).sort().map((file) => join(folder, file));
    unread.push(...unreadNotes(host, folder, listed, JOBS_UNREAD));
    for (const plist of plists) {
      const read = readText(host, plist);
      const text = read.ok ?? "";
      unread.push(...unreadNotes(host, plist, read, JOBS_UNREAD));
      const job = readJobPlist(text);
      const how = howItRuns(job, instance.name);
      if (how === undefined) unread.push(...unsureNotes(plist, text, job, instance));
      else if (await isOfHome(host, job, instance, domains[0] === "system")) {
        jobs.push({ plist, wrapped: how === "guarded", ...await jobStatus(host, plist, job, domains) });
      }
    }
  }
  return { jobs, unread };
}

/**
 * Whether a job that runs an instance of this name runs this one. Lima before 2.3 writes no LIMA_HOME into its plist, but
 * the instance's directory. A job without either has the homes of its user that are found by name. In doubt it is its job.
 */
async function isOfHome(host: Host, job: JobPlist, { name, home }: Instance, isDaemon: boolean): Promise<boolean> {
  const { variable, workingDirectory: dir = "" } = job;
  const owner = isDaemon ? job.userName : undefined;
  const user = owner === undefined ? undefined : (await userEntry(host, owner)).ok;
  const userHome = variable("HOME") ?? (isDaemon ? user?.home : host.env("HOME"));
  const ofDir = basename(dir) === name ? dirname(dir) : undefined;
  const named = job.limaHome ?? ofDir;
  if (userHome === undefined && !named?.startsWith("/")) return true;
  const homes = named === undefined ? homesByName(host, userHome ?? "", variable) : [expandHome(named, userHome)];
  return homes.some((path) => realHome(host, path) === home);
}

const UNSURE_JOB = "whether it is a launchd job of this instance is unknown";

/**
 * A plist that may be a job of the instance: a binary one is not read here, and its words stand in it as they are; in
 * another one some program may start limactl or colima with this name.
 */
function unsureNotes(what: string, text: string, job: JobPlist, { name }: Instance): Diagnostic[] {
  const isBinary = text.startsWith("bplist");
  const [program = "", ...words] = job.command;
  const word = RegExp.escape(name);
  const [command, starts, named] = isBinary
    ? [text, /lima|colima/, word]
    : [words.join(" "), /(^|[\s'"/])(limactl|colima)['"]? .*\bstart\b/s, `(^|[\\s'"])${word}($|[\\s'"])`];
  if (!starts.test(command) || !new RegExp(named).test(command)) return [];
  const how = isBinary ? "it is a binary plist" : `${program} starts its command`;
  return [{ what, because: `${UNSURE_JOB}: ${how}`, hint: plistCommand(what) }];
}

/** A job as launchd has it, else as its plist will bring it. */
async function jobStatus(host: Host, plist: string, job: JobPlist, domains: string[]) {
  const label = job.label ?? basename(plist, ".plist");
  const ask = (...argv: string[]) => host.run({ argv: ["launchctl", ...argv] }, LAUNCHCTL_LIMIT_MS);
  const answers = await Promise.all(domains.map(async (domain) => {
    const [print, off] = await Promise.all([ask("print", `${domain}/${label}`), ask("print-disabled", domain)]);
    return { domain, code: print.ok?.code, printed: readPrint(print.ok?.stdout ?? ""), off: off.ok?.stdout ?? "" };
  }));
  const loaded = answers.find((a) => a.code === 0);
  const known = answers.every((a) => a.code === 0 || a.code === 113);
  const isOff = (line: string) => line.trim().startsWith(`"${label}"`) && /=> (disabled|true)/.test(line);
  const exitTimeoutS = loaded?.printed.exitTimeoutS ?? job.exitTimeoutS;
  // Without a login at the screen there is no such domain. launchctl then says 112, 113 or 125 by version, and 113 also of
  // a job that is not loaded: so the domain is asked for.
  const [domain = ""] = domains;
  const screen = !loaded && domain.startsWith("gui/") ? await ask("print", domain) : undefined;
  return {
    label,
    loaded: loaded ? "yes" as const : known ? "no" as const : "unknown" as const,
    disabled: answers.some((a) => a.off.split("\n").some(isOff)),
    exitTimeoutS,
    ...Number(optionOf(unwaited(job.command), "--timeout")) === exitTimeoutS ? { isAskedFor: true as const } : {},
    restartsAfterSuccess: job.restartsAfterSuccess,
    target: `${loaded?.domain ?? domains[0]}/${label}`,
    ...[112, 113, 125].includes(screen?.ok?.code ?? 0) ? { noLogin: true as const } : {},
    ...job.startsAtLoad ? { startsAtLoad: true as const } : {},
    ...domains[0] === "system" && job.userName === undefined ? { runsAsRoot: true as const } : {},
  };
}

/** The job we run as, and how long it grants a stop: launchctl's word where its PID is ours, else the plist's. */
async function jobOf(host: Host, label: string | undefined) {
  if (label === undefined) return undefined;
  const asked = await Promise.all(
    ["system", `gui/${host.uid}`, `user/${host.uid}`].map(async (domain) => {
      const target = `${domain}/${label}`;
      const answer = await host.run({ argv: ["launchctl", "print", target] }, LAUNCHCTL_LIMIT_MS);
      return { target, printed: readPrint(answer.ok?.code === 0 ? answer.ok.stdout : "") };
    }),
  );
  const own = asked.find((a) => a.printed.pid === host.self.pid);
  if (!own && asked.some((a) => a.printed.pid !== undefined)) return undefined;
  const folders = [join(host.env("HOME") ?? "/", "Library/LaunchAgents"), "/Library/LaunchDaemons"];
  const text = folders.map((f) => textOf(host, join(f, `${label}.plist`))).find((t) => t !== "");
  // `system/LABEL` and the like; undefined where launchctl does not know it.
  return { target: own?.target, timeLimitS: own?.printed.exitTimeoutS ?? readJobPlist(text ?? "").exitTimeoutS };
}

// ─────────────────────────────────────────────────────────────────────────────────────────────────────── signalling ──

// Law 1 is here, and nothing else: no other part of the program sends a signal by number. A `VerifiedProcess` was proven by
// its command and its owner (`judge`). Right before a signal it is read again, and its end is waited for by the same rules.

/**
 * Sends a signal to a process that was proven to be this instance's, after one more reading of ps: start time, command
 * and owner must be those that were proven. Without an answer of ps no process is signalled. Between the reading and
 * the signal lie the end of ps and one call, some milliseconds: too few for a PID to come round.
 */
async function signalVerified(host: Host, proven: ProcessRow, signal: Signal, psMs: number): Promise<Outcome> {
  const { pid } = proven;
  const table = await ps(host, [pid], psMs);
  if (table.trouble) return { kind: "skipped", why: table.why };
  const now = table.ok.rows.find((r) => r.pid === pid);
  if (!now && isThereWithoutRow(host, table.ok, pid)) return { kind: "skipped", why: "ps shows no row for it" };
  if (!now || now.stat.startsWith("Z")) return { kind: "already gone" };
  const isSame = now.started === proven.started && now.command === proven.command && now.uid === proven.uid;
  if (!isSame) return { kind: "process changed" };
  if (!isPid(pid)) return { kind: "failed", why: `${pid} is no PID that may be signalled` };
  const sent = host.signal(pid, signal);
  if (sent.trouble === "absent") return { kind: "already gone" };
  return sent.trouble ? { kind: "failed", why: sent.why } : DONE;
}

/** Those that ps still shows. Without an answer all of them: what was there is there until the system says otherwise. */
async function stillAlive(host: Host, processes: readonly VerifiedProcess[], psMs: number) {
  const table = await ps(host, processes.map((p) => p.row.pid), psMs);
  if (table.trouble) return processes;
  // A clock that was stepped changes a start time too: here the command decides.
  const isAlive = (now: ProcessRow | undefined, { row }: VerifiedProcess) =>
    now === undefined
      ? isThereWithoutRow(host, table.ok, row.pid)
      : !now.stat.startsWith("Z") && now.command === row.command;
  return processes.filter((p) => isAlive(table.ok.rows.find((r) => r.pid === p.row.pid), p));
}

/** How the end of processes is waited for. Times on the host's clock. */
interface WaitOptions {
  readonly deadlineMs: number;
  /** Asked at each turn: whether the waiting is over before its time. It may throw. */
  giveUp(): boolean;
  /** Resolves when something may have ended, at the latest after this time. */
  turn(mostMs: number): Promise<unknown>;
  /** How long ps may take. */
  psMs(): number;
}

/**
 * Waits until some processes are gone; `false` where some are not. The end of a host agent's socket may come before the end
 * of its process (seen with QEMU), so kill(pid, 0) decides; every 2 s ps is asked too, which alone shows a zombie, or a PID
 * that was given to another program.
 */
async function waitForExit(host: Host, processes: readonly VerifiedProcess[], how: WaitOptions): Promise<boolean> {
  let there = processes;
  let nextPsMs = host.clockMs() + PS_POLL_MS / 4;
  for (;;) {
    const isEnough = how.giveUp();
    there = there.filter((p) => host.alive(p.row.pid) === "yes");
    if (there.length > 0 && host.clockMs() >= nextPsMs) {
      there = await stillAlive(host, there, how.psMs());
      nextPsMs = host.clockMs() + PS_POLL_MS;
    }
    const leftMs = how.deadlineMs - host.clockMs();
    if (there.length === 0) return true;
    if (leftMs <= 0 || isEnough) return (await stillAlive(host, there, how.psMs())).length === 0;
    await how.turn(leftMs);
  }
}

// ───────────────────────────────────────────────────────────────────────────────────────────────────────── stopping ──

// ── the session with the guest
/** An ssh session in which a root shell of the guest waits for one word. */
type GuestSession = Exclude<ReturnType<typeof openGuestSession>, string>;

/**
 * What the guest's shell runs: POSIX sh, as root. sudo's own PATH finds what an ordinary user's does not (measured). With
 * the word comes the number of seconds until the power goes: a unit outside the guest's own shutdown (else a detached
 * shell) then makes the file systems read-only and switches off, 8 s before. A guest that shuts down in time never gets
 * there; where nothing powers off it is taken back.
 */
const GUEST_SCRIPT = [
  "echo lima-guard: ready",
  'read -r word left && [ "$word" = poweroff ] || exit 9',
  'case "$left" in "" | *[!0-9]*) exit 9 ;; esac',
  "echo lima-guard: accepted",
  "system=$(uname)",
  "disarm=:",
  'if [ "$left" -gt 8 ] && [ "$system" != Darwin ] && [ "$system" != FreeBSD ]; then',
  '  late="sleep $((left - 8)) && { sync & sleep 1; echo u >/proc/sysrq-trigger; sleep 2; echo o >/proc/sysrq-trigger; }"',
  // The shell counts from the word; the unit, which no shutdown ends, may take seconds to begin in a busy guest.
  '  (trap "" HUP INT TERM; eval "$late") </dev/null >/dev/null 2>&1 &',
  '  disarm="kill -9 $!"',
  "  unit=lima-guard-deadline",
  "  command -v systemd-run >/dev/null 2>&1 &&",
  '    systemd-run -q --collect --unit=$unit -p DefaultDependencies=no sh -c "$late" >/dev/null 2>&1 &&',
  '    disarm="$disarm; systemctl stop $unit"',
  "fi",
  "sync",
  "case $system in Darwin) exec shutdown -h now ;; FreeBSD) exec shutdown -p now ;; esac",
  'for c in "systemctl poweroff" poweroff "shutdown -h now"; do',
  '  command -v "${c%% *}" >/dev/null 2>&1 && $c && exit 0',
  "done",
  // What it says would hide why nothing powers off.
  'eval "$disarm" 2>/dev/null',
  "echo lima-guard: nothing here powers off",
  "exit 1",
].join("\n");

/** The ssh of a session with the guest. No ControlMaster: a mux of a dead run must not be able to block it. */
function sshCommand(instance: Instance): [string, ...string[]] {
  // An ssh-agent that launchd no longer starts would hang it; IdentitiesOnly does not keep ssh from asking.
  const options = ("ControlMaster=no ControlPath=none ConnectTimeout=5 BatchMode=yes LogLevel=ERROR " +
    "ServerAliveInterval=15 ServerAliveCountMax=2 IdentityAgent=none").split(" ");
  const config = join(instance.dir, SSH_CONFIG);
  const remote = `sudo -n sh -c '${GUEST_SCRIPT}'`;
  return ["ssh", "-F", config, "-T", "-a", "-x", ...options.flatMap((o) => ["-o", o]), sshHost(instance.name), remote];
}

/** The text of ssh.config, if it is this instance's. */
function sshConfigOf(host: Host, instance: Instance): string | undefined {
  // `limactl clone` copies it: until the clone's first start it leads into the original's guest (seen with Lima 1.2 to 2.2).
  const text = tailOf(host, join(instance.dir, SSH_CONFIG));
  return text.split(/\r?\n/).includes(`Host ${sshHost(instance.name)}`) ? text : undefined;
}

/** Opens a session, or says why there is none. No harm before anything is proven: the request is sent after the proof. */
function openGuestSession(host: Host, instance: Instance) {
  if (sshConfigOf(host, instance) === undefined) return "there is no ssh.config of this instance";
  const ssh = host.start({ argv: sshCommand(instance) });
  if (ssh.trouble) return `ssh cannot be started: ${ssh.why}`;
  let accepted = false;
  let ended: number | undefined;
  ssh.ok.onLine((line) => accepted ||= /lima-guard: accepted\s*$/.test(line)); // a banner may be before it
  return {
    requestPoweroff: (leftS: number) => void ssh.ok.say(`poweroff ${Math.max(0, Math.floor(leftS))}\n`),
    isAcknowledged: () => accepted,
    // Why the guest will not power off. 255 after the word was accepted is the guest going down; any other end is not.
    refusal: () =>
      ended === undefined || (accepted && (ended === 0 || ended === 255))
        ? undefined
        : ssh.ok.lastWords() || `ssh ended with status ${ended}`,
    ended: ssh.ok.ended.then(({ code }) => ended = code),
    close: () => ssh.ok.kill("SIGKILL"),
  };
}

// ── the stages in order
interface StopOptions {
  readonly budgetS: number;
  /** When the stop was asked for, on the host's clock. */
  readonly beganMs: number;
  /** The reason of the plan, where it is not simply that something is alive. */
  readonly because?: string;
  /** A session that was opened after proof: the request is sent at once, before anything is looked at. */
  readonly ready?: GuestSession | undefined;
  /** lima-guard's own child, which is signalled by its handle. */
  readonly child?: Child | undefined;
  /** Processes that were proven before; no file needs to name them any more. */
  readonly known?: readonly VerifiedProcess[];
}

/** One stop, while it runs. */
class Stop {
  readonly limits: Record<Stage, number>;
  /** Sessions in which the request was sent, to be closed at the end. */
  readonly opened: GuestSession[] = [];
  /** Whether QEMU was signalled, which cuts the guest's power. */
  powerCut = false;
  /** Whether the host agent was killed after the VM was off: no hard stop of the VM. */
  isAgentHung = false;
  /** Notified when a process may have ended. */
  readonly wakeUp = new WakeUp();
  seen: Observation;
  readonly steps: Step[] = [];
  readonly seconds: Partial<Record<Stage, number>> = {};
  /** Its end wakes the waiting when the host agent's socket closes; until then polling is slower. */
  isAgentSocketOpen = false;
  /** How many of the signals that skip a stage have skipped one. A signal between two stages is for the next one. */
  skipped: number;
  /** What the host agent said where it could not stop its guest, and ended. */
  guestCutOff: string | undefined;
  /** A driver that is a process of its own was there: it would have outlived its host agent. */
  driver: Role | undefined;

  constructor(
    readonly ctx: Context,
    readonly instance: Instance,
    readonly how: StopOptions,
    public session: GuestSession | string,
  ) {
    this.limits = stageLimits(how.budgetS);
    this.seen = { ...emptyObservation(instance), alive: how.known ?? [] };
    this.skipped = ctx.skips.count;
  }

  /** Whether a person has skipped the stage. */
  isSkipped = () => this.ctx.skips.count > this.skipped;
  remaining = () => ownOf(this.seen);
  agents = () => hostAgentsOf(this.seen);
  drivers = () => driversOf(this.seen);
  hasQemu = () => this.drivers().some((p) => p.role === "QEMU");
  /** The guest of a living host agent boots until that agent has reported `running`. */
  isBooting = () => this.agents().length > 0 && hasReportedRunning(this.ctx.host, this.instance) === false;
  doneOutcome = (): Outcome => this.isAgentHung ? { kind: "done", note: HUNG_AGENT } : DONE;
  waitOutcome = (): Outcome => ({ kind: this.isSkipped() ? "skipped by a signal" : "no end in time" });
}

type StopResult = ReturnType<typeof stopResult>;

/** Stops whatever of an instance is alive and proven: each stage only while something is left, and with a fresh look. */
async function stopProcesses(ctx: Context, instance: Instance, how: StopOptions): Promise<StopResult> {
  const { budgetS, ready } = how;
  ready?.requestPoweroff(graceLeftS(ctx.host, how));
  // ssh is on its way before ps is asked.
  const session = ready ?? (liveFiles(ctx.host, instance)[0] ? openGuestSession(ctx.host, instance) : undefined);
  const stop = new Stop(ctx, instance, how, session ?? "nothing is alive");
  try {
    const [known] = await Promise.all([lastKnown(ctx, instance), lookAgain(stop)]);
    // As in `observe`: its files may have been removed by hand.
    if (known !== undefined && how.child === undefined && stop.remaining().length === 0) await lookAgain(stop, true);
    // A command that was started need not have made a VM yet.
    const hasFiles = pidFilesOf(stop.seen).length > 0;
    const wasThere = known === "running" || (known === "start" && hasFiles);
    const byWord = ready?.isAcknowledged() === true;
    const gone = byWord ? "guest" : wasThere ? "gone before the request" : "already stopped";
    if (stop.remaining().length === 0) return stopResult(stop, gone);
    // A file that is not there says nothing: it may have been removed.
    const vmGone = known === "running" && hasFiles && !hasDriverFile(stop.seen, "ours") &&
      stop.drivers().length === 0 && await isLeaving(stop) && ready?.isAcknowledged() !== true;
    // A process lives that no PID file names.
    if (session === undefined) stop.session = openGuestSession(ctx.host, instance);
    throwIfOvertaken(ctx);
    stop.steps.push(...removeAll(ctx, instance, urgentRemovals(stop.seen)));
    await journal(ctx, instance, "stop", { budgetS, limits: stop.limits, alive: names(stop.remaining()) });
    void watchAgentSocket(stop).catch(() => {}); // only a wake-up less: everything is polled then
    let last: StopStage | undefined;
    for (const stage of STOP_STAGES) if (last === undefined && await runStage(stop, stage)) last = stage;
    if (vmGone && last) return stopResult(stop, "gone before the request");
    return stopResult(stop, last === undefined || last === "kill" || stop.powerCut ? "killed" : last);
  } finally {
    if (typeof stop.session !== "string") stop.session.close();
    for (const opened of stop.opened) opened.close();
    ctx.stage(instance, "", 0);
  }
}

/** How long a host agent may need to notice that its VM has ended. */
const NOTICES_MS = 500;

/** Whether the host agent has begun to shut down, as it does by itself once its VM has ended. */
async function isLeaving({ ctx: { host }, instance }: Stop): Promise<boolean> {
  const log = join(instance.dir, "ha.stderr.log");
  const isSaid = (line?: Record<string, unknown>) => String(line?.["msg"]).startsWith("Shutting down the host agent");
  for (const endMs = host.clockMs() + NOTICES_MS; host.clockMs() < endMs; await host.pause(POLL_MS)) {
    if (jsonLines(tailOf(host, log)).some(isSaid)) return true;
  }
  return false;
}

function graceLeftS(host: Host, { beganMs, budgetS }: StopOptions): number {
  return stageLimits(budgetS).agent - secondsSince(host, beganMs);
}

function stopResult(stop: Stop, reached: StopEnd) {
  const { steps, seen, isAgentHung, guestCutOff } = stop;
  // On vz the host agent is the VM: it may have been killed, or have crashed, while its guest was still shutting down.
  const isKnown = !GRACEFUL.has(reached) || stop.driver !== undefined || guestCutOff !== undefined ||
    hasExited(stop.ctx.host, stop.instance);
  const end = isKnown ? reached : "unknown";
  const seconds: Record<string, number> = { ...stop.seconds, total: secondsSince(stop.ctx.host, stop.how.beganMs) };
  // Where all processes had to be searched the clean-up does it too.
  const searched = seen.searched === true;
  const [remaining, blockers] = [stop.remaining(), unknownsOf(seen)];
  return { end, guestCutOff, isAgentHung, seconds, steps, remaining, blockers, searched };
}

/** Whether the host agent came to its own end. */
function hasExited(host: Host, { dir }: Instance): boolean {
  return exitEvent(tailOf(host, join(dir, HA_STDOUT))) !== undefined;
}

/** Seconds, to the millisecond, since a moment of the host's clock. */
function secondsSince(host: Host, sinceMs: number): number {
  return Math.round(host.clockMs() - sinceMs) / 1000;
}

/** The living PID that a file names, without proof of what it is. */
function pidIn(host: Host, path: string): number | undefined {
  const number = readPid(statWithText(host, path)?.stamp.text ?? "");
  return "pid" in number && host.alive(number.pid) !== "no" ? number.pid : undefined;
}

/** Cheap, and no proof: the PID files that name a living process. */
function liveFiles(host: Host, { dir }: Instance): string[] {
  const files = (host.list(dir).ok ?? []).filter((e) => e.endsWith(".pid"));
  return files.filter((f) => pidIn(host, join(dir, f)) !== undefined);
}

/** In a stop nothing may take longer than a share of the time that is left. */
function timeoutsOf(stop: Stop): Timeouts {
  const leftMs = Math.max(0, stop.how.beganMs + stop.limits["clean up"] * 1000 - stop.ctx.host.clockMs());
  return { ...STOP_TIMEOUTS, psMs: Math.min(PS_LIMIT_MS, leftMs / 4), lsofMs: Math.min(LSOF_LIMIT_MS, leftMs / 2) };
}

/** What was proven before, and no file names now or is unknown now, is there until the system says that it is gone. */
async function lookAgain(stop: Stop, isLost = false): Promise<void> {
  const before = stop.remaining();
  // What was unknown is searched for: a host agent that ends removes ha.pid, whatever it named.
  const searchAll = isLost || stop.seen.searched || unknownsOf(stop.seen).length > 0;
  const now = await observeProcesses(stop.ctx, stop.instance, timeoutsOf(stop), searchAll);
  const unseen = before.filter((p) => !now.alive.some((n) => n.row.pid === p.row.pid));
  const living = unseen.filter((p) => stop.ctx.host.alive(p.row.pid) === "yes");
  const kept = living.length === 0 ? [] : await stillAlive(stop.ctx.host, living, timeoutsOf(stop).psMs);
  stop.seen = { ...stop.seen, ...now, alive: [...now.alive, ...kept] };
  stop.driver ??= stop.drivers()[0]?.role;
}

/** Takes one stage, and returns whether nothing is left after it. */
async function runStage(stop: Stop, stage: StopStage): Promise<boolean> {
  const { ctx, instance } = stop;
  const begin = ctx.host.clockMs();
  // A guest that acknowledged may have used all of grace: Lima gets its signal and a third of the kill's time all the same.
  const momentMs = stage === "kill" ? 0 : (stop.limits.kill - stop.limits.agent) * 1000 / 3;
  const deadlineMs = Math.max(stop.how.beganMs + stop.limits[stage] * 1000, begin + momentMs);
  const because = stop.how.because ?? aliveWords(stop.remaining());
  const step = stageSteps(stop.seen, because, stop.how.budgetS).find((s) => s.kind === stage);
  if (!step) return false;
  ctx.stage(instance, stage, deadlineMs);
  throwIfOvertaken(ctx);
  const outcome = await STAGES[stage](stop, deadlineMs);
  throwIfOvertaken(ctx);
  stop.skipped = ctx.skips.count;
  await lookAgain(stop);
  const seconds = secondsSince(ctx.host, begin);
  stop.seconds[stage] = seconds;
  stop.steps.push({ ...step, outcome });
  ctx.say(stage === "kill" || stop.powerCut ? "warn" : "info", instance, describeStep({ ...step, outcome }));
  await journal(ctx, instance, "stage", { stage, seconds, until: stop.limits[stage], outcome: outcomeWords(outcome) });
  return stop.remaining().length === 0;
}

// ── one stage
/** Each stage acts, waits at most until the given moment or the skip, and says what came of it. */
const STAGES: Record<StopStage, (stop: Stop, deadlineMs: number) => Promise<Outcome>> = {
  guest: askGuest,
  agent: async (c, deadlineMs) => {
    for (const risk of mayBeSignalledByLima(c.seen)) c.ctx.say("warn", c.instance, describeDiagnostic("note", risk));
    const isBooting = c.isBooting();
    const sent = await signalAll(c, c.agents, "SIGTERM", deadlineMs);
    if (isBooting) await askMeanwhile(c, deadlineMs);
    if (!await waitDown(c, deadlineMs)) return sent ?? c.waitOutcome();
    const log = (file: string) => tailOf(c.ctx.host, join(c.instance.dir, file));
    c.guestCutOff = readCut(log("ha.stderr.log"), log(HA_STDOUT), c.driver);
    return c.guestCutOff === undefined
      ? c.doneOutcome()
      : { kind: "done", note: `but the guest was cut off: ${c.guestCutOff}` };
  },
  driver: async (c, deadlineMs) => {
    if (c.agents().length > 0) return { kind: "skipped", why: "a host agent is still alive" };
    if (c.hasQemu() && await goneByButton(c, buttonEndMs(c.ctx.host.clockMs(), deadlineMs))) return DONE;
    const sent = await signalAll(c, c.drivers, "SIGTERM", deadlineMs);
    const gone = await waitGone(c, c.drivers(), deadlineMs);
    if (c.powerCut && gone) return { kind: "done", note: "SIGTERM to QEMU cut the guest's power" };
    return gone ? DONE : sent ?? c.waitOutcome();
  },
  kill: async (c, deadlineMs) => {
    const sent = await signalAll(c, c.remaining, "SIGKILL", deadlineMs);
    const gone = await waitGone(c, c.remaining(), deadlineMs, () => false);
    if (!gone) return sent ?? { kind: "failed", why: "still alive after SIGKILL" };
    return await diskReleased(c, deadlineMs) ? DONE : { kind: "done", note: "but a process still has the disk open" };
  },
};

/** What a QEMU needs at most to write out its image and end after SIGTERM; 0.7 s on a busy machine. */
const QEMU_END_MS = 3_000;

/** Until when a guest without a host agent has time: the rest is for a QEMU that must at least write out its image. */
export function buttonEndMs(nowMs: number, deadlineMs: number): number {
  return deadlineMs - Math.min((deadlineMs - nowMs) / 5, QEMU_END_MS);
}

/** Presses the power button again and again until the guest is down, or the time is over, or there is no button at all. */
async function goneByButton(stop: Stop, deadlineMs: number): Promise<boolean> {
  const { host } = stop.ctx;
  while (host.clockMs() < deadlineMs && !stop.isSkipped()) {
    const hasButton = await powerdown(stop, deadlineMs - host.clockMs());
    if (await waitGone(stop, stop.drivers(), Math.min(deadlineMs, host.clockMs() + PRESS_AGAIN_MS))) return true;
    if (!hasButton) return false;
  }
  return false;
}

/** How long a ready session may be silent before a new one is opened beside it. */
const SILENT_MS = 2_000;

/** How long a running guest has to acknowledge in a session that was opened only now. */
const ACKNOWLEDGE_MS = 10_000;

/** How often a booting guest is asked again. */
const ASK_AGAIN_MS = 1_000;

/** How often the power button is pressed again: a booting guest does not hear the first press. */
const PRESS_AGAIN_MS = 5_000;

/** What was tried so far to ask the guest. */
class Asking {
  /** The sessions in which the request was sent. */
  readonly sessions: GuestSession[] = [];

  /** When a session was opened last, and why there is none, where there is none. */
  constructor(public openedMs: number, public none: string | undefined) {}

  hasAcknowledged = () => this.sessions.some((s) => s.isAcknowledged() && s.refusal() === undefined);
  /** Why the guest will not power off: each session was refused, or there is none. */
  refusal = () =>
    this.sessions.every((s) => s.refusal() !== undefined) ? this.none ?? this.sessions.at(-1)?.refusal() : undefined;
}

/**
 * Asks the guest to power off. Until a guest has acknowledged, the stage is short, so that Lima's own stop has its
 * time; one that has acknowledged has all of grace. A running guest that refuses ends the stage at once. For a booting
 * one no refusal is final.
 */
async function askGuest(stop: Stop, deadlineMs: number): Promise<Outcome> {
  const { host } = stop.ctx;
  const asking = new Asking(stop.how.beganMs, undefined);
  let [refused, pressedMs]: [string | undefined, number] = [undefined, -Infinity];
  requestIn(stop, asking, stop.session);
  for (;;) {
    const isBooting = stop.isBooting();
    const acknowledged = asking.hasAcknowledged();
    const endMs = guestEndMs(stop, asking, deadlineMs, isBooting);
    const nowMs = host.clockMs();
    const isOver = nowMs >= endMs;
    refused = asking.refusal() ?? refused;
    // The last session of a booting guest may have had no time for an answer.
    const refusal = asking.refusal() ?? (isOver && isBooting && !acknowledged ? refused : undefined);
    if (refusal !== undefined && (isOver || !isBooting)) {
      return { kind: asking.sessions.length === 0 ? "skipped" : "refused", why: refusal };
    }
    if (isOver) return stop.waitOutcome();
    // The power button of a booting QEMU guest: a connection of a moment, while its agent has not been signalled.
    if (isBooting && !acknowledged && stop.hasQemu() && nowMs >= pressedMs + PRESS_AGAIN_MS) {
      pressedMs = nowMs;
      await powerdown(stop, endMs - nowMs);
    }
    const isNews = () => asking.hasAcknowledged() !== acknowledged || (!isBooting && asking.refusal() !== undefined);
    const turnMs = acknowledged ? endMs : Math.min(endMs, host.clockMs() + ASK_AGAIN_MS);
    if (await waitDown(stop, turnMs, isNews)) return stop.doneOutcome();
    if (stop.isSkipped()) return stop.waitOutcome();
    const isSilent = stop.how.ready !== undefined && asking.sessions.length === 1 && !asking.hasAcknowledged() &&
      host.clockMs() >= stop.how.beganMs + SILENT_MS;
    if (isSilent || (isBooting && asking.refusal() !== undefined)) {
      if (isBooting) await lookAgain(stop);
      requestIn(stop, asking, openGuestSession(host, stop.instance));
    }
  }
}

/** A guest that boots loses the one press of Lima's own stop: it is asked over ssh until it has acknowledged. */
async function askMeanwhile(stop: Stop, deadlineMs: number): Promise<void> {
  const { host } = stop.ctx;
  const asking = new Asking(host.clockMs(), "not asked yet");
  do {
    if (asking.refusal() !== undefined) requestIn(stop, asking, openGuestSession(host, stop.instance));
    if (await waitDown(stop, Math.min(deadlineMs, host.clockMs() + ASK_AGAIN_MS))) return;
  } while (!stop.isSkipped() && host.clockMs() < deadlineMs && !asking.hasAcknowledged());
}

/** Sends the request in a session, where its port is proven: a ready session has had its proof, and its request. */
function requestIn(stop: Stop, asking: Asking, session: GuestSession | string): void {
  asking.none = typeof session === "string" ? session : undefined;
  if (typeof session === "string") return;
  if (session !== stop.how.ready) {
    if (!isOwnPort(stop.seen, sshFile(stop.ctx.host, stop.instance, stop.seen))) {
      asking.none = "the port in ssh.config is not provably this instance's now";
      return session.close();
    }
    asking.openedMs = stop.session === session ? stop.how.beganMs : stop.ctx.host.clockMs();
    session.requestPoweroff(graceLeftS(stop.ctx.host, stop.how));
  }
  asking.sessions.push(session);
  stop.opened.push(session);
  void session.ended.then(() => stop.wakeUp.notify());
}

function guestEndMs(stop: Stop, asking: Asking, deadlineMs: number, isBooting: boolean): number {
  if (asking.hasAcknowledged()) return stop.how.beganMs + stop.limits.agent * 1000;
  if (isBooting) return deadlineMs;
  const beganMs = stop.how.ready && asking.sessions.length === 1 ? stop.how.beganMs + SILENT_MS : asking.openedMs;
  return Math.min(deadlineMs, beganMs + ACKNOWLEDGE_MS);
}

function sshFile(host: Host, instance: Instance, seen: Observation) {
  const config = host.stat(join(instance.dir, SSH_CONFIG)).ok;
  const text = sshConfigOf(host, instance) ?? "";
  // ha.pid tells when this agent began only where it names this agent.
  const haPid = seen.stateFiles.find((c) => basename(c.path) === HA_PID && c.verdict.kind === "ours");
  return { port: readSshPort(text), mtimeMs: config?.mtimeMs ?? 0, haPidMtimeMs: haPid?.stamp.mtimeMs };
}

/**
 * Signals some proven processes, each once. One that changed between judging and signalling is looked at again, once: a
 * stepped clock changes a start time too. Where ps has no proof to give it is asked again, for most of the stage: one
 * fork that fails must not cost the guest its grace. Returns what went wrong, or undefined.
 */
async function signalAll(stop: Stop, which: () => VerifiedProcess[], signal: Signal, deadlineMs: number) {
  const { host } = stop.ctx;
  const lastTryMs = deadlineMs - (deadlineMs - host.clockMs()) / 4;
  const signalled = new Set<number>();
  for (let changes = 0;;) {
    let wrong: Outcome | undefined;
    for (const proven of which().filter((p) => !signalled.has(p.row.pid))) {
      const outcome = await signalOne(stop, proven, signal);
      // Any signal to QEMU cuts the guest's power, also where QEMU ends only later or another process was not signalled.
      stop.powerCut ||= proven.role === "QEMU" && outcome.kind === "done";
      if (outcome.kind === "done" || outcome.kind === "already gone") signalled.add(proven.row.pid);
      else wrong ??= outcome;
    }
    const isChanged = wrong?.kind === "process changed";
    if ((!isChanged && wrong?.kind !== "skipped") || (isChanged && ++changes > 1)) return wrong;
    if ((signal !== "SIGKILL" && stop.isSkipped()) || host.clockMs() >= lastTryMs) return wrong;
    if (!isChanged) await Promise.race([host.pause(PS_POLL_MS / 2), stop.ctx.skips.wakeUp.next()]);
    await lookAgain(stop);
  }
}

async function signalOne(stop: Stop, proven: VerifiedProcess, signal: Signal): Promise<Outcome> {
  throwIfOvertaken(stop.ctx);
  if (proven.row.pid !== stop.how.child?.pid) {
    return await signalVerified(stop.ctx.host, proven.row, signal, timeoutsOf(stop).psMs);
  }
  stop.how.child.kill(signal);
  return DONE;
}

/** Holds a connection to the host agent's socket: its end wakes the waiting at once, without polling. */
async function watchAgentSocket(stop: Stop): Promise<void> {
  const socket = join(stop.instance.dir, HA_SOCK);
  if (stop.ctx.host.stat(socket, "follow links").ok?.kind !== "socket" || stop.agents().length === 0) return;
  const held = await stop.ctx.host.connect(socket, ANSWER_LIMIT_MS);
  if (held.trouble) return;
  stop.isAgentSocketOpen = true;
  while (await held.ok.read() !== undefined);
  stop.isAgentSocketOpen = false;
  held.ok.close();
  stop.wakeUp.notify();
}

/** Waits until some processes are gone, a signal skips the stage, or the time is over. */
function waitGone(stop: Stop, processes: readonly VerifiedProcess[], deadlineMs: number, giveUp = stop.isSkipped) {
  const { host, skips } = stop.ctx;
  const pollMs = () => stop.isAgentSocketOpen ? PS_POLL_MS / 2 : POLL_MS;
  return waitForExit(host, processes, {
    deadlineMs,
    giveUp: () => (throwIfOvertaken(stop.ctx), giveUp()),
    turn: (ms) => Promise.race([host.pause(Math.min(ms, pollMs())), stop.wakeUp.next(), skips.wakeUp.next()]),
    psMs: () => timeoutsOf(stop).psMs,
  });
}

/** How long a host agent may take to end once its driver has ended. */
const ALONE_MS = 5_000;

/** Waits until nothing is left. On vz the agent is the VM. */
async function waitDown(stop: Stop, deadlineMs: number, isNews = () => false): Promise<boolean> {
  const giveUp = () => stop.isSkipped() || isNews();
  const drivers = stop.drivers();
  if (drivers.length === 0 || stop.agents().length === 0) {
    return await waitGone(stop, stop.remaining(), deadlineMs, giveUp);
  }
  if (!await waitGone(stop, drivers, deadlineMs, giveUp)) return false;
  // The VM is off: only its host agent is waited for, briefly. To kill one that hangs then takes nothing from the guest.
  const killDeadlineMs = stop.how.beganMs + stop.limits.kill * 1000;
  if (await waitGone(stop, stop.agents(), Math.min(killDeadlineMs, stop.ctx.host.clockMs() + ALONE_MS))) return true;
  stop.isAgentHung = true;
  await signalAll(stop, stop.agents, "SIGKILL", killDeadlineMs);
  return await waitGone(stop, stop.agents(), killDeadlineMs, () => false);
}

/** QMP's system_powerdown, the power button. Returns whether there is one: QMP that serves another client is only busy. */
async function powerdown(stop: Stop, leftMs: number): Promise<boolean> {
  const limitMs = Math.min(ANSWER_LIMIT_MS, leftMs / 4);
  const connection = await stop.ctx.host.connect(join(stop.instance.dir, QMP_SOCK), limitMs);
  if (connection.trouble) return connection.trouble !== "absent" && connection.trouble !== "refused";
  const talk = async () => {
    await readUntil(connection.ok, '"QMP"');
    await connection.ok.write('{"execute": "qmp_capabilities"}\n');
    await readUntil(connection.ok, '"return"');
    await connection.ok.write('{"execute": "system_powerdown"}\n');
    await readUntil(connection.ok, '"return"');
  };
  await Promise.race([talk(), stop.ctx.host.pause(limitMs)]);
  connection.ok.close();
  return true;
}

/** Events may come before the answer, so lines are read until one of the wanted kind. */
async function readUntil(connection: Connection, word: string): Promise<void> {
  for (let text = ""; !text.includes(word) && !text.includes('"error"');) {
    const more = await connection.read();
    if (more === undefined) return;
    text += more;
  }
}

/** A vz VM is a process of its own and ends a moment after its client; until then its disk is not free. */
async function diskReleased(stop: Stop, deadlineMs: number): Promise<boolean> {
  const { host } = stop.ctx;
  if (host.os !== "darwin") return true;
  const paths = ["disk", "diffdisk"].map((file) => join(stop.instance.dir, file));
  const images = paths.filter((path) => host.stat(path).ok?.kind === "file");
  const holders = await holdersOf(host, images, deadlineMs - host.clockMs(), timeoutsOf(stop).lsofMs);
  return holders.trouble === undefined && holders.ok.length === 0;
}

function removeAll(ctx: Context, instance: Instance, steps: readonly Step[]): Step[] {
  return steps.filter((s) => s.kind === "remove").map((step) => {
    throwIfOvertaken(ctx);
    const taken = removeStep(ctx.host, step);
    ctx.say(taken.outcome?.kind === "failed" ? "error" : "info", instance, describeStep(taken));
    return taken;
  });
}

// ───────────────────────────────────────────────────────────────────────────────────────────────────── the commands ──

// ── --pre
/** How often `--pre` looks again after it did something; a world that changes faster is left to the next try. */
const ROUNDS = 4;

/** `--pre`: clears what a dead run left behind, and ends an orphan. Never starts anything. */
async function runPre(ctx: Context, instance: Instance): Promise<Report> {
  const taken = await lockFor(ctx, instance, LOCK_WAIT_MS);
  if ("report" in taken) return taken.report;
  return await repair(ctx, instance).finally(taken.lock.release);
}

/** Observe, plan, act, and again, until there is nothing left to do. The caller holds the lock. */
async function repair(ctx: Context, instance: Instance, forStop = false): Promise<Report> {
  const taken: Step[] = [];
  let first: Plan | undefined;
  let beganMs: number | undefined;
  for (let round = 1, searched = false;; round++) {
    const seen = await observe(ctx, instance, { searchAll: searched, forStop });
    searched ||= seen.searched === true;
    const p = planPre(seen, ctx.budgetS);
    first ??= p;
    const failed = statusOfSteps(taken);
    if (ctx.dryRun) return reportPlan(instance, p);
    if (p.steps.length === 0 || failed !== EXIT.done || round === ROUNDS) {
      const status = failed !== EXIT.done ? failed : p.steps.length > 0 ? EXIT.tryAgain : p.status;
      if (taken.length > 0) await journal(ctx, instance, "pre", { state: first.state, status, steps: taken.map(bare) });
      return repairReport(instance, first, p, taken, status);
    }
    beganMs ??= ctx.host.clockMs();
    taken.push(...await actOn(ctx, instance, p, beganMs));
  }
}

function repairReport(instance: Instance, first: Plan, last: Plan, steps: readonly Step[], status: number): Report {
  const base = reportPlan(instance, last, steps);
  if (steps.length === 0) return { ...base, status };
  const done = steps.filter((s) => s.outcome?.kind === "done" && s.outcome.note === undefined);
  const files = done.filter((s) => s.kind === "remove").length;
  const ended = done.length > files ? ["ended it"] : [];
  const did = files === 0 ? ended : [...ended, `removed ${files} stale ${files === 1 ? "file" : "files"}`];
  const now = status === EXIT.done ? "ready to start" : last.state;
  const summary = `${first.state}: ${first.because}: ${[...did, now].join(", ")}`;
  return { ...base, state: first.state, status, summary };
}

/** Acts on a plan of `--pre`: the stop stages where a process lives (its files are judged again after it), else removals. */
async function actOn(ctx: Context, instance: Instance, p: Plan, beganMs: number): Promise<Step[]> {
  if (!p.steps.some((s) => s.kind !== "remove")) return removeAll(ctx, instance, p.steps);
  ctx.say("warn", instance, `${p.state}: ${p.because}`);
  const stop = await stopProcesses(ctx, instance, { budgetS: ctx.budgetS, beganMs, because: p.because });
  if (stop.remaining.length === 0) {
    const { end: stage, guestCutOff: cut, seconds } = stop;
    if (Object.keys(seconds).length > 1) {
      await journal(ctx, instance, "end", { stage, cut, seconds, status: EXIT.done });
    }
    return [...stop.steps];
  }
  const what = `end ${names(stop.remaining)}`;
  return [...stop.steps, { kind: "kill", what, because: p.because, outcome: { kind: "alive", why: "alive" } }];
}

// ── --stop
/** `--stop`: the stop stages, then clean up, so that the next boot starts clean. */
async function runStop(ctx: Context, instance: Instance): Promise<Report> {
  const lastEnd = () => journalOf(ctx.host, instance).findLast((line) => line.event === "end");
  const before = lastEnd();
  const askedMs = ctx.host.clockMs();
  const taken = await lockFor(ctx, instance, ctx.budgetS * 1000);
  if ("report" in taken) return taken.report;
  if (ctx.dryRun) {
    return reportPlan(instance, planStop(await observe(ctx, instance, { timeouts: STOP_TIMEOUTS }), ctx.budgetS));
  }
  const reported = await stopLocked(ctx, instance, taken.lock, askedMs).finally(taken.lock.release);
  // What another lima-guard did meanwhile is in the journal. Its lines are compared, not their dates: a clock may be
  // stepped.
  const isIdle = reported.stage === "already stopped" || reported.stage === "gone before the request";
  const end = isIdle ? lastEnd() : undefined;
  if (!end || typeof end["stage"] !== "string" || JSON.stringify(end) === JSON.stringify(before)) return reported;
  const stage = end["stage"] as StopEnd;
  const seconds = isSeconds(end["seconds"]) ? end["seconds"] : reported.seconds;
  const done = { ...reported, stage, seconds, summary: describeStop(stage, seconds["total"] ?? 0, cutIn(end)) };
  return taken.supervisor ? await afterJob(ctx, instance, done, taken.supervisor) : done;
}

/** How soon launchd starts a job again that ran for longer than its throttle: at once. */
const RESTART_LOOK_MS = 1_000;

/** What is to be said after a launchd job was stopped: how to start it, or that launchd has done so already. */
async function afterJob(ctx: Context, instance: Instance, reported: Report, stopped: LockRecord): Promise<Report> {
  const job = journalOf(ctx.host, instance).findLast((l) => l.event === "start")?.["job"];
  if (typeof job !== "string") return reported;
  await ctx.host.pause(RESTART_LOOK_MS);
  const { record: now } = holderOf(ctx.host, instance);
  // The journal has launchctl's own name of it, or only the label.
  const named = { target: job, plist: "", loaded: "yes" as const, disabled: false };
  const seen = job.includes("/") ? named : (await jobsOf(ctx.host, instance)).jobs.find((j) => j.label === job);
  const what = seen?.target ?? job;
  const find = `its job was not found: ${guardCommand(instance, "--status")}`;
  if (now?.role !== "run" || now.pid === stopped.pid) {
    const command = seen && startJobCommand(seen);
    const hint = command === undefined ? find : `to start it: ${command}`;
    return { ...reported, notes: [...reported.notes, { what, because: "its job is stopped", hint }] };
  }
  const because = `launchd started it again (KeepAlive), as PID ${now.pid}`;
  const hint = seen === undefined ? find : `to keep it down: ${launchctl(seen.target, "bootout", seen.target)}`;
  const blockers = [...reported.blockers, { what, because, hint }];
  const summary = "stopped, and started again by launchd";
  return { ...reported, state: "running", status: EXIT.failed, blockers, summary };
}

async function stopLocked(ctx: Context, instance: Instance, lock: InstanceLock, askedMs: number): Promise<Report> {
  lock.setPhase("stopping");
  const { budgetS } = ctx;
  const limits = stageLimits(budgetS);
  // Waiting for the lock used up grace; the time to kill and to clean up is there in any case.
  const beganMs = Math.max(askedMs, ctx.host.clockMs() - limits.agent * 1000);
  const went = await stopProcesses(ctx, instance, { budgetS, beganMs });
  const cleaned = await cleanUp(ctx, instance, beganMs + limits["clean up"] * 1000, went.searched);
  const { end, guestCutOff: cut, seconds } = went;
  const steps = [...went.steps, ...cleaned.steps];
  const { state, stage, words, blockers } = stopVerdict(went, cleaned);
  const status = worst([state === "running" ? EXIT.failed : statusOfBlockers(blockers), statusOfSteps(steps)]);
  if (stage !== null && (steps.length > 0 || end === "gone before the request")) {
    await journal(ctx, instance, "end", { stage: end, cut, seconds, status });
  }
  const summary = state === "unknown" ? state : words;
  return report(instance.name, state, status, summary, { stage, seconds, steps: steps.map(bare), blockers });
}

/** What a stop and its clean-up came to. The clean-up looked last, in the same places: no result is better than its. */
function stopVerdict(went: StopResult, cleaned: Cleanup) {
  const state: State = went.remaining.length > 0 ? "running" : cleaned.state;
  const all = [...cleaned.state === "stopped" ? [] : went.blockers, ...cleaned.blockers];
  const blockers = all.filter((b, i) => all.findIndex((other) => other.what === b.what) === i);
  // Where nothing could be proven nothing was stopped, whatever the journal said before.
  const isUnknown = state === "unknown" && went.steps.length === 0;
  const words = went.remaining.length > 0
    ? `not stopped: ${names(went.remaining)} did not end`
    : state === "running"
    ? "not stopped: a process of it lives again"
    : isUnknown
    ? "not stopped: unknown"
    : describeStop(went.end, went.seconds["total"] ?? 0, went.guestCutOff, went.isAgentHung);
  return { state, stage: isUnknown ? null : went.end, words, blockers };
}

/** What a clean-up found and did; `stopped` only where nothing of the instance lives for certain. */
type Cleanup = Pick<Plan, "state" | "steps" | "blockers">;

/** Removes what the stop left, above all vz.pid. */
async function cleanUp(ctx: Context, instance: Instance, deadlineMs: number, searchAll: boolean): Promise<Cleanup> {
  const timeouts = { ...STOP_TIMEOUTS, psMs: PS_LIMIT_MS / 5, lsofMs: PS_LIMIT_MS / 5 };
  const late = ctx.host.pause(Math.max(0, deadlineMs - ctx.host.clockMs())).then(() => undefined);
  const seen = await Promise.race([observe(ctx, instance, { timeouts, searchAll, forStop: true }), late]);
  if (!seen) {
    const because = "whether a process still uses it was not found out in time; its files stay";
    const hint = guardCommand(instance, "--pre");
    return { state: "unknown", steps: [], blockers: [{ what: instance.dir, because, hint }] };
  }
  const p = planStop(seen, ctx.budgetS);
  if (p.state === "stopped") return { ...p, steps: removeAll(ctx, instance, p.steps) };
  const alive = ownOf(seen);
  const again = { what: instance.dir, because: aliveWords(alive), hint: guardCommand(instance, "--status") };
  // Without its lima.yaml nothing more was looked at.
  const missing = seen.missing === undefined ? [] : p.blockers;
  const blockers = [...alive.length > 0 ? [again] : [], ...missing, ...unknownsOf(seen), ...seen.held];
  return { state: alive.length > 0 ? "running" : "unknown", steps: [], blockers };
}

// ── taking the lock
/** A lock that was taken, or the report of who has it; and which `--run` was asked to release it. */
type LockResult = { lock: InstanceLock; supervisor?: LockRecord } | { report: Report; held?: OpenLock };

/**
 * Takes the instance's lock: a `--run` that has it is asked to stop, once; a lima-guard that is stopping is waited
 * for, so that two administrators do not cut each other's grace short; any other process only for a moment.
 */
async function lockFor(ctx: Context, instance: Instance, limitMs: number, waited?: OpenLock): Promise<LockResult> {
  const first = waited ? { held: waited } : ctx.dryRun ? probeLock(ctx.host, instance) : acquireLock(ctx, instance);
  if ("lock" in first) return first;
  if ("why" in first) return { report: noLock(ctx, instance, `it cannot be locked: ${first.why}`) };
  const { held: open } = first;
  const held = open.file;
  const holder = recordIn(ctx.host, held, instance);
  const isItsWork = ctx.role === "pre" ? holder?.phase === "supervising" : ctx.role === "stop" && ctx.dryRun;
  if (holder?.role === "run" && isItsWork && "row" in await proveHolder(ctx.host, instance, held, holder)) {
    held.close();
    const because = `lima-guard --run ${holder.pid} supervises it`;
    const what = `SIGTERM to lima-guard --run, PID ${holder.pid}`;
    const steps = ctx.role === "pre" ? [] : [bare({ kind: "agent", what, because })];
    return { report: report(instance.name, "running", EXIT.done, `running: ${because}`, { steps }) };
  }
  const isStop = ctx.role === "stop" && !ctx.dryRun;
  const askedMs = ctx.host.clockMs();
  const asked = isStop && holder?.role === "run" ? await askToStop(ctx, instance, held, holder) : undefined;
  const stopping = isStop && (holder?.role === "stop" || holder?.phase === "stopping" || asked?.kind === "done");
  const graceMs = Math.max(0, stageLimits(limitMs / 1000).agent * 1000 - (ctx.host.clockMs() - askedMs));
  const leftMs = Math.max(0, limitMs - (ctx.host.clockMs() - askedMs));
  const waitMs = ctx.role === "stop" && !stopping ? Math.min(LOCK_WAIT_MS, graceMs) : leftMs;
  const who = describeHolder(holder);
  if (!waited) ctx.say("info", instance, `waits up to ${Math.round(waitMs / 1000)} s for ${who}`);
  // A person who interrupts has waited enough.
  const interrupted = ctx.skips.wakeUp.next().then(() => "the waiting was interrupted by a signal");
  const freed = await Promise.race([held.lockWithin(waitMs), interrupted]);
  if (freed === true) {
    if (ctx.dryRun) held.close();
    const lock = ctx.dryRun ? NO_LOCK : ownLock(ctx, instance, open);
    return asked?.kind === "done" && holder ? { lock, supervisor: holder } : { lock };
  }
  const refusal = asked && asked.kind !== "done" && ("why" in asked ? asked.why : outcomeWords(asked));
  const because = [`${who} holds its lock`, refusal, freed].filter(Boolean).join("; ");
  const refused = noLock(ctx, instance, because, holder);
  // Closed, or its pending flock would be granted later. Only the real --run waits on.
  if (ctx.role === "run" && !ctx.dryRun) return { report: refused, held: open };
  held.close();
  return { report: refused };
}

function noLock(ctx: Context, instance: Instance, because: string, holder?: LockRecord): Report {
  const what = join(instance.dir, LOCK_FILE);
  const look = holder && ctx.host.alive(holder.pid) !== "no" ? psCommand(holder.pid) : lsofCommand(what);
  const hint = [look, lookCommand(nearestVisible(ctx.host, what)), roleCommand(ctx.role, instance)].join("; ");
  return report(instance.name, "unknown", EXIT.tryAgain, "unknown", { blockers: [{ what, because, hint }] });
}

function describeHolder(holder: LockRecord | undefined): string {
  return holder ? `lima-guard --${holder.role}, PID ${holder.pid}` : "another lima-guard";
}

/** Sends one SIGTERM to the `--run` that holds the lock, and is proven to. One that a signal has stopped is continued. */
async function askToStop(ctx: Context, instance: Instance, held: LockFile, holder: LockRecord): Promise<Outcome> {
  const isStopping = holder.phase === "stopping";
  const psMs = Math.min(PS_LIMIT_MS, ctx.budgetS * 1000 / 8);
  const proof = await proveHolder(ctx.host, instance, held, holder, psMs);
  if ("why" in proof) return isStopping ? DONE : { kind: "failed", why: proof.why };
  const send = async (signal: Signal) => {
    const sent = await signalVerified(ctx.host, proof.row, signal, psMs);
    ctx.say("info", instance, `${signal} to lima-guard --run, PID ${holder.pid}: ${outcomeWords(sent)}`);
    return sent.kind === "already gone" ? DONE : sent;
  };
  const asked = isStopping ? DONE : await send("SIGTERM");
  return isStopped(proof.row) && asked.kind === "done" ? await send("SIGCONT") : asked;
}

/** A `--run` that was stopped by a signal supervises nothing: at a shutdown the guest would lose its power. */
async function stoppedHolder(host: Host, instance: Instance, holder: LockRecord | undefined): Promise<Diagnostic[]> {
  if (holder?.role !== "run") return [];
  const row = (await ps(host, [holder.pid], PS_LIMIT_MS)).ok?.rows.find((r) => r.started === holder.started);
  if (!row || !isStopped(row)) return [];
  const because = `it is stopped by a signal (ps: ${row.stat}), and supervises nothing`;
  return [{ what: describeHolder(holder), because, hint: killCommand(instance, row, "CONT") }];
}

/**
 * Whether the `--run` that holds the lock now wrote this record: ps shows its PID with its start time and the command of a
 * lima-guard, and the lock was held before and after. A record stays when its writer is killed.
 */
async function proveHolder(host: Host, instance: Instance, held: LockFile, holder: LockRecord, psMs = PS_LIMIT_MS) {
  const unproven = { why: `PID ${holder.pid} could not be proven to be it` };
  const table = await ps(host, [holder.pid], psMs);
  const row = table.ok?.rows.find((r) => r.pid === holder.pid);
  if (!row) return unproven;
  // The grammar, the record and the lock prove it; the program may have any name.
  const ours = / -- /.test(row.command) ? row.command.split(" -- ", 1)[0]?.split(" ") ?? [] : [];
  const isGuard = ours.includes("--run") && ours.includes(basename(holder.dir));
  if (row.started !== holder.started || row.uid !== instance.owner || !isGuard) return unproven;
  const taken = held.tryLock();
  if (taken.trouble || taken.ok || recordIn(host, held, instance)?.pid !== holder.pid) {
    return { why: "it released the lock just now" };
  }
  return { row };
}

// ── root: the whole machine
/** How long a lima-guard of another user may need beyond the budget before it is ended. */
const OWNER_RESERVE_MS = 3_000;

/** A Lima home of one user, to be served by that user's own lima-guard. */
interface OwnedHome {
  readonly user: UserEntry;
  readonly home: string;
}

/** The homes of the LaunchDaemons that run lima-guard, limactl or colima for a user. */
async function daemonHomes(host: Host): Promise<OwnedHome[]> {
  const folder = "/Library/LaunchDaemons";
  const files = (host.list(folder).ok ?? []).filter((file) => file.endsWith(".plist")).sort();
  const found = await Promise.all(files.map(async (file): Promise<OwnedHome[]> => {
    const { command, userName: owner, variable, limaHome: given } = readJobPlist(textOf(host, join(folder, file)));
    const args = unwaited(command);
    if (owner === undefined || !/^(lima-guard.*|limactl(\..*)?|colima)$/.test(basename(args[0] ?? ""))) return [];
    const user = (await userEntry(host, owner)).ok;
    if (user === undefined || user.uid === host.uid) return [];
    const userHome = variable("HOME") ?? user.home;
    const colima = variable("COLIMA_HOME") ?? join(userHome, ".colima");
    const byTool = args.some((word) => basename(word) === "colima") ? join(colima, "_lima") : join(userHome, ".lima");
    return [{ user, home: given === undefined ? byTool : expandHome(given, userHome) }];
  }));
  return found.flat();
}

/**
 * As root: every home in which something of another user lives or is to live, each served by that user's own
 * lima-guard, all at once and inside one budget. Root itself makes no file there and signals nothing.
 */
async function wholeMachine(ctx: Context): Promise<Report[]> {
  const { host } = ctx;
  const deadlineMs = host.clockMs() + ctx.budgetS * 1000;
  const { rows, doubt } = await allProcesses(host, PS_LIMIT_MS);
  const living = runningInstances(rows).filter(({ uid }) => uid !== host.uid);
  const entries = new Map<number, Result<UserEntry | undefined>>();
  for (const uid of new Set(living.map((one) => one.uid))) entries.set(uid, await userEntry(host, String(uid)));
  const served: OwnedHome[] = living.flatMap(({ uid, home }) => {
    const user = entries.get(uid)?.ok;
    return user === undefined ? [] : [{ user, home }];
  });
  const homes = [...served, ...await daemonHomes(host)];
  const same = (a: OwnedHome, b: OwnedHome) => a.user.uid === b.user.uid && isSameDirectory(host, a.home, b.home);
  const once = homes.filter((one, i) => homes.findIndex((o) => same(o, one)) === i);
  const self = await ownCommand(host);
  const reported = (await Promise.all(once.map((one) => serveHome(ctx, one, self, deadlineMs)))).flat();
  const unserved = living.flatMap(({ uid, pid, dir, name, home }): Report[] => {
    const entry = entries.get(uid);
    if (entry?.ok) return [];
    const why = entry?.trouble ? `has no user that was found out (${entry.why})` : "has no entry in the user database";
    const because = `uid ${uid} ${why}: lima-guard cannot be run for it`;
    return [{ ...notListed(because, dir, psCommand(pid)), name, home }];
  });
  return [...reported, ...unserved, ...doubtReports(doubt)];
}

/** This program again: the compiled binary, or Deno with the options that it was started with. */
async function ownCommand(host: Host): Promise<string[]> {
  const { program, script } = host.self;
  if (script === undefined) return [program];
  const words = (await ps(host, [host.self.pid], PS_LIMIT_MS)).ok?.rows[0]?.command.split(" ") ?? [];
  const end = words.findIndex((word) => word.endsWith(basename(script)) || /^(jsr|npm|https?):/.test(word));
  return [program, ...end < 0 ? ["run", "-A"] : words.slice(1, end), script];
}

/**
 * A command run as another user, with that user's groups and home, and nothing of this process: no environment, directory or
 * open file. Linux: setpriv, which needs no policy and no session while the host goes down; sudo where it is missing.
 * macOS: sudo, which root may always use. sudo closes all files itself.
 */
function commandOfUser(host: Host, user: UserEntry, words: readonly string[]): Command {
  const path = "/usr/bin:/bin:/usr/sbin:/sbin:/opt/homebrew/bin:/usr/local/bin";
  // Deno from source finds its packages where we find them.
  const cache = host.self.script === undefined ? undefined : host.env("DENO_DIR");
  const env = { HOME: user.home, USER: user.name, LOGNAME: user.name, PATH: path, ...cache ? { DENO_DIR: cache } : {} };
  const clean = ["/usr/bin/env", "-i", ...Object.entries(env).map(([name, value]) => `${name}=${value}`), ...words];
  const setpriv = host.os === "linux" && host.stat("/usr/bin/setpriv", "follow links").ok !== undefined;
  const ids = [`--reuid=${user.uid}`, `--regid=${user.gid}`, "--init-groups"];
  const shut = [3, 4, 5, 6, 7, 8, 9].map((n) => `${n}>&-`).join(" ");
  const argv: Command["argv"] = setpriv
    ? ["/usr/bin/setpriv", ...ids, "/bin/sh", "-c", `exec ${shut}; exec "$@"`, "sh", ...clean]
    : ["/usr/bin/sudo", "-n", "-H", "-u", `#${user.uid}`, "--", ...clean];
  return { argv, env, apart: true };
}

/** One home, served by its owner's lima-guard. What that did not answer in time is unknown. */
async function serveHome(ctx: Context, at: OwnedHome, self: readonly string[], deadlineMs: number): Promise<Report[]> {
  const { host, role } = ctx;
  const leftMs = deadlineMs - host.clockMs();
  const timeout = String(Math.max(1, Math.floor(leftMs / 100) / 10));
  const asked = role === "stop" ? ["--stop", "--all"] : ["--status"];
  const limit = role === "stop" ? ["--timeout", timeout] : ctx.waitS === undefined ? [] : ["--wait", timeout];
  const words = [...self, ...asked, ...limit, "--json", "--lima-home", at.home, ...ctx.dryRun ? ["--dry-run"] : []];
  const command = commandOfUser(host, at.user, words);
  let isOver = false;
  const passOnSkips = async (interrupt: () => void) => {
    while (!isOver) await ctx.skips.wakeUp.next().then(() => isOver || interrupt());
  };
  const answer = await host.run({ ...command, onStart: passOnSkips }, leftMs + OWNER_RESERVE_MS);
  isOver = true;
  const address = { owner: at.user.name, home: at.home };
  const isReport = (r: Report) =>
    typeof r?.name === "string" && typeof r.status === "number" && Array.isArray(r.blockers);
  const instances = jsonObject(answer.ok?.stdout ?? "")?.["instances"];
  const reported: Report[] = Array.isArray(instances) ? instances.filter(isReport) : [];
  const status = answer.ok?.signal === undefined ? answer.ok?.code : undefined;
  // No such home, or nothing in it: what lives all the same is found at the end.
  if (status === EXIT.noInstance && reported.length === 0) return [];
  const isWhole = status !== undefined && worst(reported.map((r) => r.status)) === status;
  const reports = reported.map((r) => {
    const words = r.stage === null ? r.state : describeStop(r.stage, r.seconds["total"] ?? 0);
    return { ...r, ...address, summary: `of ${address.owner}, in ${at.home}: ${words}` };
  });
  if (isWhole) return reports;
  const last = answer.ok?.stderr.trim().split("\n").at(-1) || `it ended with status ${status}`;
  const because = `the lima-guard of ${address.owner} gave no whole answer: ${answer.trouble ? answer.why : last}`;
  const hint = guardCommand({ home: at.home, sudoUser: at.user.name }, ...asked);
  return [...reports, { ...notListed(because, at.home, hint), ...address }];
}

/** What lives at the end although no report says so: only when nothing does, root's `--all` answers 0. */
function stillLiving(ctx: Context, reports: readonly Report[]): Promise<Report[]> {
  const isReported = ({ name, home }: RunningInstance) =>
    reports.some((r) =>
      r.name === name && (r.home === undefined || isSameDirectory(ctx.host, r.home, home)) &&
      (ctx.role === "status" || ctx.dryRun || r.status !== EXIT.done)
    );
  return livingReports(ctx, (one) => !isReported(one));
}

// ── --status
/** What a journal that is there and cannot be read makes unknown; nothing where it is read, or absent. */
function unreadJournal(host: Host, instance: Instance): Partial<Details> {
  const trouble = journalTrouble(host, instance);
  if (trouble === undefined) return {};
  const unknown = { lastStop: `unknown: ${trouble}`, lastStopKind: "unknown" as const, lastStopAt: null };
  return { ...unknown, lastRepair: null, lastRepairAt: null, starts: null, brakeSeconds: null };
}

function statusNotes(host: Host, seen: Observation, lastStop: LastStopKind): Diagnostic[] {
  const { name, home, dir } = seen.instance;
  // Applications that own the VM of their home: no launchd job is to be wrapped.
  const apps = { "/rancher-desktop/lima": "Rancher Desktop", "/Finch/lima/data": "Finch" };
  const app = Object.entries(apps).find(([end]) => home.endsWith(end))?.[1];
  const userHome = host.env("HOME") ?? "/";
  const today = join(userHome, ".colima/_lima/colima");
  const isOld = name === "colima" && dir !== today && home === realHome(host, join(userHome, ".lima")) &&
    host.stat(today, "follow links").ok !== undefined;
  const log = join(dir, "ha.stderr.log");
  // Children log no JSON. The last line of a start that failed is a fatal one.
  const last = ownOf(seen).length === 0 ? jsonLines(tailOf(host, log)).findLast((l) => l !== undefined) : undefined;
  const fatal = last?.["level"] === "fatal" && typeof last["msg"] === "string" ? last["msg"] : undefined;
  const isCut = ["killed", "cut by agent", "cut off"].includes(lastStop);
  const lost = "the guest lost its power at the last stop: its file systems may need a repair; " +
    "the next start keeps the logs of that run here";
  const notes: readonly (readonly [boolean, string, string])[] = [
    [app !== undefined, home, `${app} starts and stops this VM: there is no launchd job to wrap`],
    [host.stat(dir).ok?.kind === "link", dir, "it is a link, which --all and Lima's own list leave out"],
    [isOld, dir, `Colima before 0.6 left it; the one of today is ${today}`],
    [fatal !== undefined, log, `the host agent's last words: ${fatal}`],
    [isCut, join(dir, "lima-guard.previous"), lost],
  ];
  return notes.filter(([isSo]) => isSo).map(([, what, because]) => ({ what, because }));
}

/** `--status`: what lima-guard sees, why, and what it would do. Changes nothing, and never calls limactl. */
async function runStatus(ctx: Context, homes: Homes, name: string): Promise<Report & Partial<Details>> {
  const { host } = ctx;
  const at = await findInstance(ctx, homes, name);
  if ("report" in at) return at.report;
  const { instance } = at;
  const seen = await observe(ctx, instance, { timeouts: STOP_TIMEOUTS });
  const p = planPre(seen);
  const base = reportPlan(instance, p);
  if (p.state === "missing") return base;
  const { record: holder, why } = holderOf(host, instance);
  const found = await jobsOf(host, instance);
  const past = await pastOf(ctx, seen, holder);
  const supervised = why === undefined ? holder?.role === "run" || past.stopping !== null : { why };
  const { blockers: jobBlockers, notes } = judgeJobs(found, instance, { state: p.state, supervised });
  const readiness = readinessOf(host, instance, seen);
  const degraded = [...degradedBlockers(instance, readiness), ...await stoppedHolder(host, instance, holder)];
  const several = severalAgents(seen);
  const state = p.state === "clear" ? "stopped" : p.state;
  const sock = join(instance.dir, HA_SOCK);
  const isThere = host.stat(sock).trouble !== "absent";
  const waits = readiness.waits === undefined ? "" : `, the guest is not ready: it waits for ${readiness.waits}`;
  return {
    ...base,
    state,
    status: needsPerson(p.state) || several.length + jobBlockers.length + degraded.length > 0 ? EXIT.failed : EXIT.done,
    blockers: [...p.blockers, ...jobBlockers, ...degraded],
    notes: [...p.notes, ...notes, ...statusNotes(host, seen, past.lastStopKind)],
    summary: `${state}: ${p.because}${waits}`,
    evidence: seen.stateFiles.map(({ path: file, stamp, verdict }) => (
      { file, holds: stamp.text?.trim() ?? null, verdict: verdict.kind, because: verdict.why }
    )),
    limactlStart: limaWouldSay(seen, !isThere ? "absent" : await hasAnswer(host, sock) ? "answers" : "there"),
    jobs: found.jobs.length === 0 && found.unread.length > 0 ? undefined : found.jobs,
    supervisor: holder?.role === "run" ? holder.pid : null,
    ready: readiness.ready,
    ...past,
    ...unreadJournal(host, instance),
  };
}

function degradedBlockers({ dir }: Instance, { errors }: Readiness): Diagnostic[] {
  const [what, hint] = [join(dir, HA_STDOUT), tailCommand(join(dir, "ha.stderr.log"))];
  return errors.map((e) => ({ what, because: `the host agent says that the instance is degraded: ${e}`, hint }));
}

/** What the journal says of the runs before, and of the one that is under way. */
async function pastOf(ctx: Context, seen: Observation, holder: LockRecord | undefined) {
  // Its starts are counted, and its last repair may be long ago.
  const lines = journalOf(ctx.host, seen.instance, JOURNAL_LIMIT_BYTES);
  const boot = await bootId(ctx);
  const stages = stageSteps(seen, "", ctx.budgetS).map((step) => step.kind);
  const repair = lines.findLast((l) => l.event === "pre");
  const isTime = repair !== undefined && !Number.isNaN(Date.parse(repair.time));
  const version = lines.findLast((l) => l.event === "start")?.["version"];
  return {
    stopping: stopUnderWay(holder, lines, stages),
    guardVersion: holder?.role === "run" && typeof version === "string" ? version : null,
    recent: lines.slice(-10).map(journalWords),
    ...lastStop(lines, boot, ownOf(seen).length > 0 || hasStarted(holder)),
    lastRepair: repair ? `${localTime(repair.time)}: ${textOfFact(repair["state"])}` : null,
    lastRepairAt: isTime ? new Date(repair.time).toISOString() : null,
    starts: lines.filter((l) => l.event === "start" && l.boot === boot).length,
    brakeSeconds: Math.ceil(restartBackoffMs(lines, ctx.host.wallMs()) / 1000),
  };
}

/** Nothing is asked of logs that no living host agent writes: they are of the run before. */
function readinessOf(host: Host, instance: Instance, seen: Observation): Readiness {
  if (hostAgentsOf(seen).length === 0) return { ready: null, errors: [] };
  const text = (file: string) => textOf(host, join(instance.dir, file));
  const logged = readReadiness(text(HA_STDOUT), text("ha.stderr.log"));
  const isUp = logged.ready === false && hasReportedRunning(host, instance);
  return isUp ? { ready: true, errors: logged.errors } : logged;
}

// ── --run: preparing
interface Run {
  readonly ctx: Context;
  readonly homes: Homes;
  readonly name: string;
  readonly command: readonly [string, ...string[]];
  readonly events: RunEvent[];
  readonly wakeUp: WakeUp;
  /** Notified when the host agent has reported that the guest is up. */
  readonly bootWakeUp: WakeUp;
  /** The label launchd gave us, or undefined where it was not launchd that started us. */
  label: string | undefined;
  /** Where launchd has the job, if launchctl knows it. */
  target?: string | undefined;
  /** What launchd grants a stop; its shortest until it is known. Undefined where it is not launchd that stops us. */
  timeLimitS: number | undefined;
  instance?: Instance;
  lock?: InstanceLock;
  startLock?: LockFile | undefined;
  /** The end in the journal whose back-off is over. */
  waitedFor?: string | undefined;
  child?: Child | undefined;
  session?: GuestSession | undefined;
  /** The host agent where it is not the child. */
  agent?: VerifiedProcess | undefined;
  /** The PID of the host agent, once it is Running. */
  watchedPid?: number;
  startedMs: number;
  /** Aborted at the stop, with `Interrupted`. */
  readonly stopRequest: AbortController;
  ended?: { code: number; signal: string | undefined };
  stopMs?: number;
  status: number;
}

/** Thrown into work that a stop has overtaken. */
class Interrupted extends Error {}

/** Everything before the command starts. Blocked means waiting, not dying: launchd would only try every 10 s. */
async function prepare(run: Run): Promise<RunEvent> {
  const ctx = { ...run.ctx, abort: run.stopRequest.signal };
  const job = await jobOf(ctx.host, run.label);
  throwIfOvertaken(ctx);
  if (!job) run.label = undefined;
  run.target = job?.target;
  run.timeLimitS = job?.timeLimitS;
  const instance = await waitForInstance(run, ctx);
  if (!instance) return "refused";
  run.instance = instance;
  const lock = await acquireOwnLock(run, instance);
  if (!lock) return "refused";
  run.lock = lock;
  warnOfShortTimeLimit(run, instance);
  for (let blocked = 0;;) {
    const repaired = await repair(ctx, instance);
    throwIfOvertaken(ctx);
    if (repaired.state === "running") return "healthy";
    // Only launchd starts it before all volumes are mounted.
    if (run.label === undefined && repaired.blockers.some((b) => b.waitsFor === "volume")) {
      run.status = repaired.status;
      ctx.host.stderr(formatReports([repaired], false));
      return "refused";
    }
    if (repaired.status !== EXIT.done) {
      releaseStartSlot(run); // others may start meanwhile
      logBlocked(ctx, instance, repaired, backoffMs(blocked));
      await ctx.host.pause(backoffMs(blocked++));
      throwIfOvertaken(ctx);
    } else if (!await waitForBackoff(run, ctx, instance) && await acquireStartSlot(run, ctx, instance)) {
      preserveLogs(ctx, instance);
      return "clear";
    }
  }
}

/** The instance, waited for under launchd: its volume may not be mounted yet, or be closed to this user so far. */
async function waitForInstance(run: Run, ctx: Context): Promise<Instance | undefined> {
  for (let n = 0;; n++) {
    const found = await findInstance(ctx, run.homes, run.name);
    throwIfOvertaken(ctx);
    if ("instance" in found) return found.instance;
    const reported = found.report;
    run.status = reported.status;
    if (run.label === undefined || found.isOthers || reported.status === EXIT.usage) {
      return void ctx.host.stderr(formatReports([reported], false));
    }
    logBlocked(ctx, { name: run.name }, reported, backoffMs(n));
    await ctx.host.pause(backoffMs(n));
  }
}

function logBlocked(ctx: Context, instance: { name: string }, reported: Report, pauseMs?: number): void {
  const { state, status, blockers } = reported;
  for (const b of blockers) ctx.say("warn", instance, describeDiagnostic("blocked", b));
  ctx.say("warn", instance, pauseMs === undefined ? state : `${state}; looks again in ${pauseMs / 1000} s`);
  announce(ctx, instance, "blocked", { event: "blocked", state, status, because: blockers[0]?.because });
}

/** lima-guard's own start time as ps shows it. */
async function ownStart(host: Host): Promise<string | undefined> {
  return (await ps(host, [host.self.pid], PS_LIMIT_MS)).ok?.rows[0]?.started;
}

/** The instance's lock, with lima-guard's own start time in it, by which `--stop` proves what it signals. */
async function acquireOwnLock(run: Run, instance: Instance): Promise<InstanceLock | undefined> {
  const { ctx } = run;
  const started = await ownStart(ctx.host);
  let held: OpenLock | undefined;
  for (let n = 0;; n++) {
    const taken = await lockFor(ctx, instance, run.label === undefined ? LOCK_WAIT_MS : backoffMs(n), held);
    if ("lock" in taken) {
      taken.lock.setPhase("preparing", started);
      return taken.lock;
    }
    held = taken.held;
    if (run.stopMs === undefined) run.status = taken.report.status;
    // A lock that cannot be opened gives nothing to wait on.
    if (!held && run.label !== undefined) await ctx.host.pause(backoffMs(n));
    if (run.label === undefined) {
      held?.file.close();
      return void ctx.host.stderr(formatReports([taken.report], false));
    }
  }
}

/**
 * Waits for the restart back-off; `true` where there was one, so that everything is looked at again. One bad end is
 * waited for once: with a date of the future, after the clock was stepped back, it would be waited for without end.
 */
async function waitForBackoff(run: Run, ctx: Context, instance: Instance): Promise<boolean> {
  const lines = journalOf(ctx.host, instance);
  const ms = restartBackoffMs(lines, ctx.host.wallMs());
  const last = JSON.stringify(lines.findLast((line) => line.event === "end"));
  if (ms === 0 || run.waitedFor === last) return false;
  run.waitedFor = last;
  const because = `the last runs ended badly soon after their start; waits ${Math.ceil(ms / 1000)} s`;
  ctx.say("warn", instance, because);
  announce(ctx, instance, "braked", { event: "braked", because, seconds: Math.ceil(ms / 1000) });
  await ctx.host.pause(ms);
  throwIfOvertaken(ctx);
  return true;
}

/** How long a start may keep other instances of this LIMA_HOME from starting. */
const START_TURN_MS = 120_000;

/**
 * Takes the turn to start: Lima stops the networks of instances that are still booting when another one starts. `false`
 * where it had to be waited for, so that everything is looked at again.
 */
async function acquireStartSlot(run: Run, ctx: Context, instance: Instance): Promise<boolean> {
  if (run.startLock) return true;
  const { host } = ctx;
  const path = join(instance.home, "_lima-guard", "start.lock");
  let file = host.openLock(path, "with its folder");
  // Too many open files, for example: that passes, and who has the lock may be booting.
  const mayPass = () => file.trouble === "other" && host.stat(path).ok?.kind === "file";
  if (file.trouble && mayPass()) ctx.say("warn", instance, `waits for its turn: ${file.why}`);
  for (const endMs = host.clockMs() + START_TURN_MS; mayPass() && host.clockMs() < endMs;) {
    await host.pause(FIRST_PAUSE_MS);
    throwIfOvertaken(ctx);
    file = host.openLock(path, "with its folder");
  }
  if (file.trouble) {
    ctx.say("warn", instance, `starts without waiting for its turn: ${file.why}`);
    return true;
  }
  const taken = file.ok.tryLock();
  if (taken.trouble || taken.ok) {
    run.startLock = file.ok;
    return true;
  }
  ctx.say("info", instance, "waits for its turn: another instance is starting");
  const isTaken = await file.ok.lockWithin(START_TURN_MS);
  // Close it: the pending flock would otherwise be granted later and never released.
  if (isTaken && !ctx.abort?.aborted) run.startLock = file.ok;
  else file.ok.close();
  throwIfOvertaken(ctx);
  if (!isTaken) ctx.say("warn", instance, "starts out of turn: another instance has been starting for two minutes");
  return !isTaken;
}

const KEPT_LOG_BYTES = 256 * 1024;

/** Lima deletes its logs at each start: after an unclean end their tails are copied first. */
function preserveLogs(ctx: Context, instance: Instance): void {
  const last = journalOf(ctx.host, instance).findLast((l) => ["start", "end", "pre"].includes(l.event));
  if (!last || (last.event === "end" && last["status"] === 0 && !isBadEnd(last))) return;
  const dir = join(instance.dir, "lima-guard.previous");
  const serial = (ctx.host.list(instance.dir).ok ?? []).filter((f) => /^serial.*\.log$/.test(f));
  for (const file of ["ha.stderr.log", HA_STDOUT, ...serial]) {
    if (ctx.host.stat(join(instance.dir, file)).ok?.kind !== "file") continue;
    const copy = ctx.host.stat(join(dir, file));
    // To open a FIFO would wait without end.
    const kept = copy.ok && copy.ok.kind !== "file"
      ? { trouble: "other", why: `${join(dir, file)} is a ${copy.ok.kind}` }
      : ctx.host.copyTail(join(instance.dir, file), join(dir, file), KEPT_LOG_BYTES);
    if (kept.trouble) ctx.say("warn", instance, `${file} of the last run is not kept: ${kept.why}`);
  }
}

function warnOfShortTimeLimit(run: Run, instance: Instance): void {
  const { ctx, timeLimitS = 0 } = run;
  if (timeLimitS === 0 || timeLimitS >= DEFAULT_BUDGET_S) return;
  const graceS = Math.floor(stageLimits(timeLimitS).agent);
  const hint = `(hint: ${guardCommand(instance, "--install")})`;
  ctx.say("warn", instance, `launchd gives ${timeLimitS} s for a stop, which leaves the guest ${graceS} s ${hint}`);
}

// ── --run: supervising
/** `--run`: prepare, run the command, on a signal stop the instance, leave with the right status. */
async function superviseRun(asked: Pick<Run, "ctx" | "homes" | "name" | "command">) {
  const { ctx } = asked;
  // A terminal's children have `0` or an application's.
  const name = ctx.host.env("XPC_SERVICE_NAME") ?? "";
  const label = /^0?$|^application\./.test(name) ? undefined : name;
  const run: Run = {
    ...asked,
    events: [],
    wakeUp: new WakeUp(),
    bootWakeUp: new WakeUp(),
    label,
    timeLimitS: label === undefined ? undefined : LAUNCHD_DEFAULT_S,
    startedMs: ctx.host.clockMs(),
    stopRequest: new AbortController(),
    status: EXIT.done,
  };
  onStopSignals(run);
  const prepared = prepare(run).catch((error) => (logInternalError(run, "prepare", error), "refused" as const));
  void prepared.then((event) => post(run, event));
  let state: RunState = "preparing";
  while (state !== "leaving") {
    const event = run.events.shift();
    if (event === undefined) {
      await run.wakeUp.next();
      continue;
    }
    const [next, action] = transition(state, event);
    ctx.say("debug", run, `${state}: ${event}: ${action}`);
    if (action === "impossible") {
      ctx.say("error", run, `${event} while ${state}: must not happen; it is logged and ignored`);
    }
    state = next;
    await ACTIONS[action]?.(run).catch((error) => logInternalError(run, action, error));
  }
  // Whatever went wrong inside lima-guard: it never leaves while the command lives.
  await run.child?.ended;
  run.lock?.release();
  return run.status;
}

/** Internal error: log and continue. `Interrupted` is not an error. */
function logInternalError(run: Run, what: string, error: unknown): void {
  if (error instanceof Interrupted) return;
  run.status = EXIT.failed;
  run.ctx.say("error", run, `${what} failed: ${error instanceof Error ? error.stack : error}`);
}

function post(run: Run, event: RunEvent): void {
  run.events.push(event);
  run.wakeUp.notify();
}

/** The first signal asks for the stop. Under launchd further ones come from machines and change nothing. */
function onStopSignals(run: Run): void {
  const { ctx } = run;
  let lastMs = -Infinity;
  for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) {
    ctx.host.onSignal(signal, () => {
      const nowMs = ctx.host.clockMs();
      if (run.stopMs === undefined) {
        run.stopMs = nowMs;
        run.stopRequest.abort(new Interrupted("a stop was asked for"));
        post(run, "stop");
      } else if (run.label !== undefined) {
        if (run.instance) void journal(ctx, run.instance, "signal", { signal });
      } else if (signal !== "SIGHUP" && nowMs - lastMs >= SKIP_APART_MS) {
        ctx.skips.count++;
        ctx.skips.wakeUp.notify();
      }
      lastMs = nowMs;
    });
  }
}

const ACTIONS: Partial<Record<RunAction, (run: Run) => Promise<void>>> = {
  start: startCommand,
  adopt: adoptAgent,
  stop: stopRun,
  leave: finishRun,
};

async function startCommand(run: Run): Promise<void> {
  const { ctx, instance } = run;
  if (!instance) return post(run, "ended");
  const env = await environmentOf(ctx.host, instance, run.command[0], run.label);
  if (run.stopMs !== undefined) return; // the stop is next in the queue, and there is no command to end
  const started = ctx.host.start({ argv: run.command, env, supervised: true });
  run.startedMs = ctx.host.clockMs();
  if (started.trouble) {
    ctx.say("error", instance, `Cannot start ${JSON.stringify(run.command[0])}: ${started.why}`);
    run.ended = { code: started.trouble === "absent" ? 127 : 126, signal: undefined };
    return post(run, "ended");
  }
  const child = started.ok;
  run.child = child;
  run.lock?.setPhase("starting");
  void child.ended.then((ended) => commandEnded(run, instance, child, ended)).catch((error) => {
    logInternalError(run, "looking for the host agent", error);
    post(run, "ended");
  });
  ctx.say("info", instance, `started ${run.command[0]}, PID ${child.pid}`);
  void becomeRunning(run, instance).catch((error) => logInternalError(run, "watching the boot", error));
  const job = run.target ?? run.label ?? null;
  await journal(ctx, instance, "start", { version: VERSION, pid: child.pid, command: run.command, job });
}

/** How long a host agent that may still appear is waited for after the end of the command. */
const APPEARS_MS = 10_000;

/** `limactl start` without `--foreground` ends and leaves a host agent behind: that is supervised as an adopted one is. */
async function commandEnded(run: Run, instance: Instance, child: Child, ended: NonNullable<Run["ended"]>) {
  const { ctx } = run;
  const { host } = ctx;
  const deadlineMs = host.clockMs() + APPEARS_MS;
  // A command that failed leaves none behind; one that is Running has been it, or had it.
  const mayAppear = () => (ended.code === 0 && run.watchedPid === undefined) || isAgentAppearing(host, instance);
  let agent: VerifiedProcess | undefined;
  while (run.stopMs === undefined && run.ended === undefined) {
    const seen = await observeProcesses(ctx, instance, STOP_TIMEOUTS, true);
    agent = seen.alive.find((p) => p.role === "host agent" && p.row.pid !== child.pid);
    if (agent || !mayAppear() || host.clockMs() >= deadlineMs) break;
    await host.pause(ASK_AGAIN_MS / 4);
  }
  if (!agent || run.stopMs !== undefined || run.ended !== undefined) {
    run.ended ??= ended;
    return post(run, "ended");
  }
  const { pid } = agent.row;
  const how = ended.signal ?? `status ${ended.code}`;
  const adopted = `host agent ${pid} lives: it is adopted; the command in the plist should have --foreground`;
  ctx.say("warn", instance, `${run.command[0]} ended with ${how}, and ${adopted}`);
  run.child = undefined;
  run.agent = agent;
  run.lock?.setPhase("supervising");
  void watchAgent(run, instance, pid).catch((error) => logInternalError(run, "watching the host agent", error));
  await journal(ctx, instance, "adopted", { pid, code: ended.code, signal: ended.signal ?? null });
}

/** Whether files say that a host agent starts: its PID file is empty or names a living process, or its socket is there first. */
function isAgentAppearing(host: Host, instance: Instance): boolean {
  const text = statWithText(host, join(instance.dir, HA_PID))?.stamp.text;
  if (text === undefined) return host.stat(join(instance.dir, HA_SOCK)).ok?.kind === "socket";
  return text.trim() === "" || pidIn(host, join(instance.dir, HA_PID)) !== undefined;
}

const SYSTEM_FOLDERS = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/** A PATH with the folders that it does not have, at its end: what the user has put first stays first. */
function longerPath(path: string | undefined, folders: readonly string[]): string {
  const has = path ? path.split(":") : [];
  return [...has, ...folders.filter((folder) => !has.includes(folder))].join(":");
}

/** What limactl needs and launchd may not give, beside HOME: its user, a PATH that finds QEMU, its own label. */
async function environmentOf(host: Host, instance: Instance, program: string, label: string | undefined) {
  const missing = ["USER", "LOGNAME"].filter((v) => !host.env(v));
  const name = missing.length === 0 ? undefined : (await userEntry(host)).ok?.name;
  const more = [...program.startsWith("/") ? [dirname(program)] : [], "/opt/homebrew/bin", "/usr/local/bin"];
  return {
    ...name === undefined ? {} : Object.fromEntries(missing.map((v) => [v, name])),
    LIMA_HOME: instance.home,
    PATH: longerPath(host.env("PATH"), [...SYSTEM_FOLDERS, ...more]),
    ...label === undefined ? {} : { XPC_SERVICE_NAME: label },
  };
}

// ── --run: watching
/** How long until the next look at a start: soon at first; seldom where it takes longer than any boot (an image is loaded). */
function nextLookMs({ ctx, startedMs }: Run): number {
  const sinceMs = ctx.host.clockMs() - startedMs;
  return sinceMs <= START_TURN_MS ? 500 : sinceMs <= BOOT_WINDOW_S * 1000 ? FIRST_PAUSE_MS : SILENCE_MS;
}

/** Watches the boot: until Lima calls the instance Running. Then nothing is polled. */
async function becomeRunning(run: Run, instance: Instance): Promise<void> {
  const { ctx } = run;
  const { host } = ctx;
  const isBooting = () => run.ended === undefined && run.stopMs === undefined;
  let agentPid: number | undefined;
  let isLate = false;
  while (isBooting() && (agentPid = await runningAgent(host, instance)) === undefined) {
    const sinceMs = host.clockMs() - run.startedMs;
    if (sinceMs > START_TURN_MS) releaseStartSlot(run);
    if (sinceMs > BOOT_WINDOW_S * 1000 && !isLate) {
      isLate = true;
      ctx.say("warn", instance, "is still not Running; it is looked at once a minute");
    }
    await host.pause(nextLookMs(run));
  }
  releaseStartSlot(run);
  const started = await ownStart(host); // at the boot of the host ps may have failed
  if (!isBooting()) return;
  run.lock?.setPhase("supervising", started);
  const seconds = secondsSince(host, run.startedMs);
  ctx.say("info", instance, `Running after ${seconds.toFixed(1)} s`);
  watchRunning(run, instance, agentPid);
  await journal(ctx, instance, "running", { seconds, pid: agentPid });
  await becomeBooted(run, instance);
}

/** Running is the VM; the guest is there once the host agent has reported it. Then the ready session is made at once. */
async function becomeBooted(run: Run, instance: Instance): Promise<void> {
  const { ctx } = run;
  const endMs = ctx.host.clockMs() + BOOT_WINDOW_S * 1000;
  const look = () => hasReportedRunning(ctx.host, instance);
  for (let isUp = look(); !isUp; isUp = look()) {
    const isOver = run.ended !== undefined || run.stopMs !== undefined || ctx.host.clockMs() >= endMs;
    if (isOver || isUp === undefined) return;
    await ctx.host.pause(nextLookMs(run));
  }
  const seconds = secondsSince(ctx.host, run.startedMs);
  run.bootWakeUp.notify();
  ctx.say("info", instance, `the guest is up after ${seconds.toFixed(1)} s`);
  await journal(ctx, instance, "booted", { seconds });
}

function watchRunning(run: Run, instance: Instance, agentPid: number | undefined): void {
  void keepGuestSession(run, instance).catch((error) =>
    logInternalError(run, "keeping the session with the guest", error)
  );
  void watchAgent(run, instance, agentPid).catch((error) => logInternalError(run, "watching the host agent", error));
}

function releaseStartSlot(run: Run): void {
  run.startLock?.close();
  run.startLock = undefined;
}

/** The agent of an instance that is Running by Lima's own definition: both PID files name living processes, ha.sock answers. */
async function runningAgent(host: Host, instance: Instance): Promise<number | undefined> {
  const agent = pidIn(host, join(instance.dir, HA_PID));
  const living = liveFiles(host, instance).filter((file) => !kindOfPidFile(file).isSignalled);
  if (agent === undefined || living.length < 2) return undefined;
  return await hasAnswer(host, join(instance.dir, HA_SOCK)) ? agent : undefined;
}

/** Keeps a guest session open, made again after a back-off when it breaks: at the stop nothing is started. */
async function keepGuestSession(run: Run, instance: Instance): Promise<void> {
  const { host } = run.ctx;
  for (let broken = 0; run.ended === undefined && run.stopMs === undefined;) {
    const madeMs = host.clockMs();
    const seen = { ...emptyObservation(instance), ...await observeProcesses(run.ctx, instance, STOP_TIMEOUTS) };
    const own = isOwnPort(seen, sshFile(host, instance, seen));
    const session = own ? openGuestSession(host, instance) : "the port in ssh.config is not provably this instance's";
    if (typeof session === "string") run.ctx.say("debug", instance, `no session with the guest: ${session}`);
    else {
      run.session = session;
      await session.ended;
      run.session = undefined;
      run.ctx.say("debug", instance, `the session with the guest broke: ${session.refusal() ?? ""}`);
    }
    if (host.clockMs() - madeMs > LAST_PAUSE_MS) broken = 0;
    const isUp = run.bootWakeUp.next().then(() => true);
    if (await Promise.race([isUp, host.pause(backoffMs(broken++)).then(() => false)])) broken = 0;
  }
}

/** How often an agent that is not our child is asked for where its socket does not tell. */
const ADOPTED_POLL_MS = 2_000;

/**
 * Waits for the end of a host agent that is not our child (adopted, or started in the background by the command). A
 * command that continues without it would wait without end: then it is stopped, and lima-guard leaves with 1.
 */
async function watchAgent(run: Run, instance: Instance, pid: number | undefined): Promise<void> {
  const { ctx } = run;
  if (pid !== undefined) {
    if (pid === run.watchedPid) return;
    run.watchedPid = pid;
    if (pid === run.child?.pid) return;
    await untilAgentEnds(run, instance, pid);
  }
  if (run.ended !== undefined || run.stopMs !== undefined) return;
  ctx.say("warn", instance, `host agent ${pid ?? ""} has ended`);
  // It has reported `exiting`, and removed its PID file. Lima deletes the log at each start.
  const isClean = hasExited(ctx.host, instance) && ctx.host.stat(join(instance.dir, HA_PID)).trouble === "absent";
  run.ended = { code: isClean ? 0 : 1, signal: undefined };
  post(run, "ended");
}

async function untilAgentEnds(run: Run, instance: Instance, pid: number): Promise<void> {
  const { host } = run.ctx;
  while (host.alive(pid) === "yes" && run.stopMs === undefined) {
    run.agent ??= (await observeProcesses(run.ctx, instance, STOP_TIMEOUTS)).alive.find((p) => p.row.pid === pid);
    const held = await host.connect(join(instance.dir, HA_SOCK), ANSWER_LIMIT_MS);
    if (held.trouble) {
      await host.pause(ADOPTED_POLL_MS);
      // The number may have been given to another program. Its files may be gone before it is.
      const table = await ps(host, [pid], PS_LIMIT_MS);
      const row = table.ok?.rows.find((r) => r.pid === pid);
      if (row?.stat.startsWith("Z") || (row && run.agent && row.command !== run.agent.row.command)) return;
      continue;
    }
    while (await held.ok.read() !== undefined);
    held.ok.close();
    for (let n = 0; n < ADOPTED_POLL_MS / POLL_MS && host.alive(pid) === "yes"; n++) await host.pause(POLL_MS);
  }
}

/** A healthy host agent that was not started here: supervised all the same, as far as that can be done from outside. */
async function adoptAgent(run: Run): Promise<void> {
  const { ctx, instance } = run;
  if (!instance) return post(run, "ended");
  releaseStartSlot(run);
  // Its PID file may be damaged, so it is asked for by its command.
  run.agent = (await observeProcesses(ctx, instance, STOP_TIMEOUTS)).alive.find((p) => p.role === "host agent");
  const pid = run.agent?.row.pid ?? pidIn(ctx.host, join(instance.dir, HA_PID));
  ctx.say("warn", instance, `is running already: host agent ${pid} is adopted, ${run.command[0]} is not started`);
  run.lock?.setPhase("supervising");
  run.startedMs = ctx.host.clockMs();
  const job = run.target ?? run.label ?? null;
  await journal(ctx, instance, "start", { version: VERSION, pid: pid ?? null, adopted: true, job });
  watchRunning(run, instance, pid);
}

// ── --run: the end
/** The requested stop: the stop stages for what is proven, the command by its handle, clean-up. 0 where nothing is left. */
async function stopRun(run: Run): Promise<void> {
  const beganMs = run.stopMs ?? run.ctx.host.clockMs();
  releaseStartSlot(run);
  run.status = EXIT.done; // what it waited for before does not concern the stop
  try {
    const own = await acquireForStop(run, beganMs);
    if (own) await stopSupervised(run, own, beganMs);
  } catch (error) {
    logInternalError(run, "the stop", error);
    await endChild(run, beganMs, budgetOf(run.timeLimitS, run.ctx.limitS));
  }
  post(run, "stopped");
}

/**
 * The instance, if this process may work on it; else the reason is logged, and sets the exit status. A lock that another
 * process has is waited for as long as there is time to do something then, unless nothing lives.
 */
async function acquireForStop(run: Run, beganMs: number): Promise<Instance | undefined> {
  const { ctx } = run;
  const found = run.instance ? { instance: run.instance } : await findInstance(ctx, run.homes, run.name);
  if ("report" in found) return cannotStop(run, found.report);
  const { instance } = found;
  const deadlineMs = beganMs + stageLimits(budgetOf(run.timeLimitS, ctx.limitS)).agent * 1000;
  // Polled: prepare() may be waiting for it too, and then that is how it comes.
  for (let said = false; !run.lock; await ctx.host.pause(5 * POLL_MS)) {
    const taken = acquireLock(ctx, instance);
    if ("lock" in taken) {
      run.lock = taken.lock;
      break;
    }
    const { who, because, isSupervising } = await lockOwner(ctx, instance, taken);
    if (isSupervising) return void ctx.say("info", instance, `leaves: ${who} supervises it`);
    const seen = { ...emptyObservation(instance), ...await observeProcesses(ctx, instance, STOP_TIMEOUTS) };
    if (planStop(seen, ctx.budgetS).state === "stopped") return undefined;
    if (!said) ctx.say("info", instance, `is to be stopped, and waits for ${who}`);
    said = true;
    if (ctx.host.clockMs() >= deadlineMs) return cannotStop(run, noLock(ctx, instance, because));
  }
  return instance;
}

/** No instance at all is nothing to stop. */
function cannotStop(run: Run, { status, blockers }: Report): undefined {
  for (const b of blockers) run.ctx.say("warn", run, describeDiagnostic("not stopped", b));
  run.status = status === EXIT.noInstance ? EXIT.done : status;
}

/** Who has the lock, and whether it is proven to be the `--run` that has this instance: a stop of it is that one's. */
async function lockOwner(ctx: Context, instance: Instance, attempt: { held: OpenLock } | { why: string }) {
  if ("why" in attempt) return { who: "its lock", because: `it cannot be locked: ${attempt.why}` };
  const { file } = attempt.held;
  const holder = recordIn(ctx.host, file, instance);
  const isSupervising = hasStarted(holder) && "row" in await proveHolder(ctx.host, instance, file, holder);
  file.close();
  const who = describeHolder(holder);
  return { who, because: `${who} holds its lock`, isSupervising };
}

async function stopSupervised(run: Run, instance: Instance, beganMs: number): Promise<void> {
  const { ctx, child, session } = run;
  const budgetS = budgetOf(run.timeLimitS, ctx.limitS);
  run.lock?.setPhase("stopping");
  const known = run.agent ? [run.agent] : [];
  let went = await stopProcesses(ctx, instance, { budgetS, beganMs, known, ready: session, child });
  await endChild(run, beganMs, budgetS);
  if (went.steps.length === 0 && child) {
    // The command may have brought up a VM between the look and its own end.
    const again = await stopProcesses(ctx, instance, { budgetS, beganMs });
    if (again.steps.length > 0) went = again;
  }
  const isAgent = run.watchedPid === undefined || run.watchedPid === child?.pid;
  const signal = isAgent ? (await child?.ended)?.signal : undefined;
  if (went.end === "unknown" && signal !== undefined) {
    went = { ...went, end: "agent", guestCutOff: `${signal} ended it` };
  }
  const cleaned = await cleanUp(ctx, instance, beganMs + stageLimits(budgetS)["clean up"] * 1000, went.searched);
  const remaining = went.remaining.filter((p) => p.row.pid !== child?.pid);
  const seconds = { ...went.seconds, total: secondsSince(ctx.host, beganMs) };
  const { state, stage, words, blockers } = stopVerdict({ ...went, seconds, remaining }, cleaned);
  // A stale file that cannot be removed does not make a stop fail.
  run.status = state === "running" ? EXIT.failed : state === "unknown" ? EXIT.tryAgain : EXIT.done;
  ctx.say("info", instance, words);
  for (const b of blockers) ctx.say("warn", instance, describeDiagnostic("unknown", b));
  const { guestCutOff: cut } = went;
  const ranS = secondsSince(ctx.host, run.startedMs);
  await journal(ctx, instance, "end", { requested: true, stage, cut, seconds, status: run.status, ranS });
}

/** Ends the command by its handle, which needs no proof, and waits for it. */
async function endChild(run: Run, beganMs: number, budgetS: number): Promise<void> {
  const { child, ctx } = run;
  if (!child) return;
  const endsWithin = (ms: number) => Promise.race([child.ended.then(() => true), ctx.host.pause(ms).then(() => false)]);
  if (await endsWithin(0)) return;
  ctx.say("info", run, `SIGTERM to ${run.command[0]}, PID ${child.pid}`);
  child.kill("SIGTERM");
  if (await endsWithin(beganMs + stageLimits(budgetS).kill * 1000 - ctx.host.clockMs())) return;
  ctx.say("warn", run, `SIGKILL to ${run.command[0]}, PID ${child.pid}`);
  child.kill("SIGKILL");
  await child.ended;
}

/** After any end: nothing of the command lives, what it left is cleared, the journal has it. */
async function finishRun(run: Run): Promise<void> {
  const { instance, ended } = run;
  releaseStartSlot(run);
  run.session?.close();
  run.session = undefined;
  if (run.stopMs !== undefined || !instance || !ended) return;
  const cleared = cleanUpAfterExit(run, instance, ended).catch((error) => logInternalError(run, "clearing up", error));
  const stopAsked = new Promise((resolve) => run.stopRequest.signal.addEventListener("abort", resolve));
  await Promise.race([cleared, stopAsked]);
  // What is left of it ends inside launchd's time, like anything else.
  if (run.stopMs !== undefined) await stopRun(run);
}

async function cleanUpAfterExit(run: Run, instance: Instance, { code, signal }: NonNullable<Run["ended"]>) {
  const ctx = { ...run.ctx, abort: run.stopRequest.signal };
  const ranS = secondsSince(ctx.host, run.startedMs);
  run.status = code; // 128 + n where signal n ended it: Deno has added them
  await endChild(run, ctx.host.clockMs(), DEFAULT_BUDGET_S);
  throwIfOvertaken(ctx);
  // What only keeps it from starting makes no good end a bad one: launchd would start it again.
  const repaired = await repair(ctx, instance, true);
  throwIfOvertaken(ctx);
  if (repaired.status !== EXIT.done) logBlocked(ctx, instance, repaired);
  // Something of it may have come up meanwhile: that is no clean end.
  if (repaired.state === "running") ctx.say("warn", instance, `it is left running, unsupervised: ${repaired.summary}`);
  if (run.status === EXIT.done) run.status = repaired.state === "running" ? EXIT.failed : repaired.status;
  const who = run.child ? run.command[0] : "the host agent";
  ctx.say("info", instance, `${who} ended with ${signal ?? `status ${code}`}`);
  await journal(ctx, instance, "end", { requested: false, code, signal: signal ?? null, status: run.status, ranS });
}

// ══════════════════════════════════════════════════════════════════════════════════════════════ part III: the edges ══

// ──────────────────────────────────────────────────────────────────────────────────────────────────────── the edges ──

// ── the real host
/** The machine itself: the only place that touches Deno. */
export function realHost(): Host {
  return {
    os: Deno.build.os === "darwin" ? "darwin" : "linux",
    uid: Deno.uid() ?? -1,
    self: { pid: Deno.pid, program: Deno.execPath(), ...Deno.build.standalone ? {} : { script: Deno.mainModule } },
    env: (name) => Deno.env.get(name),
    wallMs: () => Date.now(),
    clockMs: () => performance.now(),
    uptimeMs: () => Deno.osUptime() * 1000,
    pause: (ms) => new Promise((resolve) => setTimeout(resolve, Math.max(0, ms))),
    ...fileEffects,
    alive: (pid) => {
      if (!isPid(pid)) return "no";
      const asked = tryCall(() => Deno.kill(pid, 0 as unknown as Deno.Signal));
      return asked.trouble === undefined ? "yes" : asked.trouble === "absent" ? "no" : "another user's";
    },
    signal: (pid, signal) => {
      if (!isPid(pid)) return { trouble: "other", why: `${pid} is no PID` };
      return tryCall(() => Deno.kill(pid, signal));
    },
    run: runToEnd,
    start: (command) => tryCall(() => command.supervised ? startSupervised(command) : startChild(command)),
    connect: openConnection,
    onSignal: (signal, take) => Deno.addSignalListener(signal, take),
    columns: () => Deno.stderr.isTerminal() ? tryCall(() => Deno.consoleSize().columns).ok || 80 : undefined,
    stdout: writeResult,
    // Written through. A reader that went away, or a full disk, must never stop a stop.
    stderr: (text) => void tryCall(() => writeAll(Deno.stderr, text)),
  };
}

const fileEffects = {
  stat: (path, follow) => tryCall(() => fileInfoOf(path, follow ? Deno.statSync(path) : Deno.lstatSync(path))),
  list: (dir) => tryCall(() => [...Deno.readDirSync(dir)].map((e) => e.name)),
  read: (path, most) => tryCall(() => new TextDecoder().decode(readTailBytes(path, most))),
  realPath: (path) => tryCall(() => Deno.realPathSync(path)),
  writeTrouble: (path) => {
    const opened = tryCall(() => Deno.lstatSync(path).isFile && Deno.openSync(path, { write: true }).close());
    return opened.trouble === "read-only" ? opened.why : undefined;
  },
  remove: (path) => tryCall(() => Deno.removeSync(path)),
  rename: (from, to) => tryCall(() => Deno.renameSync(from, to)),
  append: (path, text) =>
    tryCall(() => {
      using file = Deno.openSync(path, { append: true, create: true, mode: 0o644 });
      writeAll(file, text);
      // SMB and NFS refuse a sync: the line is there all the same.
      tryCall(() => file.syncDataSync());
    }),
  openLock: (path, create) => tryCall(() => openLock(path, create)),
  copyTail: (from, to, most) =>
    tryCall(() => {
      Deno.mkdirSync(dirname(to), { recursive: true });
      Deno.writeFileSync(to, readTailBytes(from, most));
    }),
} satisfies Partial<Host>;

/** Turns what the system throws into an answer. Non-system errors are bugs: rethrow. */
function tryCall<T>(effect: () => T): Result<T> {
  try {
    return { ok: effect() };
  } catch (error) {
    return errorKindOf(error);
  }
}

function errorKindOf(error: unknown): { trouble: ErrorKind; why: string } {
  if (!(error instanceof Error)) throw error;
  const code = (error as { code?: string }).code ?? /\bE[A-Z]{3,}\b/.exec(error.message)?.[0];
  const why = error.message;
  const { errors } = Deno;
  if (error instanceof errors.NotFound || code === "ENOTDIR" || code === "ESRCH") return { trouble: "absent", why };
  if (error instanceof errors.PermissionDenied || error instanceof errors.NotCapable) return { trouble: "denied", why };
  if (error instanceof errors.ConnectionRefused || code === "EPIPE") return { trouble: "refused", why };
  if (error instanceof errors.WouldBlock) return { trouble: "full", why };
  if (code === "EROFS") return { trouble: "read-only", why };
  if (["ENOTSUP", "EOPNOTSUPP", "ENOSYS"].includes(code ?? "")) return { trouble: "unsupported", why };
  return { trouble: "other", why };
}

function fileInfoOf(path: string, info: Deno.FileInfo): FileInfo {
  const special = info.isFifo ? "FIFO" : info.isSocket ? "socket" : "device";
  const kind = info.isSymlink ? "link" : info.isFile ? "file" : info.isDirectory ? "directory" : special;
  const target = info.isSymlink ? { target: Deno.readLinkSync(path) } : {};
  const { dev, ino, size, mtime } = info;
  const numbers = { dev, ino: ino ?? 0, size, mtimeMs: mtime?.getTime() ?? 0 };
  return { kind, ...numbers, ...target, uid: info.uid ?? -1, mode: (info.mode ?? 0) & 0o777 };
}

function readTailBytes(path: string, most: number): Uint8Array {
  using file = Deno.openSync(path);
  const { size } = file.statSync();
  if (size > most) file.seekSync(size - most, Deno.SeekMode.Start);
  // Files of /proc say that they are empty.
  const bytes = new Uint8Array(size === 0 ? Math.min(most, 4096) : Math.min(most, size));
  let filled = 0;
  for (let n: number | null; filled < bytes.length && (n = file.readSync(bytes.subarray(filled))) !== null;) {
    filled += n;
  }
  return bytes.subarray(0, filled);
}

function openLock(path: string, create: boolean | "with its folder"): LockFile {
  if (create === "with its folder") Deno.mkdirSync(dirname(path), { recursive: true });
  const kind = tryCall(() => fileInfoOf(path, Deno.lstatSync(path))).ok?.kind;
  if (kind !== undefined && kind !== "file" && kind !== "directory") throw new Error(`${path} is a ${kind}`);
  // Who makes no file writes none either: a lock can be tried by every user who may read it.
  const file = Deno.openSync(path, create ? { read: true, write: true, create: true } : { read: true });
  let pending: Promise<boolean> | undefined;
  return {
    tryLock: () => tryCall(() => file.tryLockSync(true)),
    // Nothing can cancel a pending flock: the next wait uses the same one, and closing the file releases it.
    lockWithin: (ms) => orAtLimit(pending ??= file.lock(true).then(() => true, () => false), ms, false),
    // A directory that is locked has no record, nor has a file that is gone meanwhile.
    read: () => fileEffects.read(path, 4096).ok ?? "",
    write: (text) => {
      // In the place and size of the one before: who reads meanwhile finds a whole line, and a full disk leaves the old one.
      const bytes = new TextEncoder().encode(text.padEnd(1024));
      tryCall(() => file.seekSync(0, Deno.SeekMode.Start));
      if (tryCall(() => file.writeSync(bytes)).ok) tryCall(() => file.truncateSync(bytes.length));
    },
    close: () => tryCall(() => file.close()),
  };
}

/** A promise's value, or another after a time. The timer does not outlive the answer. */
async function orAtLimit<T>(promise: Promise<T>, ms: number, otherwise: T): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<T>((resolve) => timer = setTimeout(() => resolve(otherwise), Math.max(0, ms)));
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

// ── the real host: processes and sockets
function spawn({ argv: [program, ...args], env, unset, apart }: Command, how: Deno.CommandOptions): Deno.ChildProcess {
  const whole = { ...apart ? {} : Deno.env.toObject(), ...env };
  for (const name of unset ?? []) delete whole[name];
  // ssh, launchctl and what a script calls are looked for there.
  whole["PATH"] = longerPath(whole["PATH"], SYSTEM_FOLDERS);
  return new Deno.Command(program, { args, env: whole, clearEnv: true, ...apart ? { cwd: "/" } : {}, ...how }).spawn();
}

/** `signal:` of Deno.Command is no limit (one SIGTERM, and a grandchild may hold the pipe): so its whole own group. */
async function runToEnd(command: Command, limitMs: number): Promise<Result<CommandResult>> {
  const piped = { stdin: "null", stdout: "piped", stderr: "piped", detached: true } as const;
  const child = tryCall(() => spawn(command, piped));
  if (child.trouble) return child;
  command.onStart?.(() => tryCall(() => child.ok.kill("SIGINT")));
  const answer = await orAtLimit(child.ok.output(), limitMs, undefined);
  if (answer === undefined) {
    tryCall(() => Deno.kill(-child.ok.pid, "SIGKILL"));
    return { trouble: "limit", why: `${command.argv[0]} did not end within ${Math.round(limitMs)} ms` };
  }
  const text = new TextDecoder();
  const { code, signal, stdout, stderr } = answer;
  return { ok: { code, signal: signal ?? undefined, stdout: text.decode(stdout), stderr: text.decode(stderr) } };
}

/** Its own session: Ctrl-C at the terminal is meant for lima-guard. */
function startChild(command: Command): Child {
  const child = spawn(command, { stdin: "piped", stdout: "piped", stderr: "piped", detached: true });
  const input = child.stdin.getWriter();
  let last = "";
  const errorsEnd = eachLine(child.stderr, (line) => last = line.trim() || last);
  return {
    pid: child.pid,
    ended: child.status.then(async ({ code, signal }) => {
      await orAtLimit(errorsEnd, POLL_MS, undefined);
      return { code, signal: signal ?? undefined };
    }),
    kill: (signal) => tryCall(() => child.kill(signal)),
    // The reader may be gone: then its end tells more than the failed write.
    say: (text) => input.write(new TextEncoder().encode(text)).catch(() => {}),
    onLine: (take) => void eachLine(child.stdout, take),
    lastWords: () => last,
  };
}

/**
 * launchd ends what is left of lima-guard's process group, so the command stays in it. At a terminal it gets a session
 * of its own: Ctrl-C would reach a host agent before the stop stages do. stdin is never a terminal: Lima would log there.
 */
function startSupervised(command: Command): Child {
  const detached = Deno.stdin.isTerminal();
  const child = spawn(command, { stdin: "null", stdout: "inherit", stderr: "inherit", detached });
  return {
    pid: child.pid,
    ended: child.status.then(({ code, signal }) => ({ code, signal: signal ?? undefined })),
    kill: (signal) => tryCall(() => child.kill(signal)),
    say: () => Promise.resolve(),
    onLine: () => {},
    lastWords: () => "",
  };
}

/** What is kept of a line that does not end: a child that floods its stdout must not cost a stop its time. */
const LINE_LIMIT = 4096;

async function eachLine(stream: ReadableStream<Uint8Array>, take: (line: string) => void): Promise<void> {
  let rest = "";
  const text = new TextDecoder();
  for await (const chunk of stream) {
    const lines = (rest + text.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop()?.slice(0, LINE_LIMIT) ?? "";
    for (const line of lines) take(line.slice(0, LINE_LIMIT));
  }
}

async function openConnection(to: string | { port: number }, limitMs: number): Promise<Result<Connection>> {
  const connecting: Promise<Deno.Conn> = typeof to === "string"
    ? Deno.connect({ transport: "unix", path: to })
    : Deno.connect({ hostname: "127.0.0.1", port: to.port });
  const tried: Promise<Result<Deno.Conn>> = connecting.then((ok) => ({ ok }), errorKindOf);
  const answer = await orAtLimit(tried, limitMs, { trouble: "limit", why: "it did not accept in time" });
  if (answer.trouble === "limit") void tried.then((late) => late.ok?.close());
  if (answer.trouble) return answer;
  const conn = answer.ok;
  const bytes = new Uint8Array(4096);
  return {
    ok: {
      // An end of the connection shows in read(); close() makes both fail, on purpose.
      write: async (text) => void await conn.write(new TextEncoder().encode(text)).catch(() => 0),
      read: async () => {
        const n = await conn.read(bytes).catch(() => null);
        return n === null ? undefined : new TextDecoder().decode(bytes.subarray(0, n));
      },
      close: () => tryCall(() => conn.close()),
    },
  };
}

function writeAll(to: { writeSync(bytes: Uint8Array): number }, text: string): void {
  const bytes = new TextEncoder().encode(text);
  for (let sent = 0; sent < bytes.length;) sent += to.writeSync(bytes.subarray(sent));
}

/** POSIX's smallest PIPE_BUF: so many bytes are written as a whole or not at all. */
const PIPE_BYTES = 512;

/** How long a pipe that another program has made non-blocking may stay full. */
const FULL_PIPE_MS = 10_000;

/** The result, which is the last thing that is written, also to a pipe that does not block: its reader may be slow. */
function writeResult(text: string): string | undefined {
  const bytes = new TextEncoder().encode(text);
  const clock = new Int32Array(new SharedArrayBuffer(4));
  for (let sent = 0, fullMs = 0; sent < bytes.length;) {
    const wrote = tryCall(() => Deno.stdout.writeSync(bytes.subarray(sent, sent + PIPE_BYTES)));
    if (wrote.trouble === "refused") return undefined;
    if (wrote.trouble && (wrote.trouble !== "full" || fullMs >= FULL_PIPE_MS)) return wrote.why;
    sent += wrote.ok ?? 0;
    fullMs = wrote.ok ? 0 : fullMs + 10;
    if (!wrote.ok) Atomics.wait(clock, 0, 0, 10);
  }
  return undefined;
}

// ── command line
/** Every option there is, in the order of the help text, which is made from this table. */
export const OPTIONS = [
  {
    flag: "pre",
    argument: "INSTANCE…",
    text: "remove what stops it from starting, and an orphaned VM; never starts it",
  },
  { flag: "stop", argument: "INSTANCE…", text: "stop gracefully, then hard; several at once in parallel" },
  {
    flag: "run",
    argument: "INSTANCE -- COMMAND…",
    text: "--pre, then run COMMAND; on SIGTERM do --stop; exit with its status",
  },
  { flag: "status", argument: "[INSTANCE…]", text: "what lima-guard sees, why, and what it would do; changes nothing" },
  { flag: "install", argument: "INSTANCE…", text: "let launchd run lima-guard (these three: --install --help)" },
  { flag: "check", argument: "INSTANCE…", text: "is the job, in its file and as loaded, still run by lima-guard?" },
  { flag: "uninstall", argument: "INSTANCE…", text: "give launchd the plist as it was before" },
  { flag: "all", text: "with --pre, --stop, --status: every instance (root's --stop, --status: also what users run)" },
  {
    flag: "lima-home",
    argument: "DIR",
    text: "where the instances are (default: $LIMA_HOME, else all Lima homes of the user)",
  },
  { flag: "timeout", argument: "SECONDS", text: `the time limit of a stop (default: ${DEFAULT_BUDGET_S})` },
  {
    flag: "wait",
    argument: "SECONDS",
    text: "with --status: until the VMs run and their guests are up; 75 if they do not",
  },
  { flag: "on-event", argument: "PROGRAM", text: "run it at each event of --run, --pre, --stop (absolute path)" },
  { flag: "dry-run", short: "n", text: "observe, plan, print, leave; exit as the real run would" },
  { flag: "json", text: "one JSON document on stdout" },
  { flag: "verbose", short: "v", text: "say more on stderr" },
  { flag: "help", short: "h", text: "print this and exit" },
  { flag: "version", short: "V", text: "print the version and exit" },
] as const;

const ROLES = ["pre", "stop", "run", "status"] as const;

/** What the command line asks for. */
interface Invocation {
  readonly role: typeof ROLES[number];
  readonly names: readonly string[];
  /** What `--run` runs; empty for the other roles. */
  readonly command: readonly string[];
  readonly all: boolean;
  readonly limaHome: string | undefined;
  readonly budgetS: number;
  /** `--timeout`, where it was given: what launchd grants is only ever shortened by it. */
  readonly limitS: number | undefined;
  /** `--wait`: for how long `--status` looks again. */
  readonly waitS: number | undefined;
  /** The program to run at each event. */
  readonly onEvent: string | undefined;
  readonly dryRun: boolean;
  readonly json: boolean;
  readonly verbose: boolean;
}

const USAGE = `usage: lima-guard --pre INSTANCE… | --pre --all
       lima-guard --stop INSTANCE… | --stop --all
       lima-guard --run INSTANCE -- limactl start INSTANCE --foreground
       lima-guard --status [INSTANCE…]
       lima-guard --install | --check | --uninstall INSTANCE…
`;

/** A command line that is refused before anything is touched: why, and what to type instead. */
type Refused = { readonly usage: string; readonly hint?: string };

/** An option that is not understood, with the one that was probably meant. */
function misspelt(arg: string, options: readonly CommandLineOption[]): Refused {
  const usage = `Cannot understand ${JSON.stringify(arg)}`;
  const [, word = "", value] = /^-+([^=]*)(?:=(.*))?$/s.exec(arg) ?? [];
  const option = options.find((o) => o.flag === nearest(word, options.map(({ flag }) => flag)));
  if (option === undefined) return { usage };
  if (value === undefined) return { usage, hint: `did you mean --${option.flag}?` };
  if (option.argument === undefined) return { usage, hint: `--${option.flag} takes no value` };
  if (!option.argument.includes("INSTANCE")) return { usage, hint: `did you mean --${option.flag}=${value}?` };
  const hint = `--${option.flag} takes names as separate words`;
  const name = nameTrouble(value) === undefined ? `, as in --${option.flag} ${value}` : "";
  return { usage, hint: hint + name };
}

interface CommandLineOption {
  readonly flag: string;
  readonly argument?: string;
  readonly short?: string;
  readonly text: string;
}

/** The arguments of a command line that is understood. */
interface ReadArguments {
  has(flag: string): boolean;
  value(flag: string): string | undefined;
  readonly words: readonly string[];
}

/** A command line by the table of its options: their rows in `--help`, in columns, and how arguments are read. */
export function commandLine(options: readonly CommandLineOption[]): {
  rows(width: number): string;
  read(args: readonly string[]): ReadArguments | Refused;
} {
  // INSTANCE is a word of its own, which may stand anywhere.
  const valued = options.filter((o) => o.argument?.includes("INSTANCE") === false).map((o) => o.flag);
  const switches = options.map((o) => o.flag).filter((flag) => !valued.includes(flag));
  const shorts = options.flatMap((o) => o.short === undefined ? [] : [[o.short, o.flag]]);
  const letters = shorts.map(([letter]) => letter).join("");
  const known = new RegExp(`^(--(${switches.join("|")})|-[${letters}]+|--(${valued.join("|")})(=.*)?)$`, "s");
  const rows = (width: number) =>
    options.map(({ flag, argument = "", short, text }) => {
      const whole = `${short === undefined ? "" : `-${short}, `}--${flag} ${argument}`;
      return `  ${whole.trimEnd().padEnd(width)}  ${text}`;
    }).join("\n");
  const read = (args: readonly string[]) => {
    const unknown = args.find((arg) => /^-./s.test(arg) && !known.test(arg));
    if (unknown !== undefined) return misspelt(unknown, options);
    // parseArgs takes `true` after a switch for its value, which an instance may be called, and `-` never for one.
    const parsed: Record<string, unknown> & { _: unknown[] } = parseArgs(
      args.map((arg) => /^(true|false|-)$/.test(arg) ? `\0${arg}` : arg),
      { boolean: switches, string: ["_", ...valued], alias: Object.fromEntries(shorts) },
    );
    return {
      has: (flag: string) => parsed[flag] === true,
      value: (flag: string) => parsed[flag] === undefined ? undefined : String(parsed[flag]).replace("\0", ""),
      words: [...new Set(parsed._.map((word) => String(word).replace("\0", "")))],
    };
  };
  return { rows, read };
}

const COMMAND_LINE = commandLine(OPTIONS);

const HELP = `lima-guard ${VERSION}: start Lima instances cleanly, and stop them safely

${USAGE}
${COMMAND_LINE.rows(32)}

Exit statuses: 0 done, or nothing to do; 1 a step failed; 64 usage; 66 no such instance;
75 could not find out, or another lima-guard is using it: try again; 77 not permitted.

Try: lima-guard --pre --dry-run default
`;

/** What the arguments ask for: a role of this file, one of install.ts, a text to print, or nothing that can be done. */
type Asked = Invocation | { install: readonly string[] } | { print: string } | Refused;

/** Reads the arguments. Touches nothing. */
export function parseCommandLine(args: readonly string[]): Asked {
  const ours = ownWords(args);
  // install.ts reads its own options.
  if (ours.some((a) => ["--install", "--check", "--uninstall"].includes(a))) return { install: args };
  const given = COMMAND_LINE.read(ours);
  if ("usage" in given) return given;
  if (given.has("help")) return { print: HELP };
  if (given.has("version")) return { print: `lima-guard ${VERSION}\n` };
  const roles = ROLES.filter((role) => given.has(role));
  const [role] = roles;
  if (role === undefined) {
    const meant = nearest(given.words[0] ?? "", OPTIONS.map(({ flag }) => flag));
    return { usage: "No command is given", ...meant === undefined ? {} : { hint: `did you mean --${meant}?` } };
  }
  if (roles.length > 1) return { usage: `Cannot do --${roles.join(" and --")} at once` };
  return invocationOf(role, given, ours.length < args.length ? args.slice(ours.length + 1) : undefined);
}

function invocationOf(
  role: Invocation["role"],
  { has, value, words: names }: ReadArguments,
  command: readonly string[] | undefined,
): Invocation | Refused {
  const [all, dryRun, json, verbose] = [has("all"), has("dry-run"), has("json"), has("verbose")];
  const [limaHome, timeout, onEvent, wait] = ["lima-home", "timeout", "on-event", "wait"].map(value);
  if (all && role === "run") return { usage: "--run takes one instance, --all goes with --pre, --stop and --status" };
  if (all && names.length > 0) return { usage: "Cannot take --all and instance names at once" };
  if (!all && names.length === 0 && role !== "status") return { usage: "No instance is named" };
  if (role === "run" && names.length > 1) {
    return { usage: "--run takes one instance (what follows `--` is the command)" };
  }
  if (role === "run" && !command?.[0]) return { usage: "--run needs a command after `--`" };
  if (role !== "run" && command) return { usage: "`--` and a command go with --run" };
  const bad = names.find(nameTrouble);
  if (bad !== undefined) return { usage: `Cannot take ${JSON.stringify(bad)} as instance name: ${nameTrouble(bad)}` };
  if (limaHome === "") return { usage: "--lima-home needs a directory" };
  for (const [flag, text] of [["--timeout", timeout], ["--wait", wait]] as const) {
    if (text === undefined || (/^\d+(\.\d+)?$/.test(text) && Number(text) >= 1 && Number(text) <= 3600)) continue;
    return { usage: `Cannot take ${JSON.stringify(text)} as ${flag}: it is a number of seconds, 1 to 3600` };
  }
  if (wait !== undefined && role !== "status") return { usage: "--wait goes with --status" };
  const [limitS, waitS] = [timeout, wait].map((text) => text === undefined ? undefined : Number(text));
  const budgetS = waitS ?? limitS ?? DEFAULT_BUDGET_S;
  if (onEvent !== undefined && !onEvent.startsWith("/")) return { usage: "--on-event needs an absolute path" };
  if (role === "run" && json && !dryRun) return { usage: "--json goes with --run only in a --dry-run" };
  return { role, names, command: command ?? [], all, limaHome, budgetS, limitS, waitS, onEvent, dryRun, json, verbose };
}

// ── main
/** Runs lima-guard with these arguments on this host. Returns the exit status. */
export async function main(args: readonly string[], host: Host): Promise<number> {
  try {
    return await runRequest(args, host);
  } catch (error) {
    const what = `internal error: ${error instanceof Error ? error.stack ?? error.message : String(error)}`;
    return refuseRequest(host, args, EXIT.failed, what);
  }
}

/** Leaves without a report of any instance: one line on stderr, and with `--json` a document on stdout. */
function refuseRequest(host: Host, args: readonly string[], status: number, what: string, hint?: string): number {
  host.stderr(`lima-guard: ${what}${hint === undefined ? "" : ` (hint: ${hint})`}\n`);
  if (!wantsJson(args)) return status;
  // The role, where exactly one is named.
  const [role = null, second] = ROLES.filter((role) => ownWords(args).includes(`--${role}`));
  const more = { status, error: { what, hint: hint ?? null } };
  return printResult(host, toJson(second === undefined ? role : null, [], more), status);
}

/** Prints what was asked for. Returns the exit status: one whose output was lost has not done it. */
function printResult(host: Host, text: string, status: number): number {
  const why = host.stdout(text);
  if (why === undefined) return status;
  host.stderr(`lima-guard: Cannot write the result: ${why}\n`);
  return status === EXIT.done ? EXIT.failed : status;
}

function wantsJson(args: readonly string[]): boolean {
  return ownWords(args).includes("--json");
}

async function runRequest(args: readonly string[], host: Host): Promise<number> {
  const invocation = parseCommandLine(args);
  if ("print" in invocation) {
    const text = invocation.print;
    return printResult(host, wantsJson(args) ? toJson(null, [], { status: EXIT.done, text }) : text, EXIT.done);
  }
  if ("usage" in invocation) {
    const { usage, hint } = invocation;
    const whole = hint === undefined ? HELP_COMMAND : `${hint}${hint.endsWith("?") ? "" : ";"} ${HELP_COMMAND}`;
    const status = refuseRequest(host, args, EXIT.usage, usage, whole);
    if (args.length === 0) host.stderr(USAGE);
    return status;
  }
  if ("install" in invocation) return await install(invocation.install, host);
  const { onEvent } = invocation;
  if (onEvent !== undefined && host.stat(onEvent, "follow links").ok?.kind !== "file") {
    const what = `Cannot find the program of --on-event: ${onEvent}`;
    return refuseRequest(host, args, EXIT.usage, what, HELP_COMMAND);
  }
  return await serveRequest(await withHome(host), invocation, args);
}

/** The host with HOME as the user database has it, where none is given; for what is started too: limactl panics without. */
async function withHome(host: Host): Promise<Host> {
  const HOME = host.env("HOME") ? undefined : (await userEntry(host)).ok?.home;
  if (HOME === undefined) return host;
  const env = (name: string) => name === "HOME" ? HOME : host.env(name);
  return { ...host, env, start: (command) => host.start({ ...command, env: { HOME, ...command.env } }) };
}

async function serveRequest(host: Host, invocation: Invocation, args: readonly string[]): Promise<number> {
  const { role, all, names, dryRun } = invocation;
  const given = limaHomes(host, invocation.limaHome);
  // A hook of root's may have no HOME; then only the users' homes are served.
  const isRootsAll = host.uid === 0 && all && ("why" in given || !given.isExplicit);
  const isMachine = isRootsAll && (role === "stop" || role === "status");
  const homes = isMachine && "why" in given ? { isExplicit: false, paths: [] } : given;
  if ("why" in homes) return refuseRequest(host, args, EXIT.tryAgain, homes.why, "--lima-home DIR names it");
  const ctx = makeContext(host, invocation);
  if (role === "stop") onSkipSignals(ctx);
  const machine = isMachine ? wholeMachine(ctx) : Promise.resolve([]);
  // What belongs to other users keeps --all from answering 0.
  const others = isRootsAll && role === "pre" ? await livingReports(ctx, ({ uid }) => uid !== host.uid) : [];
  const listed = all || names.length === 0
    ? await everyInstance(ctx, homes)
    : { ok: names.map((name) => ({ name, homes, home: undefined })), unknown: [] };
  const wanted = "because" in listed && (isMachine || others.length > 0) ? { ok: [], unknown: [] } : listed;
  if ("because" in wanted) {
    const what = `Cannot list the instances of ${homes.paths[0]}: ${wanted.because}`;
    return refuseRequest(host, args, wanted.status, what, "--lima-home DIR names another LIMA_HOME");
  }
  const [program, ...rest] = invocation.command;
  if (program !== undefined && !dryRun) {
    return await superviseRun({ ctx, homes, name: names[0] ?? "", command: [program, ...rest] });
  }
  const { own, isLate } = await serveAll(ctx, wanted.ok, invocation);
  const left = role === "stop" && all && !isMachine ? await leftOver(ctx, homes, wanted.ok) : [];
  const served = [...own, ...others, ...await machine, ...wanted.unknown, ...left];
  const reports = isMachine ? [...served, ...await stillLiving(ctx, served)] : served;
  const named = withHomes(reports);
  const text = role === "status" ? formatStatus(named, invocation.verbose) : formatReports(named, dryRun);
  // Where there is no VM at all none is up.
  const isVain = isLate || (invocation.waitS !== undefined && reports.length === 0);
  const status = worst([...reports.map((r) => r.status), ...isVain ? [EXIT.tryAgain] : []]);
  const printed = printResult(host, invocation.json ? toJson(role, reports) : text, status);
  // Without a document the status is the answer, and a full disk stops no start.
  return invocation.json || role === "status" ? printed : status;
}

/** For people: instances of one name are shown with their LIMA_HOME. The reports of other users' say it anyway. */
function withHomes(reports: readonly Report[]): Report[] {
  const isTwice = (r: Report) => reports.some((other) => other !== r && other.name === r.name);
  const named = ({ name, home }: Report) => `${name} (${home})`;
  return reports.map((r) => r.home && r.owner === undefined && isTwice(r) ? { ...r, name: named(r) } : r);
}

/** How often `--status --wait` looks again. */
const WAIT_POLL_MS = 1_000;

/** Serves the instances; with `--wait` again and again, until all of them run and their guests are up as far as is known. */
async function serveAll(ctx: Context, wanted: readonly Requested[], { command, waitS = 0 }: Invocation) {
  const endMs = waitS === 0 ? 0 : ctx.host.clockMs() + waitS * 1000;
  for (;;) {
    const own: (Report & Partial<Details>)[] = await Promise.all(
      wanted.map(async (one) => ({ ...await runRole(ctx, one, command), home: one.home })),
    );
    const isUp = (r: typeof own[number]) => r.state === "running" && r.ready !== false;
    // Waiting brings no instance that is not there, and no permission.
    const isFinal = own.some((r) => r.status !== EXIT.done && r.status !== EXIT.failed && r.status !== EXIT.tryAgain);
    if (waitS === 0 || own.every(isUp) || isFinal) return { own, isLate: false };
    const leftMs = endMs - ctx.host.clockMs();
    if (leftMs <= 0) {
      return { own: own.map((r) => isUp(r) ? r : { ...r, status: worst([r.status, EXIT.tryAgain]) }), isLate: true };
    }
    await ctx.host.pause(Math.min(WAIT_POLL_MS, leftMs));
  }
}

/** What install.ts does. It is part of the compiled lima-guard; a copy of this file alone is without it. */
async function install(args: readonly string[], host: Host): Promise<number> {
  try {
    // As a `string`, so that Deno looks for it only here: else every start would load install.ts, and want its packages.
    const { installMain }: typeof import("./install.ts") = await import("./install.ts" as string);
    return await installMain(args);
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === "ERR_MODULE_NOT_FOUND")) throw error;
    const hint = "use the compiled lima-guard, or put install.ts beside lima_guard.ts";
    return refuseRequest(host, args, EXIT.failed, "Cannot do this here: install.ts is not part of this copy", hint);
  }
}

/** One role for one instance. What is thrown is an internal error; the other instances must not suffer from it. */
async function runRole(ctx: Context, { homes, name }: Requested, command: readonly string[]): Promise<Report> {
  try {
    if (ctx.role === "status") return await runStatus(ctx, homes, name);
    const found = await findInstance(ctx, homes, name);
    if ("report" in found) return found.report;
    if (ctx.role === "stop") return await runStop(ctx, found.instance);
    const reported = await runPre(ctx, found.instance);
    if (reported.blockers.length > 0) {
      const { state, status, blockers } = reported;
      announce(ctx, found.instance, "blocked", { event: "blocked", state, status, because: blockers[0]?.because });
    }
    if (ctx.role !== "run" || reported.state === "running") return reported;
    const because = reported.status === EXIT.done ? "nothing is in the way then" : "once nothing is in the way";
    const step = { kind: "start" as const, what: `run ${command.map(quote).join(" ")}`, because, outcome: "planned" };
    return { ...reported, steps: [...reported.steps, step] };
  } catch (error) {
    const because = `lima-guard failed: ${error instanceof Error ? error.stack ?? error.message : String(error)}`;
    return report(name, "unknown", EXIT.failed, because, { blockers: [{ what: name, because }] });
  }
}

/** The first signal of a stop skips a stage, a further one if it is no echo. A terminal that goes away ends no stop. */
function onSkipSignals(ctx: Context): void {
  ctx.host.onSignal("SIGHUP", () => {});
  let lastMs = -Infinity;
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    ctx.host.onSignal(signal, () => {
      const nowMs = ctx.host.clockMs();
      if (nowMs - lastMs < SKIP_APART_MS) return;
      lastMs = nowMs;
      ctx.skips.count++;
      ctx.skips.wakeUp.notify();
    });
  }
}

/** A line for stderr: with date and time where it goes to a file, as launchd's logs do. */
export function logLine(host: Pick<Host, "columns" | "wallMs">, text: string): string {
  const time = host.columns() !== undefined ? "" : `${new Date(host.wallMs()).toISOString()} `;
  return `${time}lima-guard: ${text}\n`;
}

/** The line of a wait, cut to the columns of the terminal: what wraps could not be cleared. */
export function progressLine(
  waits: readonly { name: string; stage: string; leftS: number }[],
  columns: number,
): string {
  const long = waits.map(({ name, stage, leftS }) => `${name}: ${stage}, ${leftS} s left`).join(" · ");
  const stages = [...new Set(waits.map(({ stage }) => stage))];
  const counts = stages.map((stage) => `${waits.filter((w) => w.stage === stage).length} in ${stage}`).join(", ");
  const leftS = Math.max(...waits.map((w) => w.leftS));
  const text = long.length < columns || waits.length === 1
    ? long
    : `${waits.length} instances: ${counts}, ${leftS} s left`;
  return text.slice(0, Math.max(0, columns - 1));
}

function makeContext(host: Host, { role, dryRun, budgetS, limitS, waitS, onEvent, verbose }: Invocation): Context {
  /** By the directory of the instance: two homes may have one of the same name. */
  const stages = new Map<string, { name: string; stage: string; deadlineMs: number }>();
  const show = host.columns() !== undefined && !dryRun;
  const clear = () => show && stages.size > 0 ? host.stderr("\r\x1b[K") : undefined;
  // std's console handler writes to stdout, its file handler loses lines.
  class StderrHandler extends BaseHandler {
    override log(text: string): void {
      clear();
      host.stderr(logLine(host, text));
    }
  }
  const handler = new StderrHandler("DEBUG", {
    formatter: ({ levelName, msg }) => `${levelName === "INFO" ? "" : `${levelName}: `}${msg}`,
  });
  const log = new Logger("lima-guard", verbose ? "DEBUG" : "INFO", { handlers: [handler] });
  const say: Context["say"] = (level, instance, text) => log[level](`${role} ${instance.name}: ${text}`);
  const tell = async () => {
    for (; stages.size > 0; await host.pause(1000)) {
      const waits = [...stages.values()].map((s) => ({ ...s, leftS: secondsLeft(host, s.deadlineMs) }));
      host.stderr(`\r\x1b[K${progressLine(waits, host.columns() ?? 0)}`);
    }
  };
  const stage: Context["stage"] = (instance, name, deadlineMs) => {
    clear();
    const wasEmpty = stages.size === 0;
    if (name === "") return void stages.delete(instance.dir);
    stages.set(instance.dir, { name: instance.name, stage: name, deadlineMs });
    if (!show) say("info", instance, `stage ${name}, ${secondsLeft(host, deadlineMs)} s left`);
    else if (wasEmpty) void tell();
  };
  const fresh = { skips: { count: 0, wakeUp: new WakeUp() }, cache: {}, abort: undefined };
  return { host, role, dryRun, budgetS, limitS: limitS ?? Infinity, waitS, onEvent, say, stage, ...fresh };
}

/** Does what the arguments of this process ask for, and ends it. */
export function runAsProgram(): void {
  const host = realHost();
  // An uncaught throw would make Deno SIGKILL our children: logged, and ignored.
  for (const kind of ["error", "unhandledrejection"] as const) {
    addEventListener(kind, (event) => {
      event.preventDefault();
      const cause = "reason" in event ? event.reason : (event as ErrorEvent).error;
      host.stderr(`lima-guard: internal error: ${cause?.stack ?? cause}\n`);
    });
  }
  // Not awaited: install.ts imports this module, and would never see its end.
  Deno.exitCode = EXIT.failed;
  // Only with a turn of the event loop does Deno keep its compiled code for the next start; a timer would load Node's.
  const leave = (status: number) => Deno.lstat("/").finally(() => Deno.exit(status));
  main(Deno.args, host).catch((e) => (host.stderr(`lima-guard: ${e?.stack}\n`), EXIT.failed)).then(leave);
}

if (import.meta.main) runAsProgram();
