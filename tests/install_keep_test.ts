/**
 * What no install, uninstall or purge takes away: the job of an instance that is there, what another program has written
 * meanwhile, a lima-guard that no install has placed, the only copy of a file, and the state that launchd had before.
 */

import assert from "node:assert/strict";
import { BACKUP_SUFFIX } from "../install.ts";
import {
  ADA,
  AGENT,
  DAEMON,
  EVE,
  type FakeMac,
  fixture,
  guarded,
  limactl,
  listed,
  type MacRun,
  type MacSettings,
  macTest,
  macWith,
  ROOT,
  ZOE,
} from "./install_mac.ts";

// ── the instance of a job ──

/** The same plist with these variables; its WorkingDirectory says nothing. */
function withVariables(text: string, variables: Record<string, string>): string {
  const entries = Object.entries(variables).map(([key, value]) => `<key>${key}</key><string>${value}</string>`);
  const environment = `<key>EnvironmentVariables</key>\n\t<dict>${entries.join("")}</dict>\n\t`;
  return text.replace(/\s*<key>WorkingDirectory<\/key>\s*<string>[^<]*<\/string>/, "")
    .replace("<key>RunAtLoad", `${entries.length > 0 ? environment : ""}<key>RunAtLoad`);
}

/** A wrapped plist with more options of lima-guard's own. */
function withWords(file: string, words: readonly string[]): void {
  const strings = words.map((word) => `\n\t\t<string>${word}</string>`).join("");
  const text = Deno.readTextFileSync(file);
  Deno.writeTextFileSync(file, text.replace(/(<string>default<\/string>)(\s*<string>--<\/string>)/, `$1${strings}$2`));
  assert.ok(Deno.readTextFileSync(file).includes(strings));
}

// How a wrapped job says where its instance is: the words, the variables, and the home below zoe's.
const HOMES: [words: string[], variables: Record<string, string>, home: string][] = [
  [["--lima-home", "HOME/data/lima"], {}, "data/lima"],
  [["--lima-home=HOME/data/lima"], {}, "data/lima"],
  [["--lima-home", "~/data/lima"], {}, "data/lima"],
  [["--lima-home=~/data/lima"], {}, "data/lima"],
  [["--lima-home", "~/lima"], { HOME: "HOME/data" }, "data/lima"],
  [["--lima-home", "HOME/data/lima"], { LIMA_HOME: "HOME/.lima" }, "data/lima"],
  [[], { HOME: "HOME/data" }, "data/.lima"],
];
for (const [words, variables, limaHome] of HOMES) {
  const shown = [...words, ...Object.entries(variables).map((entry) => entry.join("="))].join(" ");
  macTest(
    `a job with ${shown} has its instance there, not in ~/.lima: it is checked, installed and unwrapped`,
    async () => {
      const { mac, file, text: whole, job } = macWith("daemon");
      await using _ = mac;
      const inHome = (value: string) => value.replace("HOME", mac.home);
      const own = Object.fromEntries(Object.entries(variables).map(([key, value]) => [key, inHome(value)]));
      const text = withVariables(whole, own);
      mac.write(file, text);
      mac.folder(`${mac.home}/data`, ZOE);
      mac.instance("default", `${mac.home}/${limaHome}`);
      assert.equal((await mac.run(["--yes", "default"])).status, 0);
      Deno.removeSync(`${mac.home}/.lima/default`, { recursive: true });
      withWords(file, words.map(inHome));
      const installed = await mac.run(["--yes", "--json", "default"]);
      assert.deepEqual([installed.status, installed.json().state], [0, "guarded"], installed.stdout);
      assert.deepEqual(job()!.args, guarded(mac, mac.guard, ...words.map(inHome)));
      const checked = await mac.run(["--check", "--json", "default"]);
      assert.deepEqual([checked.status, checked.json().state], [0, "guarded"], checked.stdout);
      mac.forget();
      const run = await mac.run(["--uninstall", "--yes", "--json", "default"]);
      assert.deepEqual([run.status, run.json().state], [0, "not guarded"], run.stdout + run.stderr);
      assert.deepEqual([Deno.readTextFileSync(file), job()?.args], [text, limactl(mac)]);
      const stop = mac.log().find((line) => line.includes("--stop"));
      assert.ok(stop?.includes(`--lima-home ${mac.home}/${limaHome} default`), stop);
    },
  );
}

// A Lima home that is not the job's own, with the job's own plist.
const OTHERS: [what: string, plist: string, home: string][] = [
  ["any folder", "lima-2.2-agent", "Library"],
  ["another Lima home", "lima-2.2-agent", "other"],
  ["another one than the plist says", "lima-2.3-agent-keep-alive-lima-home", "other"],
];
for (const [what, plist, home] of OTHERS) {
  macTest(
    `--lima-home with ${what} makes no lost instance of a living one: refused, and nothing is touched`,
    async () => {
      const { mac, as, job } = macWith("agent", {}, plist);
      await using _ = mac;
      mac.instance("k3s", `${mac.home}/other`);
      mac.instance("default", limaHomeIn(mac, plist));
      assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
      const [before, pid] = [mac.tree(), job()!.pid];
      for (const role of ["--check", "--uninstall"]) {
        const run = await mac.run([role, "--yes", "--json", "--lima-home", `${mac.home}/${home}`, "default"], { as });
        assert.deepEqual([run.status, run.json().state], [1, "refused"], run.stdout);
        assert.match(run.json().blockers[0].because, /Cannot tell where the instance is: its job uses /);
        assert.equal(run.json().blockers[0].hint, "leave out --lima-home");
      }
      assert.deepEqual([mac.tree(), job()!.pid], [before, pid]);
    },
  );
}

