/**
 * `deno task bench [--runs N] [--only TEXT] [--idle-minutes N] [--readme]`: what the guard costs, side by side with what
 * it is compared to, and how that grows with the instances in LIMA_HOME and with the processes on the machine.
 * `--only=--run` is for what stays: the supervisor's start, its memory, what it uses at rest, and how it ends.
 * `--readme` writes the table of docs/benchmarks.md.
 *
 * No time passes or fails here: it says something about two programs on one quiet machine, and nothing about any
 * other machine. What is no program's time from its start to its end is a row with a `measure` of its own.
 * @module
 */

import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { PS_COLUMNS, VERSION } from "../lima_guard.ts";
import {
  type Bystander,
  denoFlags,
  type Home,
  type Instance,
  project,
  sshGuest,
  startBystander,
  tempLimaHome,
  whyNoSshd,
} from "../tests/helpers/mod.ts";
import { readmeTable, withTable } from "./bench_table.ts";
import { type Crowd, gatherCrowd } from "./crowd.ts";
import { goOn, undoingAll } from "./interrupt.ts";
import { type Figures, measure, PEAK_BY, type Program, programRow, type Row, skippedRow, table } from "./measure.ts";
import { findLimactl, findProgram } from "./real_limactl.ts";
import {
  type AtRest,
  type Bench,
  crowdOfSupervisors,
  memoryAtRest,
  stops,
  together,
  untilFirstWord,
  usedAtRest,
  whyNoRoomFor,
  whyNoStrace,
} from "./supervised.ts";

const RESULTS = `${project}/bench-results.json`;
/** With these the whole takes some ten minutes; groups of slow programs end earlier, see measure. */
const RUNS = 40;
const GROWTH_RUNS = 15;
/** Of what takes many seconds each. */
const SLOW_RUNS = 3;
const SLOW_LIMIT_MS = 40_000;
const IDLE_MINUTES = 0.5;
/** How long a supervisor rests before its memory is looked at; in fewer seconds where fewer runs are asked for. */
const REST_S = 15;
const SUPERVISED = [1, 10, 50];
const INSTANCES = [1, 10, 100, 1000];
const PROCESSES = [10, 1000, 10_000, 30_000];
const NAME = "k3s";
const CONF = { vmtype: Deno.build.os === "darwin" ? "vz" : "qemu" };

const HOW = [
  "Wall times of whole processes, run in turns; ratio: the median of the ratios to the first row, round by round.",
  "From source means `deno run -A lima_guard.ts`: it does not type-check, and its caches (parsed code, V8's compiled " +
  "code) are warm.",
  `Peak: the largest resident set of the program or a child of it, in a few more runs (${PEAK_BY ?? "not measured"}).`,
  "Added: the difference of two times, round by round. --run supervises a stand-in of limactl whose guest boots and " +
  "powers off in no time. Its own process is what is looked at: not limactl, and not the ssh of its line to the guest.",
  "CPU time comes in steps of 10 ms. Switches: how often its threads went to sleep by themselves. System calls: those " +
  "of another one, under strace -f, and of what that one starts meanwhile.",
];

/** Rows that are measured in turns; the first one is what the others are compared to. */
interface Group {
  readonly title: string;
  readonly runs: number;
  /** Other ones than those of measure. */
  readonly warmUp?: number;
  readonly limitMs?: number;
  /** Made when the group is wanted; or why it cannot be had. */
  subject(): Promise<Subject | string>;
  readonly rows: Readonly<Record<string, (subject: Subject) => Row>>;
}

/** A LIMA_HOME with instances, and programs that are run there. */
class Subject {
  constructor(readonly home: Home, readonly instance: Instance, readonly bystander: Bystander) {
    Deno.writeTextFileSync(`${home.root}/empty.ts`, "");
  }

  bare(): Row {
    return this.program([Deno.execPath(), "run", "-A", `${this.home.root}/empty.ts`]);
  }

