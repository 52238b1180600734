/**
 * What fails, hangs, or is changed by another program in the middle of a run, and what a killed run has left; before
 * every effect in turn: install_effects_test.ts.
 */

import assert from "node:assert/strict";
import { BACKUP_SUFFIX, MEMORY_SUFFIX } from "../install.ts";
import { eventually } from "./helpers/processes.ts";
import { ADA, DAEMON, type FakeMac, fixture, guarded, limactl, macTest, macWith, ROOT, ZOE } from "./install_mac.ts";

macTest("a newer guard that answers and does not run: the old guard, its job and its files are back", async () => {
  const { mac, job } = macWith("daemon");
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  const before = mac.tree();
  mac.putGuard(mac.source, "\n# newer\n");
  const withSource = mac.tree();
  mac.conf("broken=lima-guard");
  mac.fault(...Array.from({ length: 3 }, (_, i) => `kickstart:${i + 1} 5`));
  const run = await mac.run(["--yes", "--restart", "--json", "default"]);
  assert.equal(run.status, 1, run.stdout);
  assert.deepEqual(mac.tree(), withSource);
  assert.notDeepEqual(withSource, before);
  assert.ok(job()!.args.includes("--run"));
});

macTest("when the rollback fails too, the report says so and names the command", async () => {
  const { mac, file, text } = macWith("daemon");
  await using _ = mac;
  mac.fault(...Array.from({ length: 60 }, (_, i) => `bootstrap:${i + 1} 122`));
  const run = await mac.run(["--yes", "--json", "default"]);
  const report = run.json();
  assert.deepEqual([run.status, report.state], [1, "broken"], run.stdout);
  assert.match(report.blockers[0].because, /status 122: the plist has a bad owner or mode/);
  assert.ok(report.blockers[0].hint.endsWith(`launchctl bootstrap system ${file}`));
  assert.equal(Deno.readTextFileSync(file), text);
});

macTest("a signal in the middle: the old job is put back before the process leaves", async () => {
  const hookAt = await effectNumber(/ create \S+\.before-lima-guard/);
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    const { mac, file, text, job } = macWith("daemon");
    await using _ = mac;
    const child = mac.start(["--yes", "default"], {
      settings: { hookAt, hook: `touch ${mac.state}/there; sleep 0.4` },
    });
    while (!mac.exists(`${mac.state}/there`)) await new Promise((resolve) => setTimeout(resolve, 20));
    child.kill(signal);
    const { code, stdout } = await child.output();
    assert.equal(code, 1, new TextDecoder().decode(stdout));
    assert.match(new TextDecoder().decode(stdout), /interrupted/);
    assert.equal(Deno.readTextFileSync(file), text);
    assert.deepEqual(job()!.args, limactl(mac));
  }
});

macTest("a command that is late is killed with all its children", async () => {
  const { mac } = macWith("daemon");
  await using _ = mac;
  mac.fault("plutil:1 hang");
  const run = await mac.run(["--yes", "--json", "default"], { settings: { limits: { commandMs: 300 } } });
  assert.equal(run.status, 1, run.stdout);
  assert.match(run.json().blockers[0].because, /did not end in time/);
  await untilNoneRuns(`${mac.root}/bin/plutil`);
});

macTest(
  "a lima-guard that takes long to say its version is waited for; one that never says it is rolled back",
  async () => {
    const limits = { commandMs: 3000, handshakeMs: 60_000 };
    const { mac, job } = macWith("daemon");
    await using _ = mac;
    mac.putGuard(mac.source, "BEGIN { select undef, undef, undef, 4 if grep { $_ eq '--version' } @ARGV }\n");
    const slow = await mac.run(["--yes", "default"], { settings: { limits } });
    assert.equal(slow.status, 0, slow.stdout + slow.stderr);
    assert.deepEqual(job()!.args, guarded(mac));
    for (const how of ["hang", "late"]) {
      const { mac, job } = macWith("daemon");
      await using _ = mac;
      const [before, pid] = [mac.tree(), job()!.pid];
      // The first of the two lines is sudo's.
      mac.fault(`version:2 ${how}`);
      const run = await mac.run(["--yes", "--json", "default"], { settings: { limits: { handshakeMs: 1500 } } });
      assert.deepEqual([run.status, run.json().state], [1, "rolled back"], run.stdout);
      const because = run.json().blockers[0].because;
      assert.match(because, /it did not say its version to zoe: (lima-guard \d|it did not end in time)/);
      assert.deepEqual([mac.tree(), job()!.pid], [before, pid]);
      await untilNoneRuns(mac.guard);
    }
  },
);

