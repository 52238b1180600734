/**
 * The whole suite: one `deno test` for each file, several at a time, since most of a test's time is waiting. lima-guard
 * lists all processes, so two files that start look-alikes of Lima would meet each other: on Linux, as root, each file
 * gets a PID namespace of its own; elsewhere the files that start processes run one after the other.
 * @module
 */

import { BUNDLE } from "./compile.ts";

export interface Suite {
  /** Test files, relative to the project. */
  files: string[];
  /** For each `deno test`. */
  flags: string[];
  /** The directory of the project. */
  root: string;
  /** Added to the environment of each `deno test`. */
  env?: Record<string, string>;
  say(line: string): void;
}

/** What one file came to; a file without a summary, or with a status that its summary does not explain, has failed. */
interface Result {
  file: string;
  passed: number;
  failed: number;
  ignored: number;
  seconds: number;
  /** Of the processes that the file started and that a parent has waited for; null where that is unknown. */
  cpuSeconds: number | null;
  output: string;
}

/** What the whole suite may take on two cores. */
const AIM_MINUTES = 6;
/**
 * What takes long and does not look so by its size; the table of a run shows them. They start first, and one that mostly
 * waits stands beside one that mostly computes.
 */
export const LONG_FILES: readonly string[] = [
  "tests/stop_guest_test.ts",
  "tests/launchd_live_test.ts",
  "tests/mac/recorded_test.ts",
  "tests/run_process_test.ts",
  "tests/stop_process_test.ts",
  "tests/torture_test.ts",
  "tests/commands_test.ts",
  "tests/install_effects_test.ts",
  "tests/stop_faults_test.ts",
  "tests/pre_faults_test.ts",
  "tests/run_launchd_test.ts",
  "tests/pre_hostile_test.ts",
  "tests/install_recovery_test.ts",
  "tests/install_trust_test.ts",
];
/** How many tests the list of the slowest has. */
const SLOWEST = 20;
const COLOURS = new RegExp(String.fromCharCode(27) + "\\[[0-9;]*m", "g");
const SIGNALS = ["SIGINT", "SIGTERM"] as const;
/** A test waits for processes more than it computes: four for each core. */
const AT_ONCE = 4 * navigator.hardwareConcurrency;
/**
 * Where the pretended Macs of install_mac.ts are made: a folder of root's, and in memory. Some file systems are slow to
 * make a file right after thousands were removed, and nothing of theirs stays when the file is killed.
 */
const MACS = "LIMA_GUARD_TESTS_MACS";
/**
 * `sh` is there to wait for orphans, and tells the CPU time at the end; killing `unshare` ends every process inside. lsof
 * closes as many files as there may be before it does anything else.
 */
const INSIDE =
  `ulimit -n 4096; [ -z "$${MACS}" ] || mount -t tmpfs -o mode=755 tmpfs "$${MACS}"; "$@"; s=$?; times >&2; exit $s`;
const NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", INSIDE, "sh"];

/** What the tests start thousands of times; a bundle, which the binary is made of too, starts in four fifths of the time. */
export const BUNDLED: readonly string[] = ["tools/compiled.ts", "tests/helpers/guard_twisted.ts"];
const BUNDLES = "LIMA_GUARD_TESTS_BUNDLES";

/** Bundles those into a folder that every user can read. Without a bundle, which takes esbuild from npm, they run from source. */
export async function bundleForTests({ root, flags, say }: Omit<Suite, "files">) {
  const folder = await Deno.makeTempDir({ prefix: "lg-bundles-" });
  await Deno.chmod(folder, 0o755);
  const args = [...BUNDLE, ...flags, "--outdir", folder, ...BUNDLED];
  const { success } = await new Deno.Command(Deno.execPath(), { args, cwd: root, stderr: "inherit" }).output();
  if (!success) say("Cannot bundle lima-guard: the tests run it from source, and take longer");
  return {
    env: success ? { [BUNDLES]: folder } : {},
    [Symbol.asyncDispose]: () => Deno.remove(folder, { recursive: true }),
  };
}

/** Every test file below a directory, the longest and then the largest first: what starts last should be short. */
export async function testFiles(root: string, dir = "tests"): Promise<string[]> {
  const found: { file: string; size: number }[] = [];
  const pending = [dir];
  for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
    for await (const { name, isDirectory } of Deno.readDir(`${root}/${next}`)) {
      const file = `${next}/${name}`;
      if (isDirectory) pending.push(file);
      else if (/_test\.ts$/.test(name)) found.push({ file, size: (await Deno.stat(`${root}/${file}`)).size });
    }
  }
  const rank = (file: string) => LONG_FILES.includes(file) ? LONG_FILES.indexOf(file) : LONG_FILES.length;
  return found.toSorted((a, b) => rank(a.file) - rank(b.file) || b.size - a.size || (a.file < b.file ? -1 : 1))
    .map(({ file }) => file);
}

