/**
 * `deno task torture [--minutes N] [--seed S] [--case N] [--replay FILE]`: random states, random kills and random steps
 * of the clock, on real processes in throw-away homes, and after each step the three laws. The seed decides everything
 * that is made (torture_cases.ts); what fails is printed with the way to make it again. Status 1 where a law was broken.
 * lima-guard searches all processes: beside other tests it needs a PID namespace (`unshare --pid --fork --mount-proc`).
 * `--cycles N [--lanes N]`: starts and stops that leave nothing behind (torture_cycles.ts).
 * @module
 */

import assert from "node:assert/strict";
import { parseArgs } from "node:util";
import {
  type Agent,
  type Bystander,
  deadPid,
  eventually,
  exists,
  type Guard,
  type GuardResult,
  type Home,
  IMPOSSIBLE_PID,
  type Instance,
  isAlive,
  silentSocket,
  spawnGuard,
  staleSocket,
  startAgent,
  startBystander,
  startOrphan,
  tempLimaHome,
  waitForExit,
} from "../tests/helpers/mod.ts";
import { guardWith, OUTSIDER, type Stay, type Twist } from "../tests/helpers/guard_with.ts";
import { PID_FILES } from "../tests/helpers/pid_files.ts";
import { STARTS } from "../lima_guard.ts";
import { tree } from "../tests/helpers/pre.ts";
import { foreground, hold, writeBadEnds } from "../tests/launchd/run.ts";
import {
  type Action,
  type Case,
  describeCase,
  describeStep,
  makeCase,
  type Put,
  type Run,
  type Step,
  USERNET_PID,
  type Vm,
} from "./torture_cases.ts";
import { cycles, tell } from "./torture_cycles.ts";

/** What starting a process and its Deno may take on a busy machine, beyond the budget of a stop. */
const ALLOWANCE_S = 5;
/** A `--run` that has not come to anything after this time is asked to stop where it is. */
const RUN_LIMIT_MS = 5_000;
/** A start that hangs must be distinguished from one on a busy machine. */
const START_LIMIT_MS = 15_000;

// ── the world of a case ──

interface World {
  readonly home: Home;
  readonly k3s: Instance;
  /** Lives beside it, in the same LIMA_HOME, and must notice nothing. */
  readonly neighbour: Instance;
  readonly neighbourAgent: Agent;
  /** None of Lima's processes. Its number is everywhere. */
  readonly bystander: Bystander;
  /** Looks like a host agent, and nothing shows whose: its directory is gone. */
  readonly riddle: Bystander;
  isRiddled: boolean;
  readonly dead: number;
  readonly use: AsyncDisposableStack;
  /** What is open while it stands in the place of a file. */
  readonly open: Map<string, Disposable>;
  /** What the last step has proven to be ready for `limactl start`. */
  ready: boolean;
  guards: number;
}

async function makeWorld(use: AsyncDisposableStack, vm: Vm): Promise<World> {
  const home = use.use(await tempLimaHome());
  const k3s = home.instance("k3s", { yaml: "additionalDisks:\n- data\n" });
  const neighbour = home.instance("k3s-2");
  home.disk("data");
  Deno.mkdirSync(`${home.lima}/_networks/user-v2`, { recursive: true });
  const gone = `${home.root}/gone/k3s`;
  const riddle = ["limactl", "hostagent", "--pidfile", `${gone}/ha.pid`, "--socket", `${gone}/ha.sock`, "k3s"];
  const world: World = {
    home,
    k3s,
    neighbour,
    neighbourAgent: use.use(await startAgent(neighbour)),
    bystander: use.use(await startBystander(home)),
    riddle: use.use(await startBystander(home, { command: riddle })),
    isRiddled: true,
    dead: await deadPid(),
    use,
    open: new Map(),
    ready: false,
    guards: 0,
  };
  use.defer(() => calm(world, /./));
  await startVm(world, vm);
  return world;
}

async function startVm({ k3s, use }: World, { what, conf, until }: Vm): Promise<void> {
  if (what === "nothing") return k3s.conf(conf);
  if (what === "orphan") return void use.use(await startOrphan(k3s, conf.vmtype as "qemu", conf));
  const agent = use.use(await startAgent(k3s, { conf, until }));
  if (what === "agent") return;
  agent.signal("SIGKILL");
  await agent.status;
}

/** Closes what the test itself has open; a lock file is then free, a socket is gone. */
function calm({ open }: World, which: RegExp): void {
  for (const [path, thing] of open) {
    if (!which.test(path)) continue;
    thing[Symbol.dispose]();
    open.delete(path);
  }
}

