/** What the tests of `--pre` share: running it, and seeing whether anything has changed. */

import assert from "node:assert/strict";
import { type Agent, startAgent } from "./agents.ts";
import { type GuardOptions, type GuardResult, runGuard } from "./guard.ts";
import { type Conf, type Home, type Instance, tempLimaHome } from "./home.ts";
import { PID_FILES, USERNET } from "./pid_files.ts";
import { type Bystander, startBystander } from "./processes.ts";

export { PID_FILES, USERNET };

/** The guard's own files in an instance directory; it writes who it is into the lock at every run. */
export const LOCK = "lima-guard.lock";
export const JOURNAL = "lima-guard.jsonl";

export interface World {
  readonly home: Home;
  readonly k3s: Instance;
  /** Lives, belongs to the same user, and has nothing to do with Lima. */
  readonly bystander: Bystander;
}

export interface TestOptions {
  /** Why it cannot be run here. */
  readonly ignore?: string | false | undefined;
  readonly conf?: Conf;
  readonly yaml?: string;
  /** The directory's own name of LIMA_HOME. */
  readonly name?: string;
}

/** A test on a LIMA_HOME of its own; the bystander in it must have noticed nothing at its end. */
export function test(
  title: string,
  body: (world: World) => Promise<void>,
  { ignore, conf = {}, yaml = "", name = "lima" }: TestOptions = {},
) {
  Deno.test({
    name: ignore ? `${title} (skipped: ${ignore})` : title,
    ignore: Boolean(ignore),
    async fn() {
      await using home = await tempLimaHome({ name });
      const k3s = home.instance("k3s", { conf, yaml });
      await using bystander = await startBystander(home);
      await body({ home, k3s, bystander });
      bystander.assertAlive();
      assert.equal(home.wouldHaveCreated(), undefined);
    },
  });
}

/** What the bystander is, as lima-guard says it. */
export const SIRITTSD = /PID \d+ is not ours: it is "\/usr\/libexec\/sirittsd", none of Lima's programs/;
/** What goes with usernet's PID file. */
export const SOCKETS = ["ep", "fd", "qemu"].map((kind) => `../_networks/user-v2/user-v2_${kind}.sock`);

/** The bystander's PID in every PID file that is not there yet. Returns the files that it made. */
export function strew(k3s: Instance, pid: number): string[] {
  const made = PID_FILES.filter((file) => !k3s.has(file));
  for (const file of made) k3s.pidFile(file, pid);
  const network = k3s.home.network("user-v2", { sockets: true });
  Deno.writeTextFileSync(network.pidFile, `${pid}\n`);
  return [...made, `../${USERNET}`, ...SOCKETS];
}

export interface Remark {
  readonly what: string;
  readonly because: string;
  readonly hint?: string;
}

/** What `--json` says of one instance. */
export interface Report {
  readonly name: string;
  readonly state: string;
  readonly status: number;
  readonly steps: readonly { kind: string; what: string; because: string; outcome: string }[];
  readonly blockers: readonly Remark[];
  readonly notes: readonly Remark[];
}

export interface PreResult extends GuardResult {
  readonly report: Report;
}

export interface PreOptions extends GuardOptions {
  /** More arguments. */
  args?: string[];
}

/** `lima-guard --pre NAME --json`; its status and the document's are the same. */
export async function pre(instance: Instance, { args = [], ...options }: PreOptions = {}): Promise<PreResult> {
  const result = await runGuard(instance.home, ["--pre", instance.name, "--json", ...args], options);
  const document = result.json();
  assert.equal(document.role, "pre");
  assert.equal(document.instances.length, 1);
  const report: Report = document.instances[0];
  assert.equal(report.name, instance.name);
  assert.equal(report.status, result.status, result.stdout);
  return { ...result, report };
}

