/** Lima 2.2.0, 2.2.1 and 2.3, as the stand-in plays them, and lima-guard beside each. */

import assert from "node:assert/strict";
import { last, run, running, stopRun } from "./launchd/run.ts";
import {
  eventually,
  type Home,
  IMPOSSIBLE_PID,
  type Instance,
  isAlive,
  limactl,
  runGuard,
  silentPort,
  sshGuest,
  startAgent,
  startBystander,
  startOrphan,
  tempLimaHome,
  whyNoSshd,
} from "./helpers/mod.ts";
import { readPlist } from "./launchd/plist.ts";
import { stopOne } from "./helpers/stop.ts";

const VERSIONS = ["2.2.0", "2.2.1", "2.3"] as const;
type Version = typeof VERSIONS[number];

const MARKER = "boot-session.tmp";
const ANOTHER_BOOT = "00000000-0000-4000-8000-000000000000\n";
const hasMarker = (version: Version) => version !== "2.2.0";

interface Scene {
  readonly home: Home;
  readonly vm: Instance;
  readonly version: Version;
}

/** One test for each of the versions. */
function each(versions: readonly Version[], name: string, body: (scene: Scene) => Promise<void>, ignore = false): void {
  for (const version of versions) {
    Deno.test({
      name: `Lima ${version}: ${name}`,
      ignore,
      async fn() {
        await using home = await tempLimaHome();
        await body({ home, vm: home.instance("vm", { conf: { version } }), version });
        assert.equal(home.wouldHaveCreated(), undefined);
      },
    });
  }
}

const bootId = (): string => {
  if (Deno.build.os === "linux") return Deno.readTextFileSync("/proc/sys/kernel/random/boot_id");
  const { stdout } = new Deno.Command("/usr/sbin/sysctl", { args: ["-n", "kern.bootsessionuuid"] }).outputSync();
  return new TextDecoder().decode(stdout);
};
const pidFiles = (vm: Instance) => vm.files().filter((file) => file.endsWith(".pid"));

/** Nothing of it lives, and nothing is left but the marker of this boot, by which no PID file is distrusted. */
async function assertDown(vm: Instance): Promise<void> {
  const living = () => vm.home.processes().filter((line) => line.includes(`${vm.dir}/`));
  // Only an ssh client, which ends when its connection is closed, may take a moment.
  assert.deepEqual(living().filter((line) => !/^\d+ (\S*\/)?ssh /.test(line)), []);
  await eventually(() => assert.deepEqual(living(), []));
  const left = vm.files().filter((file) => /\.(pid|tmp)$/.test(file) || file === "ha.sock");
  if (vm.read(MARKER) === bootId()) left.splice(left.indexOf(MARKER), 1);
  assert.deepEqual(left, []);
}

// ── the stand-in ──

each(VERSIONS, "the marker of the boot is written with the PID files, or not at all", async ({ vm, version }) => {
  await using agent = await startAgent(vm);
  assert.equal(vm.read(MARKER), hasMarker(version) ? bootId() : undefined);
  assert.deepEqual([vm.pid("ha.pid"), vm.pid("vz.pid")], [agent.pid, agent.pid]);
  assert.deepEqual(vm.files().filter((file) => file.endsWith(".pid.tmp")), []);
});

each(
  VERSIONS,
  "a recycled number of an earlier boot stops a start before 2.2.1 only",
  async ({ home, vm, version }) => {
    await using other = await startBystander(home);
    for (const marker of [ANOTHER_BOOT, ""]) {
      for (const file of ["ha.pid", "vz.pid", "x.drv.pid"]) vm.pidFile(file, other.pid);
      vm.write(MARKER, marker);
      const list = await limactl(home, ["list"]);
      assert.match(list.stdout, hasMarker(version) ? /^vm +Stopped/m : /^vm +Broken/m);
      assert.equal(vm.pid("vz.pid"), other.pid, "a look removes nothing");
      await using agent = await startAgent(vm, { until: hasMarker(version) ? "running" : "exit" });
      if (hasMarker(version)) {
        assert.deepEqual([vm.pid("ha.pid"), vm.pid("vz.pid"), vm.has("x.drv.pid")], [agent.pid, agent.pid, false]);
        assert.equal(vm.read(MARKER), bootId());
      } else {
        assert.equal((await agent.status).code, 1);
        assert.match(await agent.stderr, /errors inspecting instance/);
      }
    }
    other.assertAlive();
  },
);

each(
  ["2.2.1", "2.3"],
  "without a marker, or within one boot, a recycled number stops a start",
  async ({ home, vm }) => {
    await using other = await startBystander(home);
    for (const marker of [undefined, bootId()]) {
      vm.pidFile("vz.pid", other.pid);
      if (marker !== undefined) vm.write(MARKER, marker);
      await using agent = await startAgent(vm, { until: "exit" });
      assert.match(await agent.stderr, /vz driver is running but host agent is not/);
    }
  },
);

