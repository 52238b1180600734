/**
 * What Macs have said, case by case, through the readers of lima-guard; and `tests/mac/record` itself, run here against
 * the stand-ins. A recording of a Mac is unpacked into tests/standin/recorded/ and is then part of this, or it is named by
 * its path: LIMA_GUARD_RECORDING=FOLDER.
 */

import assert from "node:assert/strict";
import { readLoaded } from "../../install.ts";
import { denoFlags } from "../helpers/guard.ts";
import { findWithoutEnvironments } from "../helpers/home.ts";
import { project } from "../helpers/paths.ts";
import { eventually } from "../helpers/processes.ts";
import { launchdIn } from "../launchd/launchd.ts";
import { BY_HAND, type Case, readRecording, RECORDED, recordingOf } from "./cases.ts";
import { check } from "./recording.ts";
import { caseName, EVERY_CASE } from "./every_case.ts";

const kept = [...Deno.readDirSync(RECORDED)].filter(({ name, isDirectory }) => isDirectory && name.startsWith("macos-"))
  .map(({ name }) => name);
const named = Deno.env.get("LIMA_GUARD_RECORDING") || BY_HAND;

/** What is asked once only, of a login agent. */
const OF_AGENTS = /^(bootstrap\.KIND\.(reach|twice)|(print|bootout)\.(other|ssh)\.KIND)$/;
const isOf = (kind: string, one: string) => kind === "agent" || (one.includes(".KIND.") && !OF_AGENTS.test(one));

for (const recording of new Set([...kept, named])) {
  const name = recording.slice(recording.lastIndexOf("/") + 1);
  if (name !== BY_HAND) {
    Deno.test(`${name}: no case is missing without a word`, () => {
      const names = readRecording(recordingOf(recording)).map((seen) => seen.name);
      // Where no daemon was recorded at all, that is said.
      const kinds = names.includes("print.daemon") ? ["agent"] : ["agent", "daemon"];
      for (const kind of kinds) {
        const other = kind === "agent" ? ".daemon." : ".agent.";
        const there = new Set(names.filter((one) => !one.includes(other)).map(caseName));
        assert.deepEqual(EVERY_CASE.filter((one) => isOf(kind, one) && !there.has(one)), [], kind);
      }
    });
  }
  for (const seen of readRecording(recordingOf(recording))) {
    Deno.test(`${name}: ${seen.name}${seen.skipped === undefined ? "" : `: ${seen.skipped}`}`, () => {
      check(seen);
    });
  }
}

Deno.test("the recording made by hand has a case for each reader", () => {
  const checked = readRecording(`${RECORDED}/macos-by-hand`).filter(check).map(({ name }) => name.split(".")[0]);
  assert.deepEqual([...new Set(checked)].sort(), ["id", "lsof", "print", "print-disabled", "ps", "sysctl"]);
});

for (
  const [name, wrong] of [
    ["print.agent.running", { status: 113 }],
    ["print.agent.running", { stdout: "" }],
    ["print.agent.never-loaded", { status: 5 }],
    ["print.agent.ended-78", { name: "print.agent.running" }],
    ["print-disabled.agent.one-disabled", { stdout: "\tdisabled services = {\n\t}\n" }],
    ["ps.plain", { stdout: "  912 900 501 S Mi. 12 Aug. 20:34:22 2026 /bin/sh x\n" }],
    ["ps.plain", { stdout: "  912 900 501 S Wed Aug 12 22:34:22 2026 /bin/sh x\n" }],
    ["lsof.read", { stdout: "p960\ncsleep\nf0\nau\nn/x\n" }],
    ["id.by-name", { stdout: "ci\n" }],
    ["sysctl.kern.bootsessionuuid", { stdout: "1\n" }],
  ] as const
) {
  Deno.test(`a recording that says otherwise is seen: ${name} with ${JSON.stringify(wrong)}`, () => {
    const seen = readRecording(`${RECORDED}/macos-by-hand`).find((one) => one.name === name);
    assert.ok(seen);
    assert.throws(() => check({ ...seen, ...wrong }), assert.AssertionError);
  });
}

