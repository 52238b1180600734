/** The command line of install.ts, its help, and what the pages say of it. */

import assert from "node:assert/strict";
import {
  INSTALL_LIMITS,
  INSTALL_OPTIONS,
  installHelp,
  type InstallOptions,
  parseInstallArgs,
  realInstallHost,
  TOOL_PATHS,
} from "../install.ts";
import { denoFlags } from "./helpers/guard.ts";
import { project } from "./helpers/paths.ts";

Deno.test("the times are those of launchd: a stop has more than its time limit, and launchctl cannot block forever", () => {
  const { stopMs, commandMs, runningMs, handshakeMs } = INSTALL_LIMITS;
  assert.ok(stopMs > 2 * 60_000 && commandMs <= 10_000 && runningMs >= 15_000 && handshakeMs >= 60_000);
});

Deno.test("Apple's tools are called by absolute path", () => {
  assert.ok(Object.values(TOOL_PATHS).every((path) => /^\/(usr\/)?s?bin\//.test(path)));
});

Deno.test("a relative path is below the folder where it was typed, whatever that is called", () => {
  const [before, made] = [Deno.cwd(), Deno.makeTempDirSync({ prefix: "lima-guard-$&-$1-" })];
  try {
    Deno.chdir(made);
    const host = realInstallHost({ canAsk: false, isVerbose: false });
    assert.equal(host.absolute("a.plist"), `${Deno.cwd()}/a.plist`);
    assert.equal(host.absolute("/b.plist"), "/b.plist");
  } finally {
    Deno.chdir(before);
    Deno.removeSync(made);
  }
});

// ── the command line ──

const PLAIN: InstallOptions = {
  role: "install",
  names: ["default"],
  all: false,
  keepAlive: false,
  noOnEvent: false,
  start: false,
  restart: false,
  downgrade: false,
  purge: false,
  print: false,
  noReload: false,
  dryRun: false,
  yes: false,
  json: false,
  verbose: false,
};
const TAKEN: [line: string, options: Partial<InstallOptions>][] = [
  ["default", {}],
  ["--install default", {}],
  ["--check default", { role: "check" }],
  ["--uninstall default k3s default", { role: "uninstall", names: ["default", "k3s"] }],
  ["--all --yes --json", { all: true, names: [], yes: true, json: true }],
  ["42", { names: ["42"] }],
  ["true", { names: ["true"] }],
  ["--yes true", { names: ["true"], yes: true }],
  ["--no-reload --dry-run -v default", { noReload: true, dryRun: true, verbose: true }],
  ["--plist /a/b.plist default", { plist: "/a/b.plist" }],
  ["--plist=/a/b.plist default", { plist: "/a/b.plist" }],
  ["--guard /opt/lima-guard default", { guard: "/opt/lima-guard" }],
  ["--guard-dir /opt --sign - default", { guardDir: "/opt", sign: "-" }],
  ["--exit-timeout 90 --keep-alive default", { exitTimeoutS: 90, keepAlive: true }],
  ["--no-on-event default", { noOnEvent: true }],
  ["--lima-home /Volumes/VMs default", { limaHome: "/Volumes/VMs" }],
  ["--lima-home /Volumes/VMs// --guard-dir / default", { limaHome: "/Volumes/VMs", guardDir: "/" }],
];
for (const [line, options] of TAKEN) {
  Deno.test(`parseInstallArgs() takes ${line}`, () => {
    assert.deepEqual(parseInstallArgs(line.split(" ")), { ...PLAIN, ...options });
  });
}

const REFUSED: [line: string, why: RegExp][] = [
  ["", /No instance/],
  ["--all default", /at once/],
  ["--check --uninstall default", /at once/],
  ["--plist /x --all", /just one/],
  ["--plist /x default k3s", /just one/],
  ["--guard /x --guard-dir /y default", /in its place/],
  ["--guard /x --sign - default", /in its place/],
  ["--purge default", /goes with --uninstall/],
  ["--no-reload --restart default", /--no-reload with/],
  ["--no-on-event --on-event /x default", /--on-event with/],
  ["--exit-timeout 0 default", /--exit-timeout/],
  ["--exit-timeout 1.5 default", /--exit-timeout/],
  ["--exit-timeout=-1 default", /--exit-timeout/],
  ["--exit-timeout abc default", /--exit-timeout/],
  ["--exit-timeout 4000 default", /--exit-timeout/],
  ["--plist= default", /needs a value/],
  ["--sign --yes default", /needs a value/],
  ["--force default", /Cannot understand "--force"/],
  ["-x default", /Cannot understand "-x"/],
  ["--yes=false default", /Cannot understand/],
  ["../x", /instance name/],
  ["default.yaml", /instance name/],
];
for (const [line, why] of REFUSED) {
  Deno.test(`parseInstallArgs() refuses ${line || "nothing at all"}`, () => {
    const parsed = parseInstallArgs(line === "" ? [] : line.split(" "));
    assert.ok("usage" in parsed, JSON.stringify(parsed));
    assert.match(parsed.usage, why);
  });
}

Deno.test("parseInstallArgs() says what was probably meant", () => {
  const hints: [line: string, hint: string | undefined][] = [
    ["--no-relaod default", "did you mean --no-reload?"],
    ["--exit-timout=60 default", "did you mean --exit-timeout=60?"],
    ["--yes=no default", "--yes takes no value"],
    ["--force default", undefined],
  ];
  for (const [line, hint] of hints) {
    const parsed = parseInstallArgs(line.split(" "));
    assert.ok("usage" in parsed);
    assert.equal(parsed.hint, hint, line);
  }
});

Deno.test("--help names every option once, and --version the version", () => {
  for (const { flag } of INSTALL_OPTIONS) {
    assert.equal(installHelp().match(new RegExp(`^  (-\\w, )?--${flag}\\b(?!-)`, "gm"))?.length, 1, flag);
  }
  assert.deepEqual(parseInstallArgs(["--help", "--nonsense"].slice(0, 1)), { print: installHelp() });
  assert.match(JSON.stringify(parseInstallArgs(["--version"])), /lima-guard \d/);
});

Deno.test("lima-guard --install is what install.ts does, and says so where install.ts is missing", async () => {
  const dir = await Deno.makeTempDir({ prefix: "alone-" });
  try {
    const lonely = `${dir}/lima_guard.ts`;
    await Deno.copyFile(`${project}/lima_guard.ts`, lonely);
    const run = async (script: string, ...args: string[]) => {
      const argv = ["run", "-q", "-A", ...denoFlags(), script, ...args];
      const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), { args: argv, stdin: "null" }).output();
      return { code, stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
    };
    assert.deepEqual(await run(`${project}/lima_guard.ts`, "--check", "--help"), {
      code: 0,
      stdout: installHelp(),
      stderr: "",
    });
    const json = await run(`${project}/lima_guard.ts`, "--install", "--json", "--nonsense");
    const document = JSON.parse(json.stdout);
    assert.deepEqual([json.code, document.changed, document.instances], [64, false, []]);
    const refused = JSON.parse((await run(`${project}/lima_guard.ts`, "--check", "--json", "--nonsense")).stdout);
    assert.deepEqual([refused.role, refused.status], ["check", 64]);
    assert.match(refused.error.what, /--nonsense/);
    const help = JSON.parse((await run(`${project}/lima_guard.ts`, "--install", "--help", "--json")).stdout);
    assert.deepEqual([help.role, help.status], ["install", 0]);
    assert.match(help.text, /--guard-dir/);
    assert.match(document.blockers[0].because, /--nonsense/);
    const usage = await run(`${project}/lima_guard.ts`, "--install", "--pre", "k3s");
    assert.deepEqual([usage.code, usage.stdout], [64, ""]);
    const alone = await run(lonely, "--install", "k3s");
    assert.deepEqual([alone.code, alone.stdout], [1, ""]);
    assert.match(alone.stderr, /install\.ts is not part of this copy \(hint: use the compiled lima-guard/);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

Deno.test("without permissions, and no terminal, the command that works is named", async () => {
  const run = (more: string[]) =>
    new Deno.Command(Deno.execPath(), {
      args: ["run", "-q", ...more, ...denoFlags(), `${project}/install.ts`, "--all"],
      stdin: "null",
    }).output();
  const none = await run([]);
  assert.equal(none.code, 77);
  assert.match(
    new TextDecoder().decode(none.stderr),
    /without permission for read, write.*hint: deno run -P install\.ts/,
  );
  const all = await run(["-P"]);
  if (Deno.build.os === "darwin") return;
  const said = new TextDecoder().decode(all.stderr) + new TextDecoder().decode(all.stdout);
  // Another test may have a daemon's plist in /Library/LaunchDaemons at this moment.
  const expected = all.code === 66 ? /Cannot find a job: no plist here/ : /launchd is part of macOS/;
  assert.match(said, expected);
  assert.ok(all.code === 66 || all.code === 1, said);
});

Deno.test("no page runs a program below /tmp as root, and none of them puts && behind a stop", async () => {
  const pages = ["README.md", ...[...Deno.readDirSync(`${project}/docs`)].map((e) => `docs/${e.name}`)];
  for (const page of pages) {
    const text = await Deno.readTextFile(`${project}/${page}`);
    assert.ok(!/sudo[^\n]*\/tmp\//.test(text), page);
    if (page === "docs/install.md") assert.ok(!/--stop[^\n|]*&&/.test(text), page);
  }
});

Deno.test("a --check loads neither dax nor diff, a dry run the diff alone: what root runs is no more than it needs", () => {
  const dir = Deno.makeTempDirSync();
  try {
    const trap = (name: string) =>
      `data:text/javascript,console.error("loads ${name}");export const createTwoFilesPatch=String`;
    const { imports } = JSON.parse(Deno.readTextFileSync(`${project}/tools/npm_only/import_map.json`));
    const local = Object.entries<string>(imports).map((
      [name, to],
    ) => [name, to.replace("./", `${project}/tools/npm_only/`)]);
    const found = Deno.readTextFileSync(`${project}/install.ts`).matchAll(/"(npm:(dax|diff)@[\d.]+)"/g);
    const traps = Object.fromEntries([...found].map(([, spec = "", name = ""]) => [spec, trap(name)]));
    assert.equal(Object.keys(traps).length, 2, "each of them has one version");
    Deno.writeTextFileSync(`${dir}/map.json`, JSON.stringify({ imports: { ...Object.fromEntries(local), ...traps } }));
    Deno.copyFileSync(new URL("testdata/plists/lima-2.2-daemon.plist", import.meta.url), `${dir}/a.plist`);
    const loads = (args: string[]) => {
      const flags = [
        "run",
        "-A",
        "--no-lock",
        "--no-check",
        "--import-map",
        `${dir}/map.json`,
        `${project}/install.ts`,
      ];
      const all = [...flags, ...args, "--plist", `${dir}/a.plist`, "default"];
      const { stdout, stderr } = new Deno.Command(Deno.execPath(), { args: all, cwd: dir, stdin: "null" }).outputSync();
      assert.match(new TextDecoder().decode(stdout), /^default: /);
      return new TextDecoder().decode(stderr).match(/loads \w+/g) ?? [];
    };
    assert.deepEqual(loads(["--check"]), []);
    assert.deepEqual(loads(["--dry-run", "--no-reload"]), ["loads diff"]);
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
});