each(VERSIONS, "after a clean stop of vz vz.pid is left, up to 2.2.1", async ({ vm, version }) => {
  await using agent = await startAgent(vm);
  agent.signal("SIGTERM");
  assert.equal((await agent.status).code, 0);
  assert.equal(vm.guestDisk(), "clean");
  assert.deepEqual(pidFiles(vm), version === "2.3" ? [] : ["vz.pid"]);
});

each(VERSIONS, "a guest that powers itself off: 1 up to 2.2.1, 0 from 2.3 on", async ({ vm, version }) => {
  await using agent = await startAgent(vm);
  vm.write("standin.guest/poweroff", "");
  assert.equal((await agent.status).code, version === "2.3" ? 0 : 1);
  const levels = (vm.read("ha.stderr.log") ?? "").split("\n").filter((line) => line.includes("CanRequestStop"));
  assert.deepEqual(levels.map((line) => JSON.parse(line).level), [version === "2.3" ? "warning" : "fatal"]);
  assert.deepEqual(pidFiles(vm), version === "2.3" ? [] : ["vz.pid"]);
});

each(VERSIONS, "a stop that cannot be requested, and no ssh: the guest is cut off, 1", async ({ vm, version }) => {
  await using agent = await startAgent(vm, { conf: { stop: "cannot-request-stop", vz_stop_limit_ms: 100 } });
  agent.signal("SIGTERM");
  assert.equal((await agent.status).code, 1);
  const words = version === "2.3" ? "vz timeout while waiting for stop status" : "vz: CanRequestStop is not supported";
  assert.equal(vm.log().at(-1), words);
  assert.equal(vm.guestDisk(), "dirty");
  assert.deepEqual(pidFiles(vm), version === "2.3" ? [] : ["vz.pid"]);
});

each(["2.3"], "a stop that cannot be requested is done by ssh", async ({ vm }) => {
  await using guest = await sshGuest(vm);
  await using agent = await startAgent(vm, { conf: { stop: "cannot-request-stop" } });
  agent.signal("SIGTERM");
  assert.equal((await agent.status).code, 0);
  assert.equal(vm.guestDisk(), "clean");
  assert.deepEqual(guest.log().filter((line) => line.startsWith("ssh:")), ["ssh: sudo /sbin/shutdown -h now"]);
}, whyNoSshd() !== undefined);

each(["2.3"], "its ssh has no limit: beside a silent port the 30 s never begin", async ({ vm }) => {
  using silent = silentPort();
  const conf = { stop: "cannot-request-stop", vz_stop_limit_ms: 1, ssh_port: silent.port };
  await using agent = await startAgent(vm, { conf });
  agent.signal("SIGTERM");
  // Well beyond the 1 ms: as long as a second agent takes to start, to stop, and to end.
  await using other = await startAgent(vm.home.instance("other"));
  other.signal("SIGTERM");
  await other.status;
  assert.ok(vm.log().includes("vz: CanRequestStop is not supported"));
  assert.ok(agent.isAlive());
});

each(VERSIONS, "krunkit's PID file goes the same way, QEMU's does not", async ({ home, version }) => {
  for (const vmtype of ["krunkit", "qemu"] as const) {
    const vm = home.instance(vmtype, { conf: { version, vmtype } });
    vm.write(MARKER, ANOTHER_BOOT);
    await using _ = await startAgent(vm);
    assert.equal(vm.read(MARKER), hasMarker(version) ? bootId() : ANOTHER_BOOT);
    assert.ok(isAlive(vm.pid(`${vmtype}.pid`)!));
  }
});

each(
  VERSIONS,
  "its own LaunchAgent: LIMA_HOME and KeepAlive from 2.3 on, as recorded",
  async ({ home, vm, version }) => {
    assert.equal((await limactl(home, ["autostart", "enable", "vm"])).status, 0);
    const written = Deno.readTextFileSync(`${home.user}/Library/LaunchAgents/io.lima-vm.autostart.vm.plist`);
    const name = version === "2.3" ? "lima-2.3-agent-keep-alive-lima-home" : "lima-2.2-agent";
    const recorded = Deno.readTextFileSync(new URL(`testdata/plists/${name}.plist`, import.meta.url))
      .replace(">/Users/zoe/.lima/default<", `>${vm.dir}<`).replace(">/Users/zoe/.lima<", `>${home.lima}<`)
      .replace(">/opt/homebrew/bin/limactl<", `>${home.limactl}<`).replaceAll(/default(?=<)/g, "vm");
    assert.equal(written, recorded);
    assert.ok(readPlist(written));
  },
);

// ── lima-guard ──

each(VERSIONS, "--pre clears what an earlier boot left, the marker with it, and it starts", async ({ home, vm }) => {
  await using other = await startBystander(home);
  for (const marker of [undefined, ANOTHER_BOOT, "", bootId()]) {
    for (const file of ["ha.pid", "vz.pid", "x.drv.pid"]) vm.pidFile(file, other.pid);
    vm.staleSocket("ha.sock");
    if (marker !== undefined) vm.write(MARKER, marker);
    const { status, stdout } = await runGuard(home, ["--pre", "--json", "vm"]);
    assert.equal(status, 0, stdout);
    assert.deepEqual(vm.files().filter((file) => /\.(pid|tmp|sock)$/.test(file)), [], `marker ${marker}`);
    await using agent = await startAgent(vm);
    agent.signal("SIGTERM");
    await agent.status;
    for (const file of vm.files()) if (/\.(pid|tmp)$/.test(file)) vm.remove(file);
  }
  other.assertAlive();
});

