/**
 * The stop of a guest that cannot be asked at once: one that boots, one whose ssh comes up late or never, one whose
 * session hangs, one that needs nearly all of the time.
 */

import assert from "node:assert/strict";
import {
  eventually,
  type Guest,
  type Instance,
  spawnGuard,
  sshGuest,
  startAgent,
  startOrphan,
  tempLimaHome,
  whyNoSshd,
} from "./helpers/mod.ts";
import { guardWith } from "./helpers/guard_with.ts";
import { last, run, stopRun } from "./launchd/run.ts";
import { limitsOf, sideBySide, stagesTaken, stopOne } from "./helpers/stop.ts";

const ignore = whyNoSshd() !== undefined;

/** Waits so long that a guest that is asked every second was asked several times, and then does something. */
async function after(ms: number, what: () => unknown): Promise<void> {
  const began = performance.now();
  await eventually(() => assert.ok(performance.now() - began >= ms), { withinMs: ms + 15_000 });
  await what();
}

const COMES_LATE: readonly {
  what: string;
  /** So long after the stop, in seconds; the guest stage of these stops ends after 21 s. */
  lateS: readonly number[];
  before: (guest: Guest, vm: Instance) => unknown;
  then: (guest: Guest, vm: Instance) => unknown;
}[] = [
  { what: "sshd listens", lateS: [0, 5, 10, 15, 18, 25], before: (g) => g.stop(), then: (g) => g.listen() },
  { what: "sshd accepts the key", lateS: [5], before: (g) => g.accept(false), then: (g) => g.accept(true) },
  {
    what: "ssh.config is there",
    lateS: [5],
    before: (_, vm) => Deno.renameSync(vm.path("ssh.config"), vm.path("away")),
    then: (_, vm) => Deno.renameSync(vm.path("away"), vm.path("ssh.config")),
  },
];

for (const { what, lateS, before, then } of COMES_LATE) {
  Deno.test({
    name: `${what} only ${lateS.join(", ")} s after the stop of a guest that boots: it is asked again, and shuts down`,
    ignore,
    async fn() {
      await using home = await tempLimaHome();
      await sideBySide(lateS, async (seconds) => {
        const vm = home.instance(`late-${seconds}`);
        await using guest = await sshGuest(vm);
        await using _ = await startAgent(vm, { conf: { boot_ms: (seconds + 7) * 1000 }, until: "driver" });
        await before(guest, vm);
        const [{ report, stderr }] = await Promise.all([
          stopOne(vm, { budgetS: 60, timeoutMs: 80_000 }),
          after(seconds * 1000, () => then(guest, vm)),
        ]);
        const stage = seconds < limitsOf(60).guest ? "guest" : "agent";
        assert.deepEqual([report.stage, report.status, vm.guestDisk()], [stage, 0, "clean"], `${vm.name}: ${stderr}`);
      });
    },
  });
}

Deno.test("the power button is pressed again while the agent boots, and loses the first press", async () => {
  await using home = await tempLimaHome();
  const vm = home.instance("vm");
  // A guest that has heard it is off before Lima finds its ssh.
  const conf = { vmtype: "qemu", boot_ms: 15_000, ssh_ms: 5_000, deaf_ms: 8_000 };
  await using _ = await startAgent(vm, { conf, until: "driver" });
  const { report, stderr } = await stopOne(vm, { budgetS: 60, timeoutMs: 70_000 });
  assert.deepEqual([report.stage, report.status, vm.guestDisk()], ["guest", 0, "clean"], stderr);
});

Deno.test({
  name: "the same where --run is asked to stop while its command boots",
  ignore,
  async fn() {
    await using home = await tempLimaHome();
    const vm = home.instance("vm", { conf: { boot_ms: 12_000 } });
    await using guest = await sshGuest(vm);
    await guest.stop();
    await using guard = run(vm);
    await eventually(() => assert.ok(vm.pid("vz.pid")));
    const [{ status, stderr }] = await Promise.all([stopRun(guard, 60_000), after(5000, () => guest.listen())]);
    assert.equal(status, 0, stderr);
    assert.equal(last(vm, "end").stage, "guest");
    assert.equal(vm.guestDisk(), "clean");
  },
});

Deno.test({
  name: "no sshd: a guest that boots is asked until the guest stage ends, one that runs is not asked again",
  ignore,
  async fn() {
    await using home = await tempLimaHome();
    const [boots, runs] = [home.instance("boots"), home.instance("runs")];
    await using _boots = await startAgent(boots, { conf: { boot_ms: 300_000 }, until: "driver" });
    await using _runs = await startAgent(runs);
    const limit = limitsOf(24).guest;
    const [late, atOnce] = await Promise.all(
      [boots, runs].map((vm) => stopOne(vm, { budgetS: 24, timeoutMs: 40_000 })),
    );
    assert.match(stagesTaken(late!.report)[0]![1], /^refused: |^no end in time$/);
    assert.ok(late!.report.seconds.guest! > limit - 2, `${late!.report.seconds.guest} s of ${limit}`);
    assert.match(stagesTaken(atOnce!.report)[0]![1], /^refused: /);
    assert.ok(atOnce!.report.seconds.guest! < limit - 2, `${atOnce!.report.seconds.guest} s of ${limit}`);
    assert.equal(atOnce!.report.stage, "agent");
    assert.equal(runs.guestDisk(), "clean");
  },
});