  /** `--pre` with a PID file that names another program: written before every run, gone after it. */
  repair(guard: Program["command"]): Row {
    return this.program([...guard, "--pre", NAME], {
      prepare: () => {
        this.instance.pidFile("vz.pid", this.bystander.pid);
        if (this.instance.has("lima-guard.jsonl")) this.instance.remove("lima-guard.jsonl"); // it would grow
      },
      check: () => {
        if (this.instance.has("vz.pid")) throw new Error("--pre has not removed vz.pid");
      },
    });
  }

  /** The call that the guard itself makes. */
  ps(): Row {
    return this.program(["ps", "-ww", "-o", PS_COLUMNS, "-p", String(this.bystander.pid)]);
  }

  program(command: Program["command"], more: Pick<Program, "prepare" | "check"> = {}): Row {
    return programRow({ command, env: environment(this.home), cwd: this.home.root, ...more });
  }
}

function environment(home: Home): Record<string, string> {
  return { ...home.env, LANG: "C.UTF-8", NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1", DENO_DIR };
}

async function subjectWith(instances: number, undo: AsyncDisposableStack): Promise<Subject> {
  const home = undo.use(await tempLimaHome());
  const instance = home.instance(NAME, { conf: CONF });
  for (let i = 1; i < instances; i++) home.instance(`other-${i}`, { conf: CONF });
  return new Subject(home, instance, undo.use(await startBystander(home)));
}

// --- what is measured ------------------------------------------------------------------------------------------------

const BARE = { "bare deno run (an empty file)": (subject: Subject) => subject.bare() };

function groups(undo: AsyncDisposableStack, interrupted: AbortSignal, options: Options): Group[] {
  const { runs = RUNS, runs: growthRuns = GROWTH_RUNS } = options;
  const one = once(() => subjectWith(1, undo));
  return [
    {
      title: "one instance",
      runs,
      subject: one,
      rows: { ...BARE, ...sourceRows(), ...compiledRows(), ...otherRows() },
    },
    ...INSTANCES.map((count): Group => ({
      title: `${count} ${count === 1 ? "instance" : "instances"} in LIMA_HOME`,
      runs: growthRuns,
      subject: () => count === 1 ? one() : subjectWith(count, undo),
      rows: {
        ...BARE,
        "--pre of one, clean": (subject) => subject.program([...SOURCE, "--pre", NAME]),
        "--pre of one, one repair": (subject) => subject.repair(SOURCE),
        "--stop --all --dry-run": (subject) => subject.program([...SOURCE, "--stop", "--all", "--dry-run"]),
        "--status of all": (subject) => subject.program([...SOURCE, "--status"]),
        ...limactlRows(),
      },
    })),
    ...processGroups(one, undo, growthRuns),
    ...runGroups(one, undo, interrupted, options),
  ];
}

function once<T>(make: () => Promise<T>): () => Promise<T> {
  let made: Promise<T> | undefined;
  return () => made ??= make();
}

function sourceRows(): Group["rows"] {
  return {
    "--version: the cost of loading the guard": (subject) => subject.program([...SOURCE, "--version"]),
    "--pre, clean": (subject) => subject.program([...SOURCE, "--pre", NAME]),
    "--pre, one repair (vz.pid names another program)": (subject) => subject.repair(SOURCE),
    "--status": (subject) => subject.program([...SOURCE, "--status"]),
  };
}

function compiledRows(): Group["rows"] {
  const command = compiledGuard();
  if (command === undefined) return { "compiled": () => skippedRow("not compiled (hint: deno task compile)") };
  return {
    "compiled: --version": (subject) => subject.program([...command, "--version"]),
    "compiled: --pre, clean": (subject) => subject.program([...command, "--pre", NAME]),
    "compiled: --pre, one repair": (subject) => subject.repair(command),
  };
}

function otherRows(): Group["rows"] {
  return { "ps -p of one PID": (subject) => subject.ps(), ...limactlRows() };
}

function limactlRows(): Group["rows"] {
  const real = findLimactl();
  return {
    "limactl list": (subject) => "why" in real ? skippedRow(real.why) : subject.program([real.path, "list"]),
  };
}

function processGroups(one: () => Promise<Subject>, undo: AsyncDisposableStack, runs: number): Group[] {
  let crowd: Crowd | undefined;
  return PROCESSES.map((count) => ({
    title: `${count} more processes on the machine`,
    runs,
    subject: async () => {
      const subject = await one();
      crowd ??= undo.use(gatherCrowd());
      return await crowd.grow(count) ?? subject;
    },
    rows: {
      ...BARE,
      "--pre, clean": (subject) => subject.program([...SOURCE, "--pre", NAME]),
      "--pre, one repair": (subject) => subject.repair(SOURCE),
      "ps -p of one PID": (subject) => subject.ps(),
    },
  }));
}

// --- what --run costs -------------------------------------------------------------------------------------------------

function runGroups(
  subject: () => Promise<Subject>,
  undo: AsyncDisposableStack,
  interrupted: AbortSignal,
  { runs = RUNS, runs: slowRuns = SLOW_RUNS, idleMinutes = IDLE_MINUTES }: Options,
): Group[] {
  const bench: Bench = { goOn: () => goOn(interrupted), guard: SOURCE, env: environment };
  const atRest = once(() => restingIn(undo, bench));
  const restS = Math.min(REST_S, 5 * slowRuns);
  return [
    { title: "--run of a command that ends at once", runs, limitMs: SLOW_LIMIT_MS, subject, rows: endsAtOnceRows() },
    { title: "--run until its command's first word", runs, limitMs: SLOW_LIMIT_MS, subject, rows: firstWordRows() },
    ...memoryGroups(atRest, bench, restS).map((group) => ({ ...group, runs: slowRuns, warmUp: 0, subject })),
    ...stopGroups(undo, bench).map((group) => ({ ...group, runs, warmUp: 1, limitMs: SLOW_LIMIT_MS, subject })),
    ...idleGroups(atRest, bench, idleMinutes).map((group) => ({ ...group, runs: 1, warmUp: 0, subject })),
    ...supervisedGroups(undo, bench).map((group) => ({ ...group, runs: slowRuns, warmUp: 0, subject })),
  ];
}

type Rows = Pick<Group, "title" | "rows">;

/** Programs that are run one after the other, and how much longer one is than another. */
function endsAtOnceRows(): Group["rows"] {
  const compiled = compiledGuard();
  const forget = (subject: Subject) => () => forgetRuns(subject.instance);
  const run = (guard: Program["command"]) => (subject: Subject) =>
    subject.program([...guard, "--run", NAME, "--", "true"], { prepare: forget(subject) });
  const programs: Group["rows"] = {
    bare: (subject) => subject.program(["true"]),
    deno: (subject) => subject.bare(),
    run: run(SOURCE),
    ...compiled ? { compiled: run(compiled) } : {},
  };
  const figures = perSubject((subject) => {
    const rows = Object.entries(programs).map(([name, make]) => [name, make(subject)] as const);
    return together(async () => {
      const ms: Record<string, number> = {};
      for (const [name, row] of rows) ms[name] = await row.measure();
      const { bare = NaN, deno = NaN, run = NaN } = ms;
      return { ...ms, added: run - bare, "added to both": run - bare - deno };
    });
  });
  const timed = (name: string) => (subject: Subject): Row => ({
    ...programs[name]?.(subject),
    ...figures(subject)(name, "ms"),
  });
  return {
    "true, bare": timed("bare"),
    ...renamed(BARE, timed("deno")),
    "--run NAME -- true": timed("run"),
    "added to bare true": timed("added"),
    "added to bare true and bare deno run": timed("added to both"),
    "compiled: --run NAME -- true": compiled ? timed("compiled") : NOT_COMPILED,
  };
}

const NOT_COMPILED = () => skippedRow("not compiled (hint: deno task compile)");

function renamed(rows: Group["rows"], make: (subject: Subject) => Row): Group["rows"] {
  return Object.fromEntries(Object.keys(rows).map((name) => [name, make]));
}

/** One for all rows of a group, which have the same subject. */
function perSubject<T>(make: (subject: Subject) => T): (subject: Subject) => T {
  let made: T | undefined;
  return (subject) => made ??= make(subject);
}

/** The journal would grow, and bad ends in it would slow the next start down. */
function forgetRuns(instance: Instance): void {
  if (instance.has("lima-guard.jsonl")) instance.remove("lima-guard.jsonl");
}

function firstWordRows(): Group["rows"] {
  const compiled = compiledGuard();
  const figures = perSubject(({ home, instance }) =>
    together(() => {
      const until = (...prefix: string[]) => untilFirstWord(prefix, home, environment(home));
      forgetRuns(instance);
      const bare = until();
      const run = until(...SOURCE, "--run", NAME, "--");
      const more = compiled ? { compiled: until(...compiled, "--run", NAME, "--") } : {};
      return Promise.resolve({ bare, run, added: run - bare, ...more });
    })
  );
  const timed = (name: string) => (subject: Subject) => figures(subject)(name, "ms");
  return {
    "perl, bare": timed("bare"),
    "--run NAME -- perl": timed("run"),
    "added to bare perl": timed("added"),
    "compiled: --run NAME -- perl": compiled ? timed("compiled") : NOT_COMPILED,
  };
}

const LINED = "--run, with a line to the guest";
const UNLINED = "--run, no ssh in the guest";
const COMPILED = "compiled: --run, no ssh in the guest";
const TINI = "tini -s -- sleep";
const DUMB_INIT = "dumb-init sleep";
const IDLE_DENO = "deno run of a program that only waits";
const traced = (name: string) => `traced: ${name}`;

/** What rests side by side; those that strace looks at are others than those whose time is measured. */
interface Resting {
  /** Those whose memory is looked at; then those that are watched, and further ones for strace. */
  readonly memory: AtRest;
  readonly idle: AtRest;
}

async function restingIn(undo: AsyncDisposableStack, bench: Bench): Promise<Resting> {
  const home = undo.use(await tempLimaHome());
  const compiled = compiledGuard();
  const plain = (name: string) => ({ bench, instance: home.instance(name, { conf: CONF }) });
  const lined = async (name: string) => {
    const { instance } = plain(name);
    await bench.goOn();
    return { bench, instance, guest: undo.use(await sshGuest(instance)) };
  };
  const hasSshd = whyNoSshd() === undefined;
  const supervisors = { ...hasSshd ? { [LINED]: await lined("lined") } : {}, [UNLINED]: plain("unlined") };
  const inits = { ...initPrefix(TINI), ...initPrefix(DUMB_INIT) };
  const canTrace = whyNoStrace(findProgram("strace")) === undefined;
  return {
    memory: {
      home,
      supervisors: compiled
        ? { ...supervisors, [COMPILED]: { ...plain("compiled"), bench: { ...bench, guard: compiled } } }
        : supervisors,
      others: inits,
      deno: IDLE_DENO,
    },
    idle: {
      home,
      supervisors: {
        ...supervisors,
        ...canTrace && hasSshd ? { [traced(LINED)]: await lined("lined-traced") } : {},
        ...canTrace ? { [traced(UNLINED)]: plain("unlined-traced") } : {},
      },
      others: {
        ...inits,
        ...canTrace ? Object.fromEntries(Object.entries(inits).map(([name, init]) => [traced(name), init])) : {},
        ...canTrace ? { [traced(IDLE_DENO)]: [Deno.execPath(), "run", "-A", `${home.root}/waits.ts`] } : {},
      },
      deno: IDLE_DENO,
    },
  };
}

/** The row's name is the command except what sleeps. */
function initPrefix(row: string): Record<string, Program["command"]> {
  const [name = "", ...args] = row.split(" ").slice(0, -1);
  const path = findProgram(name);
  return path === undefined ? {} : { [row]: [path, ...args] };
}

/** Rows for what rests, or why they cannot be had. */
function restRows(figure: (name: string) => Row, names: readonly string[]): Group["rows"] {
  const whyNot: Record<string, string | false | undefined> = {
    [LINED]: whyNoSshd(),
    [COMPILED]: !compiledGuard() && "not compiled (hint: deno task compile)",
    [TINI]: !findProgram("tini") && "tini is not installed",
    [DUMB_INIT]: !findProgram("dumb-init") && "dumb-init is not installed",
  };
  return Object.fromEntries(names.map((name) => {
    const why = whyNot[name];
    return [name, () => why ? skippedRow(why) : figure(name)];
  }));
}

function memoryGroups(atRest: () => Promise<Resting>, bench: Bench, restS: number): Rows[] {
  const figure = together(async () => memoryAtRest((await atRest()).memory, bench, restS));
  const names = [IDLE_DENO, LINED, UNLINED, COMPILED, TINI, DUMB_INIT];
  const pss = restRows((name) => figure(`PSS ${name}`, "MiB"), names);
  const nowhere = () => skippedRow("only Linux tells it");
  return [
    {
      title: `--run after ${restS} s of rest: RSS`,
      rows: restRows((name) => figure(`RSS ${name}`, "MiB"), names),
    },
    {
      title: `--run after ${restS} s of rest: PSS`,
      rows: Deno.build.os === "linux" ? pss : Object.fromEntries(names.map((name) => [name, nowhere])),
    },
  ];
}

function stopGroups(undo: AsyncDisposableStack, bench: Bench): Rows[] {
  const home = once(async () => undo.use(await tempLimaHome()));
  const plain = once(async () => ({ instance: (await home()).instance("plain", { conf: CONF }), guest: undefined }));
  const lined = once(async () => {
    const instance = (await home()).instance("lined", { conf: CONF });
    await bench.goOn();
    return { instance, guest: undo.use(await sshGuest(instance)) };
  });
  const rowsWith = (made: () => Promise<Awaited<ReturnType<typeof plain | typeof lined>>>, why?: string) => {
    const figure = together(async () => {
      const { instance, guest } = await made();
      return await stops(bench, instance, guest);
    });
    const row = (name: string) => () => why === undefined ? figure(name, "s") : skippedRow(why);
    return { "the host agent alone": row("alone"), "--run over the host agent": row("over"), "added": row("added") };
  };
  return [
    { title: "--run from SIGTERM, no ssh in the guest", rows: rowsWith(plain) },
    { title: "--run from SIGTERM, a line to the guest", rows: rowsWith(lined, whyNoSshd()) },
  ];
}

function idleGroups(atRest: () => Promise<Resting>, bench: Bench, minutes: number): Rows[] {
  const strace = findProgram("strace");
  const why = whyNoStrace(strace);
  const names = [IDLE_DENO, LINED, UNLINED, TINI, DUMB_INIT];
  const figure = together(async () => {
    const { idle } = await atRest();
    const all = [...Object.keys(idle.supervisors), ...Object.keys(idle.others)];
    const isTraced = (name: string) => names.some((one) => name === traced(one));
    const which = { minutes, traced: all.filter(isTraced), strace: why === undefined ? strace : undefined };
    return await usedAtRest(idle, bench, which);
  });
  const isLinux = Deno.build.os === "linux";
  const unlessLinux = (row: (name: string) => Row) => (name: string) =>
    isLinux ? row(name) : skippedRow("only Linux tells it");
  const rows = restRows((name) => figure(`CPU ${name}`, "ms"), names);
  const withChildren = unlessLinux(() => figure(`CPU+ ${UNLINED}`, "ms"));
  return [
    {
      title: `--run in ${minutes} idle minutes: CPU time`,
      rows: { ...rows, "--run, no ssh in the guest, and its children": () => withChildren("") },
    },
    {
      title: `--run in ${minutes} idle minutes: switches`,
      rows: restRows(unlessLinux((name) => figure(`switches ${name}`, "")), names),
    },
    {
      title: `--run in ${minutes} idle minutes: system calls`,
      rows: restRows((name) => why === undefined ? figure(`calls ${traced(name)}`, "") : skippedRow(why), names),
    },
  ];
}

function supervisedGroups(undo: AsyncDisposableStack, bench: Bench): Rows[] {
  const figures = SUPERVISED.map((count) => {
    const instances = once(async () => {
      const home = undo.use(await tempLimaHome());
      return Array.from({ length: count }, (_, i) => home.instance(`i${i}`, { conf: CONF }));
    });
    return { count, figure: together(async () => crowdOfSupervisors(bench, await instances(), CROWD_REST_S)) };
  });
  const rows = (name: string, unit: Row["unit"]): Group["rows"] =>
    Object.fromEntries(figures.map(({ count, figure }) => {
      const why = whyNoRoomFor(count);
      const row = () => why === undefined ? figure(name, unit) : skippedRow(why);
      return [`${count} ${count === 1 ? "instance" : "instances"}`, row];
    }));
  const sum = Deno.build.os === "linux" ? "PSS" : "RSS";
  return [
    { title: `--run of many: sum of ${sum}`, rows: rows("MiB", "MiB") },
    { title: `--run of many: ${sum} of each`, rows: rows("MiB each", "MiB") },
    { title: "--run of many: until all are Running", rows: rows("started", "s") },
    { title: "--run of many: SIGTERM to the last end", rows: rows("stopped", "s") },
  ];
}

/** After the last one is Running, before their memory is looked at. */
const CROWD_REST_S = 5;

// --- where things are ------------------------------------------------------------------------------------------------

/** HOME is another one for what is measured, so the cache that Deno finds through HOME must be named. */
const DENO_DIR = JSON.parse(outputOf(Deno.execPath(), "info", "--json")).denoDir as string;
const SOURCE: Program["command"] = [Deno.execPath(), "run", "-A", ...denoFlags(), `${project}/lima_guard.ts`];

function compiledGuard(): Program["command"] | undefined {
  const paths = ["lima-guard", `lima-guard-${Deno.build.target}`].map((name) => `${project}/dist/${name}`);
  const found = paths.find((path) => {
    try {
      return Deno.statSync(path).isFile;
    } catch {
      return false;
    }
  });
  return found === undefined ? undefined : [found];
}

/** What a command prints; nothing where there is no such command. */
function outputOf(command: string, ...args: string[]): string {
  try {
    const { stdout } = new Deno.Command(command, { args, cwd: project, stdin: "null", stderr: "null" }).outputSync();
    return new TextDecoder().decode(stdout).trim();
  } catch {
    return "";
  }
}

// --- the run ---------------------------------------------------------------------------------------------------------

async function bench(undo: AsyncDisposableStack, interrupted: AbortSignal): Promise<number> {
  const chosen = options();
  const { only = "" } = chosen;
  const results: { title: string; rows: Figures[] }[] = [];
  for (const group of groups(undo, interrupted, chosen)) {
    const [base, ...others] = Object.entries(group.rows);
    const wanted = others.filter(([name]) => `${group.title}: ${name}`.includes(only));
    if (base === undefined || wanted.length === 0) continue;
    progress(`${group.title}: getting ready`);
    await goOn(interrupted);
    const subject = await group.subject();
    const rows = Object.fromEntries(
      [base, ...wanted].map((
        [name, make],
      ) => [name, typeof subject === "string" ? skippedRow(subject) : make(subject)]),
    );
    const figures = await measure(rows, group, async (round) => {
      progress(`${group.title}: ${round < 0 ? "warming up" : `${round} of ${group.runs}`}`);
      // A turn of the event loop, or else no signal would ever be heard.
      await new Promise((resolve) => setTimeout(resolve, 0));
      await goOn(interrupted);
    });
    progress("");
    print(`${table(group.title, figures)}\n`);
    results.push({ title: group.title, rows: figures });
  }
  if (results.length === 0) throw new Error(`no row has ${JSON.stringify(only)} in its name`);
  const about = aboutHere();
  print(`${HOW.join("\n")}\n\n${about.map(([key, value]) => `${key}: ${value}`).join("\n")}\n`);
  const document = {
    version: 1,
    date: new Date().toISOString(),
    ...Object.fromEntries(about),
    how: HOW,
    groups: results,
  };
  try {
    Deno.writeTextFileSync(RESULTS, `${JSON.stringify(document)}\n`);
    if (chosen.readme) writeReadme(document);
  } catch (error) {
    print(`not written: ${(error as Error).message}\n`);
    return 1;
  }
  print(`written: ${RESULTS}\n`);
  return results.some(({ rows }) => rows.some((row) => row.failed !== undefined)) ? 1 : 0;
}

/** Fails where the table has lost its place in docs/benchmarks.md. */
function writeReadme(document: { date: string; groups: { title: string; rows: Figures[] }[] }): void {
  const path = `${project}/docs/benchmarks.md`;
  const results = { ...Object.fromEntries(aboutHere()), ...document } as unknown as Parameters<typeof readmeTable>[0];
  Deno.writeTextFileSync(path, withTable(Deno.readTextFileSync(path), readmeTable(results)));
  outputOf(Deno.execPath(), "fmt", "--quiet", path);
}

interface Options {
  readonly readme: boolean;
  readonly runs?: number;
  readonly only?: string;
  readonly idleMinutes?: number;
}

function options(): Options {
  const { values } = parseArgs({
    options: {
      readme: { type: "boolean" },
      runs: { type: "string" },
      only: { type: "string" },
      "idle-minutes": { type: "string" },
    },
  });
  const { only, runs, "idle-minutes": minutes } = values;
  if (runs !== undefined && !(Number.isInteger(Number(runs)) && Number(runs) > 0)) {
    throw new Error(`--runs ${runs}: not a number`);
  }
  if (minutes !== undefined && !(Number(minutes) > 0 && Number(minutes) <= 24 * 60)) {
    throw new Error(`--idle-minutes ${minutes}: not a number of minutes`);
  }
  return {
    readme: values.readme ?? false,
    ...runs === undefined ? {} : { runs: Number(runs) },
    ...only === undefined ? {} : { only },
    ...minutes === undefined ? {} : { idleMinutes: Number(minutes) },
  };
}

function aboutHere(): [string, string][] {
  const real = findLimactl();
  const memory = Math.round(Deno.systemMemoryInfo().total / 2 ** 30);
  const commit = outputOf("git", "describe", "--always", "--dirty");
  return [
    ["machine", `${Deno.build.target}, ${Deno.osRelease()}, ${cpus().length} × ${cpus()[0]?.model}, ${memory} GiB`],
    ["guard", `${VERSION}${commit && ` (${commit})`}`],
    ["deno", `${Deno.version.deno}, V8 ${Deno.version.v8}`],
    ["packages", denoFlags().join(" ") || "from JSR"],
    ["ps", outputOf("ps", "--version") || "of the system"],
    ["limactl", "why" in real ? real.why : real.version],
  ];
}

function progress(text: string): void {
  if (Deno.stderr.isTerminal()) Deno.stderr.writeSync(new TextEncoder().encode(`\r\x1b[K${text}`));
}

function print(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(text));
}

Deno.exit(
  await undoingAll(bench).catch((error) => {
    print(`\nThe benchmark cannot continue: ${error instanceof Error ? error.message : error}\n`);
    return 1;
  }),
);
