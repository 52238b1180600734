/**
 * The whole of it: a stand-in launchd that really runs its job, the real guard, and the stand-in for limactl. Install and
 * uninstall restart an instance that runs, and at no moment is its guest cut off.
 */

import assert from "node:assert/strict";
import { installMain } from "../install.ts";
import { eventually, project, tempLimaHome } from "./helpers/mod.ts";
import { FakeMac } from "./helpers/launchd.ts";

const LABEL = "io.lima-vm.autostart.default";

/** The guard as it is run from source, in a program of its own as the compiled one is. */
function putRealGuard(mac: FakeMac): void {
  const where = import.meta.resolve("jsr:@std/cli@1.0.29/parse-args");
  const flags = where.startsWith("file:") ? `--no-lock --import-map ${project}/tools/npm_only/import_map.json` : "";
  const script =
    `#!/usr/bin/env bash\nexec ${Deno.execPath()} run -A --no-check ${flags} ${project}/lima_guard.ts "$@"\n`;
  Deno.writeTextFileSync(`${mac.root}/src/lima-guard`, script);
  Deno.chmodSync(`${mac.root}/src/lima-guard`, 0o755);
}

Deno.test("a running instance goes under the guard and back, and its guest is never cut off", async () => {
  await using home = await tempLimaHome();
  const instance = home.instance("default", { conf: { vmtype: "vz", guest_off_ms: 50 } });
  const pace = {
    commandMs: 10_000,
    stopMs: 60_000,
    goneMs: 20_000,
    bootstrapMs: 10_000,
    runningMs: 10_000,
    pollMs: 20,
  };
  await using mac = FakeMac.make({ pace });
  const { PATH: _, HOME: __, ...env } = home.env;
  // The packages are where the tests have them, not in the pretended home.
  mac.more = { ...env, DENO_DIR: Deno.env.get("DENO_DIR") ?? `${Deno.env.get("HOME")}/.cache/deno`, NO_COLOR: "1" };
  mac.conf("start=really");
  putRealGuard(mac);
  const source = Deno.readTextFileSync(new URL("testdata/plists/lima-2.2-agent.plist", import.meta.url));
  const text = source.replace("/Users/zoe/.lima", home.lima).replace("/opt/homebrew/bin/limactl", home.limactl);
  const file = mac.agent("default", text);
  await mac.load("gui/501", file);
  const running = () =>
    eventually(() =>
      assert.ok(instance.events().some((e) => e["running"] === true), JSON.stringify(instance.events()))
    );
  await running();
  const before = mac.job("gui/501", LABEL)!;
  assert.equal(instance.pid("ha.pid"), before.pid);

  // How the guest's disk was left, each time that launchd was told to end the job.
  const disks: (string | undefined)[] = [];
  const act = async (...args: string[]) => {
    const out = { stdout: "", stderr: "" };
    const host = await mac.host(out);
    const status = await installMain([...args, "--yes", "default"], {
      ...host,
      run: (argv, options) => {
        if (argv.includes("bootout")) disks.push(instance.guestDisk());
        return host.run(argv, options);
      },
    });
    assert.equal(status, 0, out.stdout + out.stderr);
  };

  await act("--guard-dir", `${mac.home}/libexec`);
  const guarded = mac.job("gui/501", LABEL)!;
  assert.deepEqual(guarded.args.slice(1, 5), ["--run", "default", "--", home.limactl]);
  await running();
  await eventually(() => assert.ok(instance.pid("ha.pid") !== undefined && instance.pid("ha.pid") !== guarded.pid));
  assert.equal(instance.starts().length, 2);

  await act("--uninstall");
  await running();
  await eventually(() => assert.equal(instance.pid("ha.pid"), mac.job("gui/501", LABEL)!.pid));
  assert.equal(instance.starts().length, 3);
  assert.deepEqual(disks, ["clean", "clean"]);
  assert.equal(Deno.readTextFileSync(file), text);
});
