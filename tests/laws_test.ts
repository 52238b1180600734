/**
 * What must hold of every plan, whatever was seen: the three laws, and what a reader of a plan relies on. Not examples
 * but every combination of the facts below, some twenty thousand observations.
 */

import assert from "node:assert/strict";
import { describeStep, limaWouldSay, type Observation, planPre, planStop, STARTS } from "../lima_guard.ts";
import type { AgentHealth, Diagnostic, Plan, StateFile, Step, VerifiedProcess } from "./facts.ts";
import {
  at,
  claim,
  dead,
  DIR,
  observation,
  ours,
  proven,
  recycled,
  signs,
  stale,
  STAMP,
  unknown,
} from "./observations.ts";

// Every PID is of one kind only, so that a number in a plan shows what it means.
const [AGENT, QEMU, DRIVER, USERNET, DEAD, OTHER_PROGRAM] = [811, 812, 813, 815, 7001, 7002];
const NOT_OURS = [DEAD, OTHER_PROGRAM];
const WHY_UNKNOWN = unknown("ps gave no answer");
const UNDELETABLE = "its directory belongs to uid 0 and has mode 0755";
const USERNET_FILE = "_networks/user-v2/usernet_user-v2.pid";
const USERNET_SOCKETS = { sockets: ["_networks/user-v2/user-v2_fd.sock", "_networks/user-v2/user-v2_ep.sock"] };

/** Who lives; what the agent shows, where one does: undefined means that it was not asked. */
const LIVING: Record<string, VerifiedProcess[]> = {
  nothing: [],
  usernet: [proven("usernet", USERNET)],
  agent: [proven("host agent", AGENT)],
  "stray agent": [proven("host agent", AGENT, { named: false })],
  "agent and QEMU": [proven("host agent", AGENT), proven("QEMU", QEMU), proven("usernet", USERNET)],
  "agent and external driver": [proven("external driver", DRIVER), proven("host agent", AGENT)],
  QEMU: [proven("QEMU", QEMU)],
  "QEMU and external driver": [proven("external driver", DRIVER), proven("QEMU", QEMU, { named: false })],
};
const SIGNS: Record<string, AgentHealth | undefined> = {
  "not asked": undefined,
  answers: signs(),
  "answers, young": signs({ ageS: 10, neverReported: true, wasRunning: false }),
  "silent, young": signs({ answers: false, ageS: 899, silentS: 600, wasRunning: false }),
  "silent for a moment": signs({ answers: false, ageS: 86_400, silentS: 59 }),
  "cannot be asked": signs({ answers: undefined, ageS: 86_400, silentS: 60 }),
  "silent for long": signs({ answers: false, ageS: 86_400, silentS: 60 }),
  deadlocked: signs({ ageS: 900, neverReported: true, wasRunning: false }),
};
/** What a file of the instance may claim; `ours` only where a process lives that it may name. */
const HA_PID: Record<string, StateFile[]> = {
  none: [],
  dead: [claim("ha.pid", dead(DEAD), { sockets: ["ha.sock"] })],
  "not ours": [claim("ha.pid", recycled(OTHER_PROGRAM), { sockets: ["ha.sock"] })],
  fixed: [claim("ha.pid", dead(DEAD), { sockets: ["ha.sock"], undeletable: UNDELETABLE })],
  unknown: [claim("ha.pid", WHY_UNKNOWN, { sockets: ["ha.sock"] })],
  ours: [claim("ha.pid", ours("host agent", AGENT), { sockets: ["ha.sock"] })],
};
const DRIVER_PID: Record<string, StateFile[]> = {
  none: [],
  "vz dead": [claim("vz.pid", dead(DEAD))],
  "vz not ours": [claim("vz.pid", recycled(OTHER_PROGRAM))],
  "vz fixed": [claim("vz.pid", recycled(OTHER_PROGRAM), { undeletable: UNDELETABLE })],
  "vz unknown": [claim("vz.pid", WHY_UNKNOWN)],
  "vz ours": [claim("vz.pid", ours("host agent", AGENT))],
  "QEMU ours": [claim("qemu.pid", ours("QEMU", QEMU)), claim("x.drv.pid", recycled(OTHER_PROGRAM))],
  "driver ours": [claim("x.drv.pid", ours("external driver", DRIVER)), claim("vz.pid", dead(DEAD))],
  "driver of Lima 2.1 ours": [claim("lima-driver-x-ha.pid", ours("external driver", DRIVER))],
};
const SHARED: Record<string, StateFile[]> = {
  none: [],
  "usernet ours": [claim(USERNET_FILE, ours("usernet", USERNET), USERNET_SOCKETS)],
  "usernet unknown": [claim(USERNET_FILE, WHY_UNKNOWN, USERNET_SOCKETS), claim("ssh.config", stale("it is cut short"))],
  "all void": [
    claim(USERNET_FILE, recycled(OTHER_PROGRAM), USERNET_SOCKETS),
    claim("_disks/data/in_use_by", stale("it says this instance, of which nothing is alive")),
    claim("ssh.config", stale("it is cut short")),
  ],
  "lock unknown, usernet fixed": [
    claim("_disks/data/in_use_by", WHY_UNKNOWN),
    claim(USERNET_FILE, recycled(OTHER_PROGRAM), { ...USERNET_SOCKETS, undeletable: UNDELETABLE }),
  ],
};
const PORT: Diagnostic = { what: "port 60022", because: "it is taken", hint: "lsof -i" };
const VMNET: Diagnostic = { what: "shared_socket_vmnet.pid", because: "it is recycled", status: 77 };
/** What is not the instance's: in the way of a start, and Lima 2.3's marker. */
const AROUND: Record<string, Partial<Observation>> = {
  nothing: {},
  marker: { bootMarker: STAMP },
  "port, marker": { startBlockers: [PORT], bootMarker: STAMP },
  "socket_vmnet, a note": { startBlockers: [VMNET], notes: [{ what: "a usernet", because: "no PID file names it" }] },
};
const UNKNOWNS: Record<string, Diagnostic[]> = {
  "ps answered": [],
  "ps failed": [{ what: "all processes", because: "ps gave no answer" }],
};

