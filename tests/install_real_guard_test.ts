/**
 * The whole of it with the real lima-guard, from source: a small launchd that runs its job as the job's user, and the
 * stand-in for limactl. The guest is never cut off, and every byte of the plist comes back.
 */

import assert from "node:assert/strict";
import { eventually, tempLimaHome } from "./helpers/mod.ts";
import { DAEMON, FakeMac, fixture, macTest, ROOT, ZOE } from "./install_mac.ts";
import { realGuard } from "./install_real_guard.ts";
import { smallLaunchd } from "./launchd/launchd.ts";

macTest("a running instance goes under the real lima-guard and back, and its guest is never cut off", async () => {
  await using home = await tempLimaHome();
  const instance = home.instance("default", { conf: { vmtype: "vz", guest_off_ms: 50 } });
  await using launchd = smallLaunchd(home, { user: ZOE });
  await using mac = FakeMac.make({ quick: false });
  Deno.chmodSync(home.root, 0o755);
  home.giveTo(ZOE);
  mac.settings.launchctl = `${launchd.bin}/launchctl`;
  mac.settings.devices = [{ prefix: home.root, dev: Deno.lstatSync("/").dev }];
  mac.settings.limits = { commandMs: 30_000, handshakeMs: 60_000, stopMs: 90_000, goneMs: 30_000, runningMs: 30_000 };
  mac.write(mac.source, realGuard(mac, { mark: home.mark }), ROOT, 0o755);
  const env =
    `<key>EnvironmentVariables</key><dict><key>HOME</key><string>${home.user}</string><key>LIMA_HOME</key><string>${home.lima}</string></dict>`;
  const text = fixture(mac, "lima-2.2-daemon").replace(`${mac.home}/.lima`, home.lima)
    .replace(`${mac.root}/opt/homebrew/bin/limactl`, home.limactl).replace("<key>RunAtLoad", `${env}<key>RunAtLoad`);
  const file = mac.daemon("default", text);
  assert.equal(launchd.bootstrap("system", file), 0);
  const job = () => launchd.job(DAEMON);
  const isRunning = (starts: number) =>
    eventually(() => {
      assert.equal(instance.starts().length, starts, job().said());
      assert.ok(instance.events().some((e) => e["running"] === true), job().said());
    }, { withinMs: 60_000 });
  await isRunning(1);

  const disks: (string | undefined)[] = [];
  const act = async (...args: string[]) => {
    const run = await mac.run([...args, "default"]);
    assert.equal(run.status, 0, run.stdout + run.stderr);
    return run;
  };
  // Before a job is booted out its guest has left its disk clean.
  launchd.onBootout = () => disks.push(instance.guestDisk());
  await act("--yes");
  await isRunning(2);
  assert.notEqual(instance.pid("ha.pid"), job().pid, "lima-guard runs it");
  const checked = await eventually(async () => {
    const run = await act("--check", "--json");
    assert.equal(run.json().guard.running, run.json().guard.version);
    return run;
  }, { withinMs: 60_000 });
  assert.deepEqual([checked.json().state, checked.json().blockers], ["guarded", []]);

  await act("--uninstall", "--yes");
  await isRunning(3);
  await eventually(() => assert.equal(instance.pid("ha.pid"), job().pid));
  assert.deepEqual(disks, ["clean", "clean"]);
  assert.equal(Deno.readTextFileSync(file), text);
});