/** Where the job of this fixture has its instances. */
function limaHomeIn(mac: FakeMac, plist: string): string {
  return /LIMA_HOME<\/key>\s*<string>([^<]*)/.exec(fixture(mac, plist))?.[1] ?? `${mac.home}/.lima`;
}

macTest("--all --lima-home serves the jobs of that home, and says of the others that it does not", async () => {
  const { mac, as, file, text, job } = macWith("agent");
  await using _ = mac;
  mac.own(`${mac.home}/.lima`, ZOE);
  mac.instance("colima", `${mac.home}/.colima/_lima`);
  mac.own(`${mac.home}/.colima`, ZOE);
  const brew = fixture(mac, "homebrew-colima").replace("opt/colima/bin/", "bin/");
  mac.load("gui/501", mac.write(`${mac.agents}/homebrew.mxcl.colima.plist`, brew, ZOE));
  assert.equal((await mac.run(["--yes", "--all"], { as })).status, 0);
  const all = async (role: string, home: string) => {
    const run = await mac.run([role, "--yes", "--json", "--all", "--lima-home", `${mac.home}/${home}`], { as });
    const { instances } = JSON.parse(run.stdout);
    return [run.status, ...instances.map(({ name, state }: Record<string, string>) => `${name} ${state}`)];
  };
  assert.deepEqual(await all("--install", ".lima/"), [0, "colima not tried", "default guarded"]);
  assert.deepEqual(await all("--check", ".lima"), [0, "colima not tried", "default guarded"]);
  assert.deepEqual(await all("--check", ".lmia"), [66, "colima not tried", "default not tried"], "none is not green");
  assert.deepEqual(await all("--uninstall", ".lima"), [0, "colima not tried", "default not guarded"]);
  assert.deepEqual([Deno.readTextFileSync(file), job()?.args], [text, limactl(mac)]);
  assert.ok(mac.job("gui/501", "homebrew.mxcl.colima")!.args.includes("--run"));
});

// What the loaded job was started with, and what has become of its plist; where the running instance is stopped.
const RUNNING: [what: string, loaded: Record<string, string>, now: Record<string, string>, args: string[]][] = [
  ["--lima-home is to be another one", {}, {}, ["--lima-home", "HOME/other"]],
  ["the plist has got a LIMA_HOME since", {}, { LIMA_HOME: "HOME/other" }, []],
  ["the plist has lost its LIMA_HOME since", { LIMA_HOME: "HOME/run" }, {}, []],
  ["the plist has got another LIMA_HOME since", { LIMA_HOME: "HOME/run" }, { LIMA_HOME: "HOME/other" }, []],
];
for (const [what, loaded, now, args] of RUNNING) {
  macTest(`a running job is stopped in the Lima home that it was loaded with: ${what}`, async () => {
    const { mac, file, text, job, domain, label } = macWith("daemon");
    await using _ = mac;
    const inHome = (value: string) => value.replace("HOME", mac.home);
    const withHome = (variables: Record<string, string>) =>
      withVariables(text, Object.fromEntries(Object.entries(variables).map(([key, value]) => [key, inHome(value)])));
    for (const name of ["run", "other"]) mac.instance("default", `${mac.home}/${name}`);
    mac.lose(domain, label);
    mac.load(domain, mac.write(file, withHome(loaded)));
    mac.write(file, withHome(now));
    const run = await mac.run(["--yes", ...args.map(inHome), "default"]);
    assert.equal(run.status, 0, run.stdout + run.stderr);
    const stop = mac.log().find((line) => line.includes("--stop"));
    assert.ok(stop?.includes(`--lima-home ${inHome(loaded["LIMA_HOME"] ?? "HOME/.lima")} default`), stop);
    assert.ok(job()?.args.includes("--run"));
  });
}

macTest(
  "--lima-home with the home that the job has anyway writes nothing into it, also behind a hand-over",
  async () => {
    for (const names of [["default"], ["--all"]]) {
      const { mac, file } = macWith("daemon");
      await using _ = mac;
      for (const home of [`${mac.home}/.lima`, `${mac.home}/./.lima`]) {
        const run = await mac.run(["--yes", "--lima-home", home, ...names], { as: ADA });
        assert.equal(run.status, 0, run.stdout + run.stderr);
        assert.doesNotMatch(Deno.readTextFileSync(file), /LIMA_HOME/);
      }
    }
  },
);

macTest("a Lima home with a slash at its end is the same one", async () => {
  const { mac, file, text } = macWith("daemon", {}, "lima-2.3-daemon-keep-alive-lima-home");
  await using _ = mac;
  const slashed = text.replace(/(LIMA_HOME<\/key>\s*<string>[^<]*)/, "$1/");
  assert.notEqual(slashed, text);
  mac.write(file, slashed);
  const home = limaHomeIn(mac, "lima-2.3-daemon-keep-alive-lima-home");
  for (const given of [home, `${home}/`]) {
    const run = await mac.run(["--dry-run", "--lima-home", given, "default"]);
    assert.equal(run.status, 0, run.stdout);
  }
});

macTest(
  "--lima-home for a job that names another one in its command: the command gets it, and nothing else",
  async () => {
    const { mac, file, job } = macWith("daemon");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    for (const name of ["a", "b"]) mac.instance("default", `${mac.home}/${name}`);
    withWords(file, ["--lima-home", `${mac.home}/a`]);
    const run = await mac.run(["--yes", "--json", "--lima-home", `${mac.home}/b`, "default"]);
    assert.equal(run.status, 0, run.stdout);
    assert.deepEqual(job()!.args, guarded(mac, mac.guard, "--lima-home", `${mac.home}/b`));
    assert.ok(!Deno.readTextFileSync(file).includes("LIMA_HOME"));
  },
);