/** Every choice of one entry from each of the tables. */
function product<T extends Record<string, unknown>[]>(...tables: T): { [K in keyof T]: [string, T[K][string]] }[] {
  const rows = tables.reduce<unknown[][]>(
    (rows, table) => rows.flatMap((row) => Object.entries(table).map((entry) => [...row, entry])),
    [[]],
  );
  return rows as { [K in keyof T]: [string, T[K][string]] }[];
}

interface Case {
  /** What was chosen, in words. */
  readonly words: string;
  readonly seen: Observation;
  readonly plans: Record<"pre" | "stop", Plan>;
}

/** All that can be seen. The impossible is left out: signs without an agent, and a file whose own process is not alive. */
function everything(): Case[] {
  return product(LIVING, SIGNS, HA_PID, DRIVER_PID, SHARED, UNKNOWNS, AROUND).flatMap((chosen): Case[] => {
    const [[, alive], [, agent], [, ha], [, driver], [, shared], [, unknowns], [, around]] = chosen;
    const claims = [...ha, ...driver, ...shared];
    const isNamed = (role: string) => alive.some((p) => p.role === role && p.named);
    if (agent && !alive.some((p) => p.role === "host agent")) return [];
    if (claims.some((c) => c.verdict.kind === "ours" && !isNamed(c.verdict.role))) return [];
    const facts = { stateFiles: claims, alive, unknowns, ...around };
    const seen = frozen(observation({ ...facts, ...(agent ? { agent } : {}) }));
    const words = chosen.map(([word]) => word).join(" · ");
    return [{ words, seen, plans: { pre: planPre(seen), stop: planStop(seen, 60) } }];
  });
}

/** Deciding must change nothing of what was seen: an attempt to throws. */
function frozen<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    Object.values(value).forEach(frozen);
  }
  return value;
}

const ALL = everything();