macTest(
  "a folder that the job's user cannot enter: the guard in it does not start for him, and all is put back",
  async () => {
    for (const more of [[], ["--guard"]]) {
      const { mac, job } = macWith("daemon", { quick: false });
      await using _ = mac;
      const dir = more.length > 0 ? `${mac.system}/opt` : mac.guards;
      mac.folder(dir, ROOT, 0o700);
      if (more.length > 0) mac.putGuard(`${dir}/lima-guard`);
      mac.own(dir, ROOT, 0o700);
      const [before, pid] = [mac.tree(), job()!.pid];
      const args = more.length > 0 ? ["--guard", `${dir}/lima-guard`] : [];
      const run = await mac.run(["--yes", "--json", ...args, "default"]);
      assert.deepEqual([run.status, run.json().state], [1, "rolled back"], run.stdout + run.stderr);
      assert.match(run.json().blockers[0].because, /it did not say its version to zoe: status/);
      assert.deepEqual([mac.tree(), job()!.pid, mac.guardUids()], [before, pid, []]);
    }
  },
);

macTest("what a killed run has left is removed by the next one, and nothing else", async () => {
  const { mac, file, guard } = macWith("daemon");
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  const before = mac.tree();
  const own = `${mac.system}/var/db/.lima-guard-new-0123abcd`;
  mac.folder(own, ROOT, 0o700);
  const litter = [file, `${file}.before-lima-guard`, `${file}.lima-guard.json`, guard, `${guard}.previous`].map((
    path,
  ) => `${path}.lima-guard-new-0123abcd`);
  for (const path of [...litter, `${own}/lima-guard`]) mac.write(path, "cut off");
  // Not ours to remove: other names, other owners, no file.
  const others = [`${file}.lima-guard-new-x`, `${mac.daemons}/other.plist.lima-guard-new-0123abcd`, `${file}.swp`];
  for (const path of others) mac.write(path, "other");
  mac.write(`${guard}.lima-guard-new-00000000`, "other", ADA);
  mac.folder(`${guard}.lima-guard-new-11111111`);
  mac.folder(`${mac.system}/var/db/.lima-guard-new-22222222`);
  for (const name of ["lima-guard", "mine"]) mac.write(`${mac.system}/var/db/.lima-guard-new-22222222/${name}`, "x");
  const dry = await mac.run(["--dry-run", "default"]);
  assert.match(dry.stdout, /would remove .*new-0123abcd {2}\(a run that was killed has left it\)/);
  const pid = world(mac);
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.equal(world(mac), pid, "the instance was not restarted");
  const left = mac.tree().filter((row) => !before.includes(row)).map((row) => row.split(" ")[0]!.replace(/.*\//, ""));
  assert.deepEqual(left.sort(), [
    ".lima-guard-new-22222222",
    "io.lima-vm.daemon.default.plist.lima-guard-new-x",
    "io.lima-vm.daemon.default.plist.swp",
    "lima-guard",
    "lima-guard.lima-guard-new-00000000",
    "lima-guard.lima-guard-new-11111111",
    "mine",
    "other.plist.lima-guard-new-0123abcd",
  ]);
  const again = await mac.run(["--yes", "--json", "default"]);
  assert.equal(again.json().changed, false);
});

function world(mac: FakeMac): number | undefined {
  return mac.job("system", DAEMON)!.pid;
}

// Commands that look, before anything is touched; and what is looked at.
const LOOKS = ["id:1", "launchctl:1", "ls:1", "xattr:1", "print-disabled:1", "codesign:1", "sysctl:1", "sudo:1"];
for (const look of LOOKS) {
  macTest(`${look.split(":")[0]} hangs before anything is touched: the run ends, and leaves no process`, async () => {
    const { mac, job } = macWith("daemon");
    await using _ = mac;
    if (look === "xattr:1" || look === "codesign:1") mac.putGuard(mac.guard);
    const [before, pid] = [mac.tree(), job()!.pid];
    mac.fault(`${look} hang`);
    const args = ["--yes", "--json", ...look === "sysctl:1" ? ["--dry-run"] : [], "default"];
    const run = await mac.run(args, { settings: { limits: { commandMs: 1500, handshakeMs: 1500 } } });
    assert.ok(mac.log().some((line) => line.includes(look.split(":")[0]!)), mac.log().join("\n"));
    if (run.status !== 0) assert.deepEqual([mac.tree(), job()!.pid], [before, pid], run.stdout);
    assert.ok([0, 1, 75].includes(run.status), run.stdout);
    await untilNoneRuns(`${mac.root}/bin/`);
  });
}

macTest("a FIFO among the user's login agents hangs neither root's child nor the user", async () => {
  const { mac, job } = macWith("daemon");
  await using _ = mac;
  const fifo = `${mac.agents}/x.plist`;
  new Deno.Command("mkfifo", { args: [fifo] }).outputSync();
  Deno.chownSync(fifo, ZOE.uid, ZOE.gid);
  const [before, pid] = [mac.tree(), job()!.pid];
  const run = await mac.run(["--yes", "--json", "default"], { settings: { limits: { commandMs: 1500 } } });
  assert.deepEqual([run.status, run.json().state], [75, "unknown"], run.stdout);
  assert.match(run.json().blockers[0].because, /Cannot read .*LaunchAgents\/x\.plist: it did not end in time/);
  assert.deepEqual([mac.tree(), job()!.pid], [before, pid]);
  await untilNoneRuns(fifo);
  const asOwner = await mac.run(["--check", "--plist", fifo, "default"], { as: ZOE });
  assert.match(asOwner.stdout, /is no file/);
});

/** No process has this in its command: one that was killed may still need a moment. */
async function untilNoneRuns(words: string): Promise<void> {
  await eventually(() => {
    const { stdout } = new Deno.Command("pgrep", { args: ["-f", words] }).outputSync();
    assert.equal(new TextDecoder().decode(stdout), "");
  });
}

/** The number of the effect of an undisturbed run whose line matches: before it something can be made to happen. */
async function effectNumber(pattern: RegExp, then: string[] = [], spoil = (_: FakeMac) => {}): Promise<number> {
  const { mac } = macWith("daemon", { trace: true });
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  if (then.length > 0) {
    mac.forget();
    spoil(mac);
    assert.equal((await mac.run([...then, "default"])).status, 0);
  }
  const n = mac.effects().findIndex((line) => pattern.test(line)) + 1;
  assert.ok(n > 0, `${pattern}\n${mac.effects().join("\n")}`);
  return n;
}

/** A run is killed before its effect of this number. */
async function killAt(mac: FakeMac, freezeAt: number): Promise<void> {
  const child = mac.start(["--yes", "default"], { settings: { freezeAt } });
  const reader = child.stderr.getReader();
  for (let text = ""; !text.includes("frozen");) text += new TextDecoder().decode((await reader.read()).value);
  child.kill("SIGKILL");
  await Promise.all([child.status, reader.cancel(), child.stdout.cancel()]);
}

/** Another program puts a newer plist in the place of the old one. */
function newerPlist(mac: FakeMac, file: string, text: string): { newer: string; hook: string } {
  const newer = text.replace("Background", "Standard");
  mac.write(`${mac.root}/newer`, newer);
  return { newer, hook: `cp -p ${mac.root}/newer ${file}.x && mv ${file}.x ${file}` };
}

macTest(
  "a plist that is written while plutil reads the new one is not replaced: 75, and the old job is in force",
  async () => {
    const hookAt = await effectNumber(/ run .*plutil/);
    const { mac, file, text, job } = macWith("daemon");
    await using _ = mac;
    const { newer, hook } = newerPlist(mac, file, text);
    const run = await mac.run(["--yes", "--json", "default"], { settings: { hookAt, hook } });
    assert.deepEqual([run.status, run.json().state], [75, "rolled back"], run.stdout);
    assert.match(run.json().blockers[0].because, /has changed in the meantime/);
    assert.deepEqual([Deno.readTextFileSync(file), job()!.args], [newer, limactl(mac)]);
    assert.ok(!mac.exists(mac.guard) && !mac.tree().some((row) => row.includes("lima-guard-new")));
  },
);

macTest("a rollback leaves a newer plist of another program alone, says so, and loads it", async () => {
  const hookAt = await effectNumber(/ run .*launchctl.*bootout|run \/\S+launchctl,bootout/);
  const { mac, file, text, job } = macWith("daemon");
  await using _ = mac;
  const { newer, hook } = newerPlist(mac, file, text);
  mac.fault("bootstrap:1 122");
  const run = await mac.run(["--yes", "--json", "default"], { settings: { hookAt, hook } });
  assert.deepEqual([run.status, run.json().state], [1, "rolled back"], run.stdout);
  assert.match(JSON.stringify(run.json().notes), /was changed by another program in the meantime, and was left alone/);
  assert.deepEqual([Deno.readTextFileSync(file), job()!.args], [newer, limactl(mac)]);
});

macTest(
  "a plist that another program removes before it is put back stays removed, and no job is left",
  async () => {
    const fault = "bootstrap:1 122";
    const { mac: whole, file: plist } = macWith("daemon");
    await using _whole = whole;
    whole.fault(fault);
    assert.equal((await whole.run(["--yes", "default"], { settings: { trace: true } })).status, 1);
    const renames = whole.effects().flatMap((line, i) =>
      line.startsWith(`0 rename ${plist}.lima-guard-new-`) ? [i + 1] : []
    );
    assert.equal(renames.length, 2, whole.effects().join("\n"));
    const [, back = 0] = renames;
    const bootedOut = whole.effects().findIndex((line) => line.includes("launchctl,bootout")) + 1;
    for (let hookAt = bootedOut; hookAt < back; hookAt++) {
      const { mac, file, job } = macWith("daemon");
      await using _ = mac;
      mac.fault(fault);
      const run = await mac.run(["--yes", "--json", "default"], { settings: { hookAt, hook: `rm ${file}` } });
      const words = `before effect ${hookAt} (${whole.effects()[hookAt - 1]})\n${run.stdout}`;
      assert.deepEqual([run.status, run.json().state, mac.exists(file)], [1, "rolled back", false], words);
      assert.match(
        JSON.stringify(run.json().notes),
        /plist was changed by another program .*, and was left alone/,
        words,
      );
      assert.deepEqual([job(), mac.exists(mac.guard)], [undefined, false], words);
    }
  },
);

macTest("a plist that another program removes before the job is unloaded: the old job runs on", async () => {
  const { mac: whole, file: plist } = macWith("daemon");
  await using _whole = whole;
  assert.equal((await whole.run(["--yes", "default"], { settings: { trace: true } })).status, 0);
  const effects = whole.effects();
  const replaced = effects.findIndex((line) => line.startsWith(`0 rename ${plist}.lima-guard-new-`)) + 1;
  const bootedOut = effects.findIndex((line) => line.includes("launchctl,bootout")) + 1;
  assert.ok(replaced > 0 && bootedOut > replaced + 1, effects.join("\n"));
  for (let hookAt = replaced + 1; hookAt < bootedOut; hookAt++) {
    const { mac, file, job } = macWith("daemon");
    await using _ = mac;
    const { args } = job()!;
    const run = await mac.run(["--yes", "--json", "default"], { settings: { hookAt, hook: `rm ${file}` } });
    const words = `before effect ${hookAt} (${effects[hookAt - 1]})\n${run.stdout}`;
    assert.deepEqual([run.status, run.json().state, mac.exists(file)], [75, "rolled back", false], words);
    assert.deepEqual(job()?.args, args, words);
    assert.notEqual(job()?.pid, undefined, words);
  }
});

macTest("a newer plist in the place of a link whose job is to be removed stays: 75", async () => {
  const linked = async () => {
    const { mac, file, text } = macWith("daemon");
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    Deno.renameSync(file, `${mac.system}/usr/local/job.plist`);
    for (const end of [BACKUP_SUFFIX, MEMORY_SUFFIX]) {
      Deno.renameSync(file + end, `${mac.system}/usr/local/job.plist${end}`);
    }
    Deno.symlinkSync(`${mac.system}/usr/local/job.plist`, file);
    Deno.removeSync(`${mac.home}/.lima/default`, { recursive: true });
    mac.forget();
    return { mac, file, ...newerPlist(mac, file, text) };
  };
  const { mac: whole, file: link } = await linked();
  await using _whole = whole;
  assert.equal((await whole.run(["--uninstall", "--yes", "default"], { settings: { trace: true } })).status, 0);
  const removed = whole.effects().indexOf(`0 rename ${link}`) + 1;
  const unloaded = whole.effects().findIndex((line) => line.includes("launchctl,bootout")) + 1;
  assert.ok(unloaded > 0 && removed > unloaded, whole.effects().join("\n"));
  for (let hookAt = unloaded - 1; hookAt < removed; hookAt++) {
    const { mac, file, newer, hook } = await linked();
    await using _ = mac;
    const run = await mac.run(["--uninstall", "--yes", "--json", "default"], { settings: { hookAt, hook } });
    const words = `before effect ${hookAt} (${whole.effects()[hookAt - 1]})\n${run.stdout}`;
    assert.equal(run.status, 75, words);
    assert.deepEqual([Deno.lstatSync(file).isFile, Deno.readTextFileSync(file)], [true, newer], words);
  }
});

macTest("a run that is killed between bootout and bootstrap: the next one loads the job", async () => {
  const freezeAt = await effectNumber(/ run \/\S+launchctl,bootstrap/);
  const { mac, job } = macWith("daemon");
  await using _ = mac;
  await killAt(mac, freezeAt);
  assert.equal(job(), undefined);
  // A change of the file alone does not forget it.
  assert.equal((await mac.run(["--yes", "--no-reload", "--keep-alive", "default"])).status, 0);
  assert.match(
    (await mac.run(["--check", "default"])).stdout,
    /broken\n.*has not loaded it again.*--install default\)/,
  );
  const again = await mac.run(["--yes", "--json", "default"]);
  assert.deepEqual([again.status, again.json().state], [0, "guarded"], again.stdout);
  assert.deepEqual(job()!.args, guarded(mac));
  assert.ok(job()!.pid !== undefined);
});

macTest("a run that makes good what a killed one has left, and is killed too: the next one does it", async () => {
  const killed = async (wasDisabled: boolean) => {
    const world = macWith("daemon", { trace: true });
    assert.equal((await world.mac.run(["--yes", "default"])).status, 0);
    const memory = JSON.parse(Deno.readTextFileSync(world.file + MEMORY_SUFFIX));
    const bootedOut = { boot: "BOOT-1", wasRunning: true, wasDisabled };
    world.mac.write(world.file + MEMORY_SUFFIX, JSON.stringify({ ...memory, bootedOut }));
    if (!wasDisabled) world.mac.lose(world.domain, world.label);
    world.mac.forget();
    return world;
  };
  for (const [wasDisabled, verb] of [[false, "bootstrap"], [true, "disable"]] as const) {
    const { mac: whole } = await killed(wasDisabled);
    await using _whole = whole;
    assert.equal((await whole.run(["--yes", "default"])).status, 0);
    const freezeAt = whole.effects().findIndex((line) => line.includes(`launchctl,${verb}`)) + 1;
    const { mac, domain, label, job } = await killed(wasDisabled);
    await using _ = mac;
    await killAt(mac, freezeAt);
    assert.equal((await mac.run(["--check", "default"])).status, 1, verb);
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    assert.deepEqual([mac.isDisabled(domain, label), job()?.args], [wasDisabled, guarded(mac)]);
    assert.equal((await mac.run(["--check", "default"])).status, 0);
  }
});

macTest(
  "root's half of a handover is killed between bootout and bootstrap: 75, and what it did is not known",
  async () => {
    const { mac: whole } = macWith("daemon", { trace: true });
    await using _whole = whole;
    assert.equal((await whole.run(["--yes", "default"], { as: ADA })).status, 0);
    // Both halves count their effects from one, and the caller has fewer.
    const ofRoot = whole.effects().filter((line) => line.startsWith("0 "));
    const hookAt = ofRoot.findIndex((line) => / run \/\S+launchctl,bootstrap/.test(line)) + 1;
    assert.ok(hookAt > whole.effects().length - ofRoot.length, whole.effects().join("\n"));
    for (const more of [[], ["--json"]]) {
      const { mac, job } = macWith("daemon");
      await using _ = mac;
      const settings = { hookAt, hook: "kill -KILL $PPID" };
      const run = await mac.run(["--yes", ...more, "default"], { as: ADA, settings });
      assert.equal(job(), undefined, run.stderr);
      assert.equal(run.status, 75, run.stdout + run.stderr);
      assert.match(run.stdout, /sudo lima-guard --check default/);
      assert.ok(!run.stdout.includes("refused"), run.stdout);
      if (more.length > 0) assert.deepEqual([run.json().state, JSON.parse(run.stdout).changed], ["unknown", true]);
      const again = await mac.run(["--yes", "default"], { as: ADA });
      assert.deepEqual([again.status, job()!.args], [0, guarded(mac)], again.stdout);
    }
  },
);

macTest("root's half that ends without its document, or not as it says there, is no refusal of sudo's", async () => {
  const faults = [["1", 77, "refused"], ["64", 75, "unknown"], ["killed", 75, "unknown"], ["after:137", 75, "unknown"]];
  for (const [fault, status, state] of faults) {
    const { mac } = macWith("daemon");
    await using _ = mac;
    mac.fault(`sudo:1 ${fault}`);
    const run = await mac.run(["--yes", "--json", "default"], { as: ADA });
    assert.deepEqual([run.status, run.json().state], [status, state], run.stdout + run.stderr);
  }
});

macTest("two names of one file, as a killed run leaves them: no third one is left", async () => {
  const { mac, guard } = macWith("daemon");
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  Deno.linkSync(guard, `${guard}.previous`);
  mac.putGuard(mac.source, "\n# newer\n");
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  assert.ok(!mac.tree().some((row) => row.includes("lima-guard-new")), mac.tree().join("\n"));
});

macTest("a job that was disabled and is rolled back is loaded and disabled again", async () => {
  const { mac, domain, label, job } = macWith("daemon");
  await using _ = mac;
  mac.launchctl(["disable", `${domain}/${label}`]);
  mac.forget();
  mac.fault("bootstrap:1 122");
  const run = await mac.run(["--yes", "--json", "default"]);
  assert.deepEqual([run.status, run.json().state], [1, "rolled back"], run.stdout);
  assert.deepEqual([job()!.args, mac.isDisabled(domain, label)], [limactl(mac), true]);
});

macTest("a rollback that is killed before it disables the job again: the next run disables it", async () => {
  const failing = () => {
    const world = macWith("daemon", { trace: true });
    world.mac.launchctl(["disable", `${world.domain}/${world.label}`]);
    world.mac.forget();
    world.mac.fault("bootstrap:1 122");
    return world;
  };
  const { mac: first } = failing();
  await using _first = first;
  assert.equal((await first.run(["--yes", "default"])).status, 1);
  const freezeAt = first.effects().findIndex((line) => line.includes("launchctl,disable,")) + 1;
  const { mac, domain, label, job } = failing();
  await using _ = mac;
  await killAt(mac, freezeAt);
  assert.equal(mac.isDisabled(domain, label), false);
  mac.forget();
  const again = await mac.run(["--yes", "default"]);
  assert.equal(again.status, 0, again.stdout);
  assert.deepEqual([job()!.args, mac.isDisabled(domain, label)], [guarded(mac), true]);
});

macTest(
  "a signal while the instance stops: the job, which is idle now, is started again under its old plist",
  async () => {
    const hookAt = await effectNumber(/ run .*,--stop,/);
    const { mac, file, text, job } = macWith("daemon", { quick: false });
    await using _ = mac;
    const { pid } = job()!;
    // A stop that ends sooner than the signal is seen is followed by the bootout.
    mac.conf("stop_s=1");
    const settings = { hookAt, hook: "kill -TERM $PPID" };
    const run = await mac.run(["--yes", "--json", "default"], { settings });
    assert.deepEqual([run.status, run.json().state], [1, "rolled back"], run.stdout + run.stderr);
    assert.match(run.json().blockers[0].because, /interrupted/);
    assert.ok(!mac.log().some((line) => /bootout|bootstrap/.test(line)), mac.log().join("\n"));
    assert.deepEqual([Deno.readTextFileSync(file), job()!.args], [text, limactl(mac)]);
    assert.ok(job()!.pid !== undefined && job()!.pid !== pid, "it runs again");
  },
);

// An uninstall that fails when the bare job is loaded and runs again.
const LATE: [what: string, args: string[], effect: RegExp, spoil?: (mac: FakeMac) => void][] = [
  ["is stopped before it is booted out", [], / rename .*before-lima-guard$/],
  ["is stopped by the guard that --purge had removed", ["--purge"], / rename .*lima-guard-install\.log$/],
  // The stop of the uninstall itself is called by sudo and by the guard; the third is sudo's of the rollback.
  ["stays where it cannot be stopped", [], / rename .*before-lima-guard$/, (mac) => mac.fault("stop:3 75")],
  ["stays where no guard is safe", [], / rename .*before-lima-guard$/, (mac) => {
    for (const path of [mac.guard, mac.source]) Deno.chmodSync(path, 0o777);
  }],
];
for (const [what, more, effect, spoil] of LATE) {
  macTest(`a bare job that a rollback finds running ${what}: its guest is not cut off`, async () => {
    const args = ["--uninstall", "--yes", "--json", ...more];
    const failAt = await effectNumber(effect, args, spoil);
    const { mac, job } = macWith("daemon");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    mac.forget();
    spoil?.(mac);
    const before = mac.tree();
    const run = await mac.run([...args, "default"], { settings: { failAt } });
    const isStuck = spoil !== undefined;
    assert.deepEqual([run.status, run.json().state], [1, isStuck ? "broken" : "rolled back"], run.stdout + run.stderr);
    assert.ok(!mac.exists(`${mac.state}/cut_off`), `the guest was cut off\n${mac.log().join("\n")}`);
    assert.deepEqual(mac.tree(), before);
    assert.deepEqual(job()!.args, isStuck ? limactl(mac) : guarded(mac));
    assert.ok(job()!.pid !== undefined);
  });
}

macTest("a bare job that runs, and no guard that could stop it: an uninstall refuses", async () => {
  const { mac, job } = macWith("daemon");
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "--no-reload", "default"])).status, 0);
  Deno.removeSync(mac.guard);
  // This very program is another user's to change.
  Deno.chmodSync(mac.source, 0o777);
  const [before, pid] = [mac.tree(), job()!.pid];
  const run = await mac.run(["--uninstall", "--yes", "--json", "default"]);
  assert.deepEqual([run.status, run.json().state], [1, "refused"], run.stdout + run.stderr);
  assert.match(run.json().blockers[0].because, /no lima-guard is there to stop the instance/);
  const stop = `sudo -H -u zoe LIMA_HOME=${mac.home}/.lima ${limactl(mac)[0]} stop default, then run this again`;
  assert.equal(run.json().blockers[0].hint, stop);
  assert.deepEqual([mac.tree(), job()!.pid, mac.exists(`${mac.state}/cut_off`)], [before, pid, false]);
  assert.equal((await mac.run(["--uninstall", "--yes", "--no-reload", "default"])).status, 0);
});