macTest(
  "a Lima home on a volume that is not mounted is no lost instance, also where its folder is made already",
  async () => {
    // macOS mounts them below this folder.
    const isMade = !listed("/").includes("Volumes");
    Deno.mkdirSync("/Volumes", { recursive: true });
    const volume = Deno.makeTempDirSync({ dir: "/Volumes", prefix: "lima-guard-" });
    try {
      Deno.chmodSync(volume, 0o755);
      for (const byLink of [false, true]) {
        const { mac, file, job } = macWith("daemon");
        await using _ = mac;
        const limaHome = byLink ? `${mac.home}/.lima` : volume;
        if (byLink) Deno.removeSync(limaHome, { recursive: true });
        if (byLink) Deno.symlinkSync(volume, limaHome);
        mac.settings.devices = [{ prefix: volume, dev: 99 }];
        mac.instance("default", volume);
        assert.equal((await mac.run(["--yes", "--lima-home", limaHome, "default"])).status, 0);
        Deno.removeSync(`${volume}/default`, { recursive: true });
        const onVolume = await mac.run(["--check", "--json", "default"]);
        assert.match(onVolume.json().blockers[0].because, /the instance is gone/, "the volume is there");
        mac.settings.devices = [];
        const stub = await mac.run(["--check", "--json", "default"]);
        assert.deepEqual([stub.status, stub.json().state], [75, "unknown"], stub.stdout);
        assert.match(stub.stdout, /on a volume that is not mounted now/);
        const run = await mac.run(["--uninstall", "--yes", "--json", "default"]);
        assert.deepEqual([run.status, run.json().state], [0, "not guarded"], run.stdout);
        assert.deepEqual([mac.exists(file), job()!.args], [true, limactl(mac)]);
      }
    } finally {
      Deno.removeSync(volume, { recursive: true });
      if (isMade && listed("/Volumes").length === 0) Deno.removeSync("/Volumes");
    }
  },
);

// What is in an instance's place while its volume is not mounted; the folder on the volume has been there before.
const UNMOUNTED: [what: string, put: (home: string) => void][] = [
  ["a link of the instance leads to it", (home) => Deno.symlinkSync("/Volumes/lima-guard/default", `${home}/default`)],
  ["a link leads to a folder that is there, without the instance", (home) => {
    Deno.mkdirSync(`${home}/mounted`);
    Deno.symlinkSync(`${home}/mounted`, `${home}/default`);
  }],
  ["a link of lima.yaml leads to it", (home) => {
    Deno.mkdirSync(`${home}/default`);
    Deno.symlinkSync("/Volumes/lima-guard/lima.yaml", `${home}/default/lima.yaml`);
  }],
  ["it is mounted at LIMA_HOME", (home) => Deno.removeSync(`${home}/_config`, { recursive: true })],
];
for (const [what, put] of UNMOUNTED) {
  macTest(`a volume that is not mounted is no lost instance: ${what}`, async () => {
    const { mac, file, job } = macWith("daemon");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    Deno.removeSync(`${mac.home}/.lima/default`, { recursive: true });
    const gone = await mac.run(["--check", "--json", "default"]);
    assert.match(gone.json().blockers[0].because, /the instance is gone/, "without any of this it is");
    put(`${mac.home}/.lima`);
    const checked = await mac.run(["--check", "--json", "default"]);
    assert.deepEqual([checked.status, checked.json().state], [75, "unknown"], checked.stdout);
    assert.match(checked.json().blockers[0].because, /is on a volume that is not mounted now/);
    assert.equal((await mac.run(["--uninstall", "--yes", "default"])).status, 0);
    assert.deepEqual([mac.exists(file), job()?.args], [true, limactl(mac)]);
  });
}

// ── the guest of a job that is unloaded ──

// What of lima-guard is there when a bare job runs, or a guarded one; by which program the instance is stopped, if by any.
const STOPPERS: [what: string, spoil: (mac: FakeMac) => void, by: (mac: FakeMac) => string | undefined][] = [
  ["the installed one", () => {}, (mac) => mac.guard],
  ["this one, where another user could have changed that", (mac) => Deno.chmodSync(mac.guard, 0o777), (m) => m.source],
  ["this one, where that is another user's", (mac) => Deno.chownSync(mac.guard, EVE.uid, EVE.gid), (m) => m.source],
  ["this one, where that is gone", (mac) => Deno.removeSync(mac.guard), (mac) => mac.source],
  ["none, where neither is safe", (mac) => {
    for (const path of [mac.guard, mac.source]) Deno.chmodSync(path, 0o777);
  }, () => undefined],
];
for (const [what, spoil, by] of STOPPERS) {
  for (const isLeft of [false, true]) {
    const job = isLeft ? "a bare job whose plist is gone" : "a bare plist that is loaded guarded";
    macTest(`${job} is stopped by ${what}`, async () => {
      const { mac, file, text, job, domain, label } = macWith("daemon");
      await using _ = mac;
      assert.equal((await mac.run(["--yes", "default"])).status, 0);
      mac.write(file, text);
      if (isLeft) {
        mac.lose(domain, label);
        mac.load(domain, file);
        Deno.removeSync(file);
      }
      spoil(mac);
      mac.forget();
      const pid = job()!.pid;
      const run = await mac.run(["--uninstall", "--yes", "--json", "default"]);
      const stops = mac.log().filter((line) => / --stop /.test(line) && line.startsWith("501: "));
      const asRoot = mac.log().find((line) => / --stop /.test(line) && line.includes("sudo"));
      assert.equal(/(\S+) --stop /.exec(asRoot ?? "")?.[1], by(mac), run.stdout);
      assert.equal(stops.length, by(mac) === undefined ? 0 : 1);
      // A guarded job stops its instance by itself.
      if (by(mac) === undefined && isLeft) {
        assert.deepEqual([run.status, run.json().state, job()?.pid], [1, "refused", pid], run.stdout);
        assert.match(run.json().blockers[0].because, /no lima-guard is there to stop the instance/);
        return;
      }
      assert.deepEqual([run.status, job()?.args], [0, isLeft ? undefined : limactl(mac)], run.stdout);
      assert.ok(!mac.exists(`${mac.state}/cut_off`), "the guest was cut off");
    });
  }
}

