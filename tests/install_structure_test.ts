/** The times and the command line of install.ts; its shape is in structure_test.ts. */

import assert from "node:assert/strict";
import { helpText, INSTALL_OPTIONS, type Options, PACE, parseInstallArgs } from "../install.ts";
import { denoFlags } from "./helpers/guard.ts";
import { FakeMac } from "./helpers/launchd.ts";
import { project } from "./helpers/paths.ts";

Deno.test("the times are those of launchd: a stop has more than its budget, and launchctl cannot block for ever", () => {
  assert.ok(PACE.stopMs > 2 * 60_000 && PACE.commandMs <= 10_000 && PACE.runningMs >= 15_000);
});

// ── the command line ──

const PLAIN: Options = {
  role: "install",
  names: ["default"],
  all: false,
  keepAlive: false,
  noReload: false,
  dryRun: false,
  yes: false,
  json: false,
  verbose: false,
};
const TAKEN: [line: string, options: Partial<Options>][] = [
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
  ["--guard /x --guard-dir /y default", /where it stands/],
  ["--guard /x --sign - default", /where it stands/],
  ["--guard lima-guard default", /absolute/],
  ["--guard-dir . default", /absolute/],
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
  Deno.test(`parseInstallArgs() refuses ${line || "nothing at all"}`, async () => {
    const parsed = parseInstallArgs(line === "" ? [] : line.split(" "));
    assert.ok("usage" in parsed, JSON.stringify(parsed));
    assert.match(parsed.usage, why);
    await using mac = FakeMac.make();
    const run = await mac.run(line === "" ? [] : line.split(" "));
    assert.deepEqual([run.status, run.stdout, mac.log()], [64, "", []]);
  });
}

Deno.test("--help names every option once, and --version the version", () => {
  for (const { flag } of INSTALL_OPTIONS) {
    assert.equal(helpText().match(new RegExp(`^  (-\\w, )?--${flag}\\b(?!-)`, "gm"))?.length, 1, flag);
  }
  assert.deepEqual(parseInstallArgs(["--help", "--nonsense"].slice(0, 1)), { print: helpText() });
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
      stdout: helpText(),
      stderr: "",
    });
    const usage = await run(`${project}/lima_guard.ts`, "--install", "--pre", "k3s");
    assert.deepEqual([usage.code, usage.stdout], [64, ""]);
    const alone = await run(lonely, "--install", "k3s");
    assert.deepEqual([alone.code, alone.stdout], [1, ""]);
    assert.match(alone.stderr, /install\.ts is not part of this copy \(hint: use the compiled lima-guard/);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

Deno.test("without permissions, and nobody to ask, the command that works is named", async () => {
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
  assert.equal(all.code, Deno.build.os === "darwin" ? all.code : 0, new TextDecoder().decode(all.stderr));
});
