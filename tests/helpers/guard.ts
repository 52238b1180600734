/** The guard itself, as a process of its own, in a clean environment. */

import { BUNDLED } from "../../tools/suite.ts";
import type { Home } from "./home.ts";
import { project } from "./paths.ts";
import { killChild, within } from "./processes.ts";

export interface GuardOptions {
  /** Added to the environment; an empty value takes a variable out (LIMA_HOME, HOME …). */
  env?: Record<string, string>;
  /** Runs it as this user; see Home.giveTo. */
  user?: { uid: number; gid: number } | null;
  /** Text for standard input, which is /dev/null else. */
  stdin?: string;
  /** Another script: `install.ts`, or a copy of lima_guard.ts somewhere else. Relative to the repository. */
  script?: string;
  /** What to run instead of Deno with `-A` and the script: a compiled guard, or Deno with other flags. */
  program?: readonly string[];
  cwd?: string;
  /** Then it is killed, and the test fails with what it had printed. */
  timeoutMs?: number;
}

export interface GuardResult {
  /** 128 + n after signal n, as a shell has it. */
  readonly status: number;
  readonly signal: Deno.Signal | null;
  readonly stdout: string;
  readonly stderr: string;
  /** The document on stdout. */
  // deno-lint-ignore no-explicit-any
  json(): any;
}

export interface Guard extends AsyncDisposable {
  readonly pid: number;
  readonly status: Promise<Deno.CommandStatus>;
  /** What it has printed so far. */
  readonly stdout: string;
  readonly stderr: string;
  /** The first line, of those printed already and those to come, that matches. */
  waitForLine(pattern: RegExp, options?: { stream?: "stdout" | "stderr"; withinMs?: number }): Promise<RegExpExecArray>;
  signal(signal: Deno.Signal): void;
  /** Waits for its end. */
  result(options?: { timeoutMs?: number }): Promise<GuardResult>;
}

/** Runs `lima_guard.ts ARGS` to its end, with the home's LIMA_HOME. */
export async function runGuard(home: Home, args: string[], options: GuardOptions = {}): Promise<GuardResult> {
  await using guard = spawnGuard(home, args, options);
  return await guard.result({ timeoutMs: options.timeoutMs ?? 60_000 });
}

/** A script of the project, or what the suite has made of it: see BUNDLED in tools/suite.ts. */
function scriptOf(script: string): string {
  const folder = Deno.env.get("LIMA_GUARD_TESTS_BUNDLES");
  const entry = script === "lima_guard.ts" ? "tools/compiled.ts" : script;
  const bundled = `${folder}/${entry.replace(/ts$/, "js")}`;
  if (folder !== undefined && BUNDLED.includes(entry)) return bundled;
  return new URL(script, `file://${project}/`).pathname;
}

/** Starts `lima_guard.ts ARGS`; on disposal it is killed. */
export function spawnGuard(home: Home, args: string[], options: GuardOptions = {}): Guard {
  const script = scriptOf(options.script ?? "lima_guard.ts");
  const [program = "", ...before] = options.program ?? [Deno.execPath(), "run", "-A", ...denoFlags(), script];
  const child = new Deno.Command(program, {
    args: [...before, ...args],
    env: environment(home, options),
    clearEnv: true,
    cwd: options.cwd ?? home.root,
    stdin: options.stdin === undefined ? "null" : "piped",
    stdout: "piped",
    stderr: "piped",
    ...(options.user ? { uid: options.user.uid, gid: options.user.gid } : {}),
  }).spawn();
  const out = new Lines(child.stdout);
  const err = new Lines(child.stderr);
  const status = child.status;
  if (options.stdin !== undefined) void writeAll(child.stdin, options.stdin);
  const printed = () => `--- stdout\n${out.text}\n--- stderr\n${err.text}`;
  return {
    pid: child.pid,
    status,
    get stdout() {
      return out.text;
    },
    get stderr() {
      return err.text;
    },
    signal: (signal) => child.kill(signal),
    async waitForLine(pattern, { stream = "stderr", withinMs = 45_000 } = {}) {
      const lines = stream === "stdout" ? out : err;
      const match = await within(lines.find(pattern), withinMs, () => `a line like ${pattern}\n${printed()}`);
      if (!match) throw new Error(`No line like ${pattern} before the end of ${stream}\n${printed()}`);
      return match;
    },
    async result({ timeoutMs = 60_000 } = {}) {
      const { code, signal } = await within(
        status,
        timeoutMs,
        () => `lima-guard ${args.join(" ")} has not ended\n${printed()}`,
      );
      // A process that it left behind may hold the pipes; what it printed itself is complete by now or soon.
      await Promise.race([
        Promise.all([out.end, err.end]),
        within(new Promise(() => {}), 1000, () => "").catch(() => {}),
      ]);
      return {
        status: code,
        signal,
        stdout: out.text,
        stderr: err.text,
        json: () => {
          try {
            return JSON.parse(out.text);
          } catch (error) {
            throw new Error(`Not a JSON document: ${(error as Error).message}\n${printed()}`);
          }
        },
      };
    },
    async [Symbol.asyncDispose]() {
      killChild(child);
      await status;
      await out.cancel();
      await err.cancel();
    },
  };
}

