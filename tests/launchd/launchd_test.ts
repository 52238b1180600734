/** The small launchd itself: it must be as hard on a job as the real one. */

import assert from "node:assert/strict";
import { readPrint } from "../../lima_guard.ts";
import { ps } from "../helpers/mod.ts";
import { tempLimaHome } from "../helpers/home.ts";
import { type Launchd, launchdIn, smallLaunchd } from "./launchd.ts";
import { eventually, type Home, isAlive } from "./needs.ts";
import { type Keys, readPlist, writePlist } from "./plist.ts";

/** A login session of the user who runs the tests. */
const DOMAIN = `gui/${Deno.uid()}`;

/** Loads a job that is a shell script, which says what happens to it. */
function job(launchd: Launchd, home: Home, text: string, more: Partial<Keys> = {}): string {
  const Label = `test.${crypto.randomUUID().slice(0, 8)}`;
  const log = `${home.root}/${Label}.log`;
  const keys: Keys = {
    Label,
    ProgramArguments: ["/bin/sh", "-c", text],
    RunAtLoad: true,
    StandardOutPath: log,
    StandardErrorPath: log,
    ...more,
  };
  const plist = `${home.root}/${Label}.plist`;
  Deno.writeTextFileSync(plist, writePlist(keys as never));
  assert.equal(launchd.bootstrap(DOMAIN, plist), 0);
  return Label;
}

function says(launchd: Launchd, label: string, words: string | RegExp): Promise<void> {
  return eventually(() => assert.match(launchd.job(label).said(), new RegExp(words)));
}

/** launchctl as a person types it. */
async function launchctl(launchd: Launchd, ...args: string[]) {
  const output = await new Deno.Command(`${launchd.bin}/launchctl`, { args, clearEnv: true }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code: output.code, stdout: text(output.stdout), stderr: text(output.stderr) };
}

Deno.test("a plist is read as it was written", () => {
  const keys = {
    Label: "a & <b>",
    ProgramArguments: ["/bin/sh", "", " two\nlines "],
    EnvironmentVariables: { A: "1" },
    KeepAlive: { SuccessfulExit: false },
    RunAtLoad: true,
    ExitTimeOut: 60,
    Empty: [],
    None: {},
  };
  assert.deepEqual(readPlist(writePlist(keys)), keys);
  assert.throws(() => readPlist("bplist00"), /Not a plist/);
  assert.throws(() => readPlist("<plist><dict><key>Label</key></dict></plist>"), /Not a plist/);
});

Deno.test("a job: its session, its environment, its files", async () => {
  await using home = await tempLimaHome();
  await using launchd = smallLaunchd(home);
  const text = 'echo "$XPC_SERVICE_NAME|$PATH|$A|$HOME|$(pwd)|$(cat)"; exec sleep 1000';
  const more = { EnvironmentVariables: { A: "b c" }, WorkingDirectory: home.user, StandardOutPath: "out" };
  const label = job(launchd, home, text, more);
  await eventually(() =>
    assert.equal(
      Deno.readTextFileSync(`${home.user}/out`),
      `${label}|${launchd.bin}:/usr/bin:/bin:/usr/sbin:/sbin|b c||${home.user}|\n`,
    )
  );
  const pid = launchd.job(label).pid!;
  assert.equal(ps(pid)!.pgid, pid);
});

Deno.test("a stop: SIGTERM to the main process alone, SIGKILL when time is up, then SIGTERM to its group", async () => {
  await using home = await tempLimaHome();
  await using launchd = smallLaunchd(home);
  const child = `sh -c 'trap "echo child TERM; exit" TERM; echo ready; while :; do sleep 0.05; done' &`;
  const stubborn = `${child} trap 'echo main TERM' TERM; while :; do sleep 0.05; done`;
  // So long that a busy machine has asked twice before it is over.
  const label = job(launchd, home, stubborn, { ExitTimeOut: 4 });
  await says(launchd, label, "ready");
  const main = launchd.job(label).pid!;
  assert.deepEqual((await launchctl(launchd, "bootout", `${DOMAIN}/${label}`)).code, 0);
  await says(launchd, label, "main TERM");
  assert.doesNotMatch(launchd.job(label).said(), /child TERM/);
  assert.match((await launchctl(launchd, "print", `${DOMAIN}/${label}`)).stdout, /^\tstate = SIGTERMed$/m);
  assert.equal((await launchctl(launchd, "bootstrap", DOMAIN, `${home.root}/${label}.plist`)).code, 5);
  const seen = launchd.job(label);
  await eventually(async () => assert.equal((await launchctl(launchd, "print", `${DOMAIN}/${label}`)).code, 113));
  const [life] = seen.lives;
  assert.deepEqual([life!.killed, life!.ended!.signal], [true, "SIGKILL"]);
  assert.ok(life!.ended!.atMs - life!.askedMs! >= 3990);
  assert.equal(isAlive(main), false);
  await eventually(() => assert.match(seen.said(), /child TERM/));
  assert.equal((await launchctl(launchd, "bootstrap", DOMAIN, `${home.root}/${label}.plist`)).code, 0);
});