/** Runs the files, reports each, ends with the line that `deno test` ends with; the answer is the exit status. */
export async function runSuite(suite: Suite): Promise<number> {
  const startMs = performance.now();
  const run = new Run(suite, await canIsolate());
  for (const signal of SIGNALS) Deno.addSignalListener(signal, run.stop);
  const results = await run.all();
  for (const signal of SIGNALS) Deno.removeSignalListener(signal, run.stop);
  return report(results, (performance.now() - startMs) / 1000, suite.say);
}

const NOT_RUN = { passed: 0, failed: 1, ignored: 0, seconds: 0, cpuSeconds: null, output: "not run: stopped\n" };

class Run {
  readonly #children = new Set<Deno.ChildProcess>();
  #stopped = false;
  #env: Record<string, string>;

  constructor(readonly suite: Suite, readonly isolated: boolean) {
    this.#env = suite.env ?? {};
  }

  /** A signal ends what runs; what has not run counts as failed. */
  readonly stop = (): void => {
    this.#stopped = true;
    for (const child of this.#children) {
      try {
        child.kill(this.isolated ? "SIGKILL" : "SIGTERM");
      } catch (error) {
        if (!(error instanceof TypeError)) throw error; // it has ended, and was not waited for yet
      }
    }
  };

  async all(): Promise<Result[]> {
    const { files, root } = this.suite;
    if (this.isolated) return await this.#isolated([...files]);
    const texts = await Promise.all(files.map((file) => Deno.readTextFile(`${root}/${file}`)));
    const startsProcesses = (_: string, i: number) => /helpers\/|Deno\.Command/.test(texts[i]!);
    const [apart, free] = [files.filter(startsProcesses), files.filter((file, i) => !startsProcesses(file, i))];
    this.suite.say("No PID namespace can be made: files that start processes run one after the other");
    return (await Promise.all([this.#pool(apart, 1), this.#pool(free, 1)])).flat();
  }

  /** Each file mounts its own memory there; where that fails, the Macs are on the disk. */
  async #isolated(queue: string[]): Promise<Result[]> {
    const macs = await Deno.makeTempDir({ dir: "/opt", prefix: "lg-" });
    await Deno.chmod(macs, 0o755);
    this.#env = { ...this.#env, [MACS]: macs };
    try {
      return await this.#pool(queue, AT_ONCE);
    } finally {
      await Deno.remove(macs, { recursive: true });
    }
  }

  async #pool(queue: string[], atOnce: number): Promise<Result[]> {
    const results: Result[] = [];
    const worker = async () => {
      for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
        const result = await this.#one(file);
        results.push(result);
        reportFile(result, this.suite.say);
      }
    };
    await Promise.all(Array.from({ length: atOnce }, worker));
    return results;
  }

  async #one(file: string): Promise<Result> {
    if (this.#stopped) return { ...NOT_RUN, file };
    const startMs = performance.now();
    const [command = "", ...args] = [
      ...this.isolated ? NAMESPACE : [],
      ...[Deno.execPath(), "test", "-A", "--no-check", ...this.suite.flags, file],
    ];
    // One pipe for both streams would need a shell: what goes to stderr is read beside, and shown after stdout.
    const child = new Deno.Command(command, {
      args,
      cwd: this.suite.root,
      env: this.#env,
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    })
      .spawn();
    this.#children.add(child);
    const { code, stdout, stderr } = await child.output();
    this.#children.delete(child);
    const [out, err] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes).replaceAll(COLOURS, ""));
    const { cpuSeconds, text } = this.isolated ? cpuTimeOf(err!) : { cpuSeconds: null, text: err! };
    const seconds = (performance.now() - startMs) / 1000;
    return { file, ...countsOf(out!, code), seconds, cpuSeconds, output: out! + text };
  }
}

/** `deno test` ends with "ok | 12 passed (3 steps) | 0 failed | 1 ignored (3s)"; what is 0 may be left out. */
export function countsOf(output: string, status: number): Pick<Result, "passed" | "failed" | "ignored"> {
  const summary = output.split("\n").findLast((line) => /^(ok|FAILED) \| \d+ passed/.test(line)) ?? "";
  const count = (what: string) => Number(new RegExp(`(\\d+) ${what}`).exec(summary)?.[1] ?? 0);
  const failed = count("failed");
  const isExplained = summary !== "" && (status === 0) === (failed === 0);
  return { passed: count("passed"), failed: isExplained ? failed : failed + 1, ignored: count("ignored") };
}

/** `times` of a shell ends with a line for its children, user and system: "0m12.340000s 0m1.500000s". */
export function cpuTimeOf(output: string): { cpuSeconds: number | null; text: string } {
  const match = /^\d+m[\d.]+s \d+m[\d.]+s\n(\d+)m([\d.]+)s (\d+)m([\d.]+)s\n$/m.exec(output);
  if (!match) return { cpuSeconds: null, text: output };
  const [userMin, userS, systemMin, systemS] = match.slice(1).map(Number);
  return { cpuSeconds: 60 * (userMin! + systemMin!) + userS! + systemS!, text: output.slice(0, match.index) };
}

