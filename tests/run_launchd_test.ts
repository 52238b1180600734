/** `--run` as a launchd job, from boot to shutdown, under a small launchd that is as impatient as the real one. */

import assert from "node:assert/strict";
import { environment as jobEnvironmentOf, labelOf, load } from "./launchd/jobs.ts";
import { type Launchd, smallLaunchd } from "./launchd/launchd.ts";
import type { Keys } from "./launchd/plist.ts";
import { agentPid, assertDown, events, journal, last } from "./launchd/run.ts";
import {
  type Bystander,
  type Conf,
  eventually,
  type Home,
  type Instance,
  isAlive,
  runGuard,
  sshGuest,
  startBystander,
  tempLimaHome,
  waitForExit,
  whyNoSshd,
} from "./helpers/mod.ts";
import { nameInAllPidFiles } from "./helpers/stop.ts";

interface Scene {
  readonly home: Home;
  readonly launchd: Launchd;
  readonly vm: Instance;
  readonly bystander: Bystander;
}

function test(
  name: string,
  body: (scene: Scene) => Promise<void>,
  { conf = {}, ignore = false, throttle = 0.1 }: { conf?: Conf; ignore?: boolean; throttle?: number } = {},
): void {
  Deno.test({
    name,
    ignore,
    async fn() {
      await using home = await tempLimaHome();
      await using bystander = await startBystander(home);
      await using launchd = smallLaunchd(home, { throttle });
      await body({ home, launchd, vm: home.instance("vm", { conf }), bystander });
      bystander.assertAlive();
    },
  });
}

/** Waits until the instance has been Running so many times. */
function isRunning({ launchd }: Scene, vm: Instance, times = 1): Promise<void> {
  return eventually(() => {
    const count = events(vm).filter((event) => event === "running").length;
    assert.ok(count >= times, `${events(vm).join(" ")}\n${launchd.job(labelOf(vm)).said()}`);
  }, { withinMs: 30_000 });
}

/** launchd has stopped it: in time, with 0, and nothing is left. */
async function assertStopped({ launchd }: Scene, vm: Instance): Promise<void> {
  const job = launchd.job(labelOf(vm));
  const life = job.lives.at(-1)!;
  assert.equal(life.killed, false, `launchd's time limit was over:\n${job.said()}`);
  assert.deepEqual([life.ended!.code, life.ended!.signal], [0, null], job.said());
  await assertDown(vm);
  assert.equal(last(vm, "end").requested, true);
}

const ONCE_MORE: Partial<Keys> = { KeepAlive: { SuccessfulExit: false } };

test("a boot with stale files: they are cleared, and no other process is signalled", async (scene) => {
  const { launchd, vm, bystander } = scene;
  nameInAllPidFiles(vm, bystander.pid);
  vm.staleSocket("ha.sock");
  load(launchd, vm, { ...ONCE_MORE, ExitTimeOut: 6 });
  await isRunning(scene, vm);
  assert.deepEqual(events(vm), ["pre", "start", "running"]);
  assert.equal(last(vm, "start").job, `system/${labelOf(vm)}`);
  await launchd.shutdown();
  await assertStopped(scene, vm);
  bystander.assertAlive();
});

test("the budget is what launchctl print says, and only for our own PID", async (scene) => {
  const { launchd, vm } = scene;
  load(launchd, vm, { ExitTimeOut: 17 });
  await isRunning(scene, vm);
  await launchd.shutdown();
  assert.equal(last(vm, "stop").budgetS, 17);
  await assertStopped(scene, vm);
});

test("a label that was inherited from another job is not believed", async (scene) => {
  const { launchd, home, vm } = scene;
  const other = home.instance("other");
  load(launchd, vm, { ExitTimeOut: 7 });
  // This one says that it is the other job, whose PID is not its own.
  load(launchd, other, { EnvironmentVariables: { ...jobEnvironment(launchd, vm), XPC_SERVICE_NAME: labelOf(vm) } });
  await isRunning(scene, vm);
  await isRunning(scene, other);
  assert.equal(last(other, "start").job, null);
  await launchd.shutdown();
  assert.equal(last(other, "stop").budgetS, 60);
});