macTest("what is to be stopped by hand is what is loaded, by a program that is there", async () => {
  const { mac, file, text } = macWith("daemon");
  await using _ = mac;
  Deno.chmodSync(mac.source, 0o777);
  const hint = async (of: string, name: string, as = ROOT) => {
    const run = await mac.run(["--uninstall", "--yes", "--json", "--plist", of, name], { as });
    assert.equal(run.status, 1, run.stdout);
    return run.json().blockers[0].hint.replace(", then run this again", "");
  };
  const wrap = (of: string) =>
    of.replace(
      /ProgramArguments<\/key>\s*<array>/,
      "$&<string>/x/lima-guard</string><string>--run</string>NAME<string>--</string>",
    );
  const other = `<key>EnvironmentVariables</key><dict><key>LIMA_HOME</key><string>${mac.home}/other</string></dict>`;
  mac.instance("default", `${mac.home}/other`);
  mac.write(file, wrap(text).replace("NAME", "<string>default</string>").replace("<key>RunAtLoad", `${other}$&`));
  assert.equal(
    await hint(file, "default"),
    `sudo -H -u zoe LIMA_HOME=${mac.home}/.lima ${limactl(mac)[0]} stop default`,
  );
  const bare = fixture(mac, "homebrew-colima");
  const agent = mac.write(`${mac.agents}/homebrew.mxcl.colima.plist`, bare, ZOE);
  const colima = `${mac.root}/opt/homebrew/opt/colima/bin/colima`;
  mac.instance("colima", `${mac.home}/.colima/_lima`);
  mac.load("gui/501", agent);
  mac.write(agent, wrap(bare).replace("NAME", "<string>colima</string>"), ZOE);
  assert.equal(await hint(agent, "colima", ZOE), `LIMA_HOME=${mac.home}/.colima/_lima ${limactl(mac)[0]} stop colima`);
  Deno.removeSync(limactl(mac)[0]!);
  assert.equal(await hint(agent, "colima", ZOE), `COLIMA_HOME=${mac.home}/.colima ${colima} stop`);
});