async function writeAll(stdin: WritableStream<Uint8Array>, text: string): Promise<void> {
  const writer = stdin.getWriter();
  try {
    await writer.write(new TextEncoder().encode(text));
    await writer.close();
  } catch {
    // It ended without reading everything.
  }
}

/** A stream as text that is still growing. */
class Lines {
  text = "";
  readonly end: Promise<void>;
  #reader: ReadableStreamDefaultReader<Uint8Array>;
  #ended = false;
  #wake: (() => void)[] = [];

  constructor(stream: ReadableStream<Uint8Array>) {
    this.#reader = stream.getReader();
    this.end = this.#read();
  }

  async #read(): Promise<void> {
    const decoder = new TextDecoder();
    while (true) {
      const { value, done } = await this.#reader.read();
      if (done) break;
      this.text += decoder.decode(value, { stream: true });
      this.#wakeAll();
    }
    this.#ended = true;
    this.#wakeAll();
  }

  #wakeAll(): void {
    for (const wake of this.#wake.splice(0)) wake();
  }

  async find(pattern: RegExp): Promise<RegExpExecArray | undefined> {
    while (true) {
      // \r: a progress line is written again and again in the same place.
      for (const line of this.text.split(/[\r\n]/)) {
        const match = new RegExp(pattern.source, pattern.flags.replace("g", "")).exec(line);
        if (match) return match;
      }
      if (this.#ended) return undefined;
      await new Promise<void>((resolve) => this.#wake.push(resolve));
    }
  }

  async cancel(): Promise<void> {
    await this.#reader.cancel();
    await this.end;
  }
}

/** Only what is named here: the person who runs the tests may have set the very variables that are tested. */
function environment(home: Home, { env = {}, user }: GuardOptions): Record<string, string> {
  const all: Record<string, string> = {
    ...home.env,
    LANG: "C.UTF-8",
    NO_COLOR: "1",
    DENO_NO_UPDATE_CHECK: "1",
    // Another user cannot write to our cache.
    DENO_DIR: user ? `${home.root}/deno-dir` : denoDir(),
    ...inherited(
      "DENO_COVERAGE_DIR",
      "JSR_URL",
      "NPM_CONFIG_REGISTRY",
      "DENO_TLS_CA_STORE",
      "DENO_CERT",
      "HTTPS_PROXY",
      "NO_PROXY",
    ),
    ...env,
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== ""));
}

function inherited(...names: string[]): Record<string, string> {
  return Object.fromEntries(names.flatMap((name) => {
    const value = Deno.env.get(name);
    return value === undefined ? [] : [[name, value]];
  }));
}

/** HOME is another one, so the cache of packages that Deno finds through HOME must be named. */
function denoDir(): string {
  const { env } = Deno;
  if (env.get("DENO_DIR")) return env.get("DENO_DIR")!;
  if (env.get("XDG_CACHE_HOME")) return `${env.get("XDG_CACHE_HOME")}/deno`;
  return `${env.get("HOME")}/${Deno.build.os === "darwin" ? "Library/Caches" : ".cache"}/deno`;
}

/**
 * What the guard's own `deno run` needs to find its packages as this test run finds them: LIMA_GUARD_DENO_FLAGS where
 * it is set; else the import map of tools/npm_only, where this run was started with it.
 */
export function denoFlags(): string[] {
  const flags = Deno.env.get("LIMA_GUARD_DENO_FLAGS");
  if (flags !== undefined) return flags.split(/\s+/).filter((flag) => flag !== "");
  const where = import.meta.resolve("jsr:@std/cli@1.0.29/parse-args");
  if (!where.startsWith("file:")) return [];
  return ["--no-lock", "--import-map", `${project}/tools/npm_only/import_map.json`];
}
