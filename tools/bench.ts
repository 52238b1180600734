/**
 * `deno task bench [--runs N] [--only TEXT]`: what the guard costs, side by side with what it is compared to, and how
 * that grows with the instances in LIMA_HOME and with the processes on the machine.
 *
 * No time passes or fails here: it says something about two programs on one quiet machine, and nothing about any
 * other machine. Further figures (a resident guard's memory, the seconds of a stop) are rows with a `measure` of their
 * own.
 * @module
 */

import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { PS_COLUMNS, VERSION } from "../lima_guard.ts";
import {
  type Bystander,
  bystander,
  denoFlags,
  type Home,
  type Instance,
  project,
  tempLimaHome,
} from "../tests/helpers/mod.ts";
import { type Crowd, gatherCrowd } from "./crowd.ts";
import { goOn, undoingAll } from "./interrupt.ts";
import { type Figures, measure, PEAK_BY, type Program, programRow, type Row, skippedRow, table } from "./measure.ts";
import { findLimactl } from "./real_limactl.ts";

const RESULTS = `${project}/bench-results.json`;
/** With these the whole takes two to three minutes; groups of slow programs end earlier, see measure. */
const RUNS = 40;
const GROWTH_RUNS = 15;
const INSTANCES = [1, 10, 100, 1000];
const PROCESSES = [10, 1000, 10_000, 30_000];
const NAME = "k3s";

const HOW = [
  "Wall times of whole processes, run in turns; ratio: the median of the ratios to the first row, round by round.",
  "From source means `deno run -A lima_guard.ts`: it does not type-check, and its caches (parsed code, V8's compiled " +
  "code) are warm.",
  `Peak: the largest resident set of the program or a child of it, in a few more runs (${PEAK_BY ?? "not measured"}).`,
];

/** Rows that are measured in turns; the first one is what the others are compared to. */
interface Group {
  readonly title: string;
  readonly runs: number;
  /** Made when the group is wanted; or why it cannot be had. */
  subject(): Promise<Subject | string>;
  readonly rows: Readonly<Record<string, (subject: Subject) => Row>>;
}

/** A LIMA_HOME with instances, and programs that are run there. */
class Subject {
  constructor(readonly home: Home, readonly instance: Instance, readonly stranger: Bystander) {
    Deno.writeTextFileSync(`${home.root}/empty.ts`, "");
  }

  bare(): Row {
    return this.program([Deno.execPath(), "run", "-A", `${this.home.root}/empty.ts`]);
  }

  /** `--pre` with a PID file that names somebody else: written before every run, gone after it. */
  repair(guard: Program["command"]): Row {
    return this.program([...guard, "--pre", NAME], {
      prepare: () => {
        this.instance.pidFile("vz.pid", this.stranger.pid);
        if (this.instance.has("lima-guard.jsonl")) this.instance.remove("lima-guard.jsonl"); // it would grow
      },
      check: () => {
        if (this.instance.has("vz.pid")) throw new Error("--pre has not removed vz.pid");
      },
    });
  }

  /** The call that the guard itself makes. */
  ps(): Row {
    return this.program(["ps", "-ww", "-o", PS_COLUMNS, "-p", String(this.stranger.pid)]);
  }

  program(command: Program["command"], more: Pick<Program, "prepare" | "check"> = {}): Row {
    const env = { ...this.home.env, LANG: "C.UTF-8", NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1", DENO_DIR };
    return programRow({ command, env, cwd: this.home.root, ...more });
  }
}

async function subjectWith(instances: number, undo: AsyncDisposableStack): Promise<Subject> {
  const home = undo.use(await tempLimaHome());
  const conf = { vmtype: Deno.build.os === "darwin" ? "vz" : "qemu" };
  const instance = home.instance(NAME, { conf });
  for (let i = 1; i < instances; i++) home.instance(`other-${i}`, { conf });
  return new Subject(home, instance, undo.use(await bystander(home)));
}

// --- what is measured ------------------------------------------------------------------------------------------------

const BARE = { "bare deno run (an empty file)": (subject: Subject) => subject.bare() };

function groups(undo: AsyncDisposableStack, runs: number, growthRuns: number): Group[] {
  let first: Promise<Subject> | undefined;
  const one = () => first ??= subjectWith(1, undo);
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
        ...limactlRows(),
      },
    })),
    ...processGroups(one, undo, growthRuns),
  ];
}

function sourceRows(): Group["rows"] {
  return {
    "--version: the cost of loading the guard": (subject) => subject.program([...SOURCE, "--version"]),
    "--pre, clean": (subject) => subject.program([...SOURCE, "--pre", NAME]),
    "--pre, one repair (vz.pid names a stranger)": (subject) => subject.repair(SOURCE),
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
  const { runs, only = "" } = options();
  const results: { title: string; rows: Figures[] }[] = [];
  for (const group of groups(undo, runs ?? RUNS, runs ?? GROWTH_RUNS)) {
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
    const figures = await measure(rows, group.runs, async (round) => {
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
  } catch (error) {
    print(`not written: ${(error as Error).message}\n`);
    return 1;
  }
  print(`written: ${RESULTS}\n`);
  return results.some(({ rows }) => rows.some((row) => row.failed !== undefined)) ? 1 : 0;
}

function options(): { runs?: number; only?: string } {
  const { values } = parseArgs({ options: { runs: { type: "string" }, only: { type: "string" } } });
  const runs = values.runs === undefined ? undefined : Number(values.runs);
  if (runs !== undefined && !(Number.isInteger(runs) && runs > 0)) {
    throw new Error(`--runs ${values.runs}: not a number`);
  }
  return { ...runs === undefined ? {} : { runs }, ...values.only === undefined ? {} : { only: values.only } };
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
    print(`\nThe benchmark cannot go on: ${error instanceof Error ? error.message : error}\n`);
    return 1;
  }),
);
