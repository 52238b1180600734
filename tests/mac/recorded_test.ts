/**
 * What Macs have said, case by case, through the readers of lima-guard; and `tests/mac/record` itself, run here against
 * the stand-ins. A recording of a Mac is unpacked into tests/standin/recorded/ and is then part of this.
 */

import assert from "node:assert/strict";
import { readLoaded } from "../../install.ts";
import { findWithoutEnvironments } from "../helpers/home.ts";
import { project } from "../helpers/paths.ts";
import { launchdIn } from "../launchd/launchd.ts";
import { readRecording, RECORDED } from "./cases.ts";
import { check } from "./recording.ts";

const recordings = [...Deno.readDirSync(RECORDED)].filter(({ name, isDirectory }) =>
  isDirectory && name.startsWith("macos-")
);

for (const { name } of recordings) {
  for (const seen of readRecording(`${RECORDED}/${name}`)) {
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

/** One of them with sudo, and so with daemons; the others without, as most people run it. */
const SHELLS = [["dash"], ["busybox", "sh"], ["bash", "--posix"]];
/** Shells that a machine lacks are counted as ignored. */
function has(shell: readonly string[]): boolean {
  try {
    return new Deno.Command(shell[0] ?? "", { args: [...shell.slice(1), "-c", ":"] }).outputSync().success;
  } catch {
    return false;
  }
}

for (const shell of SHELLS) {
  const why = Deno.build.os !== "linux" ? "the stand-ins are for Linux" : has(shell) ? "" : "not installed";
  Deno.test({
    name: `record with ${shell.join(" ")}: every case has an answer, the readers take them, and nothing is left${
      why && `: ${why}`
    }`,
    ignore: why !== "",
    fn: () => recordHere(shell),
  });
}

async function recordHere(shell: readonly string[]): Promise<void> {
  const root = Deno.realPathSync(Deno.makeTempDirSync({ dir: "/tmp", prefix: "lg-" }));
  const [state, tools, out] = [`${root}/state`, `${root}/tools`, `${root}/out`];
  try {
    await using stand = launchdIn(root, { pretended: true, bin: "tools" });
    for (const dir of ["alive", "exit"]) Deno.mkdirSync(`${state}/${dir}`, { recursive: true });
    Deno.writeTextFileSync(`${state}/conf`, "dying=4\n");
    const home = Deno.env.get("HOME") ?? "/";
    const { stdout: name } = new Deno.Command("id", { args: ["-un"] }).outputSync();
    const user = new TextDecoder().decode(name).trim();
    // The password's field holds the groups.
    const row = `${user}:${Deno.gid()}:${Deno.uid()}:${Deno.gid()}::0:0:A B:${home}:/bin/sh\n`;
    Deno.writeTextFileSync(`${state}/users`, user === "root" ? row : `${row}root:0:0:0::0:0:R:/var/root:/bin/sh\n`);
    // The stand-ins find their Mac by where they are.
    const launchd = `${project}/tests/standin/launchd`;
    const hasSudo = shell[0] === "dash";
    if (!hasSudo) Deno.writeTextFileSync(`${tools}/sudo`, "#!/bin/sh\nexit 1\n", { mode: 0o755 });
    for (const tool of ["id", "plutil", "codesign", ...hasSudo ? ["sudo"] : []]) {
      Deno.copyFileSync(`${launchd}/${tool}`, `${tools}/${tool}`);
    }
    Deno.symlinkSync("/usr/bin/lsof", `${tools}/lsof`);
    Deno.writeTextFileSync(`${tools}/sw_vers`, "#!/bin/sh\necho 0.0\n", { mode: 0o755 });
    const [program = "", ...before] = shell;
    const { code, stdout, stderr } = await new Deno.Command(program, {
      args: [...before, `${project}/tests/mac/record`, out],
      env: { RECORD_TOOLS: tools, RECORD_PAUSE: "0", HOME: home },
      cwd: root,
      stdin: "null",
    }).output();
    const [said, complaints] = [new TextDecoder().decode(stdout), new TextDecoder().decode(stderr)];
    assert.equal(code, 0, said + complaints);
    assert.equal(complaints, "");
    const [, count, archive = ""] = /^(\d+) cases: (.*)\n$/.exec(said) ?? [];
    assert.ok(Deno.statSync(archive).size > 10_000, said);
    const cases = readRecording(archive.replace(/\.tar\.gz$/, ""));
    const answered = cases.filter(({ skipped }) => skipped === undefined);
    assert.equal(answered.length, Number(count));
    for (const { name, status, argv, late } of answered) {
      assert.ok(
        Number.isInteger(status) && argv.length > 0 && !late,
        `${name}: status ${status}, argv ${argv}, late ${late}`,
      );
    }
    // Not looked at: how a job has ended, as the stand-in launchd only pretends to run jobs, and the sysctl of Linux.
    const pretended = /^print\..*\.(ended-\d+|killed|no-program|no-log)$|^sysctl\./;
    const checked = cases.filter(({ name }) => !pretended.test(name)).filter(check);
    assert.ok(checked.length > (hasSudo ? 60 : 30), `${checked.length} of ${cases.length} were checked`);
    assert.deepEqual([...stand.jobs.keys()], []);
    const labels = [...stand.overrides.values()].flatMap((one) => [...one].filter(([, is]) => is));
    assert.deepEqual(labels, []);
    assert.deepEqual(findWithoutEnvironments(root).filter(({ pid }) => pid !== Deno.pid), []);
  } finally {
    Deno.removeSync(root, { recursive: true });
  }
}
