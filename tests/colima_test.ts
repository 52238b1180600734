/** Colima's jobs under lima-guard: the plists of Homebrew and home-manager, from boot to shutdown. */

import assert from "node:assert/strict";
import { FakeMac, fixture, macTest, PLISTS, ZOE } from "./install_mac.ts";
import { type Launchd, smallLaunchd } from "./launchd/launchd.ts";
import { type Keys, readPlist, writePlist } from "./launchd/plist.ts";
import { denoDir } from "./launchd/jobs.ts";
import { assertDown, events, last } from "./launchd/run.ts";
import {
  type Bystander,
  colima,
  type Conf,
  daemonPidFile,
  denoFlags,
  eventually,
  type Home,
  type Instance,
  isAlive,
  project,
  runGuard,
  startBystander,
  tempColimaHome,
  waitForExit,
  writeDaemonPid,
} from "./helpers/mod.ts";

// ── install ──

const LABEL = "homebrew.mxcl.colima";
/** Where the agents of the user who runs the tests are. */
const DOMAIN = `gui/${Deno.uid()}`;

/** A Mac on which `brew services start colima` was typed. */
function withHomebrewsJob() {
  const mac = FakeMac.make();
  mac.instance("colima", `${mac.home}/.colima/_lima`);
  mac.folder(`${mac.home}/.colima`, ZOE);
  for (const dir of ["opt", "opt/colima", "opt/colima/bin"]) mac.folder(`${mac.root}/opt/homebrew/${dir}`);
  Deno.copyFileSync(`${mac.root}/opt/homebrew/bin/colima`, `${mac.root}/opt/homebrew/opt/colima/bin/colima`);
  const text = fixture(mac, "homebrew-colima");
  const file = mac.write(`${mac.agents}/${LABEL}.plist`, text, ZOE);
  mac.load("gui/501", file);
  return { mac, text, file };
}

macTest("Homebrew's job: KeepAlive is turned round, shown in the diff, and comes back byte by byte", async () => {
  const { mac, text, file } = withHomebrewsJob();
  await using _ = mac;
  const planned = await mac.run(["--dry-run", "colima"], { as: ZOE });
  assert.equal(planned.status, 0, planned.stdout + planned.stderr);
  assert.match(planned.stdout, /<key>SuccessfulExit<\/key>\n-\t\t<true\/>\n\+\t\t<false\/>/);
  assert.equal(Deno.readTextFileSync(file), text, "the dry run has written");

  const done = await mac.run(["--yes", "colima"], { as: ZOE });
  assert.equal(done.status, 0, done.stdout + done.stderr);
  assert.match(done.stdout, /brew services start\|restart/);
  const guard = `${mac.home}/.local/libexec/lima-guard`;
  const wanted = Deno.readTextFileSync(new URL("homebrew-colima.guarded", PLISTS))
    .replaceAll("/Users/zoe", mac.home).replaceAll("/opt/homebrew", `${mac.root}/opt/homebrew`)
    .replaceAll("/usr/local/libexec/lima-guard", guard);
  const written = readPlist(Deno.readTextFileSync(file)) as Record<string, unknown>;
  const { EnvironmentVariables: environment, ...rest } = written;
  const { EnvironmentVariables: before, ...wantedRest } = readPlist(wanted) as Record<string, unknown>;
  assert.deepEqual(rest, wantedRest);
  // A LIMA_HOME in the job moves the instance: only the one that Colima would find by itself.
  const home = `${mac.home}/.colima/_lima`;
  assert.ok([undefined, home].includes((environment as Record<string, string>)["LIMA_HOME"]));
  assert.equal((environment as Record<string, string>)["PATH"], (before as Record<string, string>)["PATH"]);
  assert.equal((await mac.run(["--check", "colima"], { as: ZOE })).status, 0);

  const undone = await mac.run(["--uninstall", "--yes", "colima"], { as: ZOE });
  assert.equal(undone.status, 0, undone.stdout + undone.stderr);
  assert.equal(Deno.readTextFileSync(file), text);
});

macTest(
  "Homebrew's job, written again by `brew services restart`: --check is 1, and an install repairs it",
  async () => {
    const { mac, text, file } = withHomebrewsJob();
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "colima"], { as: ZOE })).status, 0);
    const guarded = Deno.readTextFileSync(file);
    mac.write(file, text, ZOE);
    const checked = await mac.run(["--check", "--json", "colima"], { as: ZOE });
    assert.deepEqual([checked.status, checked.json().state], [1, "not guarded"], checked.stdout);
    assert.equal((await mac.run(["--yes", "colima"], { as: ZOE })).status, 0);
    assert.equal(Deno.readTextFileSync(file), guarded);
  },
);