each(["2.2.1", "2.3"], "--pre leaves a running instance and its marker alone", async ({ home, vm }) => {
  await using agent = await startAgent(vm);
  const { status, json } = await runGuard(home, ["--pre", "--json", "vm"]);
  assert.deepEqual([status, json().instances[0].state, json().instances[0].steps], [0, "running", []]);
  assert.equal(vm.read(MARKER), bootId());
  assert.ok(agent.isAlive());
});

each(["2.2.1", "2.3"], "--pre removes the marker of an earlier boot that no PID file needs", async ({ home, vm }) => {
  vm.write(MARKER, ANOTHER_BOOT);
  assert.equal((await runGuard(home, ["--pre", "vm"])).status, 0);
  assert.equal(vm.has(MARKER), false);
});

each(
  ["2.2.1", "2.3"],
  "a live agent of 2.2.0 beside the marker of an earlier boot is not started twice",
  async ({ home, vm, version }) => {
    vm.write(MARKER, ANOTHER_BOOT);
    vm.conf({ version: "2.2.0" });
    await using agent = await startAgent(vm);
    vm.conf({ version });
    // What Lima would do: it takes the live agent for stopped.
    assert.match((await limactl(home, ["list"])).stdout, /^vm +Stopped/m);
    const { json, status } = await runGuard(home, ["--pre", "--json", "vm"]);
    assert.equal(json().instances[0].state, "running");
    assert.equal(status, 0);
    assert.equal(vm.pid("ha.pid"), agent.pid);
    assert.ok(JSON.stringify(json().instances[0].notes).includes(MARKER), "it is said");
    assert.ok(agent.isAlive());
  },
);

for (const vmtype of ["vz", "qemu", "krunkit"]) {
  each(VERSIONS, `--stop of ${vmtype}: the guest powers off, nothing is left`, async ({ vm }) => {
    await using agent = await startAgent(vm, { conf: { vmtype } });
    const { status, report } = await stopOne(vm, { budgetS: 20 });
    assert.deepEqual([status, report.state], [0, "stopped"]);
    assert.equal(vm.guestDisk(), "clean");
    await assertDown(vm);
    await agent.status;
  });
}

each(VERSIONS, "--stop: a stop that cannot be requested, and an ssh that hangs, end in time", async ({ vm }) => {
  const silent = silentPort();
  await using agent = await startAgent(vm, { conf: { stop: "cannot-request-stop", ssh_port: silent.port } });
  const { status, tookS } = await stopOne(vm, { budgetS: 8 });
  assert.equal(status, 0);
  assert.ok(tookS < 9, `${tookS} s of 8`);
  // Lima's ssh may outlive it; it ends with the connection.
  silent[Symbol.dispose]();
  await eventually(() => assertDown(vm));
  await agent.status;
});

each(VERSIONS, "--stop of an orphan of QEMU with a marker of this boot", async ({ vm }) => {
  await using orphan = await startOrphan(vm, "qemu");
  assert.equal((await stopOne(vm, { budgetS: 20 })).status, 0);
  assert.equal(orphan.isAlive(), false);
  await assertDown(vm);
});

each(VERSIONS, "--run: a requested stop is 0, and nothing is left", async ({ vm, version }) => {
  vm.pidFile("vz.pid", IMPOSSIBLE_PID);
  await using guard = await running(vm);
  if (hasMarker(version)) assert.equal(vm.read(MARKER), bootId());
  const { status, stderr } = await stopRun(guard);
  assert.equal(status, 0, stderr);
  assert.equal(vm.guestDisk(), "clean");
  await assertDown(vm);
});

each(VERSIONS, "--run: the guest powers itself off, 1 up to 2.2.1 and 0 from 2.3 on", async ({ vm, version }) => {
  await using guard = await running(vm);
  vm.write("standin.guest/poweroff", "");
  const { status, stderr } = await guard.result();
  assert.equal(status, version === "2.3" ? 0 : 1, stderr);
  assert.equal(last(vm, "end").requested, false);
  await assertDown(vm);
});

each(VERSIONS, "--run: a boot after a power cut, the numbers another program's", async ({ home, vm }) => {
  await using other = await startBystander(home);
  for (const file of ["ha.pid", "vz.pid"]) vm.pidFile(file, other.pid);
  vm.write(MARKER, ANOTHER_BOOT);
  vm.staleSocket("ha.sock");
  await using guard = run(vm, { flags: ["-v"] });
  await guard.waitForLine(/: Running after /);
  assert.equal(last(vm, "pre").state, "stale");
  assert.equal((await stopRun(guard)).status, 0);
  other.assertAlive();
  await assertDown(vm);
});
