/**
 * `deno task compile`: what it builds, what it says where it cannot, and whether the roles can do their work with the
 * permissions that it bakes in: from source everywhere, as a binary where Deno's runtime is to be had.
 */

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import {
  BAKED_IN,
  type Builder,
  bundle,
  compile,
  MAC_TARGETS,
  PERMISSIONS,
  realBuilder,
  targetOf,
} from "../tools/compile.ts";
import { BAKED_IN as BAKED_IN_BY_INSTALL } from "../install.ts";
import { running, stopRun } from "./launchd/run.ts";
import {
  denoFlags,
  eventually,
  type GuardOptions,
  type Home,
  IMPOSSIBLE_PID,
  project,
  runGuard,
  startAgent,
  startBystander,
  tempLimaHome,
} from "./helpers/mod.ts";

const HOST = Deno.build.target;
const [ARM = "", INTEL = ""] = MAC_TARGETS;

// ── what it may do ──

Deno.test("the binary has deno.json's permission set, each with its reason, and asks no question", async () => {
  const set = JSON.parse(await Deno.readTextFile(`${project}/deno.json`)).permissions.default;
  const flags = Object.entries(set).map(([name, v]) => `--allow-${name}${Array.isArray(v) ? `=${v.join(",")}` : ""}`);
  assert.deepEqual(PERMISSIONS.map(({ flag }) => flag).sort(), flags.sort());
  assert.ok(PERMISSIONS.every(({ why }) => why.length > 20));
  assert.ok(
    BAKED_IN.includes("--no-prompt") && BAKED_IN.includes("--no-code-cache") &&
      !BAKED_IN.some((flag) => /^(-A|--allow-(all|ffi|import))/.test(flag)),
  );
});

Deno.test("install.ts bakes in the same where it compiles by itself", () => {
  assert.deepEqual([...BAKED_IN_BY_INSTALL], [...BAKED_IN]);
});

// ── building, with a stand-in for Deno ──

const NO_RUNTIME = `Compile lima_guard.ts
error: Writing deno compile executable to temporary file 'dist/lima-guard.tmp-1'

Caused by:
    0: Setting up base binary.
    1: error sending request for url (https://dl.deno.land/release/v1/denort.zip): dns error
    2: client error (Connect)
`;

interface Scene {
  readonly to: string;
  readonly said: string[];
  readonly calls: { args: readonly string[]; runtime: string | undefined }[];
  readonly files: () => string[];
  run(...args: string[]): Promise<number>;
}

/** `fails` has the words of Deno for a target, or a bundle, that cannot be built. */
function scene(name: string, more: Partial<Builder> & { fails?: Record<string, string> }, body: (s: Scene) => unknown) {
  Deno.test(`compile: ${name}`, async () => {
    const to = await Deno.makeTempDir({ prefix: "lg-" });
    const [said, calls]: [string[], Scene["calls"]] = [[], []];
    const builder: Builder = {
      version: "lima-guard 1.2.3",
      denoVersion: "9.9.9",
      host: HOST,
      runtime: undefined,
      ask: () => Promise.resolve("lima-guard 1.2.3"),
      say: (line) => said.push(line),
      deno: (args, runtime) => {
        const noBundle = more.fails?.["bundle"];
        if (args[0] === "bundle") return Promise.resolve({ code: noBundle ? 1 : 0, text: noBundle ?? "" });
        calls.push({ args, runtime });
        const [target = "", output = ""] = ["--target", "--output"].map((flag) => args[args.indexOf(flag) + 1]);
        const text = more.fails?.[target];
        if (text === undefined) Deno.writeTextFileSync(output, `lima-guard for ${target}\n`);
        return Promise.resolve({ code: text === undefined ? 0 : 1, text: text ?? "" });
      },
      ...more,
    };
    const files = () => [...Deno.readDirSync(to)].map((entry) => entry.name).sort();
    const run = (...args: string[]) => compile([...args, "--to", to], ["--lock"], builder);
    try {
      await body({ to, said, calls, files, run });
    } finally {
      await Deno.remove(to, { recursive: true });
    }
  });
}