/** What home-manager's module `services.colima` writes: KeepAlive as Homebrew's, a shell that waits for the store. */
function homeManagers(mac: FakeMac): string {
  const program = `${mac.root}/opt/homebrew/bin/colima`;
  const line = `/bin/wait4path /nix/store && exec ${program} start default -f --activate=true --save-config=false`;
  return writePlist({
    EnvironmentVariables: { COLIMA_HOME: `${mac.home}/.colima`, PATH: "/nix/store/0c0e7c4-docker-28/bin" },
    KeepAlive: { SuccessfulExit: true },
    Label: "org.nix-community.home.colima-default",
    ProgramArguments: ["/bin/sh", "-c", line],
    RunAtLoad: true,
  });
}

macTest("Homebrew's job and Lima's of one instance are refused, with the way out; after it there is one", async () => {
  const { mac, file } = withHomebrewsJob();
  await using _ = mac;
  const lima = fixture(mac, "lima-2.2-agent").replace("autostart.default<", "autostart.colima<")
    .replace("<string>default<", "<string>colima<");
  const second = mac.write(`${mac.agents}/io.lima-vm.autostart.colima.plist`, lima, ZOE);
  const before = mac.tree();
  for (const role of ["--install", "--check", "--uninstall"]) {
    const run = await mac.run([role, "--yes", "--json", "colima"], { as: ZOE });
    assert.deepEqual([run.status, run.json().state], [1, "refused"], run.stdout);
    const [{ because, hint }] = run.json().blockers;
    assert.equal(because, `Cannot choose: colima starts twice: ${file} and ${second}`);
    assert.equal(hint, "limactl autostart disable colima removes the login agent; or --plist FILE decides");
    assert.deepEqual(mac.tree(), before);
  }
  Deno.removeSync(second);
  assert.equal((await mac.run(["--yes", "colima"], { as: ZOE })).status, 0);
});

macTest("home-manager's job is refused, with what to declare in Nix; nothing is touched", async () => {
  const mac = FakeMac.make();
  await using _ = mac;
  mac.instance("colima", `${mac.home}/.colima/_lima`);
  mac.folder(`${mac.home}/.colima`, ZOE);
  const label = "org.nix-community.home.colima-default";
  const text = homeManagers(mac);
  const file = mac.write(`${mac.agents}/${label}.plist`, text, ZOE, 0o444);
  mac.load("gui/501", file);
  const before = mac.tree();
  const run = await mac.run(["--yes", "--json", "--plist", file, "colima"], { as: ZOE });
  assert.equal(run.status, 1, run.stdout + run.stderr);
  const said = JSON.stringify(run.json().blockers);
  assert.match(said, /Nix/);
  assert.match(said, /exec [^ ]*lima-guard --run colima -- /, "the command to declare");
  assert.match(said, /ExitTimeOut = 60, KeepAlive = \{\\"SuccessfulExit\\":false\}/);
  assert.deepEqual(mac.tree(), before);
  const printed = await mac.run(["--print", "--plist", file, "colima"], { as: ZOE });
  assert.equal(printed.status, 0, printed.stdout + printed.stderr);
  const { KeepAlive, ExitTimeOut, ProgramArguments: [, , line] } = readPlist(printed.stdout) as never as {
    KeepAlive: unknown;
    ExitTimeOut: number;
    ProgramArguments: string[];
  };
  assert.deepEqual([KeepAlive, ExitTimeOut], [{ SuccessfulExit: false }, 60]);
  assert.match(
    line!,
    /^\/bin\/wait4path \/nix\/store && exec \S*lima-guard --run colima -- \S+colima start default -f /,
  );
  // It can be looked at all the same.
  const checked = await mac.run(["--check", "--json", "--plist", file, "colima"], { as: ZOE });
  assert.deepEqual([checked.status, checked.json().state], [1, "not guarded"], checked.stdout);
});

// ── the job, under a small launchd ──

interface Scene {
  readonly home: Home;
  readonly launchd: Launchd;
  readonly vm: Instance;
  readonly other: Bystander;
}

function test(
  name: string,
  body: (scene: Scene) => Promise<void>,
  { conf = {}, instance = "colima" }: { conf?: Conf; instance?: string } = {},
): void {
  Deno.test(name, async () => {
    await using home = await tempColimaHome();
    await using other = await startBystander(home);
    // The stand-ins do to it what the real ones would do: nothing may lead them to it.
    home.mayBeSignalled(other.pid);
    await using launchd = smallLaunchd(home, { throttle: 0.05 });
    await body({ home, launchd, vm: home.instance(instance, { conf }), other });
    other.assertAlive();
    assert.equal(home.wouldHaveCreated(), undefined);
  });
}