function jobEnvironment(launchd: Launchd, vm: Instance): Record<string, string> {
  const lines = launchd.control(["print", `system/${labelOf(vm)}`]).stdout!.split("\n");
  const block = lines.slice(lines.indexOf("\tenvironment = {") + 1);
  return Object.fromEntries(block.slice(0, block.indexOf("\t}")).map((line) => line.trim().split(" => ")));
}

test(
  "a crash loop: launchd starts the guard again and again, the guard starts the command ever more rarely",
  async (scene) => {
    const { launchd, vm } = scene;
    const label = load(launchd, vm, { KeepAlive: true, ExitTimeOut: 6 });
    const starts = () => journal(vm).filter(({ event }) => event === "start").map(({ time }) => Date.parse(time));
    const ends = () => journal(vm).filter(({ event }) => event === "end").map(({ time }) => Date.parse(time));
    await eventually(() => assert.ok(starts().length >= 4, launchd.job(label).said()), { withinMs: 40_000 });
    const waited = [1, 2, 3].map((n) => (starts()[n]! - ends()[n - 1]!) / 1000);
    assert.ok(waited[0]! < 5, `the first one is free: ${waited[0]} s`);
    assert.ok(waited[1]! >= 4.9 && waited[1]! < 10, `then 5 s: ${waited[1]}`);
    assert.ok(waited[2]! >= 9.9 && waited[2]! < 20, `then 10 s: ${waited[2]}`);
    // It waits; it does not die: one life of the guard for each start of the command.
    await launchd.started(label, 5);
    await eventually(() => assert.match(launchd.job(label).said(), /waits (19|20) s/));
    await launchd.shutdown();
    await assertStopped(scene, vm);
    const life = launchd.job(label).lives.at(-1)!;
    assert.ok(life.ended!.atMs - life.askedMs! < 6000, "a stop ends the waiting at once");
  },
  { conf: { die_at: "ha.pid" }, throttle: 0.02 },
);

test("a shutdown with grace: the guest powers off, the next boot starts", async (scene) => {
  const { launchd, vm } = scene;
  await using guest = await sshGuest(vm);
  load(launchd, vm, { ...ONCE_MORE, ExitTimeOut: 8 });
  await isRunning(scene, vm);
  await eventually(() => assert.ok(guest.log().some((line) => line.startsWith("sudo"))));
  await launchd.shutdown();
  await assertStopped(scene, vm);
  assert.equal(vm.guestDisk(), "clean");
  assert.equal(last(vm, "end").stage, "guest");
  assert.equal(guest.log().filter((line) => line.startsWith("ssh:")).length, 1, "a session was opened in the shutdown");
  launchd.boot();
  await isRunning(scene, vm, 2);
  assert.equal(events(vm).includes("pre"), false, "there was something to clear");
  await launchd.shutdown();
  await assertStopped(scene, vm);
}, { ignore: whyNoSshd() !== undefined, conf: { guest_off_ms: 700, stop: "cannot-request-stop" } });

test(
  "a shutdown that takes the directory of users first: the session that is open is used, no ssh is started",
  async (scene) => {
    const { launchd, vm } = scene;
    await using guest = await sshGuest(vm);
    load(launchd, vm, { ...ONCE_MORE, ExitTimeOut: 8 });
    await isRunning(scene, vm);
    await eventually(() => assert.ok(guest.log().some((line) => line.startsWith("sudo"))));
    await launchd.shutdown({ directory: true });
    await assertStopped(scene, vm);
    assert.equal(vm.guestDisk(), "clean");
    assert.equal(last(vm, "end").stage, "guest");
    assert.throws(() => Deno.statSync(`${launchd.bin}/state/refused`), Deno.errors.NotFound, "an ssh was refused");
  },
  { ignore: whyNoSshd() !== undefined, conf: { guest_off_ms: 700, stop: "cannot-request-stop" } },
);