/** Lays something in the place of a file. */
function put(world: World, { file, holds }: Put): void {
  const { k3s, neighbour, home, bystander, riddle } = world;
  const path = k3s.path(file);
  const start = { time: new Date().toISOString(), boot: "another", dir: k3s.dir, role: "run", event: "start" };
  const line = (value: unknown) => `${JSON.stringify(value)}\n`;
  const record = {
    pid: bystander.pid,
    started: startOf(bystander.pid),
    dir: k3s.dir,
    role: "run",
    phase: "supervising",
  };
  const text = (content: string | number) => k3s.pidFile(file, content);
  const locked = (content: string) => {
    text(content);
    world.open.set(path, hold(path));
  };
  // deno-lint-ignore no-explicit-any
  const things: Record<string, () => any> = {
    "the bystander": () => text(bystander.pid),
    "the riddle": () => text(riddle.pid),
    "the neighbour": () => text(world.neighbourAgent.pid),
    "dead": () => text(world.dead),
    "impossible": () => text(IMPOSSIBLE_PID),
    "nothing": () => text(""),
    "blanks": () => text(" \r\n"),
    "half a number": () => text(String(bystander.pid).slice(0, -1) + "x"),
    "0": () => text(0),
    "1": () => text(1),
    "-1": () => text(-1),
    "the bystander's group": () => text(-bystander.pid),
    "2**32": () => text(2 ** 32),
    "2**32 + the bystander": () => text(2 ** 32 + bystander.pid),
    "two numbers": () => text(`${bystander.pid}\n${riddle.pid}\n`),
    "zeros": () => text("\0".repeat(40)),
    "gone": () => {},
    "a link to the bystander's": () => {
      Deno.writeTextFileSync(`${home.root}/bystander.pid`, `${bystander.pid}\n`);
      Deno.symlinkSync(`${home.root}/bystander.pid`, path);
    },
    "a dangling link": () => Deno.symlinkSync(`${home.root}/nothing`, path),
    "a link to it": () => Deno.symlinkSync(k3s.dir, path),
    "a link to the neighbour": () => Deno.symlinkSync(neighbour.dir, path),
    "a FIFO": () => assert.ok(new Deno.Command("mkfifo", { args: [path] }).outputSync().success),
    "a directory": () => Deno.mkdirSync(path),
    "a cold socket": () => staleSocket(path),
    "a silent socket": () => world.open.set(path, silentSocket(path)),
    "a file": () => text("no socket\n"),
    "held open": () => world.open.set(path, Deno.openSync(path, { write: true })),
    "held": () => locked(""),
    "held as the bystander": () => locked(line(record)),
    "the bystander as --run": () => text(line(record)),
    "garbage": () => text('{"pid":\n\xff\0]'),
    "a torn line": () => text(`${line(start)}{"time":"2026-1`),
    "bad ends": () => writeBadEnds(k3s, 5),
    "a start without end": () => text(line(start)),
    "a clone's lines": () => text(line({ ...start, dir: neighbour.dir })),
    "cut": () => text("Host lima-k3s\n"),
    "the neighbour's": () => text(neighbour.read("ssh.config") ?? ""),
  };
  const thing = things[holds];
  assert.ok(thing, `nothing is called "${holds}"`);
  calm(world, new RegExp(`^${RegExp.escape(path)}$`));
  // A lima-guard that works holds its own lock: nothing else can hold it too, and a locked file is not replaced.
  if (file === "lima-guard.lock" && k3s.has(file) && !isFree(path)) return;
  if (k3s.has(file) && holds !== "held open") k3s.remove(file);
  thing();
}

function isFree(path: string): boolean {
  try {
    hold(path)[Symbol.dispose]();
    return true;
  } catch {
    return false;
  }
}

/** As the guard asks for it. */
function startOf(pid: number): string {
  const args = ["-o", "lstart=", "-p", String(pid)];
  const { stdout } = new Deno.Command("ps", { args, env: { TZ: "UTC0", LC_TIME: "C" } }).outputSync();
  return new TextDecoder().decode(stdout).trim();
}

/** Why `limactl start` did not come to Running, or undefined. It hangs where a PID file is a FIFO, as the real one does. */
async function start({ k3s, use }: World): Promise<string | undefined> {
  if (!k3s.has("lima.yaml")) return "it would create a new VM";
  const asBefore = { stop: "", stay_at: "", info: "", qmp: "", ignore_term: "", grandchild: "" };
  const agent = use.use(await startAgent(k3s, { conf: asBefore, until: "spawned" }));
  const isFile = () => k3s.has("ha.pid") && Deno.lstatSync(k3s.path("ha.pid")).isFile;
  const isRunning = () =>
    isFile() && k3s.pid("ha.pid") === agent.pid && /"running":true/.test(k3s.read("ha.stdout.log") ?? "");
  const limit = { withinMs: START_LIMIT_MS };
  await eventually(() => assert.ok(!agent.isAlive() || isRunning()), limit).catch(() => {});
  if (agent.isAlive()) return isRunning() ? undefined : "it hangs";
  return await agent.stderr;
}