/** Everything below a directory, by its path: kind, owner, mode, times, content. A socket or FIFO is never opened. */
export function tree(root: string): Record<string, string> {
  const seen: Record<string, string> = {};
  const look = (path: string) => {
    const info = Deno.lstatSync(path);
    const { uid, gid, mode, ino, size } = info;
    const content = info.isFile
      ? hash(Deno.readFileSync(path))
      : info.isSymlink
      ? Deno.readLinkSync(path)
      : info.isDirectory
      ? "directory"
      : "special";
    const name = path.slice(root.length + 1) || ".";
    seen[name] = [uid, gid, mode?.toString(8), ino, size, info.mtime?.getTime(), content].join(" ");
    if (info.isDirectory) { for (const entry of Deno.readDirSync(path)) look(`${path}/${entry.name}`); }
  };
  look(root);
  return seen;
}

/** The whole text where it is short; else enough to tell it from another. */
function hash(bytes: Uint8Array): string {
  if (bytes.length <= 4096) return new TextDecoder().decode(bytes);
  let sum = 0;
  for (const byte of bytes) sum = (Math.imul(sum, 31) + byte) | 0;
  return `${bytes.length} bytes ${sum}`;
}

/** The test's whole directory, but not where Deno keeps what it has compiled for another user. */
export function everything(home: Home): Record<string, string> {
  return Object.fromEntries(
    Object.entries(tree(home.root)).filter(([path]) => path !== "." && !/^deno-dir/.test(path)),
  );
}

/** The same without the record in the lock, which every run writes again. */
export function allButLocks(home: Home): Record<string, string> {
  return Object.fromEntries(Object.entries(everything(home)).filter(([path]) => !path.endsWith(`/${LOCK}`)));
}

/** Paths below LIMA_HOME, sorted. */
export function paths(home: Home): string[] {
  return Object.keys(tree(home.lima)).sort();
}

/** A dry run writes nothing, not even a lock; what it says is returned. */
export async function dryRun(instance: Instance, options: PreOptions = {}): Promise<PreResult> {
  const before = everything(instance.home);
  const result = await pre(instance, { ...options, args: [...options.args ?? [], "--dry-run"] });
  assert.deepEqual(everything(instance.home), before, "the dry run has changed something");
  assert.ok(result.report.steps.every((step) => step.outcome === "planned"));
  return result;
}

export interface Repair {
  /** What is removed, relative to the instance directory; `../` leads to what instances share. */
  removes: readonly string[];
  state?: string;
  status?: number;
  /** To be found in the reasons of the steps, each at least once. */
  because?: readonly RegExp[];
}

/**
 * A dry run, a real run, and another one, with everything that is always to hold: the dry run writes nothing and says
 * the same in the same words; just the files that are named are removed; the second run changes nothing.
 */
export async function repairs(
  instance: Instance,
  { removes, state = "stale", status = 0, because = [] }: Repair,
  options: PreOptions = {},
): Promise<PreResult> {
  const { home } = instance;
  const before = paths(home);
  const planned = await dryRun(instance, options);
  const done = await pre(instance, options);
  assert.equal(done.status, status, `${done.stdout}${done.stderr}`);
  assert.equal(done.report.state, state, done.stdout);

  assert.equal(planned.status, done.status, "the dry run leaves with another status");
  assert.equal(planned.report.state, done.report.state);
  assert.deepEqual(planned.report.steps.map(words), done.report.steps.map(words), "the dry run says something else");
  assert.deepEqual(planned.report.blockers, done.report.blockers);
  assert.deepEqual(planned.report.notes, done.report.notes);

  assert.deepEqual(difference(before, paths(home)), removes.map((file) => below(instance, file)).sort());
  assert.deepEqual(difference(paths(home), before), [JOURNAL, LOCK].map((file) => below(instance, file)).sort());
  assert.deepEqual(done.report.steps.map((step) => step.outcome), removes.map(() => "done"), done.stdout);
  for (const reason of because) {
    assert.ok(done.report.steps.some((s) => reason.test(s.because)), `${reason}:\n${done.stdout}`);
  }
  assertJournal(instance, done.report);
  await changesNothing(instance, options);
  return done;
}

