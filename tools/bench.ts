/**
 * `deno task bench [--runs N] [--only TEXT] [--readme]`: what the guard costs, side by side with what it is compared to:
 * the rows of docs/benchmarks.md, whose table `--readme` writes.
 *
 * No time passes or fails here: it says something about two programs on one quiet machine, and nothing about any
 * other machine. What is no program's time from its start to its end is a row with a `measure` of its own.
 * @module
 */

import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { VERSION } from "../lima_guard.ts";
import {
  denoFlags,
  type Home,
  project,
  sshGuest,
  startBystander,
  tempLimaHome,
  whyNoSshd,
} from "../tests/helpers/mod.ts";
import { real } from "../tests/helpers/real_lima.ts";
import { looks, machine, machineStops, realWorld, startsAndStops } from "./bench_real.ts";
import { readmeTable, textTable, withTable } from "./bench_table.ts";
import { bundle, realBuilder } from "./compile.ts";
import { gatherCrowd } from "./crowd.ts";
import { goOn, undoingAll } from "./interrupt.ts";
import { type Figures, measure, PEAK_BY, type Program, programRow, type Row, type Unit } from "./measure.ts";
import { findProgram } from "./real_limactl.ts";
import {
  atRest,
  type Bench,
  lastEndOf,
  stops,
  supervised,
  together,
  type Values,
  waiting,
  whyNoRoomFor,
  whyNoStrace,
} from "./supervised.ts";

const RESULTS = `${project}/bench-results.json`;
/** With these the whole takes less than three minutes; groups of slow programs end earlier, see measure. */
const RUNS = 20;
const GROWTH_RUNS = 8;
/** Of what takes a second or two, and of what takes many. */
const STOP_RUNS = 6;
const REAL_RUNS = 3;
const SLOW_RUNS = 2;
const SLOW_LIMIT_MS = 40_000;
/** How long a supervisor rests before its memory is looked at, and how long its system calls are counted then. */
const REST_S = 6;
const IDLE_S = 10;
const SUPERVISED = 20;
const PROCESSES = 10_000;
const NAME = "k3s";
const CONF = { vmtype: Deno.build.os === "darwin" ? "vz" : "qemu" };

const HOW = [
  "Wall times of whole processes, run in turns; ratio: the median of the ratios to the row with the ratio 1, round by round.",
  "From source means `deno run -A lima_guard.ts`: it does not type-check, and its caches (parsed code, V8's compiled " +
  "code) are warm.",
  `Peak: the largest resident set of the program or a child of it, in a few more runs (${PEAK_BY ?? "not measured"}).`,
  "--run supervises a stand-in of limactl whose guest boots and powers off in no time. Its own process is what is looked " +
  "at: not limactl, and not the ssh of its session with the guest.",
  "System calls: under strace -f, with those of what a program starts meanwhile.",
];

type Making = Row | string | Promise<Row | string>;

/** Rows that are measured in turns; the first one is what the others are compared to. */
interface Group {
  readonly title: string;
  readonly runs: number;
  /** Other ones than those of measure. */
  readonly warmUp?: number;
  readonly limitMs?: number;
  /** Made when the row is wanted; a text is why it cannot be had. */
  readonly rows: Readonly<Record<string, () => Making>>;
}

/** HOME is another one for what is measured, so the cache that Deno finds through HOME must be named. */
const DENO_DIR = JSON.parse(outputOf(Deno.execPath(), "info", "--json")).denoDir as string;
const SOURCE: Program["command"] = [Deno.execPath(), "run", "-A", ...denoFlags(), `${project}/lima_guard.ts`];

