/** The stand-in for Colima behaves as Colima's source says. */

import assert from "node:assert/strict";
import {
  type Colima,
  colima,
  daemonPidFile,
  deadPid,
  eventually,
  type Home,
  type Instance,
  isAlive,
  ps,
  spawnColima,
  startBystander,
  tempColimaHome,
  tempLimaHome,
  waitForExit,
  writeDaemonPid,
} from "./helpers/mod.ts";

/** Waits until the instance is running, and `colima` waits for its signal. */
async function up(instance: Instance): Promise<number> {
  await eventually(() => assert.ok(instance.events().some((event) => event.running === true)));
  return instance.pid("ha.pid")!;
}

async function started(home: Home, instance: Instance): Promise<Colima & { readonly agent: number }> {
  const run = spawnColima(home, ["start", "-f"]);
  const agent = await up(instance);
  // `limactl start` has ended: Colima has no child any more.
  await eventually(() => assert.equal(childrenOf(run.pid).length, 0));
  await eventually(() => assert.ok(catchesTerm(run.pid), "it does not wait for a signal yet"));
  return { ...run, agent };
}

/** Whether a process has a handler for SIGTERM, as far as this system shows it. */
function catchesTerm(pid: number): boolean {
  if (Deno.build.os !== "linux") return true;
  const mask = /^SigCgt:\s*([0-9a-f]+)$/m.exec(Deno.readTextFileSync(`/proc/${pid}/status`))?.[1] ?? "0";
  return (BigInt(`0x${mask}`) & (1n << 14n)) !== 0n;
}

function childrenOf(pid: number): string[] {
  const { stdout } = new Deno.Command("ps", { args: ["-A", "-o", "ppid=,pid="] }).outputSync();
  const rows = new TextDecoder().decode(stdout).trim().split("\n").map((line) => line.trim().split(/\s+/));
  return rows.filter(([parent]) => Number(parent) === pid).map(([, child]) => child!);
}

Deno.test("colima start -f: the host agent is no child, and not in the group; a signal is a stop with status 0", async () => {
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    await using home = await tempColimaHome();
    const vm = home.instance("colima");
    await using run = await started(home, vm);
    const [seen, agent] = [ps(run.pid)!, ps(run.agent)!];
    assert.equal(seen.command, `${home.bin}/colima start -f`);
    assert.equal(
      agent.command,
      `${home.bin}/limactl hostagent --pidfile ${vm.dir}/ha.pid --socket ${vm.dir}/ha.sock colima`,
    );
    assert.notEqual(agent.ppid, run.pid);
    assert.equal(seen.pgid, run.pid);
    assert.equal(agent.pgid, run.agent);
    run.signal(signal);
    const { code, stderr } = await run.ended;
    assert.equal(code, 0, stderr);
    assert.equal(vm.guestDisk(), "clean");
    assert.equal(isAlive(run.agent), false);
  }
});

Deno.test("colima start -f does not notice that the VM has ended", async () => {
  await using home = await tempColimaHome();
  await using run = await started(home, home.instance("colima"));
  Deno.kill(run.agent, "SIGKILL");
  await waitForExit(run.agent);
  assert.equal((await colima(home, ["stop"])).code, 0);
  assert.ok(run.isAlive());
  run.signal("SIGTERM");
  const { code, stderr } = await run.ended;
  assert.equal(code, 0);
  assert.match(stderr, /not running/);
});

Deno.test("colima start of a running instance: 0 at once, also with -f", async () => {
  await using home = await tempColimaHome();
  const vm = home.instance("colima");
  await using _ = await started(home, vm);
  const { code, stderr } = await colima(home, ["start", "--foreground"]);
  assert.equal(code, 0);
  assert.match(stderr, /already running, ignoring/);
  assert.equal(vm.starts().length, 1);
});

Deno.test("colima start without -f ends, and the VM runs", async () => {
  await using home = await tempColimaHome();
  const vm = home.instance("colima");
  assert.equal((await colima(home, ["start"])).code, 0);
  assert.ok(isAlive(await up(vm)));
  assert.equal((await colima(home, ["stop"])).code, 0);
  assert.equal(vm.guestDisk(), "clean");
});

Deno.test("a failed start is 1: limactl believes the recycled number in vz.pid", async () => {
  await using home = await tempColimaHome();
  const vm = home.instance("colima");
  await using other = await startBystander(home);
  vm.pidFile("vz.pid", other.pid);
  const { code, stderr } = await colima(home, ["start", "-f"]);
  assert.equal(code, 1);
  assert.match(stderr, /vz driver is running but host agent is not/);
  // Nor does a stop help: Broken is not Running.
  const stop = await colima(home, ["stop"]);
  assert.equal(stop.code, 0);
  assert.match(stop.stderr, /not running/);
  assert.equal(vm.pid("vz.pid"), other.pid);
  other.assertAlive();
});

Deno.test("a signal while it starts ends colima at once; the VM comes up all the same", async () => {
  await using home = await tempColimaHome();
  const vm = home.instance("colima", { conf: { boot_ms: 500 } });
  await using run = spawnColima(home, ["start", "-f"]);
  await eventually(() => assert.ok(vm.pid("ha.pid")));
  run.signal("SIGTERM");
  assert.deepEqual((await run.ended).signal, "SIGTERM");
  assert.ok(isAlive(await up(vm)));
});