/** A law of `--pre`, of `--stop`, or of both. The first observation that breaks it is named. */
function law(text: string, roles: readonly ("pre" | "stop")[], check: (p: Plan, seen: Observation) => void): void {
  for (const role of roles) {
    Deno.test(`law of --${role}: ${text}`, () => {
      for (const { words, seen, plans } of ALL) {
        try {
          check(plans[role], seen);
        } catch (failure) {
          throw new Error(`${words}: ${JSON.stringify(plans[role], undefined, 2)}`, { cause: failure });
        }
      }
    });
  }
}

const BOTH = ["pre", "stop"] as const;
const isRemoval = (s: Step) => s.kind === "remove";
const removed = (p: Plan) => p.steps.filter(isRemoval).map((s) => s.path ?? "");
const stages = (p: Plan) => p.steps.filter((s) => !isRemoval(s));
const isPidFile = (c: StateFile) => c.scope === "instance" && c.path.endsWith(".pid");
/** Something about the instance's own processes could not be found out. */
const isUnsure = (seen: Observation) =>
  seen.unknowns.length > 0 || seen.stateFiles.some((c) => c.scope === "instance" && c.verdict.kind === "unknown");
const carriers = (seen: Observation) => seen.alive.filter((p) => p.role !== "usernet");
const agentLives = (seen: Observation) => seen.alive.some((p) => p.role === "host agent");
/** Past its boot, and deaf for a minute or without one event. An agent that was not asked is not known to be hung. */
const isHung = ({ agent }: Observation) =>
  agent !== undefined && agent.ageS >= 15 * 60 &&
  (agent.neverReported || (agent.answers === false && agent.silentS >= 60));
const may = (c: StateFile) => ["dead", "not ours", "stale"].includes(c.verdict.kind) && c.undeletable === undefined;

Deno.test("the laws are tried on thousands of observations of every kind", () => {
  assert.ok(ALL.length > 5_000, `${ALL.length}`);
  const states = new Set(ALL.map(({ plans }) => plans.pre.state));
  const all = ["blocked", "booting", "clear", "hung", "orphan", "running", "stale", "unknown"];
  assert.deepEqual([...states].sort(), all);
});

law("a start is promised only where nothing but dead files is in the way", ["pre"], (p, seen) => {
  if (limaWouldSay(seen, "absent") !== STARTS) return;
  const onlyDead = seen.stateFiles.every((c) => ["dead", "ours"].includes(c.verdict.kind));
  assert.ok(p.state === "clear" || (p.state === "stale" && onlyDead), p.state);
});

// ── No other program is ever signalled ──

law("a signal step names proven processes of this instance and no other process", BOTH, (p, seen) => {
  const proven = carriers(seen).map((p) => String(p.row.pid));
  for (const step of stages(p)) {
    const named = [...step.what.replace(/, until \d+ s$/, "").matchAll(/\d+/g)].map(([pid]) => pid);
    assert.ok(named.every((pid) => proven.includes(pid)), `${step.what} names others than ${proven}`);
    assert.ok(NOT_OURS.every((pid) => !step.what.includes(String(pid))));
    if (step.kind === "kill") assert.deepEqual(named.toSorted(), proven.toSorted(), "what the last step ends");
  }
  assert.ok(stages(p).length === 0 || proven.length > 0, "stop stages where nothing lives");
});

law("the stop stages begin with the guest and end with the kill", BOTH, (p) => {
  const kinds = stages(p).map((s) => s.kind).join(" ");
  assert.match(kinds, /^(|guest( agent| driver| agent driver) kill)$/);
  if (stages(p).length === 0) return;
  // Only what Lima would signal by while it stops goes before the stages; all other files go after them.
  const isUrgent = (path: string | undefined) => /\.drv\.pid$|\/lima-driver-[^/]*$/.test(path ?? "");
  const begin = p.steps.findIndex((s) => s.kind === "guest");
  const end = p.steps.findIndex((s) => s.kind === "kill");
  assert.ok(p.steps.slice(0, begin).every((s) => isRemoval(s) && isUrgent(s.path)), "before the stages");
  assert.ok(p.steps.slice(begin, end).every((s) => !isRemoval(s)), "between the stages");
  assert.ok(p.steps.slice(end).every((s) => !isUrgent(s.path)), "after the stages");
});