test("a shutdown that takes the VM first: gone before the request, and the next boot starts", async (scene) => {
  const { launchd, vm } = scene;
  load(launchd, vm, { ...ONCE_MORE, ExitTimeOut: 8 });
  await isRunning(scene, vm);
  const qemu = vm.pid("qemu.pid")!;
  await launchd.shutdown({ vms: [qemu] });
  const job = launchd.job(labelOf(vm));
  assert.equal(job.lives.at(-1)!.killed, false, job.said());
  assert.equal(last(vm, "end").stage, "gone before the request", job.said());
  await assertDown(vm);
  launchd.boot();
  await isRunning(scene, vm, 2);
}, { conf: { vmtype: "qemu" } });

test("a daemon without HOME and without a user of its own: LIMA_HOME is enough", async (scene) => {
  const { launchd, vm } = scene;
  const { HOME: _, ...environment } = jobEnvironmentOf(vm);
  load(launchd, vm, { ExitTimeOut: 6, EnvironmentVariables: environment });
  await isRunning(scene, vm);
  await launchd.shutdown();
  await assertStopped(scene, vm);
});

test("a shutdown with a hung guest: killed in time, the next boot is clean", async (scene) => {
  const { launchd, vm, bystander } = scene;
  load(launchd, vm, { ...ONCE_MORE, ExitTimeOut: 6 });
  await isRunning(scene, vm);
  vm.pidFile("qemu.pid", bystander.pid);
  await launchd.shutdown();
  await assertStopped(scene, vm);
  assert.equal(last(vm, "end").stage, "killed");
  vm.conf({ stop: "" });
  launchd.boot();
  await isRunning(scene, vm, 2);
  assert.equal(events(vm).includes("pre"), false, "there was something to clear");
}, { conf: { stop: "hang" } });

test("ExitTimeOut is absent: 5 s, and a hung guest is killed in them", async (scene) => {
  const { launchd, vm } = scene;
  load(launchd, vm);
  await isRunning(scene, vm);
  assert.match(launchd.job(labelOf(vm)).said(), /launchd gives 5 s .*hint: lima-guard --install /);
  await launchd.shutdown();
  await assertStopped(scene, vm);
  assert.equal(last(vm, "stop").budgetS, 5);
}, { conf: { stop: "ignore", vmtype: "qemu" } });

test("a shutdown during the boot", async (scene) => {
  const { launchd, vm } = scene;
  load(launchd, vm, { ...ONCE_MORE, ExitTimeOut: 5 });
  await eventually(() => assert.ok(vm.pid("vz.pid")), { withinMs: 40_000 });
  await launchd.shutdown();
  await assertStopped(scene, vm);
  vm.conf({ boot_ms: "" });
  // Running by Lima's own definition comes before the guest has booted: it may have been so already.
  const before = events(vm).filter((event) => event === "running").length;
  launchd.boot();
  await isRunning(scene, vm, before + 1);
}, { conf: { boot_ms: 60_000 } });

test("a shutdown while the guard itself is starting", async (scene) => {
  const { launchd, vm } = scene;
  const label = load(launchd, vm, { ...ONCE_MORE, ExitTimeOut: 5 });
  await launchd.started(label, 1);
  await launchd.shutdown();
  // Before its first line has run, SIGTERM ends it as any program; nothing was started then.
  const { killed, ended } = launchd.job(label).lives[0]!;
  assert.equal(killed, false);
  assert.ok([0, 143].includes(ended!.code), `status ${ended!.code}`);
  await assertDown(vm);
});

test("five instances: started one after another, stopped all at once", async (scene) => {
  const { home, launchd, bystander } = scene;
  const kinds: Conf[] = [{}, { vmtype: "qemu" }, { vmtype: "krunkit" }, { stop: "hang" }, {
    stop: "cannot-request-stop",
  }];
  const all = kinds.map((conf, n) => home.instance(`vm${n}`, { conf }));
  for (const vm of all) load(launchd, vm, { ...ONCE_MORE, ExitTimeOut: 8 });
  for (const vm of all) await isRunning(scene, vm);
  const spans = all.map((vm) => [Date.parse(last(vm, "start").time), Date.parse(last(vm, "running").time)])
    .sort(([a], [b]) => a! - b!);
  for (const [n, [start]] of spans.slice(1).entries()) {
    assert.ok(start! >= spans[n]![1]! - 250, "it was started while another one was booting");
  }
  for (const vm of all) nameInAllPidFiles(vm, bystander.pid);
  await launchd.shutdown();
  for (const vm of all) await assertStopped(scene, vm);
  assert.deepEqual(all.map((vm) => last(vm, "end").stage === "killed"), [false, false, false, true, false]);
  bystander.assertAlive();
});