async function kill(world: World, who: "agent" | "driver"): Promise<void> {
  for (const pid of living(world)[who]) {
    if (exists(pid)) Deno.kill(pid, "SIGKILL");
    await waitForExit(pid);
  }
}

// ── the truth ──

/** Who lives of the instance, found out without lima-guard: by what the test itself has started. */
interface Living {
  readonly agent: readonly number[];
  readonly driver: readonly number[];
  readonly usernet: readonly number[];
}

function living({ home, k3s, riddle }: World): Living {
  const of = (...words: string[]) =>
    home.processes().filter((line) => words.some((word) => `${line} `.includes(word)))
      .map((line) => parseInt(line)).filter((pid) => pid !== riddle.pid);
  const { dir } = k3s;
  return {
    agent: of(` hostagent --pidfile ${dir}/ha.pid `),
    driver: of(` -pidfile ${dir}/qemu.pid `, `path=${dir}/disk,`, ` --inst-dir ${dir} `),
    usernet: of(` usernet -p ${home.lima}/`),
  };
}

/** What there is before and after a step. */
interface Scene {
  readonly living: Living;
  /** The number in each PID file that is one. */
  readonly named: ReadonlyMap<string, number>;
  readonly files: Readonly<Record<string, string>>;
  /** How the guest's file system is. */
  readonly disk: string | undefined;
  /** The processes that a host agent has signalled, or would have, were it the real one: it believes *.drv.pid while it stops. */
  readonly hitByLima: readonly string[];
}

function look(world: World): Scene {
  const named = new Map<string, number>();
  for (const file of [...PID_FILES, USERNET_PID]) {
    const path = world.k3s.path(file);
    const text = world.k3s.has(file) && Deno.lstatSync(path).isFile ? Deno.readTextFileSync(path) : "";
    if (/^\s*[0-9]{1,7}\s*$/.test(text)) named.set(file, Number(text));
  }
  const hitByLima = world.k3s.read("ha.stderr.log")?.match(/Lima would have sent .*/g) ?? [];
  return { living: living(world), named, files: tree(world.home.lima), disk: world.k3s.guestDisk(), hitByLima };
}

/** What lives and changes is looked at again where it changed under our eyes. */
function lookAt(world: World): Promise<Scene> {
  return eventually(() => look(world));
}

/** May this file name a process of that kind? */
function mayName(file: string, who: keyof Living): boolean {
  if (who === "usernet") return file === USERNET_PID;
  if (file === "ha.pid") return who === "agent";
  if (file.includes("driver-") || file.endsWith(".drv.pid")) return false;
  return file !== USERNET_PID;
}

/** The living that a file of the right kind names: the others need not be found. */
function findable({ living, named }: Scene): number[] {
  const of = (who: "agent" | "driver") =>
    living[who].filter((pid) => [...named].some(([file, n]) => n === pid && mayName(file, who)));
  return [...of("agent"), ...of("driver")];
}

// ── the laws ──

/** Law 1: no other process got any signal. */
function assertOthersUnharmed(world: World): void {
  world.bystander.assertAlive();
  if (world.isRiddled) world.riddle.assertAlive();
  const { neighbour, neighbourAgent } = world;
  assert.ok(neighbourAgent.isAlive() && isAlive(neighbourAgent.pid), "the neighbour's host agent is dead");
  assert.ok(!neighbour.log().some((line) => /Received|shutting down/i.test(line)), "the neighbour was asked to stop");
  assert.equal(neighbour.pid("ha.pid"), neighbourAgent.pid, "the neighbour's ha.pid");
  assert.equal(neighbour.pid("vz.pid"), neighbourAgent.pid, "the neighbour's vz.pid");
  assert.equal(world.home.wouldHaveCreated(), undefined, "limactl start would have created a new VM");
}

/** What no guard ever removes, whatever it finds. */
const PRECIOUS = /^(k3s|k3s-2)\/(lima\.yaml|lima-version|disk)$|datadisk$|^k3s-2\/|^_config/;