scene(
  "both Macs and this machine, and sums that sha256sum agrees with",
  {},
  async ({ run, to, files, calls, said }) => {
    assert.equal(await run(), 0, said.join("\n"));
    const names = [ARM, INTEL, HOST].map((target) => `lima-guard-${target}`);
    assert.deepEqual(files(), ["SHA256SUMS", ...new Set(names)].sort());
    for (const { args } of calls) {
      assert.deepEqual(args.slice(0, 2 + BAKED_IN.length), ["compile", "--lock", ...BAKED_IN]);
      assert.ok(args.join(" ").endsWith(` ${to}/bundle/compiled.js`), args.join(" "));
    }
    const tool = Deno.build.os === "darwin" ? ["shasum", "-a", "256"] : ["sha256sum"];
    const command = new Deno.Command(tool[0]!, { args: [...tool.slice(1), "-c", "SHA256SUMS"], cwd: to });
    const { code, stdout } = await command.output();
    assert.equal(code, 0, new TextDecoder().decode(stdout));
  },
);

scene("without a bundle it is built from source", { fails: { bundle: "no esbuild" } }, async ({ run, calls, said }) => {
  assert.equal(await run(INTEL), 0);
  assert.match(said.join("\n"), /^Cannot bundle; the binary is built from source.*no esbuild/);
  assert.ok(calls[0]?.args.join(" ").endsWith(" --include install.ts lima_guard.ts"));
});

Deno.test("the bundle does what the source does, with install.ts in a file of its own", async () => {
  await using home = await tempLimaHome();
  home.instance("k3s");
  const packages = denoFlags();
  const [first = ""] = await bundle(`${home.root}/bundle`, packages, realBuilder(project, () => {}));
  assert.equal(first, `${home.root}/bundle/compiled.js`, "esbuild comes from npm");
  const names = [...Deno.readDirSync(`${home.root}/bundle`)].map(({ name }) => name);
  assert.ok(names.some((name) => name.startsWith("install-")), names.join(" "));
  const program = [Deno.execPath(), "run", ...BAKED_IN.filter((flag) => flag.startsWith("--allow")), first];
  for (const args of [["--version"], ["--pre", "k3s", "--json"], ["--install", "--help"], ["--frobnicate"]]) {
    const [own, other] = [await runGuard(home, args, { program }), await runGuard(home, args)];
    assert.deepEqual([own.status, own.stdout, own.stderr], [other.status, other.stdout, other.stderr]);
  }
});

scene("just what is named, and Deno's own options", {}, async ({ run, files, calls }) => {
  assert.equal(await run(INTEL, "--no-check", INTEL), 0);
  assert.deepEqual(files(), ["SHA256SUMS", `lima-guard-${INTEL}`]);
  assert.equal(calls.length, 1);
  assert.ok(calls[0]?.args.includes("--no-check"));
});

scene("an unknown target is usage, and builds nothing", {}, async ({ run, files, said }) => {
  assert.equal(await run("aarch64-apple-ios"), 64);
  assert.deepEqual(files(), []);
  assert.match(said.join("\n"), /hint: deno task compile .*aarch64-apple-darwin/);
});

scene("no runtime: what failed, what is there, what to type", { fails: { [ARM]: NO_RUNTIME } }, async (s) => {
  Deno.writeTextFileSync(`${s.to}/lima-guard-${ARM}`, "an old one");
  assert.equal(await s.run(ARM, INTEL), 1);
  assert.deepEqual(s.files(), ["SHA256SUMS", `lima-guard-${INTEL}`]);
  assert.deepEqual(s.said, [
    `Cannot compile for ${ARM}: its runtime cannot be downloaded: ` +
    "error sending request for url (https://dl.deno.land/release/v1/denort.zip): dns error",
    `${s.to} holds lima-guard-${INTEL} and their SHA256SUMS`,
    `Next, where https://dl.deno.land can be reached: deno task compile ${ARM}`,
    `  or here, with the denort of Deno 9.9.9 for that target: DENORT_BIN=PATH deno task compile ${ARM}`,
  ]);
});

