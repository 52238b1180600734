/** What the tests of `--stop` share: running it, and what is to hold of every stop. */

import assert from "node:assert/strict";
import { startAgent } from "./agents.ts";
import { type GuardOptions, type GuardResult, runGuard } from "./guard.ts";
import type { Home, Instance } from "./home.ts";
import { PID_FILES } from "./pid_files.ts";
import { isAlive } from "./processes.ts";

export interface Remark {
  readonly what: string;
  readonly because: string;
  readonly hint?: string;
}

/** The start time of a process, as lima-guard writes it into its lock. */
export function startTime(pid: number): string {
  const { stdout } = new Deno.Command("ps", {
    args: ["-o", "lstart=", "-p", String(pid)],
    env: { TZ: "UTC0", LC_ALL: "C" },
  }).outputSync();
  return new TextDecoder().decode(stdout).trim();
}

/** What `--json` says of one instance. */
export interface Report {
  readonly name: string;
  readonly state: string;
  readonly status: number;
  readonly stage: string | null;
  readonly seconds: Readonly<Record<string, number>>;
  readonly steps: readonly { kind: string; what: string; because: string; outcome: string }[];
  readonly blockers: readonly Remark[];
}

export interface StopResult extends GuardResult {
  readonly report: readonly Report[];
  /** From its start as a process to its end. */
  readonly tookS: number;
}

export interface StopOptions extends GuardOptions {
  /** `--timeout`. */
  budgetS?: number;
  /** More arguments. */
  args?: string[];
}

/** `lima-guard --stop NAME… --json`. The document has its stable fields, and its worst status is that of the run. */
export async function stop(
  home: Home,
  names: readonly string[],
  { budgetS, args = [], ...options }: StopOptions = {},
): Promise<StopResult> {
  const timeout = budgetS === undefined ? [] : ["--timeout", String(budgetS)];
  const before = performance.now();
  const result = await runGuard(home, ["--stop", "--json", ...timeout, ...args, ...names], options);
  return { ...result, report: readDocument(result), tookS: (performance.now() - before) / 1000 };
}

/** The same for one instance. */
export async function stopOne(
  instance: Instance,
  options: StopOptions = {},
): Promise<Omit<StopResult, "report"> & { readonly report: Report }> {
  const result = await stop(instance.home, [instance.name], options);
  assert.equal(result.report.length, 1);
  const report = result.report[0]!;
  assert.equal(report.name, instance.name);
  assert.equal(report.status, result.status, result.stdout);
  return { ...result, report };
}

/** The document of a stop, held against the fields that are promised. */
export function readDocument(result: GuardResult): Report[] {
  const document = result.json();
  assert.equal(document.version, 1);
  assert.equal(document.role, "stop");
  const promised = { name: "string", state: "string", status: "number", seconds: "object" };
  for (const report of document.instances) {
    for (const [field, type] of Object.entries(promised)) {
      assert.equal(typeof report[field], type, `${field} of a stop`);
    }
    assert.ok("stage" in report && (report.stage === null || typeof report.stage === "string"));
    for (const step of report.steps) {
      const fields = [step.kind, step.what, step.because, step.outcome];
      assert.ok(fields.every((field) => typeof field === "string" && field !== ""), JSON.stringify(step));
    }
    assert.ok(Array.isArray(report.blockers));
  }
  return document.instances;
}

/** When each stage must have ended, in seconds after the request; `guest` is for one that has not acknowledged. */
export function limitsOf(budgetS: number): Record<"guest" | "agent" | "driver" | "kill", number> {
  const tail = Math.min(9, budgetS / 2);
  const grace = budgetS - tail;
  return { guest: Math.min(120, Math.max(grace / 3, grace - 30)), agent: grace, driver: grace, kill: grace + tail / 3 };
}

/** The stages that were taken and what came of each, in order; removed files are no stages. */
export function stagesTaken({ steps }: Report): [string, string][] {
  return steps.filter((step) => step.kind !== "remove").map((step) => [step.kind, step.outcome]);
}

/** Files that would make the next `limactl start` refuse, or Lima signal the process that they name. */
export function stale(instance: Instance): string[] {
  return instance.files().filter((file) => /\.(pid|tmp)$/.test(file) || file === "ha.sock");
}

/** The bystander's PID stands in each PID file that does not name a process of the instance. */
export function nameInAllPidFiles(instance: Instance, pid: number): void {
  for (const file of PID_FILES) {
    const named = instance.pid(file);
    if (named === undefined || !isAlive(named)) instance.pidFile(file, pid);
  }
}

/** Lines of the journal. */
// deno-lint-ignore no-explicit-any
export function journal(instance: Instance): any[] {
  return (instance.read("lima-guard.jsonl") ?? "").split("\n").filter((line) => line !== "")
    .map((line) => JSON.parse(line));
}

/** The journal has the request, each stage and the end of the one stop that there was, and says what was reported. */
export function assertJournal(instance: Instance, report: Report): void {
  const lines = journal(instance);
  const stages = Object.keys(report.seconds).filter((key) => key !== "total");
  assert.deepEqual(lines.map((line) => line.event), ["stop", ...stages.map(() => "stage"), "end"]);
  for (const line of lines.slice(1, -1)) assert.equal(line.until, lines[0].limits[line.stage]);
  assert.deepEqual(lines.slice(1, -1).map((line) => line.stage), stages);
  for (const line of lines) {
    assert.equal(line.dir, instance.dir);
    assert.equal(line.role, "stop");
    assert.ok(Math.abs(Date.parse(line.time) - Date.now()) < 120_000, line.time);
    assert.ok(typeof line.boot === "string" && line.boot !== "");
  }
  const end = lines.at(-1);
  assert.equal(end.stage, report.stage);
  assert.equal(end.status, report.status);
  assert.deepEqual(end.seconds, report.seconds);
}

/** What a stopped instance did before is forgotten, and `limactl start` continues until it is Running. */
export async function startsAgain(instance: Instance): Promise<void> {
  instance.conf({ stop: "", qmp: "", ignore_term: "", stay_at: "", boot_ms: "", info: "" });
  await using agent = await startAgent(instance);
  assert.ok(agent.isAlive());
}

/** Does all of it at once, and ends when the last one has ended: also where one fails, and the others still tidy up. */
export async function sideBySide<T>(items: Iterable<T>, action: (item: T) => Promise<unknown>): Promise<void> {
  const ends = await Promise.allSettled([...items].map(action));
  const failed = ends.filter((end) => end.status === "rejected").map((end) => end.reason);
  if (failed.length > 0) throw failed.length === 1 ? failed[0] : new AggregateError(failed, failed.join("\n"));
}