function environment(home: Home): Record<string, string> {
  return { ...home.env, LANG: "C.UTF-8", NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1", DENO_DIR };
}

function once<T>(make: () => Promise<T>): () => Promise<T> {
  let made: Promise<T> | undefined;
  return () => made ??= make();
}

// --- what is measured ------------------------------------------------------------------------------------------------

type Command = Program["command"];

/** What the rows share; each is made when a row wants it, and is gone at the end. */
function worldOf(undo: AsyncDisposableStack) {
  const newHome = async () => undo.use(await tempLimaHome());
  const instance = once(async () => (await newHome()).instance(NAME, { conf: CONF }));
  const bystander = once(async () => undo.use(await startBystander((await instance()).home)));
  /** lima_guard.ts as `deno task compile` bundles it; or why it cannot be. */
  const bundled = once(async (): Promise<Command | string> => {
    const folder = Deno.makeTempDirSync({ prefix: "lg-bundle-" });
    Deno.chmodSync(folder, 0o755);
    undo.defer(() => Deno.removeSync(folder, { recursive: true }));
    // Other users run it too.
    const [first = "", ...rest] = await bundle(folder, denoFlags(), realBuilder(project, () => {}));
    if (rest.length > 0) return "deno bundle has failed (it takes esbuild from npm)";
    return [Deno.execPath(), "run", "-A", "--no-lock", first];
  });
  const withGuest = async () => {
    const instance = (await newHome()).instance("withguest", { conf: CONF });
    return { instance, guest: undo.use(await sshGuest(instance)) };
  };
  return { undo, newHome, instance, bystander, bundled, withGuest };
}
type World = ReturnType<typeof worldOf>;

function programIn(home: Home, command: Command, more: Pick<Program, "prepare" | "check"> = {}): Row {
  return programRow({ command, env: environment(home), cwd: home.root, ...more });
}

function bare({ instance }: World): () => Promise<Row> {
  return async () => {
    const { home } = await instance();
    Deno.writeTextFileSync(`${home.root}/empty.ts`, "");
    return programIn(home, [Deno.execPath(), "run", "-A", `${home.root}/empty.ts`]);
  };
}

function guard({ instance }: World, ...args: string[]): () => Promise<Row> {
  return async () => programIn((await instance()).home, [...SOURCE, ...args]);
}

/** In a LIMA_HOME of its own, with so many instances, or a journal of so many bytes. */
function guardIn({ newHome }: World, { instances = 1, journal = 0 }, ...args: string[]): () => Promise<Row> {
  return async () => {
    const home = await newHome();
    const first = home.instance(NAME, { conf: CONF });
    for (let i = 1; i < instances; i++) home.instance(`other-${i}`, { conf: CONF });
    const line = `${
      JSON.stringify({ time: new Date().toISOString(), event: "started", role: "run", dir: first.dir })
    }\n`;
    if (journal > 0) first.write("lima-guard.jsonl", line.repeat(journal / line.length));
    return programIn(home, [...SOURCE, ...args]);
  };
}

/** `--pre` with so many PID files that name another program: written before every run, gone after it. */
function repair({ instance, bystander }: World, count: number): () => Promise<Row> {
  const files = ["vz.pid", ...Array.from({ length: count - 1 }, (_, i) => `driver${i}.pid`)];
  return async () => {
    const [k3s, { pid }] = [await instance(), await bystander()];
    return programIn(k3s.home, [...SOURCE, "--pre", NAME], {
      prepare: () => {
        for (const file of files) k3s.pidFile(file, pid);
        if (k3s.has("lima-guard.jsonl")) k3s.remove("lima-guard.jsonl"); // it would grow
      },
      check: () => {
        const left = files.filter((file) => k3s.has(file));
        if (left.length > 0) throw new Error(`--pre has not removed ${left}`);
      },
    });
  };
}

function groupsOf(world: World, bench: Bench, runs: number | undefined): Group[] {
  return [
    ...loneGroups(world, runs),
    ...residentGroups(world, bench, runs),
    ...machineGroups(world, runs),
    ...crowdGroups(world, runs),
  ];
}

function loneGroups(world: World, runs: number | undefined): Group[] {
  const growth = { runs: runs ?? GROWTH_RUNS };
  const bundled = async () => {
    const command = await world.bundled();
    return typeof command === "string"
      ? command
      : programIn((await world.instance()).home, [...command, "--pre", NAME]);
  };
  return [
    {
      title: "one instance",
      runs: runs ?? RUNS,
      rows: {
        "bare `deno run` of an empty file": bare(world),
        "`--version`: loading lima-guard": guard(world, "--version"),
        "`--pre`, nothing to do": guard(world, "--pre", NAME),
        "`--pre`, nothing to do, bundled as in the binary": bundled,
        "`--pre`, another program's PID in `vz.pid`": repair(world, 1),
        "`--status`": guard(world, "--status"),
      },
    },
    {
      title: "growth of --pre",
      ...growth,
      rows: {
        "`--pre`, nothing to do, one instance": guardIn(world, {}, "--pre", NAME),
        "… beside 99 others": guardIn(world, { instances: 100 }, "--pre", NAME),
        "… beside 999 others": guardIn(world, { instances: 1000 }, "--pre", NAME),
        "… with a journal of 1 MB": guardIn(world, { journal: 1e6 }, "--pre", NAME),
        "… 10 PID files to remove": repair(world, 10),
        "… 100 PID files to remove": repair(world, 100),
      },
    },
    {
      title: "growth of --status",
      ...growth,
      rows: {
        "`--status`, one instance": guardIn(world, {}, "--status"),
        "… with a journal of 1 MB": guardIn(world, { journal: 1e6 }, "--status"),
        "… 100 instances": guardIn(world, { instances: 100 }, "--status"),
        "… 1000 instances": guardIn(world, { instances: 1000 }, "--status"),
      },
    },
  ];
}

/** The last group: the crowd stays until the end. */
function crowdGroups(world: World, runs = GROWTH_RUNS): Group[] {
  const crowd = once(() => world.undo.use(gatherCrowd()).grow(PROCESSES));
  const inCrowd = (make: () => Making) => async () => await crowd() ?? await make();
  return [
    {
      title: `${PROCESSES} more processes`,
      runs,
      rows: {
        [`bare \`deno run\`, ${PROCESSES} more processes`]: inCrowd(bare(world)),
        "… `--pre`, nothing to do": inCrowd(guard(world, "--pre", NAME)),
        "… `--pre`, another program's PID in `vz.pid`": inCrowd(repair(world, 1)),
      },
    },
  ];
}

/** Rows of figures that are taken together, in a place that is prepared once; a text is why it cannot be. */
function takes<Place extends object>(prepare: () => Promise<Place | string>, take: (place: Place) => Promise<Values>) {
  const prepared = once(prepare);
  const row = together(async () => await take(await prepared() as Place));
  return (figure: string, unit: Unit) => async () => {
    const place = await prepared();
    return typeof place === "string" ? place : row(figure, unit);
  };
}

function machineGroups({ undo, bundled }: World, runs = STOP_RUNS): Group[] {
  const withBundle =
    <Place>(make: (undo: AsyncDisposableStack, guard: Command) => Promise<Place | string>) => async () => {
      const guard = await bundled();
      return typeof guard === "string" ? guard : await make(undo, guard);
    };
  const ofUsers = takes(withBundle(machine), machineStops);
  const place = once(withBundle(realWorld));
  const looking = takes(place, looks);
  const stopping = takes(place, startsAndStops);
  const slow = { runs, warmUp: 1, limitMs: SLOW_LIMIT_MS };
  return [
    {
      title: "root's --stop --all",
      ...slow,
      rows: {
        "`--stop` of one instance, as its user": ofUsers("one", "s"),
        "`--stop --all` of three homes of two users, as root": ofUsers("all", "s"),
      },
    },
    {
      title: "a real limactl",
      ...slow,
      rows: { "`limactl list`": looking("list", "ms"), "`--status` beside it": looking("status", "ms") },
    },
    {
      title: "a real limactl: start until QEMU runs",
      ...slow,
      runs: Math.min(runs, REAL_RUNS),
      rows: {
        "`limactl start` until QEMU runs": stopping("clean", "s"),
        "… after `--pre` has removed a stale `qemu.pid`": stopping("stale", "s"),
      },
    },
    {
      title: "a real limactl: stop by the power button",
      ...slow,
      runs: Math.min(runs, REAL_RUNS),
      rows: {
        "`limactl stop`, the guest has no ssh": stopping("limactl", "s"),
        "`--stop --timeout 10`, the guest has no ssh": stopping("guarded", "s"),
      },
    },
  ];
}

function residentGroups(world: World, bench: Bench, given: number | undefined): Group[] {
  const runs = given ?? SLOW_RUNS;
  const stop = takes(async () => whyNoSshd() ?? await world.withGuest(), (place) => stops(bench, place));
  const strace = findProgram("strace");
  const whyNotTraced = whyNoStrace(strace);
  const rest = takes(
    async () => whyNoSshd() ?? await startsOf(world, bench),
    (starts) =>
      atRest(bench, starts, { restS: REST_S, idleS: IDLE_S, strace: whyNotTraced === undefined ? strace : undefined }),
  );
  const calls = (name: string) => whyNotTraced === undefined ? rest(`${name} calls`, "calls") : () => whyNotTraced;
  const tool = (name: string) => findProgram(name) ? rest(name, "MiB") : () => `${name} is not installed`;
  const bundled = async () => {
    const why = await world.bundled();
    return typeof why === "string" ? why : await rest("bundled", "MiB")();
  };
  const many = takes(
    () => Promise.resolve(whyNoRoomFor(SUPERVISED) ?? {}),
    async () => await lastEndOf(bench, await world.newHome(), { count: SUPERVISED, conf: CONF }),
  );
  const slow = { runs, warmUp: 0, limitMs: SLOW_LIMIT_MS };
  return [
    {
      title: "--run from SIGTERM, a session with the guest",
      runs: given ?? STOP_RUNS,
      warmUp: 1,
      rows: {
        "SIGTERM to the end: host agent alone": stop("alone", "s"),
        "SIGTERM to the end: `--run` over it": stop("over", "s"),
      },
    },
    {
      title: `--run after ${REST_S} s of rest`,
      ...slow,
      rows: {
        "idle `deno`: memory of its own": rest("deno", "MiB"),
        "idle `--run`: memory of its own": rest("run", "MiB"),
        "idle `--run`: the same, bundled as in the binary": bundled,
        "idle `tini`: memory of its own": tool("tini"),
        "idle `dumb-init`: memory of its own": tool("dumb-init"),
      },
    },
    {
      title: `--run in ${IDLE_S} s of rest`,
      ...slow,
      rows: {
        [`idle \`deno\`: in ${IDLE_S} s`]: calls("deno"),
        [`idle \`--run\`: in ${IDLE_S} s`]: calls("run"),
      },
    },
    {
      title: "--run of many",
      ...slow,
      runs: 1,
      rows: { [`${SUPERVISED} instances: SIGTERM to the last end`]: many("stopped", "s") },
    },
  ];
}

/** What rests side by side; a program that is not here is left out. */
async function startsOf(world: World, bench: Bench): Promise<Parameters<typeof atRest>[1]> {
  const [{ home }, own, other] = [await world.instance(), await world.withGuest(), await world.withGuest()];
  const file = `${home.root}/waits.ts`;
  Deno.writeTextFileSync(file, "setInterval(() => {}, 2 ** 30);\n");
  const bundled = await world.bundled();
  const tools = ["tini", "dumb-init"].flatMap((name) => {
    const path = findProgram(name);
    return path === undefined ? [] : [[name, () => waiting(bench, home, [path, "sleep", "600"])] as const];
  });
  return {
    deno: () => waiting(bench, home, [Deno.execPath(), "run", "-A", file]),
    run: () => supervised(bench, own),
    ...typeof bundled === "string" ? {} : { bundled: () => supervised({ ...bench, guard: bundled }, other) },
    ...Object.fromEntries(tools),
  };
}

// --- the run ---------------------------------------------------------------------------------------------------------

async function bench(undo: AsyncDisposableStack, interrupted: AbortSignal): Promise<number> {
  const { readme, only, runs } = options();
  const bench: Bench = { goOn: () => goOn(interrupted), guard: SOURCE, env: environment };
  const results: { title: string; rows: Figures[] }[] = [];
  for (const group of groupsOf(worldOf(undo), bench, runs)) {
    const names = Object.keys(group.rows);
    const isMeant = names.map((name) => `${group.title}: ${name}`.replaceAll("`", "").includes(only));
    if (!isMeant.includes(true)) continue;
    // A turn of the event loop, or else no signal would ever be heard.
    const turn = async (what: string | number) => {
      progress(`${group.title}: ${typeof what === "string" ? what : `${Math.max(0, what)} of ${group.runs}`}`);
      await new Promise((resolve) => setTimeout(resolve, 0));
      await bench.goOn();
    };
    const rows: Record<string, Row | string> = {};
    // The first one is what the others are compared to.
    for (const name of names.filter((_, i) => i === 0 || isMeant[i])) {
      await turn("getting ready");
      rows[name] = await group.rows[name]!();
    }
    const figures = await measure(rows, group, turn);
    progress("");
    print(`${textTable(group.title, figures)}\n`);
    results.push({ title: group.title, rows: figures });
  }
  if (results.length === 0) throw new Error(`no row has ${JSON.stringify(only)} in its name`);
  const about = aboutHere();
  print(`${[...HOW, "", ...Object.entries(about).map((pair) => pair.join(": "))].join("\n")}\n`);
  const document = { version: 1, date: new Date().toISOString(), ...about, how: HOW, groups: results };
  Deno.writeTextFileSync(RESULTS, `${JSON.stringify(document)}\n`);
  if (readme) {
    // Fails where the table has lost its place.
    const path = `${project}/docs/benchmarks.md`;
    Deno.writeTextFileSync(path, withTable(Deno.readTextFileSync(path), readmeTable(document)));
    outputOf(Deno.execPath(), "fmt", "--quiet", path);
  }
  return results.some(({ rows }) => rows.some(({ trouble }) => trouble?.startsWith("failed"))) ? 1 : 0;
}

function options(): { readme: boolean; only: string; runs: number | undefined } {
  const { readme = false, only = "", runs } = parseArgs({
    options: { readme: { type: "boolean" }, runs: { type: "string" }, only: { type: "string" } },
  }).values;
  if (runs !== undefined && !(Number(runs) > 0 && Number(runs) < 10_000)) throw new Error(`--runs ${runs}: no number`);
  return { readme, only, runs: runs === undefined ? undefined : Number(runs) };
}

function aboutHere() {
  const memory = Math.round(Deno.systemMemoryInfo().total / 2 ** 30);
  const commit = outputOf("git", "describe", "--always", "--dirty");
  return {
    machine: `${Deno.build.target}, ${Deno.osRelease()}, ${cpus().length} × ${cpus()[0]?.model}, ${memory} GiB`,
    guard: `${VERSION}${commit && ` (${commit})`}`,
    deno: `${Deno.version.deno}, V8 ${Deno.version.v8}`,
    packages: denoFlags().join(" ") || "from JSR",
    ps: outputOf("ps", "--version") || "of the system",
    limactl: "why" in real ? real.why : real.version,
  };
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