Deno.test("AbandonProcessGroup: what is left of the group is left", async () => {
  await using home = await tempLimaHome();
  await using launchd = smallLaunchd(home);
  const text = `sleep 1000 & echo "child $!"; exit 0`;
  const label = job(launchd, home, text, { AbandonProcessGroup: true });
  await launchd.ended(label);
  assert.ok(isAlive(Number(/child (\d+)/.exec(launchd.job(label).said())![1])));
});

Deno.test("KeepAlive: what is started again, and when", async () => {
  await using home = await tempLimaHome();
  await using launchd = smallLaunchd(home, { throttle: 0.05 });
  const always = job(launchd, home, "exit 0", { KeepAlive: true });
  const failed = job(launchd, home, "exit 1", { KeepAlive: { SuccessfulExit: false } });
  const killed = job(launchd, home, "kill -TERM $$", { KeepAlive: { SuccessfulExit: false } });
  const well = job(launchd, home, "exit 0", { KeepAlive: { SuccessfulExit: false } });
  for (const label of [always, failed, killed]) {
    const second = await launchd.started(label, 2);
    assert.ok(second.startedMs - launchd.job(label).lives[0]!.startedMs >= 490, "the throttle");
  }
  assert.equal(launchd.job(well).lives.length, 1);
  await launchd.shutdown();
  const lives = launchd.job(always).lives.length;
  launchd.boot();
  await launchd.started(well, 2);
  assert.equal(launchd.job(always).lives.length, lives + 1);
});

Deno.test("kill has no time limit; a power cut asks no job", async () => {
  await using home = await tempLimaHome();
  await using launchd = smallLaunchd(home);
  const text = `trap 'echo TERM' TERM; setsid sleep 1000 & echo "child $!"; while :; do sleep 0.05; done`;
  const label = job(launchd, home, text, { ExitTimeOut: 1 });
  await says(launchd, label, "child");
  assert.equal((await launchctl(launchd, "kill", "TERM", `${DOMAIN}/${label}`)).code, 0);
  await says(launchd, label, "TERM");
  assert.equal(launchd.job(label).lives[0]!.askedMs, undefined);
  const child = Number(/child (\d+)/.exec(launchd.job(label).said())![1]);
  await launchd.powerCut();
  assert.equal(isAlive(child), false);
  assert.equal(launchd.job(label).lives[0]!.ended!.signal, "SIGKILL");
});

Deno.test("launchctl print: the guard reads it", async () => {
  await using home = await tempLimaHome();
  await using launchd = smallLaunchd(home);
  const label = job(launchd, home, "exec sleep 1000", { ExitTimeOut: 17 });
  const { code, stdout } = await launchctl(launchd, "print", `${DOMAIN}/${label}`);
  assert.equal(code, 0);
  assert.deepEqual(readPrint(stdout), {
    pid: launchd.job(label).pid,
    exitTimeoutS: 17,
    state: "running",
    program: "/bin/sh",
    path: `${home.root}/${label}.plist`,
  });
  assert.equal((await launchctl(launchd, "print", "system/never")).code, 113);
  assert.equal((await launchctl(launchd, "bootout", "system/never")).code, 3);
  assert.equal((await launchctl(launchd, "frobnicate")).code, 64);
});