/** A dry run and a real one, of which none removes or makes anything but the lock: what a next one would see is the same. */
export async function leavesAlone(
  instance: Instance,
  { state, status, blockers = [] }: { state: string; status: number; blockers?: readonly RegExp[] },
  options: PreOptions = {},
): Promise<PreResult> {
  const before = allButLocks(instance.home);
  const planned = await dryRun(instance, options);
  const done = await pre(instance, options);
  assert.equal(done.status, status, `${done.stdout}${done.stderr}`);
  assert.equal(done.report.state, state, done.stdout);
  assert.equal(planned.status, status);
  assert.deepEqual({ ...planned.report }, { ...done.report });
  assert.deepEqual(done.report.steps, []);
  assert.equal(done.report.blockers.length, blockers.length, done.stdout);
  for (const blocker of blockers) {
    assert.ok(done.report.blockers.some((b) => blocker.test(remark(b))), `${blocker}: ${done.stdout}`);
  }
  const after = allButLocks(instance.home);
  assert.deepEqual(withoutTimeOf(instance, after), withoutTimeOf(instance, before), "something has changed");
  return done;
}

/** Another run finds nothing to do, and leaves every byte as it is, the journal's too. */
export async function changesNothing(instance: Instance, options: PreOptions = {}): Promise<PreResult> {
  const before = allButLocks(instance.home);
  const again = await pre(instance, options);
  assert.deepEqual(again.report.steps, [], "there was something left to do");
  assert.deepEqual(allButLocks(instance.home), before, "the second run has changed something");
  return again;
}

/** `limactl start` refuses with these words; the state was made for real. */
export async function refuses(instance: Instance, words: string | RegExp, who: { uid?: number; gid?: number } = {}) {
  await using agent = await startAgent(instance, { ...who, until: "exit" });
  const said = `${await agent.stderr}\n${instance.log().join("\n")}`;
  assert.equal((await agent.status).code, 1, said);
  if (typeof words === "string") assert.ok(said.includes(words), said);
  else assert.match(said, words);
}

/** `limactl start` continues until the instance is Running. */
export async function starts(instance: Instance, options: Parameters<typeof startAgent>[1] = {}): Promise<void> {
  await using agent: Agent = await startAgent(instance, options);
  assert.ok(agent.isAlive());
}

/** The last line of the journal tells what was done. */
export function assertJournal(instance: Instance, report: Report): void {
  const line = JSON.parse((instance.read(JOURNAL) ?? "").trimEnd().split("\n").at(-1) ?? "");
  assert.equal(line.event, "pre");
  assert.equal(line.dir, instance.dir);
  assert.equal(line.role, "pre");
  assert.deepEqual(line.steps, report.steps);
  assert.ok(Math.abs(Date.parse(line.time) - Date.now()) < 120_000, line.time);
}

/** What a step says before it is taken. */
export function words({ kind, what, because }: Report["steps"][number]): string {
  return `${kind}: ${what} (${because})`;
}

export function remark({ what, because, hint = "" }: Remark): string {
  return `${what}: ${because} (${hint})`;
}

export function difference(from: readonly string[], without: readonly string[]): string[] {
  return from.filter((item) => !without.includes(item)).sort();
}

/** A path relative to the instance directory as `paths` has it. */
function below(instance: Instance, file: string): string {
  return file.startsWith("../") ? file.slice(3) : `${instance.name}/${file}`;
}

/** The first run makes a lock file, and its directory shows it. */
function withoutTimeOf(instance: Instance, seen: Record<string, string>): Record<string, string> {
  const dir = Deno.realPathSync(instance.dir).slice(instance.home.root.length + 1);
  return Object.fromEntries(Object.entries(seen).filter(([path]) => path !== dir));
}