/** A test's time as `deno test` prints it: "(35ms)", "(12s)", "(1m2s)". */
export function secondsOf(printed: string): number {
  const match = /^(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?$/.exec(printed);
  const [minutes = 0, seconds = 0, ms = 0] = match?.slice(1).map((part) => Number(part ?? 0)) ?? [];
  return 60 * minutes + seconds + ms / 1000;
}

function reportFile({ file, passed, failed, ignored, seconds, output }: Result, say: Suite["say"]): void {
  if (failed > 0) say(`\n──── ${file} ────\n${output.trimEnd()}\n────`);
  else for (const line of output.split("\n")) if (/ \.\.\. ignored/.test(line)) say(`  ${line}`);
  const counts = [`${passed} passed`, ...failed ? [`${failed} failed`] : [], ...ignored ? [`${ignored} ignored`] : []];
  say(`${failed ? "FAILED" : "ok"} ${file}: ${counts.join(", ")} (${seconds.toFixed(1)}s)`);
}

/** The table, the slowest tests, the line that `deno test` ends with, and a last line in plain words. */
function report(results: Result[], seconds: number, say: Suite["say"]): number {
  const sum = (key: "passed" | "failed" | "ignored") => results.reduce((n, result) => n + result[key], 0);
  const [passed, failed, ignored] = [sum("passed"), sum("failed"), sum("ignored")];
  const bad = results.filter((result) => result.failed > 0).map(({ file }) => file);
  for (const line of [...fileTable(results), ...slowestTests(results)]) say(line);
  if (bad.length > 0) say(`failed: ${bad.join(" ")}`);
  const isGood = bad.length === 0 && results.length > 0;
  say(
    `${isGood ? "ok" : "FAILED"} | ${passed} passed | ${failed} failed | ${ignored} ignored (${seconds.toFixed(0)}s)`,
  );
  const took = `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  const cores = `${navigator.hardwareConcurrency} cores`;
  say(`${passed} passed, ${failed} failed, ${ignored} skipped, ${took} on ${cores}, aim ${AIM_MINUTES} min`);
  return isGood ? 0 : 1;
}

/** The files that cost the most stand first: by CPU time where that is known, else by the time on the wall. */
function fileTable(results: Result[]): string[] {
  const cost = ({ cpuSeconds, seconds }: Result) => cpuSeconds ?? seconds;
  const row = (tests: number, seconds: number, cpu: number | null, file: string) =>
    `${String(tests).padStart(5)} ${seconds.toFixed(1).padStart(8)} ${(cpu?.toFixed(1) ?? "-").padStart(8)}  ${file}`;
  const sum = (of: (result: Result) => number) => results.reduce((n, result) => n + of(result), 0);
  const isKnown = results.every(({ cpuSeconds }) => cpuSeconds !== null);
  return [
    "\ntests  seconds    CPU s  file",
    ...results.toSorted((a, b) => cost(b) - cost(a)).map((result) =>
      row(result.passed + result.failed, result.seconds, result.cpuSeconds, result.file)
    ),
    row(
      sum(({ passed, failed }) => passed + failed),
      sum(({ seconds }) => seconds),
      isKnown ? sum(({ cpuSeconds }) => cpuSeconds ?? 0) : null,
      `${results.length} files`,
    ),
  ];
}

/** After a minute `deno test` writes in the line of a test that it is still running; the result is in a later line. */
export function timesOf(output: string): { name: string; seconds: number }[] {
  const lines = output.matchAll(/^(.+?) \.\.\.(?:'.*\n)*(?: .*)?\((\w+)\)$/gm);
  return [...lines].map(([, name = "", time = ""]) => ({ name, seconds: secondsOf(time) }));
}

function slowestTests(results: Result[]): string[] {
  const tests = results.flatMap(({ file, output }) => timesOf(output).map((test) => ({ ...test, file })));
  const slow = tests.filter(({ seconds }) => seconds >= 1).toSorted((a, b) => b.seconds - a.seconds).slice(0, SLOWEST);
  const rows = slow.map(({ file, name, seconds }) => `${seconds.toFixed(1).padStart(8)}  ${file}: ${name}`);
  return rows.length === 0 ? [] : ["\nthe slowest tests, seconds", ...rows, ""];
}

async function canIsolate(): Promise<boolean> {
  if (Deno.build.os !== "linux" || Deno.uid() !== 0) return false;
  const [command = "", ...args] = [...NAMESPACE, "true"];
  try {
    return (await new Deno.Command(command, { args, stdin: "null", stdout: "null", stderr: "null" }).output()).success;
  } catch (_notInstalled) {
    return false;
  }
}