macTest("--uninstall --no-reload of a job whose plist is gone stops and unloads nothing", async () => {
  const { mac, file, job } = macWith("daemon");
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  Deno.removeSync(file);
  const pid = job()!.pid;
  mac.forget();
  const run = await mac.run(["--uninstall", "--no-reload", "--yes", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.deepEqual([listed(mac.daemons), job()?.pid], [[], pid]);
  assert.deepEqual(mac.log().filter((line) => /--stop|launchctl (?!print)/.test(line)), []);
});

// A job of an instance that is gone, whose plist is bare: whose label it has, and what is left of it after its hint.
const GONE: [what: string, label: string, before: string[][], hint: RegExp][] = [
  ["Lima's own", DAEMON, [], /^lima-guard --uninstall default$/],
  [
    "one that --no-reload has unwrapped",
    DAEMON,
    [["--install"], ["--uninstall", "--no-reload"]],
    /--uninstall default$/,
  ],
  ["a person's", "com.acme.vm", [], /^launchctl bootout system\/com\.acme\.vm; rm \S+\/com\.acme\.vm\.plist$/],
];
for (const [what, label, before, hint] of GONE) {
  macTest(`the bare job of an instance that is gone goes as it is said, and is not loaded again: ${what}`, async () => {
    const { mac, file, text } = macWith("daemon");
    await using _ = mac;
    if (label !== DAEMON) {
      mac.lose("system", DAEMON);
      Deno.removeSync(file);
      mac.load("system", mac.write(`${mac.daemons}/${label}.plist`, text.replace(DAEMON, label)));
    }
    const dir = `${mac.home}/.lima/default`;
    for (const args of before) {
      if (args.includes("--uninstall")) Deno.removeSync(dir, { recursive: true });
      assert.equal((await mac.run([...args, "--yes", "default"])).status, 0);
    }
    if (mac.exists(dir)) Deno.removeSync(dir, { recursive: true });
    for (const role of ["--check", "--install"]) {
      const run = await mac.run([role, "--yes", "--json", "default"]);
      assert.match(run.json().blockers[0].because, /the instance is gone/);
      assert.match(run.json().blockers[0].hint, hint);
    }
    if (label !== DAEMON) {
      const left = await mac.run(["--uninstall", "--yes", "--json", "default"]);
      assert.deepEqual([left.status, left.json().changed], [0, false], "a person's file is a person's");
    }
    const typed = (await mac.run(["--check", "--json", "default"])).json().blockers[0].hint;
    mac.forget();
    const { code, output } = await mac.type(typed, ROOT);
    assert.equal(code, 0, output);
    assert.deepEqual([listed(mac.daemons), mac.job("system", label)?.dying ?? true], [[], true]);
    assert.ok(!mac.log().some((line) => line.includes("bootstrap")));
  });
}

// What of a guarded job's world is gone when it is uninstalled, and whether its instance would come up again.
const LOST: [what: string, isRunning: boolean, args: string[], spoil: (mac: FakeMac) => void, status: number][] = [
  ["a running instance whose limactl is gone", true, [], (mac) => Deno.removeSync(limactl(mac)[0]!), 1],
  ["an instance that does not run, without limactl", false, [], (mac) => Deno.removeSync(limactl(mac)[0]!), 0],
  ["a program of --on-event that is gone", true, ["--on-event"], (mac) => Deno.removeSync(`${mac.root}/event`), 0],
];
for (const [what, isRunning, args, spoil, status] of LOST) {
  macTest(`--uninstall stops nothing that would not come up again: ${what}`, async () => {
    const { mac, file, text, job } = macWith("daemon");
    await using _ = mac;
    const event = mac.write(`${mac.root}/event`, "#!/bin/sh\n", undefined, 0o755);
    assert.equal((await mac.run(["--yes", ...args.flatMap((arg) => [arg, event]), "default"])).status, 0);
    const pid = job()!.pid;
    if (!isRunning) Deno.removeSync(`${mac.state}/alive/${pid}`);
    spoil(mac);
    const run = await mac.run(["--uninstall", "--yes", "--json", "default"]);
    assert.equal(run.status, status, run.stdout + run.stderr);
    if (status === 0) return assert.deepEqual([Deno.readTextFileSync(file), job()!.args], [text, limactl(mac)]);
    assert.match(run.json().blockers[0].because, /^Cannot load the job again: the program \S+limactl is gone/);
    assert.deepEqual([job()!.pid, job()!.args], [pid, guarded(mac)]);
    assert.equal(run.json().blockers[0].hint, "lima-guard --uninstall --no-reload default");
    assert.equal((await mac.run(["--uninstall", "--no-reload", "--yes", "default"])).status, 0);
  });
}

macTest("of two jobs of one instance the idle one is the one to be booted out", async () => {
  const { mac, file, text, as, job } = macWith("agent");
  await using _ = mac;
  mac.lose("gui/501", AGENT);
  mac.load("user/501", file);
  mac.load("gui/501", mac.write(file, text.replace("<true/>", "<false/>"), as));
  mac.write(file, text, as);
  assert.deepEqual([job()!.pid, mac.job("user/501", AGENT)!.pid !== undefined], [undefined, true]);
  const checked = await mac.run(["--check", "--json", "default"], { as });
  assert.equal(checked.json().blockers[0].hint, `launchctl bootout gui/501/${AGENT}`);
});

// ── what another program writes meanwhile ──

/** The number of the effect that matches in such a run of another Mac. */
async function effectOf(run: (mac: FakeMac) => Promise<unknown>, pattern: RegExp, nth = 1): Promise<number> {
  const { mac } = macWith("daemon");
  await using _ = mac;
  mac.settings.trace = true;
  await run(mac);
  const numbers = mac.effects().flatMap((line, i) => pattern.test(line) ? [i + 1] : []);
  assert.ok(numbers.length >= nth, `${pattern}\n${mac.effects().join("\n")}`);
  return numbers[nth - 1]!;
}

/** The uninstall of a job whose instance is gone. */
async function lostInstance(mac: FakeMac, settings: MacSettings = {}): Promise<MacRun> {
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  Deno.removeSync(`${mac.home}/.lima/default`, { recursive: true });
  mac.forget();
  return await mac.run(["--uninstall", "--yes", "--json", "default"], { settings });
}

// What is written again while the job of a lost instance is removed, and right before which effect.
const WRITTEN: [what: string, suffix: string, effect: RegExp][] = [
  ["plist", "", / run \S+launchctl,bootout,/],
  ["backup", BACKUP_SUFFIX, / rename \S+\.plist$/],
];
for (const [what, suffix, effect] of WRITTEN) {
  macTest(`the instance is gone, and another program writes the ${what} again: it stays, and all is back`, async () => {
    const hookAt = await effectOf(lostInstance, effect);
    const { mac, file, text, job } = macWith("daemon");
    await using _ = mac;
    const newer = text.replace("Background", "Standard");
    mac.write(`${mac.root}/newer`, newer);
    const path = file + suffix;
    const run = await lostInstance(mac, { hookAt, hook: `cp -p ${mac.root}/newer ${path}.x && mv ${path}.x ${path}` });
    assert.deepEqual([run.status, run.json().state], [75, "rolled back"], run.stdout + run.stderr);
    assert.match(run.json().blockers[0].because, /has changed in the meantime/);
    assert.match(JSON.stringify(run.json().notes), /changed by another program in the meantime, and was left alone/);
    assert.deepEqual([Deno.readTextFileSync(path), mac.exists(file)], [newer, true]);
    assert.deepEqual(job()?.args, suffix === "" ? limactl(mac) : guarded(mac));
    assert.ok(!listed(mac.daemons).some((name) => name.includes("lima-guard-new")), listed(mac.daemons).join("\n"));
  });
}

// ── rollbacks ──

macTest("a rollback waits for the process of the job that it unloads, as long as that job may take", async () => {
  const world = () => macWith("daemon");
  const hookAt = 1 + await effectOf((mac) => mac.run(["--yes", "default"]), / run \S+launchctl,bootstrap,/);
  const { mac, job } = world();
  await using _ = mac;
  // The guard's process outlives its job, and longer than the old job could have.
  const hook = `echo lingers=1 >${mac.state}/conf; pid=$(cat ${mac.state}/pid); kill -TERM $PPID
    ( for n in $(seq 300); do [ $(grep -c 'launchctl bootout' ${mac.state}/log) -ge 2 ] && break; sleep 0.1; done
      sleep 2; echo 'its process has ended' >>${mac.state}/log; rm ${mac.state}/alive/$pid ) >/dev/null 2>&1 &`;
  const settings = { hookAt, hook, limits: { goneMs: 500, secondMs: 100 } };
  const run = await mac.run(["--yes", "--json", "default"], { cwd: "/", settings });
  assert.deepEqual([run.status, run.json().state], [1, "rolled back"], run.stdout + run.stderr);
  const log = mac.log();
  const ended = log.indexOf("its process has ended");
  assert.ok(ended >= 0 && log.findLastIndex((line) => line.includes("launchctl bootstrap")) > ended, log.join("\n"));
  assert.deepEqual(job()!.args, limactl(mac));
});

macTest("a rollback that cannot put the plist back leaves a whole job, and the copy of the old plist", async () => {
  const failing = (mac: FakeMac, settings: MacSettings = {}) => {
    mac.fault("bootstrap:1 122");
    return mac.run(["--yes", "--json", "default"], { settings });
  };
  const failAt = await effectOf(failing, / rename \S+\.plist\.lima-guard-new-/, 2);
  const { mac, file, text, job } = macWith("daemon");
  await using _ = mac;
  const run = await failing(mac, { failAt });
  assert.deepEqual([run.status, run.json().state], [1, "broken"], run.stdout + run.stderr);
  const kept = listed(mac.daemons).filter((name) => name.startsWith(`${DAEMON}.plist.lima-guard-new-`));
  assert.deepEqual(kept.map((name) => Deno.readTextFileSync(`${mac.daemons}/${name}`)), [text]);
  assert.deepEqual([Deno.readTextFileSync(file + BACKUP_SUFFIX), job()?.args], [text, guarded(mac)]);
  mac.forget();
  const again = await mac.run(["--yes", "--json", "default"]);
  assert.deepEqual([again.status, again.json().state], [0, "guarded"], again.stdout);
  assert.deepEqual([job()!.args, job()!.pid !== undefined], [guarded(mac), true]);
  assert.equal((await mac.run(["--uninstall", "--yes", "default"])).status, 0);
  assert.equal(Deno.readTextFileSync(file), text);
});

macTest("a rollback that cannot load the job leaves the mark: the next install loads it", async () => {
  const { mac, file, text, job } = macWith("daemon");
  await using _ = mac;
  mac.fault(...Array.from({ length: 60 }, (_, i) => `bootstrap:${i + 1} 122`));
  const run = await mac.run(["--yes", "--json", "default"]);
  assert.deepEqual([run.status, run.json().state], [1, "broken"], run.stdout);
  assert.deepEqual([job(), Deno.readTextFileSync(file)], [undefined, text]);
  assert.deepEqual(listed(mac.daemons), [`${DAEMON}.plist`, `${DAEMON}.plist.lima-guard.json`]);
  mac.forget();
  const again = await mac.run(["--yes", "--json", "default"]);
  assert.deepEqual([again.status, again.json().state], [0, "guarded"], again.stdout);
  assert.deepEqual([job()?.args, job()?.pid !== undefined], [guarded(mac), true]);
});

for (
  const [what, spoil] of [
    ["fails", (mac: FakeMac) => mac.fault("bootstrap:1 122")],
    ["keeps no job", (mac: FakeMac) => mac.conf("kept=0")],
  ] as const
) {
  macTest(`--start of a job that is disabled and not loaded, where bootstrap ${what}: it is so again`, async () => {
    const { mac, domain, label, file, text, job } = macWith("daemon");
    await using _ = mac;
    mac.lose(domain, label);
    mac.launchctl(["disable", `${domain}/${label}`]);
    mac.forget();
    spoil(mac);
    const settings = { limits: { bootstrapMs: 300 } };
    const run = await mac.run(["--yes", "--start", "--json", "default"], { settings });
    assert.deepEqual([run.status, run.json().state], [1, "rolled back"], run.stdout);
    assert.deepEqual([job(), mac.isDisabled(domain, label), Deno.readTextFileSync(file)], [undefined, true, text]);
  });
}

macTest(
  "what a user has added since the install is there after an uninstall, whatever the install would write",
  async () => {
    const { mac, file, text } = macWith("daemon");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    const own = `<key>EnvironmentVariables</key>\n\t<dict>\n\t\t<key>LIMA_HOME</key>\n\t\t<string>${mac.home}/.lima` +
      "</string>\n\t</dict>\n\t<key>KeepAlive</key>\n\t<dict>\n\t\t<key>SuccessfulExit</key>\n\t\t<false/>\n\t</dict>\n\t";
    const add = (to: string) => to.replace("<key>RunAtLoad</key>", `${own}<key>RunAtLoad</key>`);
    mac.write(file, add(Deno.readTextFileSync(file)));
    // One that has something to write, and one that has not.
    for (const more of [["--exit-timeout", "90"], []]) {
      assert.equal((await mac.run(["--yes", ...more, "default"])).status, 0);
    }
    assert.equal((await mac.run(["--uninstall", "--yes", "default"])).status, 0);
    assert.equal(Deno.readTextFileSync(file), add(text));
  },
);

macTest(
  "the job of an instance that is gone whose plist is a link: the link goes too, and comes back in a rollback",
  async () => {
    for (const isFailing of [true, false]) {
      const { mac, file, as, guard, job } = macWith("agent");
      await using _ = mac;
      mac.folder(`${mac.home}/dotfiles`, as);
      Deno.renameSync(file, `${mac.home}/dotfiles/lima.plist`);
      Deno.symlinkSync(`${mac.home}/dotfiles/lima.plist`, file);
      new Deno.Command("chown", { args: ["-h", `${as.uid}:${as.gid}`, file] }).outputSync();
      assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
      Deno.removeSync(`${mac.home}/.lima/default`, { recursive: true });
      const before = mac.tree();
      if (isFailing) mac.own(`${mac.home}/dotfiles`, ROOT, 0o755);
      const run = await mac.run(["--uninstall", "--yes", "default"], { as });
      if (isFailing) {
        assert.match(run.stdout, /default: rolled back: the old plist and the old job are in place/);
        mac.own(`${mac.home}/dotfiles`, as, 0o755);
        assert.deepEqual([mac.tree(), job()!.args], [before, guarded(mac, guard)]);
        continue;
      }
      assert.equal(run.status, 0, run.stdout + run.stderr);
      assert.deepEqual([listed(mac.agents), listed(`${mac.home}/dotfiles`), mac.exists(guard)], [[], [], true]);
      assert.equal((await mac.run(["--check", "--all"], { as })).status, 66);
    }
  },
);

// ── --purge ──

macTest("--purge leaves a lima-guard that --guard has named, and takes what the install has made", async () => {
  for (const isInItsPlace of [false, true]) {
    const { mac, file, text } = macWith("daemon");
    await using _ = mac;
    const own = mac.putGuard(isInItsPlace ? mac.guard : `${mac.system}/opt/lima-guard`, "\n# of a package\n");
    mac.write(`${own}.previous`, "of a package too");
    assert.equal((await mac.run(["--yes", "--guard", own, "default"])).status, 0);
    const run = await mac.run(["--uninstall", "--purge", "--yes", "default"]);
    assert.equal(run.status, 0, run.stdout + run.stderr);
    assert.deepEqual([mac.exists(own), mac.exists(`${own}.previous`)], [true, true]);
    assert.deepEqual([Deno.readTextFileSync(file), listed(mac.daemons)], [text, [`${DAEMON}.plist`]]);
    assert.deepEqual(listed(`${mac.system}/var/log`), [], "the log of installs");
  }
});

// Another plist beside the job's that may name its lima-guard.
const UNREAD: [what: string, put: (mac: FakeMac, path: string, guard: string) => void][] = [
  ["that its mode closes", (mac, path) => void mac.write(path, "<plist/>", ZOE, 0)],
  ["that is a link to a FIFO", (mac, path) => {
    new Deno.Command("mkfifo", { args: [`${mac.home}/fifo`] }).outputSync();
    mac.own(`${mac.home}/fifo`, ZOE);
    Deno.symlinkSync(`${mac.home}/fifo`, path);
  }],
  ["that is a link to nothing", (_, path) => Deno.symlinkSync("/nonexistent/x.plist", path)],
  ["that is binary and names it", (mac, path, guard) => void mac.write(path, `bplist00\x5f\x10${guard}\0`, ZOE)],
  ["in a folder of another user", (mac, path) => {
    mac.folder(`${mac.root}/home/eve/jobs`, EVE);
    Deno.symlinkSync(mac.write(`${mac.root}/home/eve/jobs/x.plist`, "<plist/>", EVE), path);
  }],
];
for (const [what, put] of UNREAD) {
  macTest(`--purge leaves the lima-guard beside a plist ${what}`, async () => {
    const { mac, file, text, guard, as } = macWith("agent");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
    const other = `${mac.agents}/other.plist`;
    put(mac, other, guard);
    const args = ["--uninstall", "--purge", "--yes", "--plist", file, "default"];
    const run = await mac.run(args, { as });
    assert.deepEqual([run.status, mac.exists(guard)], [0, true], run.stdout + run.stderr);
    assert.equal(Deno.readTextFileSync(file), text);
    Deno.removeSync(other);
    assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
    assert.equal((await mac.run(args, { as })).status, 0);
    assert.equal(mac.exists(guard), false, "and without that plist it goes");
  });
}

macTest("what cannot be removed once all is well is a note: an uninstall is not rolled back for it", async () => {
  const { mac, file, text, guard, job, as } = macWith("agent", { trace: true });
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
  mac.own(`${mac.home}/.local`, ROOT, 0o755);
  const run = await mac.run(["--uninstall", "--purge", "--yes", "--json", "default"], { as });
  assert.deepEqual([run.status, run.json().state], [0, "not guarded"], run.stdout + run.stderr);
  assert.match(JSON.stringify(run.json().notes), /\.local\/libexec stays: Permission denied/);
  assert.deepEqual([Deno.readTextFileSync(file), job()!.args, mac.exists(guard)], [text, limactl(mac), false]);
});

macTest("a second name of the old plist that cannot be removed at the end is a note: the job is guarded", async () => {
  const end = { number: 0 };
  for (const isTried of [false, true]) {
    const { mac, file, as } = macWith("agent", { trace: true });
    await using _ = mac;
    const settings = isTried ? { hookAt: end.number, hook: `chmod a-w ${mac.agents}` } : {};
    const run = await mac.run(["--yes", "--no-reload", "--json", "default"], { as, settings });
    assert.deepEqual([run.status, run.json().changed], [0, true], run.stdout + run.stderr);
    end.number = mac.effects().findIndex((line) => / remove .*\.lima-guard-new-/.test(line)) + 1;
    const stays = /\.lima-guard-new-[\da-f]{8} stays: Permission denied/.test(JSON.stringify(run.json().notes));
    assert.deepEqual([stays, Deno.readTextFileSync(file).includes("--run")], [isTried, true]);
  }
});

macTest("a folder of the user's that looks like one of a killed run keeps all that is in it", async () => {
  const { mac, as } = macWith("agent");
  await using _ = mac;
  const files = ["lima-guard-20261127/lima-guard", "lima-guard-20261127/README", "lima-guard-deadbeef/lima-guard"];
  for (const path of files.map((name) => `${mac.home}/${name}`)) {
    mac.folder(path.replace(/\/[^/]*$/, ""), as);
    mac.write(path, "precious", as);
  }
  assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
  assert.deepEqual(files.filter((name) => !mac.exists(`${mac.home}/${name}`)), []);
  assert.equal((await mac.run(["--yes", "--json", "default"], { as })).json().changed, false);
});

// What runs the lima-guard of the job that is purged.
const RUNS_IT: [what: string, use: (mac: FakeMac, text: string) => Promise<unknown> | void, ...more: string[]][] = [
  ["its own job, which is loaded as it was", () => {}, "--no-reload"],
  ["a loaded job whose plist is bare again", async (mac, text) => {
    await mac.run(["--yes", "k3s"]);
    mac.daemon("k3s", text);
  }],
  ["a job of another label, loaded from a plist that is bare again", async (mac, text) => {
    const own = text.replace("io.lima-vm.daemon.k3s", "com.acme.vm");
    mac.launchctl(["bootout", "system/io.lima-vm.daemon.k3s"]);
    Deno.removeSync(mac.daemon("k3s", ""));
    const file = mac.write(`${mac.daemons}/vm.plist`, own);
    mac.load("system", file);
    await mac.run(["--yes", "k3s"]);
    mac.write(file, own);
  }],
  ["a job that calls it by a link", async (mac) => {
    mac.folder(`${mac.system}/usr/local/bin`);
    Deno.symlinkSync(mac.guard, `${mac.system}/usr/local/bin/lima-guard`);
    await mac.run(["--yes", "--guard", `${mac.system}/usr/local/bin/lima-guard`, "k3s"]);
  }],
  ["jobs that launchd does not list", (mac) => mac.fault("print:3 5")],
  ["a job that launchd does not tell of", (mac) => mac.fault("print:4 5")],
];
for (const [what, use, ...more] of RUNS_IT) {
  macTest(`--purge leaves the lima-guard that is run by ${what}`, async () => {
    const { mac, text } = macWith("daemon");
    await using _ = mac;
    mac.instance("k3s");
    const other = text.replaceAll("default", "k3s");
    mac.load("system", mac.daemon("k3s", other));
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    mac.forget();
    await use(mac, other);
    const run = await mac.run(["--uninstall", "--purge", "--yes", ...more, "default"]);
    assert.deepEqual([run.status, mac.exists(mac.guard)], [0, true], run.stdout + run.stderr);
  });
}

macTest(
  "an agent that runs root's lima-guard gets one of its own once that is purged, by the hint of --check",
  async () => {
    const { mac, as, job, guard } = macWith("agent");
    await using _ = mac;
    mac.putGuard(mac.guard);
    assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
    Deno.removeSync(mac.guard);
    const [{ because, hint }] = (await mac.run(["--check", "--json", "default"], { as })).json().blockers;
    assert.match(because, /lima-guard is not there/);
    const { code, output } = await mac.type(hint, as);
    assert.deepEqual([code, job()!.args], [0, guarded(mac, guard)], output);
  },
);

for (const kind of ["daemon", "agent"] as const) {
  macTest(`${kind}s: --purge --all takes what all of them have needed, and the dry run says so`, async () => {
    const { mac, text, guard, domain, as } = macWith(kind);
    await using _ = mac;
    mac.instance("k3s");
    mac.settings.devices = [{ prefix: `${mac.home}/.lima`, dev: 99 }];
    const other = text.replaceAll("default", "k3s");
    mac.load(domain, kind === "daemon" ? mac.daemon("k3s", other) : mac.agent("k3s", other));
    const before = mac.tree();
    assert.equal((await mac.run(["--yes", "--all"], { as })).status, 0);
    const args = ["--uninstall", "--purge", "--all"];
    const logs = `${mac.home}/Library/Logs/lima-guard`;
    for (const name of ["default", "k3s"]) mac.write(`${logs}/${name}.stderr.log`, "x", ZOE);
    const dry = await mac.run([...args, "--dry-run"], { as });
    for (const what of [`remove ${guard}`, `rmdir ${logs}`]) {
      assert.equal(dry.stdout.split(`${what}  (`).length, 2, what);
    }
    const run = await mac.run([...args, "--yes"], { as });
    assert.equal(run.status, 0, run.stdout + run.stderr);
    assert.deepEqual(mac.tree(), before);
  });
}

macTest("--purge --all: a job that is not changed keeps its lima-guard, and the others are not tried", async () => {
  const { mac, text, file } = macWith("daemon");
  await using _ = mac;
  mac.instance("k3s");
  mac.load("system", mac.daemon("k3s", text.replaceAll("default", "k3s")));
  assert.equal((await mac.run(["--yes", "--all"])).status, 0);
  const settings = { canAsk: true, whileAsked: `echo >> ${file}` };
  const run = await mac.run(["--uninstall", "--purge", "--all", "--json"], { settings });
  const { instances } = JSON.parse(run.stdout);
  const states = instances.map((i: { name: string; state: string }) => `${i.name} ${i.state}`);
  assert.deepEqual([run.status, states], [75, ["default unknown", "k3s not tried"]], run.stdout);
  assert.match(instances[1].blockers[0].because, /default could not be changed/);
  assert.ok(mac.exists(mac.guard));
  assert.equal((await mac.run(["--uninstall", "--purge", "--yes", "--all"])).status, 0);
  assert.ok(!mac.exists(mac.guard));
});

macTest("--purge leaves the logs that the plist names after it too: without a backup they stay in it", async () => {
  const { mac, file } = macWith("daemon");
  await using _ = mac;
  mac.settings.devices = [{ prefix: `${mac.home}/.lima`, dev: 99 }];
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  const log = mac.write(`${mac.home}/Library/Logs/lima-guard/default.stderr.log`, "x", ZOE);
  Deno.removeSync(`${file}${BACKUP_SUFFIX}`);
  assert.equal((await mac.run(["--uninstall", "--purge", "--yes", "default"])).status, 0);
  assert.deepEqual([mac.exists(log), Deno.readTextFileSync(file).includes(log)], [true, true]);
});

// ── a fleet of two users ──

macTest("--all: a user's own agent is rolled back: root's daemons are not tried, and no sudo is called", async () => {
  const { mac, as, domain, label } = macWith("agent");
  await using _ = mac;
  mac.instance("k3s");
  const daemon = fixture(mac, "lima-2.2-daemon").replaceAll("default", "k3s");
  mac.load("system", mac.daemon("k3s", daemon));
  mac.conf("broken=lima-guard", `sudoers=${ZOE.uid}`);
  const run = await mac.run(["--yes", "--all", "--json"], { as });
  const { instances } = JSON.parse(run.stdout);
  const states = instances.map((i: { name: string; state: string }) => `${i.name} ${i.state}`);
  assert.deepEqual([run.status, states], [1, ["default rolled back", "k3s not tried"]], run.stdout);
  assert.match(instances[1].blockers[0].because, /default had to be rolled back/);
  assert.deepEqual(mac.log().filter((line) => line.includes("sudo")), []);
  assert.deepEqual(mac.job(domain, label)!.args, limactl(mac));
  assert.deepEqual(mac.job("system", "io.lima-vm.daemon.k3s")!.args, limactl(mac, "k3s"));
  mac.conf("broken=", `sudoers=${ZOE.uid}`);
  const both = await mac.run(["--yes", "--all"], { as });
  assert.equal(both.status, 0, both.stdout + both.stderr);
});

macTest("--all that is handed over names the jobs that need it: each job is reported once", async () => {
  const { mac, text } = macWith("daemon");
  await using _ = mac;
  mac.instance("k3s");
  mac.load("system", mac.daemon("k3s", text.replaceAll("default", "k3s")));
  assert.equal((await mac.run(["--yes", "k3s"])).status, 0);
  const run = await mac.run(["--yes", "--all", "--json"], { as: ADA });
  const names = JSON.parse(run.stdout).instances.map((i: { name: string; state: string }) => `${i.name} ${i.state}`);
  assert.deepEqual([run.status, names], [0, ["default guarded", "k3s guarded"]], run.stdout);
});