test("a power cut, and all PIDs belong to other programs at the next boot", async (scene) => {
  const { home, launchd, vm, bystander } = scene;
  const qemu = home.instance("qemu", { conf: { vmtype: "qemu", usernet: 1 } });
  for (const each of [vm, qemu]) load(launchd, each, { ...ONCE_MORE, ExitTimeOut: 6 });
  for (const each of [vm, qemu]) await isRunning(scene, each);
  await launchd.powerCut();
  for (const [each, files] of [[vm, ["ha.pid", "vz.pid"]], [qemu, ["ha.pid", "qemu.pid"]]] as const) {
    for (const file of files) {
      assert.ok(each.pid(file), file);
      each.pidFile(file, bystander.pid);
    }
  }
  Deno.writeTextFileSync(`${home.lima}/_networks/user-v2/usernet_user-v2.pid`, `${bystander.pid}\n`);
  launchd.boot();
  for (const each of [vm, qemu]) await isRunning(scene, each, 2);
  for (const each of [vm, qemu]) {
    assert.equal(last(each, "pre").state, "stale");
    assert.ok(each.has("lima-guard.previous/ha.stderr.log"), "the logs of the run that was cut off are kept");
  }
  await launchd.shutdown();
  for (const each of [vm, qemu]) await assertStopped(scene, each);
  bystander.assertAlive();
});

test("launchctl kill TERM: no timer, and KeepAlive {SuccessfulExit: false} lets it be", async (scene) => {
  const { launchd, vm } = scene;
  const label = load(launchd, vm, { ...ONCE_MORE, ExitTimeOut: 20 });
  await isRunning(scene, vm);
  assert.equal(launchd.control(["kill", "TERM", `system/${label}`]).code, 0);
  const life = await launchd.ended(label);
  assert.deepEqual([life.askedMs, life.ended!.code], [undefined, 0]);
  await assertDown(vm);
  assert.equal(launchd.control(["kickstart", `system/${label}`]).code, 0);
  await isRunning(scene, vm, 2);
  assert.equal(launchd.job(label).lives.length, 2);
}, { conf: { stop: "cannot-request-stop" } });

test("the guard is killed: its group's SIGTERM stops the guest, and the next guard starts it again", async (scene) => {
  const { launchd, vm } = scene;
  const label = load(launchd, vm, { ...ONCE_MORE, ExitTimeOut: 6 });
  await isRunning(scene, vm);
  const pid = await agentPid(vm);
  assert.equal(launchd.control(["kill", "KILL", `system/${label}`]).code, 0);
  await waitForExit(pid);
  assert.equal(vm.guestDisk(), "clean");
  await isRunning(scene, vm, 2);
  assert.equal(launchd.job(label).lives.length, 2);
  await launchd.shutdown();
  await assertStopped(scene, vm);
});

test("the guard is killed, and the agent takes its time: the next guard does not start a second one", async (scene) => {
  const { launchd, vm } = scene;
  const label = load(launchd, vm, { ...ONCE_MORE, ExitTimeOut: 6 });
  await isRunning(scene, vm);
  const pid = await agentPid(vm);
  assert.equal(launchd.control(["kill", "KILL", `system/${label}`]).code, 0);
  await launchd.started(label, 2);
  await waitForExit(pid, { withinMs: 40_000 });
  // Adopted and ended well, or waited for: launchd starts nothing after a good end.
  await eventually(() => {
    const { lives } = launchd.job(label);
    assert.ok(events(vm).filter((event) => event === "running").length >= 2 || lives.at(-1)!.ended?.code === 0);
  }, { withinMs: 40_000 });
  for (const { pid } of vm.starts().slice(0, -1)) assert.equal(isAlive(pid), false);
  assert.doesNotMatch(vm.log().join("\n"), /another hostagent/);
}, { conf: { stop: "slow:3000" }, throttle: 0.05 });