law("a host agent that is not proven to be hung gets no step", ["pre"], (p, seen) => {
  if (agentLives(seen) && !isHung(seen)) assert.deepEqual(p.steps, []);
});

law(
  "an instance is called running only where its host agent answers and its driver's own file is proven",
  ["pre"],
  (p, seen) => {
    if (p.state !== "running") return;
    const isDrivers = (c: StateFile) => /\/(vz|qemu|krunkit)\.pid$/.test(c.path) && c.verdict.kind === "ours";
    assert.ok(agentLives(seen) && seen.agent?.answers === true && seen.stateFiles.some(isDrivers));
  },
);

law("a host agent or a driver that lives is never left beside a start", ["pre"], (p, seen) => {
  if (carriers(seen).length === 0) return;
  const isRunning = p.state === "running" && seen.agent?.answers === true;
  assert.ok(isRunning || p.status !== 0 || stages(p).length > 0, "a second VM would be started on the same disk");
});

// ── Unknown is an answer ──

law("unknown about the instance's processes permits no step at all", ["pre"], (p, seen) => {
  if (isUnsure(seen)) assert.deepEqual(p.steps, []);
});

law("unknown about the instance's processes permits no removal, and is reported", ["stop"], (p, seen) => {
  if (!isUnsure(seen)) return;
  // Except the stale file of an external driver: Lima would signal the process that it names, and that ranks higher.
  const isDrivers = (path: string) => path.endsWith(".drv.pid") || /\/lima-driver-[^/]*$/.test(path);
  assert.deepEqual(removed(p).filter((path) => !(isDrivers(path) && carriers(seen).length > 0)), []);
  assert.equal(p.status, 75);
});

law("unknown about the instance's processes is no success, unless it is seen to run", ["pre"], (p, seen) => {
  if (isUnsure(seen) && p.state !== "running") assert.equal(p.status, 75);
});

law("what is unknown about something shared is not touched, and is reported", ["pre"], (p, seen) => {
  for (const c of seen.stateFiles.filter((c) => c.scope === "shared" && c.verdict.kind === "unknown")) {
    assert.ok([c, ...c.sockets].map(({ path }) => path).every((path) => !removed(p).includes(path)), c.path);
    if (carriers(seen).length === 0 && !isUnsure(seen)) assert.ok(p.blockers.some((b) => b.what === c.path), c.path);
  }
});

law("nothing is removed but a claim without proof, with its companions, and the boot marker", BOTH, (p, seen) => {
  const going = seen.stateFiles.filter(may);
  const permitted = [...going.flatMap((c) => [c, ...c.sockets]).map(({ path }) => path), `${DIR}/boot-session.tmp`];
  const paths = removed(p);
  assert.ok(paths.every((path) => permitted.includes(path)), `${paths}`);
  assert.equal(new Set(paths).size, paths.length, "no file goes twice");
  for (const { path, stamp } of p.steps.filter(isRemoval)) {
    assert.ok(stamp !== undefined, `${path} goes only while it looks as it did`);
  }
});

law("a companion goes with its file and directly before it", BOTH, (p, seen) => {
  const paths = removed(p);
  for (const c of seen.stateFiles.filter((c) => c.sockets.length > 0)) {
    const companions = c.sockets.map(({ path }) => path);
    const place = paths.indexOf(c.path);
    const before = place < 0 ? [] : paths.slice(place - companions.length, place);
    assert.deepEqual(before, place < 0 ? [] : companions);
    if (place < 0) assert.ok(companions.every((path) => !paths.includes(path)), c.path);
  }
});

law("the boot marker goes with the last PID file, after it, and never alone", BOTH, (p, seen) => {
  const paths = removed(p);
  const files = seen.stateFiles.filter(isPidFile).map((c) => c.path);
  const lastGoes = files.length > 0 && files.every((path) => paths.includes(path));
  assert.equal(paths.includes(at("boot-session.tmp")), lastGoes && seen.bootMarker !== undefined);
  if (paths.includes(at("boot-session.tmp"))) assert.equal(paths.at(-1), at("boot-session.tmp"));
});

