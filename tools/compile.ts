/**
 * `deno task compile [TARGET…] [--to DIR] [DENO OPTIONS…]`: a binary for each target into `dist/`, with what it may do
 * baked in and `install.ts` inside, and `SHA256SUMS` beside them. Without a target: both Macs and this machine.
 *
 * A binary is Deno's runtime (`denort`) with our files at its end. Deno downloads the runtime once for each target;
 * where that cannot be, `DENORT_BIN` names one of the same version, and serves the target that it was made for.
 *
 * Exit statuses: 0 all are built · 1 one is not · 64 usage.
 * @module
 */

export const MAC_TARGETS: readonly string[] = ["aarch64-apple-darwin", "x86_64-apple-darwin"];
const TARGETS = [...MAC_TARGETS, "aarch64-unknown-linux-gnu", "x86_64-unknown-linux-gnu"];
const DOWNLOADS = "https://dl.deno.land";
/** A new binary is asked for its version once; the first start of a file of 90 MB takes a while on a slow disk. */
const ANSWER_LIMIT_MS = 30_000;

/** What the binary may do, and why not less. deno.json's permission set is the same. */
export const PERMISSIONS: readonly { readonly flag: string; readonly why: string }[] = [
  { flag: "--allow-read", why: "LIMA_HOME may be anywhere, and so may its disks and the targets of its links" },
  { flag: "--allow-write", why: "the same; a plist is put back through a link, which wants all or nothing" },
  { flag: "--allow-net", why: "unix sockets below LIMA_HOME: Deno takes whole paths only, and they are not known yet" },
  { flag: "--allow-env", why: "a command gets our environment and a little more" },
  { flag: "--allow-run", why: "Deno.kill of a process that is not our child is refused under a list of programs" },
  { flag: "--allow-sys", why: "uid, the time awake, and an own umask, for which Deno has no narrower permission" },
];
/**
 * And nothing else, above all no FFI; never a question; and no code cache, which lies in a temporary folder and is
 * believed by its public hash.
 */
export const BAKED_IN: readonly string[] = ["--no-prompt", "--no-code-cache", ...PERMISSIONS.map(({ flag }) => flag)];

/**
 * One file of lima_guard.ts and its packages, and one of install.ts, which is loaded only where it is needed: a clean
 * `--pre` needs a fifth less processor time than from source, and an idle `--run` 1.5 MiB less. Not minified, which saves
 * no time: the report of an internal error has the names of the source. A source map would cost 17 MiB in each process.
 */
export const BUNDLE: readonly string[] = ["bundle", "--quiet", "--code-splitting"];

/** How a command ended, and what it printed on both its streams. */
export interface Ran {
  readonly code: number;
  readonly text: string;
}

/** What a compilation needs of the world. */
export interface Builder {
  /** What `--version` of a lima-guard that was built here prints. */
  readonly version: string;
  readonly denoVersion: string;
  readonly host: string;
  /** `DENORT_BIN`. */
  readonly runtime: string | undefined;
  /** `deno ARGS`, with this runtime, or with one that is downloaded. */
  deno(args: readonly string[], runtime: string | undefined): Promise<Ran>;
  /** What the binary of this machine prints for `--version`. */
  ask(binary: string): Promise<string>;
  say(line: string): void;
}

interface Asked {
  readonly targets: readonly string[];
  readonly to: string;
  /** Deno's own options. */
  readonly rest: readonly string[];
}

/** Builds what the arguments name. `packages` are Deno's flags for where the packages are. Returns the exit status. */
export async function compile(args: readonly string[], packages: readonly string[], builder: Builder): Promise<number> {
  const asked = readArguments(args, builder.host);
  const runtime = asked === undefined ? {} : lookAtRuntime(builder.runtime);
  if (asked === undefined || "why" in runtime) {
    const why = "why" in runtime ? `Cannot use DENORT_BIN: ${runtime.why}` : "Cannot understand the arguments";
    builder.say(`${why} (hint: deno task compile [TARGET…] [--to DIR]; targets: ${TARGETS.join(", ")})`);
    return 64;
  }
  Deno.mkdirSync(asked.to, { recursive: true });
  const missing: string[] = [];
  const bundled = `${asked.to}/bundle`;
  const entry = await bundle(bundled, packages, builder);
  for (const target of asked.targets) {
    const own = runtime.target === target ? builder.runtime : undefined;
    const why = await compileOne(target, { ...asked, entry }, packages, own, builder);
    if (why !== undefined) missing.push(target);
    if (why !== undefined) builder.say(`Cannot compile for ${target}: ${why}`);
  }
  removeIfThere(bundled);
  const there = await writeSums(asked.to);
  builder.say(`${asked.to} holds ${there.length === 0 ? "no binary" : `${there.join(", ")} and their SHA256SUMS`}`);
  if (missing.length === 0) return 0;
  const again = `deno task compile ${missing.join(" ")}`;
  builder.say(`Next, where ${DOWNLOADS} can be reached: ${again}`);
  builder.say(`  or here, with the denort of Deno ${builder.denoVersion} for that target: DENORT_BIN=PATH ${again}`);
  return 1;
}

function readArguments(args: readonly string[], host: string): Asked | undefined {
  const at = args.indexOf("--to");
  const to = at < 0 ? "dist" : args[at + 1];
  const others = at < 0 ? args : args.toSpliced(at, 2);
  const targets = others.filter((arg) => !arg.startsWith("-"));
  if (!to || targets.some((target) => !TARGETS.includes(target))) return undefined;
  const all = targets.length > 0 ? targets : [...MAC_TARGETS, host];
  return { to, targets: [...new Set(all)], rest: others.filter((arg) => arg.startsWith("-")) };
}

