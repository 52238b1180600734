/**
 * What every task of deno.json goes through: `deno run -A --no-lock tools/task.ts NAME …`. It chooses where the packages
 * come from, so it must not need any itself.
 *
 * deno.json takes no comments; its reasons:
 * - no-import-prefix is off: lima_guard.ts has to run when it is copied alone, so it names its packages itself.
 * - no-console is on: stdout is for results, and console.* throws when the disk is full.
 * - the permission set: see PERMISSIONS in tools/compile.ts.
 * - a name in `imports` stands in tools/npm_only/import_map.json too: an import map given by hand replaces them.
 * @module
 */

import { compile, realBuilder } from "./compile.ts";
import { bundleForTests, runSuite, testFiles } from "./suite.ts";

const ROOT = import.meta.dirname!.replace(/\/tools$/, "");
const IMPORT_MAP = "tools/npm_only/import_map.json";
/** Enough for a slow line, and not much to wait for where a firewall drops packets without a word. */
const JSR_LIMIT_MS = 3000;

/** A task gets the arguments after its name, and answers with its exit status. */
const TASKS: Record<string, (args: string[]) => Promise<number>> = {
  ok,
  test,
  demo: async (args) => await deno("run", "-A", ...await packageFlags(), "tools/demo.ts", ...args),
  bench: async (args) => await deno("run", "-A", ...await packageFlags(), "tools/bench.ts", ...args),
  compile: async (args) => await compile(args, await packageFlags(), realBuilder(ROOT, say)),
  manual: async () => await deno("run", "-A", ...await packageFlags(), "tools/manual.ts"),
  house: async (args) => await deno("run", "-A", "--no-lock", "tools/house.ts", ...args),
  torture: async (args) => await deno("run", "-A", ...await packageFlags(), "tools/torture.ts", ...args),
  cov,
};

/** The whole gate. `--no-test` is for who has run the tests already. */
async function ok(args: string[]): Promise<number> {
  const rest = args.filter((arg) => arg !== "--no-test");
  return await deno("fmt", "--check") || await deno("lint") || await deno("check", ...await packageFlags(), ".") ||
    (rest.length < args.length ? 0 : await test(rest));
}

/** One file, or an option that is not `--filter`: just `deno test`. Else each file in a process of its own. */
async function test(args: string[]): Promise<number> {
  const { files, filter, others } = testArguments(args);
  const flags = await packageFlags();
  if (others.length > 0 || files.length === 1) {
    return await deno("test", "-A", ...flags, ...filter, ...others, ...files.length > 0 ? files : ["tests/"]);
  }
  const chosen = files.length > 0 ? files : await testFiles(ROOT);
  // Types are checked once, not once for each file.
  const wrong = await deno("check", ...flags, ...chosen);
  if (wrong) return wrong;
  await using bundles = await bundleForTests({ root: ROOT, flags, say: sayOut });
  return await runSuite({ files: chosen, flags: [...flags, ...filter], root: ROOT, env: bundles.env, say: sayOut });
}

function testArguments(args: string[]): { files: string[]; filter: string[]; others: string[] } {
  const found = { files: [] as string[], filter: [] as string[], others: [] as string[] };
  for (let i = 0; i < args.length; i++) {
    const arg = args[i]!;
    if (arg === "--filter") found.filter.push(arg, ...args.slice(++i, i + 1));
    else if (arg.startsWith("--filter=")) found.filter.push(arg);
    else (/^tests\/.+_test\.ts$/.test(arg) ? found.files : found.others).push(arg);
  }
  return found;
}

/** The variable is for the guards that tests start: they do most of the work. */
async function cov(args: string[]): Promise<number> {
  const dir = `${ROOT}/coverage`;
  Deno.env.set("DENO_COVERAGE_DIR", dir);
  return await test(["--clean", `--coverage=${dir}`, ...args]);
}

let flags: string[] | undefined;

/** Deno's flags for the packages: none where @std can be had, else the import map of the stand-ins. */
async function packageFlags(): Promise<string[]> {
  if (flags) return flags;
  if (await canHaveStd()) return flags = [];
  say("JSR cannot be reached: using the stand-ins in tools/npm_only");
  // A lock file written without @std would differ from the one that all others have.
  return flags = ["--no-lock", "--import-map", IMPORT_MAP];
}

async function canHaveStd(): Promise<boolean> {
  // Who names a mirror wants that one, and its error where it fails.
  if (Deno.env.get("JSR_URL")) return true;
  const { imports } = JSON.parse(await Deno.readTextFile(`${ROOT}/${IMPORT_MAP}`));
  const names = Object.keys(imports).filter((name) => name.startsWith("jsr:"));
  const program = `data:text/javascript,${names.map((name) => `import "${name}";`).join("")}`;
  const args = ["run", "--cached-only", "--no-lock", "--no-config", program];
  const cached = await new Deno.Command(Deno.execPath(), { args, stdout: "null", stderr: "null" }).output();
  return cached.success || await jsrAnswers();
}

async function jsrAnswers(): Promise<boolean> {
  try {
    const answer = await fetch("https://jsr.io/@std/cli/meta.json", { signal: AbortSignal.timeout(JSR_LIMIT_MS) });
    await answer.body?.cancel();
    return answer.ok;
  } catch (_why) {
    return false; // No name, no route, a strange certificate, too slow: the packages cannot be had.
  }
}

/** This very Deno: under npx there is no other. */
async function deno(...args: string[]): Promise<number> {
  const child = new Deno.Command(Deno.execPath(), { args, cwd: ROOT }).spawn();
  // A SIGINT from the terminal reaches the child by itself; a SIGTERM is sent to this process only.
  const signals = { SIGINT: () => {}, SIGTERM: () => child.kill("SIGTERM") };
  Deno.addSignalListener("SIGINT", signals.SIGINT);
  Deno.addSignalListener("SIGTERM", signals.SIGTERM);
  const { code } = await child.status;
  Deno.removeSignalListener("SIGINT", signals.SIGINT);
  Deno.removeSignalListener("SIGTERM", signals.SIGTERM);
  return code;
}

function say(line: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(`${line}\n`));
}

function sayOut(line: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(`${line}\n`));
}

const [name = "", ...args] = Deno.args;
const task = Object.hasOwn(TASKS, name) ? TASKS[name] : undefined;
if (!task) say(`Cannot run task "${name}": the tasks are ${Object.keys(TASKS).join(", ")}`);
Deno.exit(task ? await task(args) : 64);
