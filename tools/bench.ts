/**
 * `deno task bench [--runs N] [--only TEXT] [--idle-minutes N] [--readme]`: what the guard costs, side by side with what
 * it is compared to: the rows of docs/benchmarks.md, whose table `--readme` writes.
 *
 * No time passes or fails here: it says something about two programs on one quiet machine, and nothing about any
 * other machine. What is no program's time from its start to its end is a row with a `measure` of its own.
 * @module
 */

import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { VERSION } from "../lima_guard.ts";
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
import { gatherCrowd } from "./crowd.ts";
import { goOn, undoingAll } from "./interrupt.ts";
import { type Figures, measure, PEAK_BY, type Program, programRow, type Row, skippedRow, table } from "./measure.ts";
import { findLimactl, findProgram } from "./real_limactl.ts";
import { bundle, realBuilder } from "./compile.ts";
import {
  type Bench,
  callsAtRest,
  lastEndOf,
  MEMORY,
  memoryAtRest,
  stops,
  together,
  whyNoRoomFor,
  whyNoStrace,
} from "./supervised.ts";

const RESULTS = `${project}/bench-results.json`;
/** With these the whole takes some four minutes; groups of slow programs end earlier, see measure. */
const RUNS = 20;
const GROWTH_RUNS = 8;
/** Of stops, of which each takes some seconds. */
const STOP_RUNS = 8;
/** Of what takes many seconds each. */
const SLOW_RUNS = 2;
const SLOW_LIMIT_MS = 40_000;
const IDLE_MINUTES = 0.25;
/** How long a supervisor rests before its memory is looked at; in fewer seconds where fewer runs are asked for. */
const REST_S = 8;
const SUPERVISED = 50;
const INSTANCES = 1000;
const PROCESSES = 30_000;
const NAME = "k3s";
const CONF = { vmtype: Deno.build.os === "darwin" ? "vz" : "qemu" };

const HOW = [
  "Wall times of whole processes, run in turns; ratio: the median of the ratios to the first row, round by round.",
  "From source means `deno run -A lima_guard.ts`: it does not type-check, and its caches (parsed code, V8's compiled " +
  "code) are warm.",
  `Peak: the largest resident set of the program or a child of it, in a few more runs (${PEAK_BY ?? "not measured"}).`,
  "--run supervises a stand-in of limactl whose guest boots and powers off in no time. Its own process is what is looked " +
  "at: not limactl, and not the ssh of its session with the guest.",
  "System calls: those of another one, under strace -f, and of what that one starts meanwhile.",
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
  const [runs, growthRuns] = [options.runs ?? RUNS, options.runs ?? GROWTH_RUNS];
  const one = once(() => subjectWith(1, undo));
  const guard = (...args: string[]) => (subject: Subject) => subject.program([...SOURCE, ...args]);
  const clean = { "--pre, clean": guard("--pre", NAME) };
  const repair = (subject: Subject) => subject.repair(SOURCE);
  return [
    {
      title: "one instance",
      runs,
      subject: one,
      rows: {
        ...BARE,
        "--version: the cost of loading the guard": guard("--version"),
        ...clean,
        "--pre, clean, bundled": (subject) => {
          return BUNDLED === undefined ? skippedRow(NO_BUNDLE) : subject.program([...BUNDLED, "--pre", NAME]);
        },
        "--pre, one repair (vz.pid names another program)": repair,
        "--status": guard("--status"),
        ...limactlRows(),
      },
    },
    {
      title: `${INSTANCES} instances in LIMA_HOME`,
      runs: growthRuns,
      subject: () => subjectWith(INSTANCES, undo),
      rows: {
        ...BARE,
        "--pre of one, clean": guard("--pre", NAME),
        "--stop --all --dry-run": guard("--stop", "--all", "--dry-run"),
        ...limactlRows(),
      },
    },
    {
      title: `${PROCESSES} more processes on the machine`,
      runs: growthRuns,
      subject: async () => await undo.use(gatherCrowd()).grow(PROCESSES) ?? await one(),
      rows: { ...BARE, ...clean, "--pre, one repair": repair },
    },
    ...runGroups(one, undo, interrupted, options),
  ];
}

function once<T>(make: () => Promise<T>): () => Promise<T> {
  let made: Promise<T> | undefined;
  return () => made ??= make();
}

function limactlRows(): Group["rows"] {
  const real = findLimactl();
  return {
    "limactl list": (subject) => "why" in real ? skippedRow(real.why) : subject.program([real.path, "list"]),
  };
}

// --- what --run costs -------------------------------------------------------------------------------------------------

const SUPERVISING = "--run, with a session with the guest";
const IDLE_DENO = "deno run of a program that only waits";