scene(
  "any other failure is reported in Deno's words",
  { fails: { [ARM]: "TS2345 [ERROR]: x\n" } },
  async ({ run, said }) => {
    assert.equal(await run(ARM), 1);
    assert.deepEqual(said.slice(0, 2), ["TS2345 [ERROR]: x", `Cannot compile for ${ARM}: deno compile ended with 1`]);
  },
);

const ownRuntime = { runtime: Deno.execPath() };
scene("DENORT_BIN serves the target that it was made for", ownRuntime, async ({ run, calls }) => {
  assert.equal(await run(), 0);
  for (const { args, runtime } of calls) {
    assert.equal(runtime, args.includes(HOST) ? Deno.execPath() : undefined, args.join(" "));
  }
});

const otherProgram = { ...ownRuntime, ask: () => Promise.resolve("deno 2.9.6") };
scene("a binary that is not lima-guard is removed", otherProgram, async ({ run, files, said }) => {
  assert.equal(await run(HOST), 1);
  assert.deepEqual(files(), []);
  assert.match(said[0] ?? "", /the binary answers "deno 2\.9\.6" and not "lima-guard 1\.2\.3"; is \/.* the denort of/);
});

for (const [what, runtime] of [["is not there", "/nowhere/denort"], ["is a script", `${project}/.ci/run`]] as const) {
  scene(`DENORT_BIN that ${what} is refused`, { runtime }, async ({ run, files, said }) => {
    assert.equal(await run(), 64);
    assert.deepEqual(files(), []);
    assert.match(said.join("\n"), /^Cannot use DENORT_BIN: .*(No such file|neither for Linux nor for a Mac)/);
  });
}

Deno.test("targetOf() tells Macs, Linux machines and anything else apart", () => {
  const elf = (machine: number) => [0x7f, 0x45, 0x4c, 0x46, ...Array(14).fill(0), machine, 0, 0, 0];
  const macho = (cpu: number) => [0xcf, 0xfa, 0xed, 0xfe, cpu, 0, 0, 1, ...Array(12).fill(0)];
  const of = (bytes: number[]) => targetOf(new Uint8Array(bytes));
  assert.deepEqual([62, 183, 8].map((n) => of(elf(n))), [
    "x86_64-unknown-linux-gnu",
    "aarch64-unknown-linux-gnu",
    undefined,
  ]);
  assert.deepEqual([0x0c, 0x07, 0x12].map((n) => of(macho(n))), [ARM, INTEL, undefined]);
  assert.deepEqual([of([]), of([0x23, 0x21]), of(Array(32).fill(0))], [undefined, undefined, undefined]);
});

// ── building, with Deno itself ──

/** The cache of this Deno without the runtimes that it has downloaded. */
function cacheWithoutRuntimes(dir: string): string {
  const cache = JSON.parse(new TextDecoder().decode(
    new Deno.Command(Deno.execPath(), { args: ["info", "--json"] }).outputSync().stdout,
  )).denoDir as string;
  for (const { name } of Deno.readDirSync(cache)) {
    if (name !== "dl") Deno.symlinkSync(`${cache}/${name}`, `${dir}/${name}`);
  }
  return dir;
}

async function task(args: string[], env: Record<string, string>) {
  const all = ["run", "-A", "--no-lock", "tools/task.ts", "compile", "--no-check", ...args];
  const command = new Deno.Command(Deno.execPath(), { args: all, cwd: project, env: { NO_COLOR: "1", ...env } });
  const { code, stderr } = await command.output();
  return { code, said: new TextDecoder().decode(stderr) };
}