/** A lima-guard whose stop has ended the job's process, and cleans up until a second after such a line of the log. */
function slowGuard(mac: FakeMac, line: string): void {
  const more = `END {
    if (grep { $_ eq '--stop' } @ARGV) {
      for (1 .. 100) { last if grep { /${line}/ } lines_of(state_dir() . '/log'); select undef, undef, undef, 0.1 }
      select undef, undef, undef, 1;
      open my $log, '>>', state_dir() . '/log';
      print $log "cleaned up\\n";
    }
  }\n`;
  mac.putGuard(mac.source, more);
}

macTest(
  "a stop that still cleans up when its process has ended is waited for, and in a rollback first of all",
  async () => {
    for (const [line, isRollback] of [["launchctl bootstrap", false], ["launchctl bootout", true]] as const) {
      const { mac } = macWith("daemon");
      await using _ = mac;
      slowGuard(mac, line);
      if (isRollback) mac.fault("bootout:1 5");
      const run = await mac.run(["--yes", "default"]);
      assert.equal(run.status, isRollback ? 1 : 0, run.stdout + run.stderr);
      const log = mac.log();
      assert.ok(log.includes("cleaned up"), log.join("\n"));
      const loaded = log.findIndex((one) => one.includes("launchctl bootstrap"));
      if (isRollback) assert.ok(log.indexOf("cleaned up") < loaded, log.join("\n"));
    }
  },
);