Deno.test("a guest that hears the power button only after 10 s shuts down: it is pressed again", async () => {
  await using home = await tempLimaHome();
  const vm = home.instance("vm");
  await using _ = await startOrphan(vm, "qemu", { deaf_ms: 10_000 });
  const { report, stderr } = await stopOne(vm, { budgetS: 60, timeoutMs: 60_000 });
  assert.deepEqual([report.stage, report.status], ["driver", 0], stderr);
  assert.ok(report.seconds.total! > 5, "it was heard at once");
  assert.equal(vm.guestDisk(), "clean");
});

Deno.test("a QMP that serves another client for a while is asked again: its guest shuts down", async () => {
  await using home = await tempLimaHome();
  const vm = home.instance("vm");
  await using _ = await startOrphan(vm, "qemu");
  const other = await Deno.connect({ transport: "unix", path: vm.path("qmp.sock") });
  const log = `${home.root}/log`;
  await using guard = spawnGuard(home, ["--stop", "--json", "--timeout", "40", "vm"], guardWith({ log }));
  // Each attempt has 3 s.
  const attempts = () => Deno.readTextFileSync(log).match(/before pause 3000$/gm)?.length ?? 0;
  await eventually(() => assert.equal(attempts(), 2), { withinMs: 20_000 }).finally(() => other.close());
  const result = await guard.result();
  assert.equal(result.json().instances[0].stage, "driver", result.stderr);
  assert.equal(vm.guestDisk(), "clean");
});

Deno.test("a guest that never hears the power button is killed, and that is a warning", async () => {
  await using home = await tempLimaHome();
  const vm = home.instance("vm");
  await using _ = await startOrphan(vm, "qemu", { deaf_ms: 300_000 });
  const { report, stderr } = await stopOne(vm, { budgetS: 20, timeoutMs: 40_000 });
  assert.deepEqual([report.stage, report.status], ["killed", 0], stderr);
  assert.match(stderr, /WARN: .*SIGTERM to QEMU cut the guest's power/);
  assert.equal(vm.guestDisk(), "dirty");
});

/** The supervised guest, with a session that is ready. */
async function withReadySession(vm: Instance, guest: Guest) {
  const guard = run(vm);
  await guard.waitForLine(/: Running after /);
  await eventually(() => assert.ok(guest.log().some((line) => line.startsWith("sudo ")), "no session is ready"));
  return guard;
}

/** The PIDs of the ssh processes that a process started. */
function sshOf(parent: number): number[] {
  const { stdout } = new Deno.Command("ps", { args: ["-A", "-ww", "-o", "pid=,ppid=,command="] }).outputSync();
  return new TextDecoder().decode(stdout).split("\n").flatMap((line) => {
    const [, pid, ppid, command] = /^ *(\d+) +(\d+) (.*)$/.exec(line) ?? [];
    return Number(ppid) === parent && /^(\S*\/)?ssh -F /.test(command ?? "") ? [Number(pid)] : [];
  });
}

Deno.test({
  name: "the ssh of the ready session hangs: a new one asks, and if that hangs too the host agent has its time",
  ignore,
  async fn() {
    await using home = await tempLimaHome();
    const vm = home.instance("vm", { conf: { stop: "slow:20000" } });
    await using guest = await sshGuest(vm);
    await using guard = await withReadySession(vm, guest);
    const ssh = sshOf(guard.pid);
    assert.equal(ssh.length, 1);
    guest.mode("hang-before-ready");
    Deno.kill(ssh[0]!, "SIGSTOP");
    const { status, stderr } = await stopRun(guard, 70_000);
    assert.equal(status, 0, stderr);
    const end = last(vm, "end");
    assert.equal(end.stage, "agent");
    assert.ok(end.seconds.total < 45, `${end.seconds.total} s`);
    assert.equal(vm.guestDisk(), "clean");
  },
});

Deno.test({
  name: "a guest that needs 48 s of 60 to shut down is not killed",
  ignore,
  async fn() {
    await using home = await tempLimaHome();
    const vms = [home.instance("asked"), home.instance("ready")];
    await sideBySide(vms, async (vm) => {
      await using guest = await sshGuest(vm, "slow:48000");
      if (vm.name === "asked") {
        await using _ = await startAgent(vm);
        assert.equal((await stopOne(vm, { timeoutMs: 80_000 })).report.stage, "guest");
      } else {
        await using guard = await withReadySession(vm, guest);
        assert.equal((await stopRun(guard, 80_000)).status, 0);
        assert.equal(last(vm, "end").stage, "guest");
      }
      assert.equal(vm.guestDisk(), "clean");
    });
  },
});