/** Homebrew's plist as an install leaves it, with the paths of this test; loaded. */
function load({ home, launchd }: Scene, { label = LABEL, instance = "colima", args = ["start", "-f"], env = {} } = {}) {
  const guard = `${home.root}/lima-guard`;
  const words = [Deno.execPath(), "run", "-A", ...denoFlags(), `${project}/lima_guard.ts`].map((word) => `'${word}'`);
  const script = `#!/bin/sh\nDENO_DIR='${denoDir()}' exec ${words.join(" ")} "$@"\n`;
  // Another job of the same test may be running it: a file that runs cannot be written.
  Deno.writeTextFileSync(`${guard}.new`, script, { mode: 0o755 });
  Deno.renameSync(`${guard}.new`, guard);
  const recorded = readPlist(Deno.readTextFileSync(new URL("homebrew-colima.guarded", PLISTS))) as unknown as Keys;
  const log = `${home.root}/${label}.log`;
  const keys: Keys = {
    ...recorded,
    Label: label,
    ProgramArguments: [guard, "--run", instance, "--", `${home.bin}/colima`, ...args],
    // launchd gives an agent HOME; LIMA_HOME is not there.
    EnvironmentVariables: {
      HOME: home.user,
      PATH: `${launchd.bin}:${home.bin}:/usr/bin:/bin:/usr/sbin:/sbin`,
      DENO_NO_UPDATE_CHECK: "1",
      NO_COLOR: "1",
      ...env,
    },
    StandardOutPath: log,
    StandardErrorPath: log,
    WorkingDirectory: home.user,
  };
  const plist = `${home.user}/Library/LaunchAgents/${label}.plist`;
  Deno.mkdirSync(`${home.user}/Library/LaunchAgents`, { recursive: true });
  Deno.writeTextFileSync(plist, writePlist(keys as never));
  assert.equal(launchd.bootstrap(DOMAIN, plist), 0);
  return label;
}

/** Waits until the instance has been Running so many times, and lima-guard has begun to watch its host agent. */
async function running({ launchd }: Scene, vm: Instance, label = LABEL, times = 1): Promise<number> {
  await eventually(() => {
    const count = events(vm).filter((event) => event === "running").length;
    assert.ok(count >= times, `${events(vm).join(" ")}\n${launchd.job(label).said()}`);
  }, { withinMs: 30_000 });
  return vm.pid("ha.pid")!;
}

/** It has ended by itself or by request, with 0, and launchd starts nothing again. */
async function staysDown({ launchd, home }: Scene, vm: Instance, label = LABEL, lives = 1): Promise<void> {
  const life = await launchd.ended(label);
  assert.deepEqual([life.ended!.code, life.ended!.signal, life.killed], [0, null, false], launchd.job(label).said());
  assert.deepEqual(launchd.job(label).lives.length, lives);
  await assertDown(vm);
  assert.deepEqual(home.processes().filter((line) => line.includes("/bin/colima start")), []);
}

test("a boot with the files of a run before: they are cleared, and the process they name gets no signal", async (scene) => {
  const { launchd, vm, other } = scene;
  for (const file of ["ha.pid", "vz.pid"]) vm.pidFile(file, other.pid);
  vm.staleSocket("ha.sock");
  load(scene);
  await running(scene, vm);
  assert.deepEqual(events(vm).slice(0, 2), ["pre", "start"]);
  assert.equal(vm.starts().length, 1);
  await launchd.shutdown();
  await staysDown(scene, vm);
  assert.equal(vm.guestDisk(), "clean");
  other.assertAlive();
});

test(
  "a boot with a recycled number in Colima's daemon.pid: its process gets no signal, and Colima starts",
  async (scene) => {
    const { home, launchd, vm, other } = scene;
    writeDaemonPid(home, other.pid);
    load(scene);
    await running(scene, vm);
    const daemon = Number(Deno.readTextFileSync(daemonPidFile(home)));
    assert.ok(daemon !== other.pid && isAlive(daemon), "Colima's own daemon runs");
    // Nor is it signalled by a stop.
    writeDaemonPid(home, other.pid);
    await launchd.shutdown();
    await staysDown(scene, vm);
    other.assertAlive();
  },
  { conf: { colima_daemon: 1 } },
);