function runGroups(
  subject: () => Promise<Subject>,
  undo: AsyncDisposableStack,
  interrupted: AbortSignal,
  options: Options,
): Group[] {
  const { runs = STOP_RUNS, idleMinutes = IDLE_MINUTES } = options;
  const slowRuns = options.runs ?? SLOW_RUNS;
  const bench: Bench = { goOn: () => goOn(interrupted), guard: SOURCE, env: environment };
  const withGuest = once(async () => {
    const instance = undo.use(await tempLimaHome()).instance("withguest", { conf: CONF });
    await bench.goOn();
    return { instance, guest: undo.use(await sshGuest(instance)) };
  });
  const restS = Math.min(REST_S, 5 * slowRuns);
  const strace = findProgram("strace");
  const stop = together(async () => await stops(bench, await withGuest()));
  const memory = together(async () => await memoryAtRest(bench, await withGuest(), restS));
  const bundled = BUNDLED && { ...bench, guard: BUNDLED };
  const memoryBundled = bundled && together(async () => await memoryAtRest(bundled, await withGuest(), restS));
  const calls = together(async () =>
    await callsAtRest(bench, await withGuest(), { minutes: idleMinutes, strace: strace! })
  );
  const many = together(async () =>
    await lastEndOf(bench, undo.use(await tempLimaHome()), { count: SUPERVISED, conf: CONF })
  );
  const rows = (names: Record<string, Row>, why?: string): Group["rows"] =>
    Object.fromEntries(Object.entries(names).map(([name, row]) => [name, () => why ? skippedRow(why) : row]));
  const slow = { warmUp: 0, subject };
  return [
    {
      title: "--run from SIGTERM, a session with the guest",
      runs,
      warmUp: 1,
      limitMs: SLOW_LIMIT_MS,
      subject,
      rows: rows(
        { "the host agent alone": stop("alone", "s"), "--run over the host agent": stop("over", "s") },
        whyNoSshd(),
      ),
    },
    {
      title: `--run after ${restS} s of rest: ${MEMORY} memory`,
      runs: slowRuns,
      ...slow,
      rows: rows({
        [IDLE_DENO]: memory("deno", "MiB"),
        [SUPERVISING]: memory("run", "MiB"),
        [`${SUPERVISING}, bundled`]: memoryBundled?.("run", "MiB") ?? skippedRow(NO_BUNDLE),
      }, whyNoSshd()),
    },
    {
      title: `--run in ${idleMinutes} idle minutes: system calls`,
      runs: 1,
      ...slow,
      rows: rows(
        { [IDLE_DENO]: calls("deno", ""), [SUPERVISING]: calls("run", "") },
        whyNoStrace(strace) ?? whyNoSshd(),
      ),
    },
    {
      title: "--run of many: SIGTERM to the last end",
      runs: slowRuns,
      ...slow,
      rows: rows({ [`${SUPERVISED} instances`]: many("stopped", "s") }, whyNoRoomFor(SUPERVISED)),
    },
  ];
}

// --- where things are ------------------------------------------------------------------------------------------------

/** HOME is another one for what is measured, so the cache that Deno finds through HOME must be named. */
const DENO_DIR = JSON.parse(outputOf(Deno.execPath(), "info", "--json")).denoDir as string;
const SOURCE: Program["command"] = [Deno.execPath(), "run", "-A", ...denoFlags(), `${project}/lima_guard.ts`];

/** lima_guard.ts as `deno task compile` bundles it; undefined where it cannot be bundled. */
const BUNDLED = await bundledGuard();
const NO_BUNDLE = "deno bundle has failed (it takes esbuild from npm)";

async function bundledGuard(): Promise<Program["command"] | undefined> {
  const folder = Deno.makeTempDirSync({ prefix: "lg-bundle-" });
  addEventListener("unload", () => Deno.removeSync(folder, { recursive: true }));
  const [first = "", ...rest] = await bundle(folder, denoFlags(), realBuilder(project, () => {}));
  return rest.length > 0 ? undefined : [Deno.execPath(), "run", "-A", "--no-lock", first];
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
  const results: { title: string; rows: Figures[] }[] = [];
  for (const group of groups(undo, interrupted, chosen)) {
    const [base, ...others] = Object.entries(group.rows);
    const wanted = others.filter(([name]) => `${group.title}: ${name}`.includes(chosen.only));
    const isMeant = wanted.length > 0 || `${group.title}: ${base?.[0]}`.includes(chosen.only);
    if (base === undefined || !isMeant) continue;
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
  if (results.length === 0) throw new Error(`no row has ${JSON.stringify(chosen.only)} in its name`);
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
  readonly only: string;
  readonly runs: number | undefined;
  readonly idleMinutes: number | undefined;
}

function options(): Options {
  const option = { type: "string" } as const;
  const { values } = parseArgs({
    options: { readme: { type: "boolean" }, runs: option, only: option, "idle-minutes": option },
  });
  const numberOf = (name: "runs" | "idle-minutes") => {
    const text = values[name];
    if (text !== undefined && !(Number(text) > 0 && Number(text) < 10_000)) {
      throw new Error(`--${name} ${text}: no number`);
    }
    return text === undefined ? undefined : Number(text);
  };
  const { readme = false, only = "" } = values;
  return { readme, only, runs: numberOf("runs"), idleMinutes: numberOf("idle-minutes") };
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
