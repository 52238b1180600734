/** The small launchd itself: it must be as hard on a job as the real one. */

import assert from "node:assert/strict";
import { readPrint } from "../../lima_guard.ts";
import { ps } from "../helpers/mod.ts";
import { tempLimaHome } from "../helpers/home.ts";
import { type Launchd, smallLaunchd } from "./launchd.ts";
import { eventually, type Home, isAlive } from "./needs.ts";
import { type Keys, readPlist, writePlist } from "./plist.ts";

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
  assert.equal(launchd.bootstrap("gui/501", plist), 0);
  return Label;
}

function says(launchd: Launchd, label: string, words: string | RegExp): Promise<void> {
  return eventually(() => assert.match(launchd.job(label).said(), new RegExp(words)));
}

/** launchctl as somebody types it. */
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
  const label = job(launchd, home, stubborn, { ExitTimeOut: 1 });
  await says(launchd, label, "ready");
  const main = launchd.job(label).pid!;
  assert.deepEqual((await launchctl(launchd, "bootout", `gui/501/${label}`)).code, 0);
  await says(launchd, label, "main TERM");
  assert.doesNotMatch(launchd.job(label).said(), /child TERM/);
  assert.match((await launchctl(launchd, "print", `gui/501/${label}`)).stdout, /^\tstate = SIGTERMed$/m);
  assert.equal((await launchctl(launchd, "bootstrap", "gui/501", `${home.root}/${label}.plist`)).code, 5);
  const told = launchd.job(label);
  await eventually(async () => assert.equal((await launchctl(launchd, "print", `gui/501/${label}`)).code, 113));
  const [life] = told.lives;
  assert.deepEqual([life!.killed, life!.ended!.signal], [true, "SIGKILL"]);
  assert.ok(life!.ended!.atMs - life!.askedMs! >= 990);
  assert.equal(isAlive(main), false);
  await eventually(() => assert.match(told.said(), /child TERM/));
  assert.equal((await launchctl(launchd, "bootstrap", "gui/501", `${home.root}/${label}.plist`)).code, 0);
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

Deno.test("kill has no time limit; a power cut asks nobody", async () => {
  await using home = await tempLimaHome();
  await using launchd = smallLaunchd(home);
  const text = `trap 'echo TERM' TERM; setsid sleep 1000 & echo "child $!"; while :; do sleep 0.05; done`;
  const label = job(launchd, home, text, { ExitTimeOut: 1 });
  await says(launchd, label, "child");
  assert.equal((await launchctl(launchd, "kill", "TERM", `gui/501/${label}`)).code, 0);
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
  const { code, stdout } = await launchctl(launchd, "print", `gui/501/${label}`);
  assert.equal(code, 0);
  assert.deepEqual(readPrint(stdout), {
    pid: launchd.job(label).pid,
    exitTimeoutS: 17,
    state: "running",
    program: "/bin/sh",
    path: `${home.root}/${label}.plist`,
  });
  assert.equal((await launchctl(launchd, "print", "system/nobody")).code, 113);
  assert.equal((await launchctl(launchd, "bootout", "system/nobody")).code, 3);
  assert.equal((await launchctl(launchd, "frobnicate")).code, 64);
});