Deno.test("refusals: who calls, whose file it is, what is switched off, who is logged in", async () => {
  await using home = await tempLimaHome();
  await using launchd = smallLaunchd(home);
  const label = job(launchd, home, "exec sleep 1000", { ExitTimeOut: 120 });
  const [target, file] = [`${DOMAIN}/${label}`, `${home.root}/${label}.plist`];
  const code = (args: string[], uid?: number) => launchd.control(args, uid).code;
  const other = Deno.uid()! + 77;
  assert.equal(code(["bootout", target], other), 1);
  assert.equal(code(["bootstrap", "system", file], other), 1);
  assert.equal(code(["disable", target], other), 1);
  assert.equal(code(["print", target], other), 125);
  assert.equal(code(["print", `gui/${other}/${label}`]), 112);
  assert.equal(code(["bootstrap", `gui/${other}`, file]), 125);
  assert.equal(code(["bootstrap", DOMAIN, file]), 5);
  assert.equal(code(["print", "nonsense"]), 64);
  assert.match(launchd.control(["print", target]).stdout!, /^\texit timeout = 60$/m, "an agent gets 60 s at most");

  assert.equal(code(["disable", target]), 0);
  assert.match(launchd.control(["print-disabled", DOMAIN]).stdout!, new RegExp(`"${label}" => (disabled|true)`));
  assert.equal(code(["bootout", target]), 0);
  await eventually(() => assert.equal(code(["print", target]), 113));
  assert.equal(code(["bootstrap", DOMAIN, file]), 5);
  assert.equal(code(["enable", target]), 0);
  Deno.chmodSync(file, 0o664);
  assert.equal(code(["bootstrap", DOMAIN, file]), 122);
  Deno.chmodSync(file, 0o644);
  assert.equal(code(["bootstrap", DOMAIN, file]), 0);
});

Deno.test("78: a program that is missing, and a log that cannot be opened", async () => {
  await using home = await tempLimaHome();
  await using launchd = smallLaunchd(home);
  const none = job(launchd, home, "", { ProgramArguments: [`${home.root}/none`] });
  const log = job(launchd, home, "exit 0", { StandardOutPath: `${home.root}/none/log` });
  await launchd.ended(log);
  for (const label of [none, log]) {
    const { stdout = "" } = launchd.control(["print", `${DOMAIN}/${label}`]);
    assert.match(stdout, /^\tlast exit code = 78: EX_CONFIG$/m);
    assert.equal(readPrint(stdout).pid, undefined);
  }
});

Deno.test("a fault at the n-th call of launchctl", async () => {
  await using home = await tempLimaHome();
  await using launchd = smallLaunchd(home);
  Deno.writeTextFileSync(`${launchd.bin}/state/fault`, "print:2 5\n");
  const codes = [];
  for (let n = 0; n < 3; n++) codes.push((await launchctl(launchd, "print", "system/never")).code);
  assert.deepEqual(codes, [113, 5, 113]);
});

Deno.test("a recording's own words are said where it has them, filled with the job at hand", async () => {
  await using home = await tempLimaHome();
  const folder = `${home.root}/macos-0.0-test`;
  const text =
    "gui/501/org.x = {\n\tstate = running\n\tnew in this macOS = yes\n\tprogram = /x\n\targuments = {\n\t\t/x\n\t}\n\n" +
    "\texit timeout = 5\n\tpid = 1\n\tlast exit code = (never exited)\n}\n";
  for (
    const [name, stdout, stderr, status] of [
      ["print.agent.running", text, "", 0],
      ["print.agent.never-loaded", "", "No such org.x here\n", 112],
    ] as const
  ) {
    Deno.mkdirSync(`${folder}/${name}`, { recursive: true });
    for (const [file, content] of Object.entries({ stdout, stderr, status: `${status}\n`, known: "label=org.x\n" })) {
      Deno.writeTextFileSync(`${folder}/${name}/${file}`, content);
    }
  }
  await using launchd = launchdIn(`${home.root}/mac`, { recording: folder });
  const label = job(launchd, home, "exec sleep 1000", { ExitTimeOut: 17 });
  const target = `${DOMAIN}/${label}`;
  const { stdout = "" } = launchd.control(["print", target]);
  assert.ok(stdout.startsWith(`${target} = {\n`), stdout);
  assert.match(stdout, /^\tnew in this macOS = yes$/m);
  const { pid, exitTimeoutS, program } = readPrint(stdout);
  assert.deepEqual([pid, exitTimeoutS, program], [launchd.job(label).pid, 17, "/bin/sh"]);
  assert.deepEqual(launchd.control(["print", `${DOMAIN}/y`]), { code: 112, stderr: "No such y here\n" });
  // What the recording lacks: the one made by hand.
  assert.equal(launchd.control(["print", "system/y"]).code, 113);
});