Deno.test("compile: without network the task says what failed and what to type, and leaves nothing", async () => {
  const dir = await Deno.makeTempDir({ prefix: "lg-" });
  try {
    await Deno.mkdir(`${dir}/cache`);
    // No process listens on port 1.
    const proxy = { HTTPS_PROXY: "http://127.0.0.1:1", https_proxy: "", NO_PROXY: "", no_proxy: "", DENORT_BIN: "" };
    const env = { ...proxy, DENO_DIR: cacheWithoutRuntimes(`${dir}/cache`) };
    const { code, said } = await task([HOST, "--to", `${dir}/dist`], env);
    assert.equal(code, 1, said);
    assert.match(
      said,
      new RegExp(`^Cannot compile for ${HOST}: its runtime cannot be downloaded: .*dl\\.deno\\.land`, "m"),
    );
    assert.match(said, new RegExp(`^Next, where .* deno task compile ${HOST}$`, "m"));
    assert.deepEqual([...Deno.readDirSync(`${dir}/dist`)], []);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

Deno.test("compile: what Deno writes into the binary are just these permissions, and install.ts", async () => {
  const dir = await Deno.makeTempDir({ prefix: "lg-" });
  try {
    // Deno itself as the runtime: it takes what is at its end for nothing, and it is always there.
    const real = realBuilder(project, () => {});
    const builder = { ...real, runtime: Deno.execPath(), ask: () => Promise.resolve(real.version) };
    assert.equal(await compile([HOST, "--to", dir, "--no-check"], denoFlags(), builder), 0);
    const text = new TextDecoder("latin1").decode(await Deno.readFile(`${dir}/lima-guard-${HOST}`));
    const written = /"permissions":(\{"allow_env".*?\})/.exec(
      text.slice(text.lastIndexOf('"permissions":{"allow_env"')),
    )?.[1];
    const { allow_import: _, ...permissions } = JSON.parse(written ?? "");
    const all = { allow_env: [], allow_net: [], allow_read: [], allow_run: [], allow_write: [] };
    const given = Object.fromEntries(Object.entries(permissions).filter(([, value]) => value !== null));
    assert.deepEqual(given, { ...all, allow_sys: [], prompt: false });
    for (const name of ["installMain", "superviseRun", "CommandBuilder"]) assert.ok(text.includes(name), name);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

/** Why no binary can be built here; undefined where one can. */
async function whyNoRuntime(): Promise<string | undefined> {
  const builder = realBuilder(project, () => {});
  if (builder.runtime !== undefined) return undefined;
  try {
    const url = `https://dl.deno.land/release/v${builder.denoVersion}/denort-${HOST}.zip`;
    const answer = await fetch(url, { method: "HEAD", signal: AbortSignal.timeout(3000) });
    await answer.body?.cancel();
    return answer.ok ? undefined : `dl.deno.land has no runtime: ${answer.status}`;
  } catch (_why) {
    return "dl.deno.land cannot be reached, and DENORT_BIN names no runtime"; // No name, no route, too slow: all the same.
  }
}

// ── the roles ──

/** A program of this kind does all that lima-guard does: the work of each role is looked at. */
async function doesAll(home: Home, program: readonly string[]): Promise<void> {
  const guard = (...args: string[]) => runGuard(home, args, { program });
  await using passer = await startBystander(home);
  assert.match((await guard("--version")).stdout, /^lima-guard \d+\.\d+\.\d+\n$/);
  assert.match((await guard("--help")).stdout, /^ {2}--pre INSTANCE/m);
  assert.equal((await guard("--force")).status, 64);

  const vm = home.instance("vm");
  vm.pidFile("ha.pid", passer.pid);
  vm.pidFile("vz.pid", passer.pid);
  const seen = await guard("--status", "--json");
  assert.deepEqual([seen.status, seen.json().instances[0].state], [1, "stale"], seen.stderr);
  const cleared = await guard("--pre", "vm");
  assert.equal(cleared.status, 0, cleared.stderr);
  assert.ok(!vm.has("ha.pid") && !vm.has("vz.pid"), vm.files().join(" "));

  await using agent = await startAgent(vm);
  const stopped = await guard("--stop", "--all", "--json");
  assert.deepEqual([stopped.status, stopped.json().instances[0].state], [0, "stopped"], stopped.stderr);
  await agent.status;

  const options: GuardOptions = { program };
  await using run = await running(vm, options);
  assert.equal((await stopRun(run)).status, 0, run.stderr);
  passer.assertAlive();

  const plist = `${home.root}/job.plist`;
  const lima = await Deno.readTextFile(`${project}/tests/testdata/plists/lima-2.2-agent.plist`);
  await Deno.writeTextFile(plist, lima);
  const file = ["--plist", plist, "--no-reload", "--yes", "default"];
  const installed = await guard("--install", ...file);
  assert.equal(installed.status, 0, installed.stdout + installed.stderr);
  assert.match(await Deno.readTextFile(plist), /lima-guard<\/string>\s*<string>--run<\/string>/);
  assert.equal((await guard("--check", "--plist", plist, "default")).status, 0);
  assert.equal((await guard("--uninstall", ...file)).status, 0);
  assert.equal(await Deno.readTextFile(plist), lima);
  assert.match((await guard("--install", "--help")).stdout, /^ {2}--exit-timeout SECONDS/m);
  await eventually(() => assert.deepEqual(home.processes().filter((line) => line.includes("lima-guard")), []));
}

Deno.test("from source, with just the permissions of the binary, every role can do its work", async () => {
  await using home = await tempLimaHome();
  await doesAll(home, [Deno.execPath(), "run", "--no-check", ...denoFlags(), ...BAKED_IN, `${project}/lima_guard.ts`]);
});

const strace = ["/usr/bin/strace", "/usr/local/bin/strace"].find((path) => existsSync(path));

/** Where any user may make a file or a FIFO no start of root's may look: with the code cache of a binary each did. */
async function usesNoTmpdir(home: Home, program: readonly string[]): Promise<void> {
  const [tmp, log] = [`${home.root}/tmpdir`, `${home.root}/strace`];
  await Deno.mkdir(tmp, { recursive: true });
  const vm = home.instance("vm");
  const traced = [strace!, "-f", "-qq", "-e", "trace=%file", "-o", log, ...program];
  for (const args of [["--version"], ["--status"], ["--pre", "--dry-run", "vm"], ["--pre", "vm"], ["--stop", "vm"]]) {
    vm.pidFile("vz.pid", IMPOSSIBLE_PID);
    const { status, stderr } = await runGuard(home, args, { program: traced, env: { TMPDIR: tmp } });
    assert.equal(status, args[0] === "--status" ? 1 : 0, stderr);
    const calls = (await Deno.readTextFile(log)).split("\n");
    assert.ok(calls.some((call) => call.includes("lima")), "strace saw nothing");
    // Deno asks by itself whether the folder is there.
    assert.deepEqual(calls.filter((call) => call.includes(`${tmp}/`)), [], args.join(" "));
  }
  assert.deepEqual([...Deno.readDirSync(tmp)], []);
}

Deno.test({
  name: `from source, no start opens anything below TMPDIR${strace ? "" : " (skipped: strace is not installed)"}`,
  ignore: strace === undefined,
  async fn() {
    await using home = await tempLimaHome();
    const source = [...denoFlags(), ...BAKED_IN, `${project}/lima_guard.ts`];
    await usesNoTmpdir(home, [Deno.execPath(), "run", "--no-check", ...source]);
  },
});

Deno.test("lima_guard.ts copied alone says what --install is missing, and does everything else", async () => {
  await using home = await tempLimaHome();
  await Deno.copyFile(`${project}/lima_guard.ts`, `${home.root}/lima_guard.ts`);
  const program = [Deno.execPath(), "run", "--no-check", ...denoFlags(), ...BAKED_IN, `${home.root}/lima_guard.ts`];
  const ran = await runGuard(home, ["--install", "vm"], { program });
  assert.match(ran.stderr, /install\.ts is not part of this copy \(hint: .*beside lima_guard\.ts/);
  assert.equal(ran.status, 1);
  assert.equal((await runGuard(home, ["--status"], { program })).status, 0);
});

const why = await whyNoRuntime();
Deno.test({
  name: `the binary does all this alone, in an empty folder${why ? `: skipped: ${why}` : ""}`,
  ignore: why !== undefined,
  async fn() {
    await using home = await tempLimaHome();
    const { code, said } = await task([HOST, "--to", `${home.root}/dist`], {});
    assert.equal(code, 0, said);
    await Deno.mkdir(`${home.root}/alone`);
    const binary = `${home.root}/alone/lima-guard`;
    await Deno.rename(`${home.root}/dist/lima-guard-${HOST}`, binary);
    await doesAll(home, ["/usr/bin/env", "-u", "DENO_DIR", binary]);
    if (strace !== undefined) await usesNoTmpdir(home, ["/usr/bin/env", "-u", "DENO_DIR", binary]);
  },
});