/** The target that a runtime was made for, from its first bytes; undefined where it is no target of this file. */
export function targetOf(head: Uint8Array): string | undefined {
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  if (head.length < 20) return undefined;
  // ELF with e_machine, and Mach-O of 64 bits with its cputype.
  if (view.getUint32(0) === 0x7f454c46) {
    const cpu = { 62: "x86_64", 183: "aarch64" }[view.getUint16(18, true)];
    return cpu && `${cpu}-unknown-linux-gnu`;
  }
  if (view.getUint32(0, true) !== 0xfeedfacf) return undefined;
  const cpu = { 0x01000007: "x86_64", 0x0100000c: "aarch64" }[view.getUint32(4, true)];
  return cpu && `${cpu}-apple-darwin`;
}

function lookAtRuntime(path: string | undefined): { target?: string } | { why: string } {
  if (path === undefined) return {};
  try {
    using file = Deno.openSync(path);
    const head = new Uint8Array(32);
    const target = targetOf(head.subarray(0, file.readSync(head) ?? 0));
    return target ? { target } : { why: `${path} is a program neither for Linux nor for a Mac` };
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    return { why: error.message };
  }
}

/** Makes the bundle, and returns what to compile: its first file, or the source where there is none. */
export async function bundle(dir: string, packages: readonly string[], builder: Builder): Promise<string[]> {
  const { code, text } = await builder.deno([...BUNDLE, ...packages, "--outdir", dir, "tools/compiled.ts"], undefined);
  if (code === 0) return [`${dir}/compiled.js`];
  builder.say(`Cannot bundle; the binary is built from source, and starts a little later: ${text.trimEnd()}`);
  return ["--include", "install.ts", "lima_guard.ts"];
}

/** Builds one. Returns why it could not be; then there is no file of that name, not even one of before. */
async function compileOne(
  target: string,
  { to, rest, entry }: Asked & { readonly entry: readonly string[] },
  packages: readonly string[],
  runtime: string | undefined,
  builder: Builder,
): Promise<string | undefined> {
  const binary = `${to}/lima-guard-${target}`;
  removeIfThere(binary);
  const output = ["--target", target, "--output", binary, "--exclude-unused-npm"];
  const ran = await builder.deno(["compile", ...packages, ...BAKED_IN, ...output, ...rest, ...entry], runtime);
  if (ran.code !== 0) {
    removeIfThere(binary);
    return whyNot(ran, builder);
  }
  if (target !== builder.host) return undefined;
  const answer = await builder.ask(binary);
  if (answer === builder.version) return undefined;
  removeIfThere(binary);
  const culprit = runtime === undefined ? "" : `; is ${runtime} the denort of Deno ${builder.denoVersion}?`;
  return `the binary answers ${JSON.stringify(answer)} and not ${JSON.stringify(builder.version)}${culprit}`;
}

/** A runtime that cannot be had is reported in one line; any other failure in Deno's own words. */
function whyNot({ code, text }: Ran, { say }: Builder): string {
  const download = /^ +\d+: ((?:error sending request|.*(?:download|status)).*)$/im.exec(text)?.[1];
  if (download && text.includes("Setting up base binary")) return `its runtime cannot be downloaded: ${download}`;
  say(text.trimEnd());
  return `deno compile ended with ${code}`;
}

function removeIfThere(path: string): void {
  try {
    Deno.removeSync(path, { recursive: true });
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** `sha256sum -c` and `shasum -a 256 -c` read it. Returns the names of the binaries. */
async function writeSums(to: string): Promise<string[]> {
  const names = [...Deno.readDirSync(to)].map(({ name }) => name);
  const binaries = names.filter((name) => TARGETS.some((target) => name === `lima-guard-${target}`)).sort();
  const lines: string[] = [];
  for (const name of binaries) {
    const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", Deno.readFileSync(`${to}/${name}`)));
    lines.push(`${sum.toHex()}  ${name}\n`);
  }
  if (lines.length === 0) removeIfThere(`${to}/SHA256SUMS`);
  else Deno.writeTextFileSync(`${to}/SHA256SUMS`, lines.join(""));
  return binaries;
}

/** This machine, its Deno and the project in `root`. */
export function realBuilder(root: string, say: (line: string) => void): Builder {
  const source = Deno.readTextFileSync(`${root}/lima_guard.ts`);
  const version = /^export const VERSION = "(.+)";$/m.exec(source)?.[1];
  return {
    version: `lima-guard ${version}`,
    denoVersion: Deno.version.deno,
    host: Deno.build.target,
    runtime: Deno.env.get("DENORT_BIN") || undefined,
    deno: async (args, runtime) => {
      // Deno takes an empty name for a file that is not there.
      const { DENORT_BIN: _, ...others } = Deno.env.toObject();
      const own = runtime === undefined ? {} : { DENORT_BIN: Deno.realPathSync(runtime) };
      const env = { ...others, ...own, NO_COLOR: "1" };
      const command = new Deno.Command(Deno.execPath(), { args: [...args], cwd: root, env, clearEnv: true });
      return textOf(await command.output());
    },
    ask: async (binary) => {
      // Another program than lima-guard may read its standard input, or never end.
      const path = Deno.realPathSync(binary);
      const signal = AbortSignal.timeout(ANSWER_LIMIT_MS);
      const command = new Deno.Command(path, { args: ["--version"], stdin: "null", signal });
      return textOf(await command.output()).text.trim();
    },
    say,
  };
}

function textOf({ code, stdout, stderr }: Deno.CommandOutput): Ran {
  const text = new TextDecoder();
  return { code, text: `${text.decode(stdout)}${text.decode(stderr)}` };
}
