/**
 * The whole suite: one `deno test` for each file, several at a time, since most of a test's time is waiting. lima-guard
 * lists all processes, so two files that start look-alikes of Lima would meet each other: on Linux, as root, each file
 * gets a PID namespace of its own; elsewhere the files that start processes run one after the other.
 * @module
 */

export interface Suite {
  /** Test files, relative to the project. */
  files: string[];
  /** For each `deno test`. */
  flags: string[];
  /** The directory of the project. */
  root: string;
  say(line: string): void;
}

/** What one file came to; a file without a summary, or with a status that its summary does not explain, has failed. */
interface Result {
  file: string;
  passed: number;
  failed: number;
  ignored: number;
  seconds: number;
  output: string;
}

const COLOURS = new RegExp(String.fromCharCode(27) + "\\[[0-9;]*m", "g");
const SIGNALS = ["SIGINT", "SIGTERM"] as const;
/** A test waits for processes more than it computes: two for each core. */
const AT_ONCE = 2 * navigator.hardwareConcurrency;
/** `sh` is there to wait for orphans; killing `unshare` ends every process of the namespace. */
const NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", '"$@"; exit $?', "sh"];

/** Every test file below a directory, the largest first: what starts last should be short. */
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
  return found.toSorted((a, b) => b.size - a.size || (a.file < b.file ? -1 : 1)).map(({ file }) => file);
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

class Run {
  readonly #children = new Set<Deno.ChildProcess>();
  #stopped = false;

  constructor(readonly suite: Suite, readonly isolated: boolean) {}

  /** A signal ends what runs; what has not run counts as failed. */
  readonly stop = (): void => {
    this.#stopped = true;
    for (const child of this.#children) child.kill(this.isolated ? "SIGKILL" : "SIGTERM");
  };

  async all(): Promise<Result[]> {
    const { files, root } = this.suite;
    const texts = await Promise.all(files.map((file) => Deno.readTextFile(`${root}/${file}`)));
    const startsProcesses = (_: string, i: number) => /helpers\/|Deno\.Command/.test(texts[i]!);
    const [apart, free] = [files.filter(startsProcesses), files.filter((file, i) => !startsProcesses(file, i))];
    const queue = [...apart, ...free];
    if (this.isolated) return await this.#pool(queue, AT_ONCE);
    this.suite.say("No PID namespace can be made: files that start processes run one after the other");
    return (await Promise.all([this.#pool(apart, 1), this.#pool(free, 1)])).flat();
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
    if (this.#stopped) return { file, passed: 0, failed: 1, ignored: 0, seconds: 0, output: "not run: stopped\n" };
    const startMs = performance.now();
    const [command = "", ...args] = [
      ...this.isolated ? NAMESPACE : [],
      ...[Deno.execPath(), "test", "-A", "--no-check", ...this.suite.flags, file],
    ];
    // One pipe for both streams would need a shell: what goes to stderr is read beside, and shown after stdout.
    const child = new Deno.Command(command, {
      args,
      cwd: this.suite.root,
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    })
      .spawn();
    this.#children.add(child);
    const { code, stdout, stderr } = await child.output();
    this.#children.delete(child);
    const [out, err] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes).replaceAll(COLOURS, ""));
    return { file, ...countsOf(out!, code), seconds: (performance.now() - startMs) / 1000, output: out! + err! };
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

function reportFile({ file, passed, failed, ignored, seconds, output }: Result, say: Suite["say"]): void {
  if (failed > 0) say(`\n──── ${file} ────\n${output.trimEnd()}\n────`);
  else for (const line of output.split("\n")) if (/ \.\.\. ignored/.test(line)) say(`  ${line}`);
  const counts = [`${passed} passed`, ...failed ? [`${failed} failed`] : [], ...ignored ? [`${ignored} ignored`] : []];
  say(`${failed ? "FAILED" : "ok"} ${file}: ${counts.join(", ")} (${seconds.toFixed(1)}s)`);
}

function report(results: Result[], seconds: number, say: Suite["say"]): number {
  const sum = (key: "passed" | "failed" | "ignored" | "seconds") => results.reduce((n, result) => n + result[key], 0);
  const bad = results.filter(({ failed }) => failed > 0).map(({ file }) => file);
  say(`\n${results.length} files, ${sum("seconds").toFixed(0)}s of tests in ${seconds.toFixed(0)}s`);
  if (bad.length > 0) say(`failed: ${bad.join(" ")}`);
  const isGood = bad.length === 0 && results.length > 0;
  say(
    `${isGood ? "ok" : "FAILED"} | ${sum("passed")} passed | ${sum("failed")} failed | ` +
      `${sum("ignored")} ignored (${seconds.toFixed(0)}s)`,
  );
  return isGood ? 0 : 1;
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