test("the instance goes down by itself: launchd starts it again", async (scene) => {
  const { launchd, vm } = scene;
  const label = load(launchd, vm, { ...ONCE_MORE, ExitTimeOut: 6 });
  await isRunning(scene, vm);
  Deno.kill(await agentPid(vm), "SIGKILL");
  await isRunning(scene, vm, 2);
  assert.deepEqual(launchd.job(label).lives.map(({ ended }) => ended?.code), [137, undefined]);
  assert.ok(vm.has("lima-guard.previous/ha.stderr.log"));
});

// ── --stop from a second terminal ──

test("--stop, KeepAlive {SuccessfulExit: false}: it stays down, and the line to start it is printed", async (scene) => {
  const { home, launchd, vm } = scene;
  const label = load(launchd, vm, { ...ONCE_MORE, ExitTimeOut: 20 });
  await isRunning(scene, vm);
  const result = await runGuard(home, ["--stop", "vm"]);
  assert.equal(result.status, 0, result.stdout + result.stderr);
  assert.match(result.stdout, /^vm: stopped gracefully by the host agent in/m);
  assert.match(result.stdout, new RegExp(`launchctl kickstart system/${label}`));
  const job = launchd.job(label);
  assert.deepEqual(job.lives.map(({ ended }) => ended?.code), [0]);
  await assertDown(vm);
  assert.deepEqual(last(vm, "end").role, "run", "the job's own guard has done it");
});

test("--stop, KeepAlive true: launchd starts it again, and that is reported", async (scene) => {
  const { home, launchd, vm } = scene;
  const label = load(launchd, vm, { KeepAlive: true, ExitTimeOut: 20 });
  await isRunning(scene, vm);
  const result = await runGuard(home, ["--stop", "vm"]);
  assert.equal(result.status, 1, result.stdout + result.stderr);
  assert.match(result.stdout, /stopped, and started again by launchd/);
  assert.match(result.stdout, new RegExp(`launchctl bootout system/${label}`));
  await isRunning(scene, vm, 2);
  assert.equal(launchd.job(label).lives[0]!.ended!.code, 0);
  assert.equal(launchd.job(label).lives.length, 2, "it was stopped twice");
}, { throttle: 0.01 });

test("--stop during the restart back-off: it ends at once", async (scene) => {
  const { home, launchd, vm } = scene;
  const label = load(launchd, vm, { ...ONCE_MORE, ExitTimeOut: 20 });
  await eventually(() => assert.match(launchd.job(label).said(), /; waits \d+ s/), { withinMs: 40_000 });
  const result = await runGuard(home, ["--stop", "vm"]);
  assert.equal(result.status, 0, result.stdout + result.stderr);
  assert.equal((await launchd.ended(label)).ended!.code, 0);
  await assertDown(vm);
}, { conf: { die_at: "ha.pid" }, throttle: 0.02 });

test("bootout returns before the guest is off; the label is free when it is", async (scene) => {
  const { launchd, vm } = scene;
  const label = load(launchd, vm, { ...ONCE_MORE, ExitTimeOut: 10 });
  await isRunning(scene, vm);
  const job = launchd.job(label);
  assert.equal(launchd.control(["bootout", job.target]).code, 0);
  assert.equal(launchd.control(["bootstrap", "system", `${vm.home.root}/${label}.plist`]).code, 5);
  await eventually(() => assert.equal(launchd.control(["print", job.target]).code, 113), { withinMs: 40_000 });
  assert.deepEqual([job.lives[0]!.killed, job.lives[0]!.ended!.code], [false, 0]);
  assert.equal(vm.guestDisk(), "clean");
  await assertDown(vm);
}, { conf: { stop: "slow:800" } });