// ── A plan that was carried out leaves nothing to do ──

/** The world after a plan: removed files are gone, and what the stages ended is dead, as its files say. */
function after({ agent, bootMarker, ...seen }: Observation, p: Plan): Observation {
  const isGone = (path: string) => removed(p).includes(path);
  const ended = stages(p).length > 0;
  const died = (c: StateFile): StateFile =>
    ended && c.verdict.kind === "ours" && c.verdict.role !== "usernet" ? { ...c, verdict: dead(DEAD) } : c;
  return {
    ...seen,
    stateFiles: seen.stateFiles.filter((c) => !isGone(c.path)).map(died),
    alive: ended ? seen.alive.filter((p) => p.role === "usernet") : seen.alive,
    ...(ended || !agent ? {} : { agent }),
    ...(bootMarker && !isGone(at("boot-session.tmp")) ? { bootMarker } : {}),
  };
}

law("a plan that was carried out leaves a plan without steps", ["pre"], (p, seen) => {
  const next = after(seen, p);
  // After the stages the files of what has ended are judged again: one plan more.
  const last = stages(p).length > 0 ? after(next, planPre(next)) : next;
  const then = planPre(last);
  assert.deepEqual(then.steps, []);
  assert.equal(
    then.state === "clear",
    then.status === 0 && !agentLives(seen) || stages(p).length > 0 && then.status === 0,
  );
});

law("a stop that was carried out leaves nothing alive and no file that says so", ["stop"], (p, seen) => {
  if (isUnsure(seen)) return;
  const next = after(seen, p);
  const last = after(next, planStop(next, 60));
  assert.deepEqual(carriers(last), []);
  assert.deepEqual(last.stateFiles.filter(may), [], "the next boot starts clean");
  const then = planStop(last, 60);
  assert.equal(then.state, "stopped");
  assert.deepEqual(then.steps, []);
});

// ── What a reader relies on ──

law("everything has a reason", BOTH, (p) => {
  for (const { what, because } of [...p.steps, ...p.blockers, ...p.notes]) {
    assert.ok(what.length > 0 && because.length > 0, what);
  }
  assert.notEqual(p.because, "");
  assert.ok(p.steps.every((s) => s.outcome === undefined), "an outcome before the step");
});

law("status 0 means that nothing is in the way, and nothing else does", BOTH, (p) => {
  assert.equal(p.status === 0, p.blockers.length === 0);
  if (p.blockers.length === 0) return;
  const statuses = p.blockers.map((b) => b.status ?? 75);
  assert.ok(statuses.some((status) => status === p.status), `${p.status}, and its blockers have ${statuses}`);
});

law("what is in the way of a start is reported where a start is what comes next", ["pre"], (p, seen) => {
  if (["clear", "stale", "blocked"].includes(p.state)) {
    for (const o of seen.startBlockers) assert.ok(p.blockers.includes(o), o.what);
    const fixed = seen.stateFiles.filter((c) => c.undeletable !== undefined);
    for (const c of fixed) assert.ok(p.blockers.some((b) => b.what === c.path), c.path);
  }
});

law("each step, blocker and note of a plan has its words, in one line", BOTH, (p) => {
  const diagnostics = [...p.blockers, ...p.notes].flatMap(({ what, because, hint = "-" }) => [what, because, hint]);
  const lines = [p.because, ...p.steps.map(describeStep), ...diagnostics];
  assert.deepEqual(lines.filter((line) => line === "" || /\n|undefined/.test(line)), [], lines.join("\n"));
});

law("an instance that is not there is refused, and nothing of it is touched", BOTH, (_, seen) => {
  const missing = { ...seen, missing: "no such instance" };
  for (const p of [planPre(missing), planStop(missing, 60)]) {
    assert.deepEqual([p.state, p.status, p.steps, p.blockers.length], ["missing", 66, [], 1]);
  }
});