Deno.test("a stop at which limactl fails is 1", async () => {
  await using home = await tempColimaHome();
  await using run = await started(home, home.instance("colima"));
  Deno.removeSync(home.limactl);
  const text = `#!/bin/sh\ncase $1 in list) echo '{"name":"colima","status":"Running"}' ;; *) exit 1 ;; esac\n`;
  Deno.writeTextFileSync(home.limactl, text, { mode: 0o755 });
  run.signal("SIGTERM");
  assert.equal((await run.ended).code, 1);
});

Deno.test("profiles: the instance and the folder of each, and what beats what", async () => {
  await using home = await tempColimaHome();
  const instances = { default: home.instance("colima"), work: home.instance("colima-work") };
  for (
    const [args, env, short] of [
      [["start", "work"], {}, "work"],
      [["start", "colima-work"], {}, "work"],
      [["start", "default", "--cpus", "2", "-p", "work"], {}, "work"],
      [["start", "default"], { COLIMA_PROFILE: "work" }, "default"],
      [["start", "--memory", "4"], { COLIMA_PROFILE: "work" }, "work"],
      [["start", "--activate=true"], {}, "default"],
    ] as const
  ) {
    const { code, stderr } = await colima(home, args, env);
    assert.equal(code, 0, stderr);
    assert.ok(isAlive(await up(instances[short])), args.join(" "));
    assert.equal((await colima(home, ["stop", short])).code, 0);
  }
  assert.equal((await colima(home, ["start", "a", "b"])).code, 1);
});

Deno.test("Colima's home: COLIMA_HOME if it exists, ~/.colima, XDG_CONFIG_HOME, ~/.config/colima; LIMA_HOME beats its _lima", async () => {
  await using home = await tempLimaHome();
  const { user, root } = home;
  const wouldStart = async (env: Record<string, string>) => {
    await colima(home, ["start"], env);
    const marks = [
      `${root}/own/_lima`,
      `${user}/.colima/_lima`,
      `${root}/xdg/colima/_lima`,
      `${user}/.config/colima/_lima`,
      home.lima,
    ];
    return marks.filter((path) => {
      try {
        Deno.removeSync(`${path}.would-have-created`);
        return true;
      } catch {
        return false;
      }
    });
  };
  for (const dir of [`${user}/.config/colima`, `${root}/xdg/colima`]) Deno.mkdirSync(dir, { recursive: true });
  const own = { COLIMA_HOME: `${root}/own` };
  const xdg = { XDG_CONFIG_HOME: `${root}/xdg` };
  assert.deepEqual(
    await wouldStart(own),
    [`${user}/.config/colima/_lima`],
    "a COLIMA_HOME that is not there is passed over",
  );
  assert.deepEqual(await wouldStart({ ...own, ...xdg }), [`${root}/xdg/colima/_lima`]);
  Deno.mkdirSync(`${user}/.colima`);
  assert.deepEqual(await wouldStart(xdg), [`${user}/.colima/_lima`]);
  Deno.mkdirSync(`${root}/own`);
  assert.deepEqual(await wouldStart({ ...own, ...xdg }), [`${root}/own/_lima`]);
  assert.deepEqual(await wouldStart({ ...own, LIMA_HOME: home.lima }), [home.lima]);
});

Deno.test("Colima's own daemon: started before the VM, stopped with it", async () => {
  await using home = await tempColimaHome();
  const vm = home.instance("colima", { conf: { colima_daemon: 1 } });
  assert.equal((await colima(home, ["start"])).code, 0);
  await up(vm);
  const pid = Number(Deno.readTextFileSync(daemonPidFile(home)));
  assert.equal(ps(pid)?.command, `${home.bin}/colima daemon start default --vmnet`);
  assert.equal((await colima(home, ["stop"])).code, 0);
  assert.equal(isAlive(pid), false);
  assert.throws(() => Deno.statSync(daemonPidFile(home)), Deno.errors.NotFound);
});

Deno.test("a recycled number in daemon.pid gets SIGTERM at every stop, and before the daemon starts", async () => {
  for (const when of ["stop", "start"]) {
    await using home = await tempColimaHome();
    const vm = home.instance("colima", { conf: when === "start" ? { colima_daemon: 1 } : {} });
    await using other = await startBystander(home);
    home.mayBeSignalled(other.pid);
    if (when === "start") writeDaemonPid(home, other.pid);
    const start = spawnColima(home, ["start"]);
    if (when === "stop") {
      assert.equal((await start.ended).code, 0);
      writeDaemonPid(home, other.pid);
    }
    await using stop = when === "stop" ? spawnColima(home, ["stop"]) : start;
    await eventually(() => assert.deepEqual(other.signals(), ["SIGTERM"]));
    // It waits for the end of that number.
    assert.ok(stop.isAlive());
    await other.end();
    assert.equal((await stop.ended).code, 0);
    assert.equal(vm.guestDisk(), when === "stop" ? "clean" : "dirty");
  }
});

Deno.test("a dead number in daemon.pid is nothing; a process that the test has not released is spared", async () => {
  await using home = await tempColimaHome();
  home.instance("colima");
  await using other = await startBystander(home);
  for (const pid of [await deadPid(), other.pid]) {
    assert.equal((await colima(home, ["start"])).code, 0);
    writeDaemonPid(home, pid);
    const { code, stderr } = await colima(home, ["stop"]);
    assert.equal(code, 0, stderr);
    assert.equal(/would have sent SIGTERM to/.test(stderr), pid === other.pid, stderr);
  }
  other.assertAlive();
});