/** Law 2, the files: those of the living and of the unknown stay, and so does all that claims nothing. */
function assertFilesKept(world: World, before: Scene, after: Scene, changed: readonly string[]): void {
  const hasEnded = [...before.living.agent, ...before.living.driver]
    .some((pid) => !after.living.agent.includes(pid) && !after.living.driver.includes(pid));
  const kept = [...before.named].filter(([file, pid]) => {
    if (changed.includes(file)) return false;
    // An agent or a QEMU that ends removes its files itself, whatever PID stands in them then.
    if (pid === world.riddle.pid) return world.isRiddled && !hasEnded && mayName(file, "agent");
    return (["agent", "driver", "usernet"] as const).some((who) =>
      after.living[who].includes(pid) && mayName(file, who)
    );
  });
  for (const [file, pid] of kept) assert.equal(after.named.get(file), pid, `${file} named a process that lives`);
  for (const [path, seen] of Object.entries(before.files)) {
    const isDirectory = seen.endsWith(" directory");
    if (!PRECIOUS.test(path) && !isDirectory) continue;
    if (changed.some((file) => `k3s/${file}` === path || path.endsWith(file.replace(/^\.\.\//, "/")))) continue;
    assert.ok(path in after.files, `${path} is gone`);
  }
}

/** What an instance's own processes write. */
const LIVELY = /\/(ha\.std(out|err)\.log|standin\..*|driver\..*|serial.*|.*\.sock)$|^(\.|k3s|standin\..*)$/;

/** Who had the lock last stands in it; `but` is for a run that takes it. */
function assertSameFiles(before: Scene, after: Scene, what: string, but = /^$/): void {
  const isStill = ([path]: [string, unknown]) => !LIVELY.test(path) && !but.test(path);
  const still = ({ files }: Scene) => Object.fromEntries(Object.entries(files).filter(isStill));
  assert.deepEqual(still(after), still(before), what);
}

/** What one run of the guard was, seen from outside. */
interface Outcome {
  readonly step: Run;
  readonly result: GuardResult;
  /** Of a stop: from the request. */
  readonly tookS: number | undefined;
  /** What was done to it meanwhile. */
  readonly action: Action | undefined;
  /** What spoke against a start and a removal, when the run began. */
  readonly witnesses: readonly Witness[];
}

/** A socket that takes connections, a process that has a disk open, a lock that another process has. */
interface Witness {
  readonly kind: "socket" | "holder" | "lock";
  readonly path: string;
  /** What leads to it, and so must stay where no process of the instance lives. */
  readonly leads: readonly string[];
}

/** What the guard says of k3s. */
interface Report {
  readonly state: string;
  readonly status: number;
  readonly stage: string | null;
  readonly steps: readonly { kind: string; what: string; because: string; outcome: string }[];
  readonly blockers: readonly { what: string; because: string; hint?: string }[];
  readonly limactlStart?: string;
}

/** All laws about one run. Returns what it report, where it lived to tell. */
function assertLaws(world: World, outcome: Outcome, before: Scene, after: Scene): Report | undefined {
  const { step, result } = outcome;
  const report = assertThreeLaws(world, outcome, before, after);
  assertEvidenceKept(outcome, before, after, report);
  if (result.status < 128) assertNoCutIsGraceful(outcome, before, after, report);
  if (!report) return undefined;
  const [{ evidence }] = result.json().instances;
  assertWorstCounts(step, report, evidence);
  assertCommands(outcome, report);
  return report;
}

function assertThreeLaws(
  world: World,
  { step, result, tookS, action }: Outcome,
  before: Scene,
  after: Scene,
): Report | undefined {
  const { role } = step;
  const changed = action?.do === "put" ? [action.file] : [];
  assert.notEqual(result.status, OUTSIDER, "it was about to signal a process outside of the test");
  assertOthersUnharmed(world);
  assertFilesKept(world, before, after, changed);
  if (tookS !== undefined) {
    assert.ok(tookS < step.budgetS + ALLOWANCE_S, `the stop took ${tookS.toFixed(1)} s of ${step.budgetS} s`);
  }
  const stillThere = findable(before).filter((pid) => findable(after).includes(pid));
  const isAlone = action === undefined || action.do === "signal" || (action.do === "kill" && action.who !== "guard");
  if (!isAlone) return undefined;
  const newlyHit = after.hitByLima.slice(before.hitByLima.length);
  // An agent whose driver was killed stops by itself: that is not the guard's doing.
  if (action?.do !== "kill") assert.deepEqual(newlyHit, [], "it let Lima signal a process");
  if (result.status >= 128) return undefined;
  if (role === "run") {
    if (tookS !== undefined && result.status === 0 && !step.dryRun) {
      assert.deepEqual(stillThere, [], "it is not stopped");
    }
    return undefined;
  }

  const document = result.json();
  assert.equal(document.role, role);
  const report: Report = document.instances[0];
  const lives = (scene: Scene) => scene.living.agent.length + scene.living.driver.length > 0;
  assert.equal(report.status, result.status, "its status is not the one it reported");
  if (result.status !== 0 && role !== "status") {
    const failed = report.steps.some(({ outcome }) => outcome !== "done");
    assert.ok(report.blockers.length > 0 || failed, "a status without a reason");
  }
  if (step.dryRun || role === "status") {
    if (action?.do !== "kill") assertSameFiles(before, after, "what only looks has changed something");
  }
  if (report.state === "running" && role !== "stop") assert.ok(before.living.agent.length > 0, "nothing is running");
  if (["stopped", "clear", "stale"].includes(report.state) && action === undefined && !step.dryRun) {
    assert.deepEqual(stillThere, [], `it is called ${report.state}, and lives`);
  }
  const named = (pid: number) => [...before.named].some(([file, n]) => n === pid && mayName(file, "agent"));
  if (world.isRiddled && named(world.riddle.pid) && result.status === 0 && changed.length === 0) {
    const isLeftAlone = report.state === "running" || (role === "status" && report.state === "booting");
    assert.ok(isLeftAlone && lives(before), "what is unknown counted as success");
  }
  if (step.dryRun || role === "status") return report;

  const left = [...after.named].filter(([file]) => file !== USERNET_PID);
  if (role === "stop") {
    if (result.status === 0) {
      assert.equal(report.state, "stopped");
      assert.deepEqual(left, [], "PID files are left after a stop");
    }
    if (report.blockers.length === 0) {
      assert.deepEqual(stillThere, [], "a stop that stops nothing, and does not say so");
    }
  }
  if (role === "pre" && result.status === 0 && report.state !== "running") {
    assert.deepEqual(left, [], "PID files are left");
    assert.deepEqual(stillThere, []);
  }
  return report;
}

/** What the test itself has put there, and is still in its place. */
async function witnesses({ k3s, open }: World): Promise<Witness[]> {
  const found: Witness[] = [];
  const link = k3s.path("../_disks/data/in_use_by");
  for (const path of open.keys()) {
    if (path.endsWith(".lock")) found.push({ kind: "lock", path, leads: [] });
    else if (path.endsWith("datadisk")) {
      const leads = there(link) && Deno.readLinkSync(link) === k3s.dir ? [link] : [];
      if (leads.length > 0) found.push({ kind: "holder", path, leads });
    } else if (await takesConnections(path)) found.push({ kind: "socket", path, leads: [path] });
  }
  return found;
}

async function takesConnections(path: string): Promise<boolean> {
  try {
    (await Deno.connect({ transport: "unix", path })).close();
    return true;
  } catch {
    return false; // another file is in its place now, or none
  }
}

/** What a look has found stays found: nothing that led to it is removed, and no result is as if it were not there. */
function assertEvidenceKept({ step, action, witnesses }: Outcome, before: Scene, after: Scene, report?: Report): void {
  const isDown = [before, after].every(({ living }) => living.agent.length + living.driver.length === 0);
  // At another time of day, or after another boot, the lock of a disk is one of a boot that is over.
  const isOfNow = step.wallMs === undefined && step.uptimeMs === undefined;
  for (const { kind, path, leads } of witnesses) {
    if (action !== undefined || !isDown || (kind === "holder" && !isOfNow)) continue;
    for (const file of leads) assert.ok(there(file), `${file} is gone, and led to ${path}`);
    if (!report || (kind === "lock" && step.role === "status")) continue;
    assert.notEqual(report.status, 0, `${kind} ${path} was there, and counted as nothing`);
    const isWrong = ["clear", "stopped", "stale", "running"].includes(report.state);
    assert.ok(!isWrong, `${report.state}, with ${kind} ${path}`);
  }
}

/** No result is better than its worst finding, and no start is promised where the plan is not clear. */
function assertWorstCounts(
  { role, dryRun }: Run,
  report: Report,
  evidence: readonly { file: string; verdict: string }[] = [],
): void {
  const hasFailed = ({ kind, outcome }: Report["steps"][number]) =>
    kind === "remove" && !dryRun && role !== "status" && !/^(done|already gone)/.test(outcome);
  // A boot is in the way of a start, and needs no person.
  if (report.status === 0 && !(role === "status" && report.state === "booting")) {
    assert.deepEqual(report.blockers, [], "0, and something is in the way");
    assert.deepEqual(report.steps.filter(hasFailed), [], "0, and a step failed");
    assert.ok(!["unknown", "blocked", "missing"].includes(report.state), `0, and it is ${report.state}`);
  }
  // A stale file that cannot be removed is in the way of no stop.
  const isOnlyFiles = report.state === "stopped" && report.status === 77;
  if (["clear", "stopped"].includes(report.state) && !isOnlyFiles) {
    assert.deepEqual(report.blockers, [], `${report.state}, and not clear`);
  }
  if (role !== "status" || report.limactlStart !== STARTS) return;
  assert.deepEqual(report.blockers, [], "a start is promised, and something is in the way");
  // A usernet that lives serves other instances too, and is in the way of no start.
  const isNoTrouble = ({ file, verdict }: (typeof evidence)[number]) =>
    ["dead", "stale"].includes(verdict) || (verdict === "ours" && file.endsWith(USERNET_PID.slice("..".length)));
  const isOnlyDead = report.state === "stale" && evidence.every(isNoTrouble);
  assert.ok(report.state === "stopped" || isOnlyDead, `a start is promised, and it is ${report.state}`);
}

/** Programs of the commands that are printed and whose output is an answer. */
const COMMAND = /(?:^|[;:] )(?:sudo (?:-H -u \S+ )?)?(?:lima-guard|limactl|launchctl|ps|lsof|ls|tail) /;
/** Those that only look. */
const LOOKS = /(?:^|; |: )((?:ps -ww|ls -l[ad]|lsof --) [^;]+)/g;

/** Every unknown ends with a command whose output can change the answer: about that thing, and it shows something. */
function assertCommands({ action }: Outcome, report: Report): void {
  if (report.state !== "unknown") return;
  assert.ok(report.blockers.length > 0, "unknown, and nothing is said of what");
  for (const { what, because, hint = "" } of report.blockers) {
    assert.match(hint, COMMAND, `${what} is unknown (${because}), and no command is printed`);
    // The thing itself, the process that it names, or the guard asked once more about the whole instance.
    const [named = ""] = /\/\S+|\b\d+\b/.exec(what) ?? [];
    const [, pid = "none"] = /PID (\d+)/.exec(because) ?? [];
    const isAbout = hint.includes(named) || new RegExp(`\\b${pid}\\b`).test(hint) || / k3s$/.test(hint);
    assert.ok(isAbout, `the command for ${what} is about something else: ${hint}`);
    if (action !== undefined) continue;
    const looks = [...hint.matchAll(LOOKS)].map(([, line = ""]) => line);
    // What was looked at may have ended since: a riddle of another lane, or a driver at its SIGTERM.
    const isOver = looks.some((line) => /^ps -ww -p \d+$/.test(line) && !exists(Number(/\d+$/.exec(line)))) ||
      (named.endsWith(".sock") && !Deno.readTextFileSync("/proc/net/unix").includes(named));
    if (looks.length === 0 || isOver) continue;
    assert.ok(looks.some(showsSomething), `nothing is shown about ${what} (${because}) by ${looks.join(" or ")}`);
  }
}

/** Types a command that only looks. ps and lsof have a headline. */
function showsSomething(line: string): boolean {
  const { stdout } = new Deno.Command("sh", { args: ["-c", line], stderr: "null" }).outputSync();
  const rows = new TextDecoder().decode(stdout).split("\n").filter((row) => row !== "");
  return rows.length > (line.startsWith("ls ") ? 0 : 1);
}

/** No power cut is called graceful. What was running, and was not touched by the test, has powered itself off. */
function assertNoCutIsGraceful({ step, result, action }: Outcome, before: Scene, after: Scene, report?: Report): void {
  const disk = "k3s/standin.guest/disk";
  const wasOn = before.living.driver.length + before.living.agent.length > 0 && before.disk === "dirty";
  const isOff = after.living.driver.length + after.living.agent.length === 0;
  if (!wasOn || !isOff || step.dryRun || (action !== undefined && action.do !== "signal")) return;
  const byAgent = report?.steps.findLast(({ kind }) => kind === "agent")?.outcome ?? "";
  const isGraceful = report
    ? ["guest", "agent", "driver"].includes(report.stage ?? "") && !/the guest was cut off/.test(byAgent)
    : /stopped gracefully/.test(result.stderr);
  if (isGraceful) assert.equal(after.disk, "clean", `${disk}: a power cut is called graceful`);
}

// ── the steps ──

async function take(world: World, step: Step): Promise<void> {
  if (step.do === "guard") return await takeGuard(world, step);
  if (step.do === "start") {
    const refusal = await start(world);
    if (world.ready) assert.equal(refusal, undefined, "the guard saw nothing in the way, and limactl start refuses");
  } else if (step.do === "calm") {
    calm(world, /./);
    await world.riddle.end();
    world.isRiddled = false;
  } else if (step.do === "kill") {
    // Without its driver a host agent stops, and then it signals by itself what a driver's PID file names.
    if (!isNeighbourADriver(world)) await kill(world, step.who as "agent" | "driver");
  } else put(world, step);
  world.ready = false;
  assertOthersUnharmed(world);
}

function isNeighbourADriver(world: World): boolean {
  const isDrivers = (file: string) => file.endsWith(".drv.pid") || file.includes("driver-");
  return [...look(world).named].some(([file, pid]) => isDrivers(file) && pid === world.neighbourAgent.pid);
}

async function takeGuard(world: World, step: Run): Promise<void> {
  const before = await lookAt(world);
  const seen = await witnesses(world);
  const outcome = { ...await guard(world, step), witnesses: seen };
  calm(world, /\.lock$/);
  const after = await lookAt(world);
  const report = inContext(outcome.result, () => assertLaws(world, outcome, before, after));
  const isDone = report?.status === 0 && outcome.action === undefined && !step.dryRun;
  const nothingLives = [before, after].every(({ living }) => living.agent.length + living.driver.length === 0);
  const isPromised = report?.limactlStart === STARTS && outcome.action === undefined;
  world.ready = nothingLives && (isDone && step.role === "pre" || isPromised);
  if (!isDone || !nothingLives || step.role === "status") return;

  // Law 3, its last part: what was carried out is done, and done once.
  const again = await guard(world, step);
  inContext(again.result, () => {
    assert.deepEqual(again.result.json().instances[0].steps, [], "there was something left to do");
    assertSameFiles(after, look(world), "the second run has changed something", /\/lima-guard\.lock$/);
  });
}

/** With what the guard had to say. */
function inContext<T>(result: GuardResult, check: () => T): T {
  try {
    return check();
  } catch (error) {
    const said = `status ${result.status}\n${result.stdout}\n${result.stderr}`;
    throw new Error(`${(error as Error).message}\n${said}`, { cause: error });
  }
}

/** `--pre` asks a silent host agent for a minute, and may then have to stop it. */
const GUARD_LIMIT_MS = 120_000;

/** Runs the guard, and does what is to be done meanwhile. */
async function guard(world: World, step: Run): Promise<Omit<Outcome, "witnesses">> {
  const { home, k3s } = world;
  const { role, budgetS, wallMs, uptimeMs, meanwhile } = step;
  const file = `${home.root}/stay-${world.guards++}`;
  const stays: Stay[] = [
    ...meanwhile ? [{ at: ".", nth: meanwhile.nth, file: `${file}-action` }] : [],
    // A `--run` that waits for something, or supervises, is one that can be asked to stop.
    ...role === "run" && !meanwhile ? [{ at: "^before pause \\d{4}", file: `${file}-pause` }] : [],
  ];
  const twist: Twist = {
    stays,
    hitsOnly: { under: home.root, and: [world.bystander.pid, world.riddle.pid] },
    ...wallMs === undefined ? {} : { wallMs },
    ...uptimeMs === undefined ? {} : { uptimeMs },
    ...step.hurry ? { hurry: true } : {},
    // The process that holds the lock here never releases it.
    ...world.open.has(k3s.path("lima-guard.lock")) ? { lockMs: 300 } : {},
  };
  const flags = [
    ...role === "run" ? [] : ["--json"],
    "--timeout",
    String(budgetS),
    ...step.dryRun ? ["--dry-run"] : [],
  ];
  const command = role === "run" ? ["--", ...foreground(k3s)] : [];
  const began = performance.now();
  await using guard = spawnGuard(home, [...flags, `--${role}`, "k3s", ...command], guardWith(twist));
  let ended = false;
  void guard.status.then(() => ended = true);
  const isHere = () => stays.some((stay) => there(`${stay.file}.here`));
  const isRunning = () => role === "run" && /Running after|is adopted/.test(guard.stderr);

  if (stays.length > 0) {
    const limitMs = role === "run" ? RUN_LIMIT_MS : 60_000;
    await eventually(() => assert.ok(isHere() || ended || isRunning()), { withinMs: limitMs }).catch(() => {});
  }
  let action: Action | undefined;
  let another: Guard | undefined;
  let askedMs = role === "stop" ? began : undefined;
  let heldMs = 0;
  if (!ended) {
    action = meanwhile && (isHere() || role === "run") ? meanwhile.action : undefined;
    const heldAt = performance.now();
    if (action) another = await doMeanwhile(world, guard, action);
    heldMs = performance.now() - heldAt;
    for (const stay of stays) Deno.writeTextFileSync(`${stay.file}.go`, "");
    if (role === "run" && !(action?.do === "kill" && action.who === "guard")) {
      askedMs = performance.now() - heldMs;
      signal(guard, "SIGTERM");
    }
  }
  const result = await guard.result({ timeoutMs: GUARD_LIMIT_MS });
  const tookS = askedMs === undefined || result.signal ? undefined : (performance.now() - askedMs - heldMs) / 1000;
  if (another) {
    await another.result({ timeoutMs: GUARD_LIMIT_MS });
    await another[Symbol.asyncDispose]();
  }
  for (const stay of stays) for (const end of ["here", "go"]) removeIfThere(`${stay.file}.${end}`);
  return { step, result, tookS, action };
}

/** Returns the other lima-guard where one was started. */
async function doMeanwhile(world: World, guard: Guard, action: Action): Promise<Guard | undefined> {
  switch (action.do) {
    case "put":
      put(world, action);
      return;
    case "kill":
      if (action.who === "guard") signal(guard, "SIGKILL");
      else await kill(world, action.who);
      return;
    case "signal":
      return signal(guard, action.signal);
    case "start":
      await start(world);
      return;
    case "another": {
      const hitsOnly = { under: world.home.root, and: [world.bystander.pid, world.riddle.pid] };
      return spawnGuard(world.home, [`--${action.role}`, "k3s", "--timeout", "3"], guardWith({ hitsOnly }));
    }
  }
}

function signal(guard: Guard, name: Deno.Signal): undefined {
  try {
    guard.signal(name);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // it has ended meanwhile
  }
}

function there(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

function removeIfThere(path: string): void {
  if (there(path)) Deno.removeSync(path);
}

// ── cases, one after the other ──

/** Makes a case and takes its steps; throws at the first law that is broken. */
export async function runCase(made: Case): Promise<void> {
  await using use = new AsyncDisposableStack();
  let at = "the beginning";
  try {
    const world = await makeWorld(use, made.vm);
    for (const thing of made.puts) put(world, thing);
    for (const step of made.steps) {
      at = describeStep(step);
      await take(world, step);
    }
  } catch (error) {
    throw new Error(`at ${at}: ${(error as Error).message}`, { cause: error });
  }
}

export interface Failure {
  readonly made: Case;
  readonly error: Error;
}

export interface Result {
  readonly cases: number;
  readonly steps: number;
  readonly failures: readonly Failure[];
}

export interface Options {
  readonly seed: number;
  readonly minutes: number;
  /** At most so many. */
  readonly most?: number;
  readonly lanes?: number;
  /** Ends it after the cases that are being run. */
  readonly signal?: AbortSignal;
  readonly failed?: (failure: Failure) => void;
}

/** Cases 0, 1, 2 … of a seed, in lanes side by side (most of the time is waiting), until the time is over. */
export async function torture({ seed, minutes, most = Infinity, lanes = 4, signal, failed }: Options): Promise<Result> {
  const end = performance.now() + minutes * 60_000;
  const failures: Failure[] = [];
  let [next, cases, steps] = [0, 0, 0];
  const lane = async () => {
    while (performance.now() < end && next < most && !signal?.aborted) {
      const made = makeCase(seed, next++);
      try {
        await runCase(made);
      } catch (error) {
        const failure = { made, error: error as Error };
        failures.push(failure);
        failed?.(failure);
      }
      cases++;
      steps += made.steps.length;
    }
  };
  await Promise.all(Array.from({ length: lanes }, lane));
  return { cases, steps, failures };
}

/** What failed, what it was, and how to see it again. */
export function tellFailure({ made, error }: Failure): string {
  // What the clean-up could not do comes in front of what the case itself has thrown.
  const errors = error instanceof SuppressedError ? [error.suppressed, error.error] : [error];
  return [
    ...errors.map((e) => e.message),
    ...describeCase(made).map((line) => `    ${line}`),
    `again: deno task torture --seed ${made.seed} --case ${made.number}`,
    `for tests/corpus: ${JSON.stringify({ why: "", case: made })}`,
    "",
  ].join("\n");
}

/** A case that has failed once, as it is kept in tests/corpus. */
export interface Kept {
  readonly why: string;
  /** Why it fails still. */
  readonly open?: string;
  readonly case: Case;
}

export function readKept(file: string): Kept {
  return JSON.parse(Deno.readTextFileSync(file));
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      minutes: { type: "string" },
      seed: { type: "string" },
      case: { type: "string" },
      replay: { type: "string" },
      cycles: { type: "string" },
      lanes: { type: "string" },
    },
  });
  const print = (text: string) => void Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
  if (values.cycles !== undefined) {
    print(tell(await cycles(Number(values.cycles), Number(values.lanes ?? 2))).trimEnd());
    return 0;
  }
  const seed = Number(values.seed ?? Date.now() % 1_000_000);
  if (values.case !== undefined || values.replay !== undefined) {
    const made: Case = values.replay ? readKept(values.replay).case : makeCase(seed, Number(values.case));
    print(describeCase(made).join("\n"));
    try {
      await runCase(made);
    } catch (error) {
      print(tellFailure({ made, error: error as Error }));
      return 1;
    }
    print("all laws hold");
    return 0;
  }
  const stopping = new AbortController();
  const onSignal = () => stopping.abort();
  for (const name of ["SIGINT", "SIGTERM"] as const) Deno.addSignalListener(name, onSignal);
  print(`seed ${seed}`);
  const minutes = Number(values.minutes ?? 1);
  const began = performance.now();
  const failed = (failure: Failure) => print(tellFailure(failure));
  const { cases, steps, failures } = await torture({ seed, minutes, signal: stopping.signal, failed });
  const took = (performance.now() - began) / 60_000;
  print(`${cases} cases, ${steps} steps, ${(cases / took).toFixed(0)} cases a minute; ${failures.length} broke a law`);
  return failures.length > 0 ? 1 : 0;
}

if (import.meta.main) Deno.exit(await main());