Deno.test("replay says a case again: its bytes and its status", async () => {
  const dir = Deno.realPathSync(Deno.makeTempDirSync({ dir: "/tmp", prefix: "lg-" }));
  try {
    Deno.symlinkSync(`${RECORDED}/replay`, `${dir}/launchctl`);
    for (const seen of readRecording(`${RECORDED}/macos-by-hand`).filter((one) => one.name.startsWith("print."))) {
      const env = { REPLAY: `${RECORDED}/macos-by-hand/${seen.name}` };
      const argv = ["print", "x"];
      const said = await new Deno.Command(`${dir}/launchctl`, { args: argv, env, stdin: "null" }).output();
      const [stdout, stderr] = [new TextDecoder().decode(said.stdout), new TextDecoder().decode(said.stderr)];
      const answer = { argv, code: said.code, stdout, stderr, late: false };
      assert.deepEqual(readLoaded(answer), readLoaded({ ...seen, argv, code: seen.status }), seen.name);
    }
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
});

/** What /bin/sh is on a Mac. That the script is whole for other shells is scripts_test.ts's. */
const SHELL = ["bash", "--posix"];
const notHere = Deno.build.os === "linux" ? "" : ": the stand-ins are for Linux";

Deno.test({
  name:
    `record: every case has an answer, nothing is left, and the archive feeds the tests of the readers and of the ` +
    `stand-in launchd${notHere}`,
  ignore: notHere !== "",
  fn: recordHere,
});

/** The other user can be there for root alone: the stand-in for sudo changes the user for real. */
const OTHER = Deno.uid() === 0 ? { name: "zoe", uid: 501 } : undefined;
/** What this system has no tool or no user for. Everything else is asked here too, or the test would show nothing. */
const NOT_HERE = OTHER
  ? /^(owners\.|id\.empty-full-name$|ps\.setuid$|bootstrap\.system-without-root$|print\.KIND\.no-log$)/
  : /^/;

async function recordHere(): Promise<void> {
  const root = Deno.realPathSync(Deno.makeTempDirSync({ dir: "/tmp", prefix: "lg-" }));
  // The other user's commands are below it.
  Deno.chmodSync(root, 0o755);
  try {
    await using stand = launchdIn(root, { bin: "tools" });
    const home = Deno.env.get("HOME") ?? "/";
    furnish(root, home);
    const [program = "", ...before] = SHELL;
    const secret = `secret${crypto.randomUUID().replaceAll("-", "")}`;
    await using _stranger = called(["sh", "-c", "read line; :", `--password=${secret}`]);
    const { code, stdout, stderr } = await new Deno.Command(program, {
      args: [...before, `${project}/tests/mac/record`, `${root}/out`],
      // A job that really runs needs a moment to begin, and one to end.
      env: {
        RECORD_TOOLS: `${root}/tools`,
        RECORD_PAUSE: "0.3",
        HOME: home,
        TOKEN: secret,
        SSH_AUTH_SOCK: `/${secret}`,
        LIMA_GUARD_OTHER_USER: OTHER?.name ?? "",
      },
      cwd: root,
      stdin: "null",
    }).output();
    const [said, complaints] = [new TextDecoder().decode(stdout), new TextDecoder().decode(stderr)];
    assert.equal(code, 0, said + complaints);
    assert.equal(complaints, "");
    const [, count, archive = ""] = /^(\d+) cases: (.*)\n$/.exec(said) ?? [];
    const cases = readRecording(archive.replace(/\.tar\.gz$/, ""));
    assert.equal(cases.filter(({ skipped }) => skipped === undefined).length, Number(count));
    assertChecked(cases);
    assert.deepEqual([...new Set(cases.map(({ name }) => caseName(name)))].sort(), [...EVERY_CASE].sort());
    const unasked = cases.filter(({ skipped }) => skipped !== undefined).map(({ name }) => caseName(name));
    assert.deepEqual([...new Set(unasked)].filter((one) => !NOT_HERE.test(one)), []);
    assertSecretsStayOut(cases, secret);
    await eventually(() => assert.deepEqual([...stand.jobs.keys()], []), { withinMs: 30_000 });
    const labels = [...stand.overrides.values()].flatMap((one) => [...one].filter(([, is]) => is));
    assert.deepEqual(labels, []);
    assert.deepEqual(findWithoutEnvironments(root).filter(({ pid }) => pid !== Deno.pid), []);
    await feeds(archive, `${root}/unpacked`);
  } finally {
    Deno.removeSync(root, { recursive: true });
  }
}

/** What the stand-ins for Apple's tools need in their Mac; they find it by where they are. */
function furnish(root: string, home: string): void {
  const [state, tools] = [`${root}/state`, `${root}/tools`];
  Deno.writeTextFileSync(`${state}/boot`, "0D2C8A1E-5B7F-4C39-9A60-1F2E3D4C5B6A\n");
  const { stdout: name } = new Deno.Command("id", { args: ["-un"] }).outputSync();
  const user = new TextDecoder().decode(name).trim();
  // The password's field holds the groups.
  const row = `${user}:${Deno.gid()}:${Deno.uid()}:${Deno.gid()}::0:0:A B:${home}:/bin/sh\n`;
  const others = OTHER ? `${OTHER.name}:20:${OTHER.uid}:20::0:0:Z:/:/bin/sh\n` : "";
  const rootRow = user === "root" ? "" : "root:0:0:0::0:0:R:/var/root:/bin/sh\n";
  Deno.writeTextFileSync(`${state}/users`, row + rootRow + others);
  for (const tool of ["sudo", "id", "plutil", "codesign", "sysctl"]) {
    Deno.copyFileSync(`${project}/tests/standin/launchd/${tool}`, `${tools}/${tool}`);
  }
  Deno.symlinkSync("/usr/bin/lsof", `${tools}/lsof`);
  // ssh to this machine itself: the command behind its name.
  const ssh = `#!/bin/sh\nwhile [ "$1" != localhost ]; do shift; done\nshift\nexec sh -c "$*"\n`;
  Deno.writeTextFileSync(`${tools}/ssh`, ssh, { mode: 0o755 });
  const scp = `#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\nexec cp "\${1#localhost:}" "$2"\n`;
  Deno.writeTextFileSync(`${tools}/scp`, scp, { mode: 0o755 });
  Deno.writeTextFileSync(`${tools}/sw_vers`, "#!/bin/sh\necho 0.0\n", { mode: 0o755 });
}

/** A program that runs until the test ends. */
function called(argv: readonly string[]): AsyncDisposable {
  const [program = "", ...args] = argv;
  const child = new Deno.Command(program, { args, stdin: "piped" }).spawn();
  return {
    async [Symbol.asyncDispose]() {
      await child.stdin.close();
      await child.status;
    },
  };
}

/** What is in the environment, in the arguments of another program or in a login session is in no case. */
function assertSecretsStayOut(cases: readonly Case[], secret: string): void {
  const all = cases.find(({ name }) => name === "ps.all");
  assert.match(all?.stdout ?? "", /^ *\d+ .*\bsh -x .*--xxxxxxxx=x{38}$/m, "the process is not in the table");
  const uname = cases.find(({ name }) => name === "head.uname")?.stdout ?? "";
  assert.ok(!uname.split(/\s+/).includes(Deno.hostname()), uname);
  for (const { name, argv, stdout, stderr } of cases) {
    const text = [...argv, stdout, stderr].join("\n");
    assert.ok(!text.includes(secret), `${name}:\n${text}`);
    assert.doesNotMatch(text, /(inherited|default) environment = \{\n(?!\t\thidden\n\t\})/, name);
    if (name.startsWith("domain.")) assert.doesNotMatch(text, /TOKEN/, name);
  }
}

function assertChecked(cases: readonly Case[]): void {
  for (const { name, status, argv, late, skipped } of cases) {
    const isWhole = Number.isInteger(status) && argv.length > 0 && !late;
    assert.ok(skipped !== undefined || isWhole, `${name}: status ${status}, argv ${argv}, late ${late}`);
  }
  const checked = cases.filter(check);
  assert.ok(checked.length > 60, `${checked.length} of ${cases.length} were checked`);
}

/** What the archive holds is enough for the stand-in launchd, and its tests and the readers' pass with it. */
async function feeds(archive: string, folder: string): Promise<void> {
  Deno.mkdirSync(folder);
  const unpacked = await runHere(["tar", "-xzf", archive, "-C", folder]);
  assert.equal(unpacked.code, 0, unpacked.text);
  const [name = ""] = [...Deno.readDirSync(folder)].map((entry) => entry.name);
  const recording = `${folder}/${name}`;
  const answered = readRecording(recording).filter(({ skipped }) => skipped === undefined).map((seen) => seen.name);
  // The stand-in for sudo is for root: any other user has recorded no daemon.
  const isAsked = (needed: string) => Deno.uid() === 0 || !needed.includes(".daemon.");
  const byHand = readRecording(recordingOf(BY_HAND)).map((seen) => seen.name).filter(isAsked);
  const refusals = ["bootout.agent.never", "bootstrap.agent.disabled", "bootstrap.agent.ending"];
  for (const needed of [...byHand, ...refusals]) assert.ok(answered.includes(needed), `${needed} was not recorded`);
  const env = { LIMA_GUARD_RECORDING: recording };
  const test = [Deno.execPath(), "test", "-A", "--no-check", ...denoFlags()];
  for (const args of [["tests/mac/recorded_test.ts", "--filter", `${name}: `], ["tests/launchd/launchd_test.ts"]]) {
    const { code, text } = await runHere([...test, ...args], env);
    assert.equal(code, 0, text);
    assert.match(text, /ok\S* \| [1-9]\d* passed/);
  }
}

async function runHere(argv: readonly string[], env: Record<string, string> = {}) {
  const [program = "", ...args] = argv;
  const { code, stdout, stderr } = await new Deno.Command(program, { args, env, cwd: project, stdin: "null" }).output();
  return { code, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}