test("the host agent is killed: colima start -f does not notice, lima-guard leaves with 1, launchd starts it again", async (scene) => {
  const { launchd, vm } = scene;
  const label = load(scene);
  const pid = await running(scene, vm);
  const first = launchd.job(label).lives[0]!;
  Deno.kill(pid, "SIGKILL");
  await running(scene, vm, label, 2);
  assert.equal(first.ended?.code, 1, launchd.job(label).said());
  assert.equal(last(vm, "running").dir, vm.dir);
  await launchd.shutdown();
  await staysDown(scene, vm, label, 2);
});

test("colima stop is typed: the job ends with 0 and stays down", async (scene) => {
  const { home, vm } = scene;
  load(scene);
  await running(scene, vm);
  const { code, stderr } = await colima(home, ["stop"]);
  assert.equal(code, 0, stderr);
  await staysDown(scene, vm);
  assert.equal(vm.guestDisk(), "clean");
});

test("lima-guard --stop colima is typed: the job ends with 0 and stays down", async (scene) => {
  const { home, vm } = scene;
  const label = load(scene);
  await running(scene, vm);
  const env = { LIMA_HOME: "", PATH: `${scene.launchd.bin}:${home.env["PATH"]}` };
  const { status, stdout, stderr } = await runGuard(home, ["--stop", "colima"], { env });
  assert.equal(status, 0, stdout + stderr);
  assert.match(stdout, new RegExp(`launchctl kickstart ${DOMAIN}/${label}`));
  await staysDown(scene, vm);
  assert.equal(vm.guestDisk(), "clean");
});

test("a reboot: stopped in time, and nothing is to be cleared at the next boot", async (scene) => {
  const { launchd, vm } = scene;
  const label = load(scene);
  await running(scene, vm);
  await launchd.shutdown();
  await staysDown(scene, vm);
  assert.equal(vm.guestDisk(), "clean");
  launchd.boot();
  await running(scene, vm, label, 2);
  assert.equal(events(vm).includes("pre"), false, "there was something to clear");
});

test("a power cut, and the numbers are another program's at the next boot", async (scene) => {
  const { launchd, vm, other } = scene;
  const label = load(scene);
  await running(scene, vm);
  await launchd.powerCut();
  for (const file of ["ha.pid", "vz.pid"]) vm.pidFile(file, other.pid);
  launchd.boot();
  await running(scene, vm, label, 2);
  assert.equal(last(vm, "pre").state, "stale");
  await launchd.shutdown();
  await staysDown(scene, vm, label, 2);
});

test("lima-guard is killed: the VM lives on, and the next one adopts its host agent", async (scene) => {
  const { launchd, vm } = scene;
  const label = load(scene);
  const pid = await running(scene, vm);
  assert.equal(launchd.control(["kill", "KILL", `${DOMAIN}/${label}`]).code, 0);
  await launchd.started(label, 2);
  // colima start -f is in the group that launchd ends, and stops the VM; or it had no time to.
  await eventually(() => {
    const adopted = events(vm).filter((event) => event === "start").length === 2;
    assert.ok(adopted, launchd.job(label).said());
  }, { withinMs: 30_000 });
  for (const start of vm.starts().slice(0, -1)) await waitForExit(start.pid);
  assert.equal(vm.log().join("\n").includes("another hostagent"), false);
  await launchd.shutdown();
  await assertDown(vm);
  assert.equal(isAlive(pid), false);
});

test("the VM runs before the job starts: its host agent is supervised, colima start -f is not run", async (scene) => {
  const { home, launchd, vm } = scene;
  assert.equal((await colima(home, ["start"])).code, 0);
  const label = load(scene);
  await eventually(() => assert.match(launchd.job(label).said(), / is adopted/), { withinMs: 40_000 });
  await eventually(() => assert.equal(last(vm, "start").adopted, true));
  assert.equal(vm.starts().length, 1);
  assert.equal((await colima(home, ["stop"])).code, 0);
  await staysDown(scene, vm);
});

test("two profiles, a job each: colima and colima-work", async (scene) => {
  const { home, launchd, vm } = scene;
  const work = home.instance("colima-work");
  const label = load(scene);
  const second = load(scene, {
    label: "org.example.colima.work",
    instance: "colima-work",
    args: ["start", "work", "--foreground"],
  });
  await running(scene, vm);
  await running(scene, work, second);
  assert.equal((await colima(home, ["stop", "work"])).code, 0);
  await staysDown({ ...scene, home: { ...home, processes: () => [] } as Home }, work, second);
  assert.equal(launchd.job(label).lives.at(-1)!.ended, undefined, "the other profile is not touched");
  assert.ok(isAlive(vm.pid("ha.pid")!));
  await launchd.shutdown();
  await staysDown(scene, vm);
});
