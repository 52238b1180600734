/** install.ts on a pretended Mac: what it does, in which order, what it refuses, what it says. */

import assert from "node:assert/strict";
import { BACKUP_SUFFIX, installMain } from "../install.ts";
import { VERSION } from "../lima_guard.ts";
import {
  AGENT,
  DAEMON,
  FakeMac,
  fixture,
  guarded,
  LIMACTL,
  listed,
  macWith,
  own,
  PLISTS as folder,
} from "./helpers/launchd.ts";
import { readOnlyDir, whyNoReadOnlyDir } from "./helpers/user.ts";

// ── the way it goes ──

Deno.test("install lets launchd run the guard, and uninstall gives the very bytes back", async () => {
  const { mac, file, text, job } = await macWith("daemon");
  await using _ = mac;
  const before = job()!;
  const installed = await mac.run(["--yes", "default"]);
  assert.equal(installed.status, 0, installed.stderr + installed.stdout);
  assert.match(installed.stdout, /^default: guarded: io\.lima-vm\.daemon\.default: as wanted, running \(PID \d+\)\n/);
  assert.deepEqual(job()!.args, guarded(mac));
  assert.equal(job()!.timeout, 60);
  assert.notEqual(job()!.pid, before.pid);
  assert.equal(Deno.readTextFileSync(file + BACKUP_SUFFIX), text);
  assert.deepEqual(listed(mac.daemons), [`${DAEMON}.plist`, `${DAEMON}.plist${BACKUP_SUFFIX}`]);
  assert.equal(Deno.statSync(file).mode! & 0o777, 0o644);
  assert.equal(Deno.statSync(mac.guard).mode! & 0o777, 0o755);
  assert.ok(!mac.exists(`${mac.state}/cut_off`), "the guest was cut off");

  const checked = await mac.run(["--check", "default"]);
  assert.equal(checked.status, 0, checked.stdout);

  const gone = await mac.run(["--uninstall", "--yes", "default"]);
  assert.equal(gone.status, 0, gone.stderr + gone.stdout);
  assert.equal(Deno.readTextFileSync(file), text);
  assert.deepEqual(job()!.args, LIMACTL);
  assert.ok(job()!.pid !== undefined, "it runs again");
  assert.deepEqual(listed(mac.daemons), [`${DAEMON}.plist`]);
  assert.ok(!mac.exists(`${mac.state}/cut_off`), "the guest was cut off");
});

Deno.test("the commands come in this order: nothing is stopped before the file and the guard stand", async () => {
  const { mac } = await macWith("daemon");
  await using _ = mac;
  await mac.run(["--yes", "default"]);
  const verbs = mac.log().map((line) =>
    line.replaceAll(mac.root, "").replace(/^sudo -n /, "sudo ").split(" ").slice(0, 3).join(" ")
  );
  const told = verbs.filter((v) => !/^launchctl (bootout|enable|bootstrap)/.test(v));
  assert.deepEqual(
    told.map((v) =>
      v.replace(/^(sudo (?!launchctl)\w+|\w+ -\S+|lima-guard \S+|launchctl \S+|sudo launchctl \w+).*/, "$1")
    ),
    [
      "id -P",
      "launchctl print",
      "launchctl print-disabled",
      "codesign --verify",
      "launchctl print",
      "sudo true",
      ...["mkdir", "tee", "chown", "chmod", "mv"].map((c) => `sudo ${c}`),
      "codesign --verify",
      "lima-guard --version",
      ...["tee", "chown", "chmod", "mv"].map((c) => `sudo ${c}`),
      ...["tee", "chown", "chmod"].map((c) => `sudo ${c}`),
      "plutil -lint",
      "sudo mv",
      "launchctl print",
      "lima-guard --stop",
      "sudo launchctl bootout",
      "launchctl print",
      "launchctl print",
      "sudo launchctl enable",
      "sudo launchctl bootstrap",
      "launchctl print",
      "launchctl print",
    ],
  );
});

Deno.test("the dry run says the very words that the run then prints, and writes nothing", async () => {
  for (const kind of ["daemon", "agent"] as const) {
    const { mac, file, text, job } = await macWith(kind);
    await using _ = mac;
    const before = job();
    const args = kind === "agent" ? [...own(mac), "default"] : ["default"];
    const dry = await mac.run(["--dry-run", ...args]);
    assert.equal(dry.status, 0, dry.stdout);
    assert.equal(Deno.readTextFileSync(file), text);
    assert.deepEqual(job(), before);
    assert.ok(!mac.exists(file + BACKUP_SUFFIX) && !mac.exists(mac.guard));
    assert.ok(mac.log().every((line) => /^(id -P|launchctl print|codesign --verify)/.test(line)), mac.log().join("\n"));
    assert.ok(dry.stdout.includes("\n+\t<key>ExitTimeOut</key>\n+\t<integer>60</integer>\n"));
    const would = [...dry.stdout.matchAll(/^ {2}would (.*?) {2}\(/gm)].map((m) => m[1]);
    const real = await mac.run(["--yes", ...args]);
    const did = [...real.stderr.matchAll(/^(?:\$ (.*)|lima-guard: (.*?) {2}\()/gm)].map((m) => m[1] ?? m[2]);
    assert.ok(would.length > 8);
    assert.deepEqual(did, would);
  }
});

Deno.test("an agent needs no sudo", async () => {
  const { mac, job } = await macWith("agent");
  await using _ = mac;
  const run = await mac.run(["--yes", ...own(mac), "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.deepEqual(job()!.args, guarded(mac, `${mac.home}/libexec/lima-guard`));
  assert.ok(mac.log().every((line) => !line.startsWith("sudo")), mac.log().join("\n"));
  assert.match(run.stdout, /Local Network/);
  assert.match(run.stdout, /ends at logout/);
});

Deno.test("an agent's user is told what to do about root's folder, and root's help is not taken unasked", async () => {
  const { mac, file, text } = await macWith("agent");
  await using _ = mac;
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 77);
  assert.match(run.stdout, /belongs to root \(hint: .*--guard-dir/);
  assert.equal(Deno.readTextFileSync(file), text);
});

Deno.test("root needs no sudo for what is root's, and becomes the job's user for its guard", async () => {
  const { mac, job } = await macWith("daemon", { uid: 0 });
  await using _ = mac;
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 1, "the stand-in for launchctl wants sudo");
  const sudos = mac.log().filter((line) => line.startsWith("sudo"));
  assert.ok(sudos.length > 0 && sudos.every((line) => line.startsWith("sudo -n -H -u #501 ")), sudos.join("\n"));
  assert.ok(sudos.some((line) => line.endsWith("lima-guard --version")));
  assert.deepEqual(job()!.args, LIMACTL);
});

Deno.test("root writes into a user's folder as that user, never as root", async () => {
  const { mac } = await macWith("agent", { uid: 0 });
  await using _ = mac;
  const run = await mac.run(["--yes", ...own(mac), "default"]);
  assert.equal(run.status, 0, run.stdout + run.stderr);
  const written = mac.log().filter((line) => /tee|mkdir|mv/.test(line));
  assert.ok(written.length >= 5 && written.every((line) => line.startsWith("sudo -n -H -u #501 ")), written.join("\n"));
});

Deno.test("running install again changes nothing", async () => {
  const { mac, job } = await macWith("daemon");
  await using _ = mac;
  await mac.run(["--yes", "default"]);
  const [before, calls] = [job(), mac.log().length];
  const again = await mac.run(["default"]);
  assert.equal(again.status, 0, again.stdout);
  assert.match(again.stdout, /guarded already/);
  assert.deepEqual(job(), before);
  assert.ok(mac.log().slice(calls).every((line) => /^(id|launchctl print|codesign --verify)/.test(line)));
});

Deno.test("a newer guard is put in place, and the job is loaded again only if its plist changes", async () => {
  const { mac } = await macWith("daemon");
  await using _ = mac;
  await mac.run(["--yes", "default"]);
  mac.putGuard(`${mac.root}/src/lima-guard`, "\n# newer\n");
  mac.forget();
  const again = await mac.run(["--yes", "default"]);
  assert.equal(again.status, 0, again.stdout);
  assert.ok(Deno.readTextFileSync(mac.guard).endsWith("# newer\n"));
  assert.ok(!mac.log().some((line) => line.includes("bootout")));
});

Deno.test("Lima writes its plist anew: --check says so, install wraps it again, and the backup is Lima's newest", async () => {
  const { mac, file, text, domain } = await macWith("daemon");
  await using _ = mac;
  await mac.run(["--yes", "default"]);
  const newer = text.replace("Background", "Standard");
  mac.daemon("default", newer);
  const checked = await mac.run(["--check", "default"]);
  assert.equal(checked.status, 1);
  assert.match(checked.stdout, /the plist does not run lima-guard/);
  assert.match(checked.stdout, /the plist grants 5 s/);
  await mac.run(["--yes", "default"]);
  assert.equal(Deno.readTextFileSync(file + BACKUP_SUFFIX), newer);
  assert.deepEqual(mac.job(domain, DAEMON)!.args, guarded(mac));
  await mac.run(["--uninstall", "--yes", "default"]);
  assert.equal(Deno.readTextFileSync(file), newer);
});

Deno.test("a wrapped plist that changes again keeps the first backup", async () => {
  const { mac, file, text } = await macWith("daemon");
  await using _ = mac;
  await mac.run(["--yes", "default"]);
  await mac.run(["--yes", "--exit-timeout", "90", "default"]);
  assert.equal(Deno.readTextFileSync(file + BACKUP_SUFFIX), text);
  await mac.run(["--uninstall", "--yes", "default"]);
  assert.equal(Deno.readTextFileSync(file), text);
});

// ── launchd's moods ──

Deno.test("a job that takes long to end is waited for", async () => {
  const { mac, job } = await macWith("daemon");
  await using _ = mac;
  mac.conf("dying=25");
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  assert.deepEqual(job()!.args, guarded(mac));
});

for (const code of [5, 37, 36]) {
  Deno.test(`bootstrap is tried again after ${code}`, async () => {
    const { mac, job } = await macWith("daemon");
    await using _ = mac;
    mac.fault(`bootstrap:1 ${code}`, `bootstrap:2 ${code}`, `bootstrap:3 ${code}`, `bootstrap:4 ${code}`);
    const run = await mac.run(["--yes", "--json", "default"]);
    assert.equal(run.status, 0, run.stdout);
    assert.match(run.json().steps.find((s: { kind: string }) => s.kind === "bootstrap").outcome, /at try \d/);
    assert.deepEqual(job()!.args, guarded(mac));
  });
}

Deno.test("bootout of a job that has gone by itself is no failure", async () => {
  for (const code of [3, 36, 113]) {
    const { mac, job } = await macWith("agent");
    await using _ = mac;
    mac.fault(`bootout:1 after:${code}`);
    assert.equal((await mac.run(["--yes", ...own(mac), "default"])).status, 0);
    assert.equal(job()!.timeout, 60);
  }
});

Deno.test("KeepAlive that starts the job again during the ladder is booted out at once, and nobody is cut off", async () => {
  const { mac, job } = await macWith("agent", {}, "lima-2.3-agent-keep-alive-lima-home");
  await using _ = mac;
  assert.equal((await mac.run(["--yes", ...own(mac), "default"])).status, 0);
  assert.equal(job()!.timeout, 60);
  const log = mac.log();
  const [stop, bootout] = [log.findIndex((l) => l.includes("--stop")), log.findIndex((l) => l.includes("bootout"))];
  assert.ok(!log.slice(stop, bootout).some((l) => l.includes("launchctl print")), "a look would have started it again");
});

Deno.test("a job that runs nothing now is not stopped, and not expected to run", async () => {
  const { mac, job } = await macWith("daemon");
  await using _ = mac;
  Deno.removeSync(`${mac.state}/alive/${job()!.pid}`);
  mac.conf("broken=.");
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.ok(!mac.log().some((line) => line.includes("--stop")));
  assert.match(run.stdout, /as wanted, not running/);
});

Deno.test("a job that ran and does not start by itself is kicked", async () => {
  const mac = FakeMac.make();
  await using _ = mac;
  const text = fixture(mac, "lima-2.2-daemon").replace("<true/>", "<false/>");
  await mac.load("system", mac.daemon("default", text));
  await new Deno.Command(`${mac.root}/bin/launchctl`, {
    args: ["kickstart", `system/${DAEMON}`],
    env: { ...mac.env, STANDIN_ROOT: "1" },
  }).output();
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.ok(mac.log().includes(`sudo -n launchctl kickstart system/${DAEMON}`));
  assert.ok(mac.job("system", DAEMON)!.pid !== undefined);
});

Deno.test("a new job that does not come up is taken back", async () => {
  const { mac, file, text, job } = await macWith("daemon");
  await using _ = mac;
  mac.conf("broken=lima-guard");
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 1);
  assert.match(run.stdout, /rolled back: the old plist and the old job are in place\n.*it ran before/);
  assert.equal(Deno.readTextFileSync(file), text);
  assert.deepEqual(job()!.args, LIMACTL);
  assert.ok(job()!.pid !== undefined);
});

Deno.test("a plist that Apple's reader refuses never gets its name", async () => {
  const { mac, file, text, job } = await macWith("daemon");
  await using _ = mac;
  const before = job();
  mac.fault("plutil:1 1");
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 1, run.stdout);
  assert.equal(Deno.readTextFileSync(file), text);
  assert.deepEqual(job(), before);
});

Deno.test("a guard that does not answer is noticed before the plist is touched", async () => {
  for (const conf of ["guard_version=nonsense", "guard_version="]) {
    const { mac, file, text, job } = await macWith("daemon");
    await using _ = mac;
    const before = job();
    mac.conf(conf);
    const run = await mac.run(["--yes", "default"]);
    assert.equal(run.status, 1);
    assert.match(run.stdout, /did not say its version to zoe/);
    assert.equal(Deno.readTextFileSync(file), text);
    assert.ok(!mac.exists(file + BACKUP_SUFFIX));
    assert.deepEqual(job(), before);
  }
});

Deno.test("a guard of another version is used, with both versions named", async () => {
  const { mac } = await macWith("daemon");
  await using _ = mac;
  mac.conf("guard_version=9.9.9");
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.ok(run.stdout.includes(`the guard is version 9.9.9, this is ${VERSION}`));
});

Deno.test("an instance that cannot be stopped gracefully stays as it is, under its old job", async () => {
  const { mac, file, text, job } = await macWith("daemon");
  await using _ = mac;
  const before = job();
  mac.conf("stop=75");
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 1);
  assert.equal(Deno.readTextFileSync(file), text);
  assert.deepEqual(job(), before);
  assert.ok(!mac.log().some((line) => line.includes("bootout")), "not booted out: that would cut the guest off");
});

Deno.test("an ExitTimeOut that launchd clamps is a warning with the number", async () => {
  const { mac } = await macWith("agent");
  await using _ = mac;
  const run = await mac.run(["--yes", "--exit-timeout", "120", ...own(mac), "default"]);
  assert.equal(run.status, 0);
  assert.match(run.stdout, /exit timeout of 60 s in force, the plist says 120 s/);
  assert.match((await mac.run(["--yes", "--exit-timeout", "120", ...own(mac), "default"])).stdout, /guarded already/);
});

Deno.test("a job that is not loaded is loaded: an install that was cut off is finished", async () => {
  const { mac, job } = await macWith("daemon");
  await using _ = mac;
  await mac.run(["--yes", "default"]);
  Deno.removeSync(`${mac.state}/jobs/system,${DAEMON}`);
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.deepEqual(job()!.args, guarded(mac));
});

Deno.test("a file that is wrapped and a job that is not yet: the job is loaded again", async () => {
  const { mac, job } = await macWith("daemon");
  await using _ = mac;
  await mac.run(["--yes", "--no-reload", "default"]);
  assert.deepEqual(job()!.args, LIMACTL);
  const checked = await mac.run(["--check", "default"]);
  assert.equal(checked.status, 1);
  assert.match(checked.stdout, /the loaded job does not run lima-guard/);
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  assert.deepEqual(job()!.args, guarded(mac));
});

Deno.test("a disabled override is named, and lifted", async () => {
  const { mac, job } = await macWith("daemon");
  await using _ = mac;
  Deno.writeTextFileSync(`${mac.state}/disabled/system,${DAEMON}`, "");
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.match(run.stdout, /the job is disabled: install enables it/);
  assert.ok(!mac.isDisabled("system", DAEMON));
  assert.ok(job()!.pid !== undefined);
});

Deno.test("without a login session the file is changed, and it is said when it counts", async () => {
  const mac = FakeMac.make();
  await using _ = mac;
  Deno.removeSync(`${mac.state}/sessions/501`);
  const file = mac.agent("default", fixture(mac, "lima-2.2-agent"));
  const run = await mac.run(["--yes", ...own(mac), "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.match(run.stdout, /nobody is logged in at the screen: it takes effect at the next login/);
  assert.ok(Deno.readTextFileSync(file).includes("--run"));
  assert.ok(!mac.log().some((line) => /bootstrap|bootout/.test(line)));
  assert.equal((await mac.run(["--check", "default"])).status, 0);
});

Deno.test("a launchctl that does not answer is no answer: nothing is touched", async () => {
  const { mac, file, text } = await macWith("daemon");
  await using _ = mac;
  for (const fault of ["print:1 hang", "print:1 1", "print:1 killed"]) {
    mac.forget();
    mac.fault(fault);
    const run = await mac.run(["--yes", "default"]);
    assert.equal(run.status, 75, `${fault}: ${run.stdout}`);
    assert.equal(Deno.readTextFileSync(file), text);
  }
});

// ── refused ──

Deno.test("agent and daemon at once are refused, and --plist decides", async () => {
  const { mac, file } = await macWith("daemon");
  await using _ = mac;
  const agent = mac.agent("default", fixture(mac, "lima-2.2-agent"));
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 1);
  assert.ok(run.stdout.includes(file) && run.stdout.includes(agent));
  assert.match(run.stdout, /limactl autostart disable default.*--plist/);
  assert.equal((await mac.run(["--yes", "--plist", file, "default"])).status, 0);
});

Deno.test("no job at all is 66, with how to make one", async () => {
  const mac = FakeMac.make();
  await using _ = mac;
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 66);
  assert.match(run.stdout, /limactl autostart enable default/);
  assert.equal((await mac.run(["--check", "default"])).status, 66);
  assert.equal((await mac.run(["--check", "--plist", "/no/such.plist", "default"])).status, 66);
});

for (const user of [undefined, "root"]) {
  Deno.test(`a daemon with ${user ? `UserName ${user}` : "no UserName"} is refused: Lima does not run as root`, async () => {
    const mac = FakeMac.make();
    await using _ = mac;
    const name = user ? `<key>UserName</key>\n\t<string>${user}</string>` : "";
    const text = fixture(mac, "lima-2.2-daemon").replace("<key>UserName</key>\n\t<string>zoe</string>", name);
    mac.daemon("default", text);
    const run = await mac.run(["--yes", "default"]);
    assert.equal(run.status, 1);
    assert.match(run.stdout, /would run as root.*Lima refuses/);
  });
}

Deno.test("a binary plist is refused with the line that converts it", async () => {
  const mac = FakeMac.make();
  await using _ = mac;
  const file = mac.daemon("default", "bplist00");
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 1);
  assert.ok(run.stdout.includes(`plutil -convert xml1 ${file}`));
});

Deno.test("10 MB are refused without being read", async () => {
  const mac = FakeMac.make();
  await using _ = mac;
  const file = mac.daemon("default", "");
  Deno.truncateSync(file, 10 * 1024 * 1024);
  const begun = performance.now();
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 1);
  assert.match(run.stdout, /10485760 bytes/);
  assert.ok(performance.now() - begun < 1000);
});

Deno.test("a plist that is a link stays one, and its target is rewritten", async () => {
  const mac = FakeMac.make();
  await using _ = mac;
  const text = fixture(mac, "lima-2.2-agent");
  const target = `${mac.home}/dotfiles.plist`;
  Deno.writeTextFileSync(target, text);
  const link = `${mac.agents}/${AGENT}.plist`;
  Deno.symlinkSync(target, link);
  const run = await mac.run(["--yes", ...own(mac), "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.ok(Deno.lstatSync(link).isSymlink);
  assert.ok(Deno.readTextFileSync(target).includes("--run"));
  assert.ok(mac.exists(target + BACKUP_SUFFIX));
  await mac.run(["--uninstall", "--yes", "default"]);
  assert.equal(Deno.readTextFileSync(target), text);
});

Deno.test("without an answer nothing is touched", async () => {
  for (const settings of [{ canAsk: true, answer: false }, { canAsk: false }]) {
    const { mac, file, text } = await macWith("daemon", settings);
    await using _ = mac;
    const run = await mac.run(["default"]);
    assert.equal(run.status, 1);
    assert.match(run.stdout, settings.canAsk ? /the answer was no/ : /nobody to ask \(hint: --yes\)/);
    assert.equal(Deno.readTextFileSync(file), text);
    assert.ok(!mac.log().some((line) => line.startsWith("sudo")));
  }
});

Deno.test("a yes at the terminal is enough, and sudo may ask then", async () => {
  const { mac, job } = await macWith("daemon", { canAsk: true, answer: true });
  await using _ = mac;
  const run = await mac.run(["default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.ok(mac.log().includes("sudo -v") && !mac.log().some((line) => line.startsWith("sudo -n")));
  assert.deepEqual(job()!.args, guarded(mac));
});

Deno.test("without sudo's ticket nothing is touched", async () => {
  const { mac, file, text, job } = await macWith("daemon");
  await using _ = mac;
  const before = job();
  mac.conf("sudo=denied");
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 1);
  assert.match(run.stdout, /a password is required/);
  assert.equal(Deno.readTextFileSync(file), text);
  assert.ok(!mac.exists(mac.guard));
  assert.deepEqual(job(), before);
});

Deno.test("a plist that changes while the question is open is not overwritten", async () => {
  const { mac, file, text } = await macWith("daemon", { canAsk: true });
  await using _ = mac;
  const host = await mac.host({ stdout: "", stderr: "" });
  const newer = text.replace("Background", "Standard");
  const status = await installMain(["default"], {
    ...host,
    confirm: () => Promise.resolve(mac.daemon("default", newer) !== ""),
  });
  assert.equal(status, 75);
  assert.equal(Deno.readTextFileSync(file), newer);
});

Deno.test("two installs at once: the second one waits for nobody and touches nothing", async () => {
  const { mac, file, text } = await macWith("daemon");
  await using _ = mac;
  using dir = Deno.openSync(mac.daemons);
  dir.lockSync(true);
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 75);
  assert.match(run.stdout, /another install is at work/);
  assert.equal(Deno.readTextFileSync(file), text);
});

for (const role of ["install", "uninstall"] as const) {
  Deno.test(`a signal in the middle of an ${role}, at any step, puts the old job back and cuts nobody off`, async () => {
    let interrupted = 0;
    for (let at = 1; at <= 40; at++) {
      const { mac, file, job } = await macWith("agent");
      await using _ = mac;
      if (role === "uninstall") await mac.run(["--yes", ...own(mac), "default"]);
      const oldText = Deno.readTextFileSync(file);
      const out = { stdout: "", stderr: "" };
      const host = await mac.host(out);
      let [n, interrupt] = [0, () => {}];
      const status = await installMain([`--${role}`, "--yes", ...own(mac), "default"], {
        ...host,
        onSignal: (take) => {
          interrupt = take;
          return () => {};
        },
        run: (argv, options) => {
          if (++n === at) interrupt();
          return host.run(argv, options);
        },
      });
      const words = `at ${at}: ${out.stdout}${out.stderr}`;
      const isOld = Deno.readTextFileSync(file) === oldText;
      assert.ok(job(), words);
      assert.equal(job()!.args.includes("--run"), isOld === (role === "uninstall"), words);
      assert.ok(job()!.pid !== undefined && isOld === (status !== 0), words);
      assert.ok(!mac.exists(`${mac.state}/cut_off`), words);
      if (isOld) interrupted++;
      if (at > n) break;
    }
    assert.ok(interrupted > 4, `only ${interrupted}`);
  });
}

Deno.test("a ladder that was killed is not believed, though Colima's own process tells nothing", async () => {
  const mac = FakeMac.make();
  await using _ = mac;
  const file = `${mac.agents}/homebrew.mxcl.colima.plist`;
  const text = fixture(mac, "homebrew-colima");
  Deno.writeTextFileSync(file, text);
  await mac.load("gui/501", file);
  mac.fault("stop:1 killed");
  const run = await mac.run(["--yes", "--plist", file, ...own(mac), "colima"]);
  assert.ok(mac.log().some((line) => line.startsWith("lima-guard --stop")));
  assert.equal(run.status, 1, run.stdout);
  assert.equal(Deno.readTextFileSync(file), text);
  assert.ok(!mac.exists(`${mac.state}/cut_off`));
});

Deno.test("a dry run asks nobody", async () => {
  const { mac } = await macWith("daemon", { canAsk: true });
  await using _ = mac;
  const host = await mac.host({ stdout: "", stderr: "" });
  const asked = () => Promise.reject(new Error("it has asked"));
  assert.equal(await installMain(["--dry-run", "default"], { ...host, confirm: asked }), 0);
});

Deno.test({
  name: `a plist on a read-only volume is refused, with what to declare${
    whyNoReadOnlyDir() ? `: ${whyNoReadOnlyDir()}` : ""
  }`,
  ignore: whyNoReadOnlyDir() !== undefined || Deno.uid() !== 0,
  fn: async () => {
    const { mac, file, text } = await macWith("agent");
    await using _ = mac;
    using _readOnly = readOnlyDir(mac.agents);
    const run = await mac.run(["--yes", ...own(mac), "default"]);
    assert.equal(run.status, 1);
    assert.match(
      run.stdout,
      /its volume is read-only \(hint: declare there: ProgramArguments = \[".*\/lima-guard","--run","default","--","\/opt/,
    );
    assert.equal(Deno.readTextFileSync(file), text);
  },
});

Deno.test("a plist that Nix made is refused, with what to declare", async () => {
  const { mac } = await macWith("agent");
  await using _ = mac;
  const out = { stdout: "", stderr: "" };
  const host = await mac.host(out);
  const store = `/nix/store/${"a".repeat(32)}-agent.plist`;
  const file = `${mac.agents}/${AGENT}.plist`;
  const real = (path: string) => path === store ? file : path;
  const status = await installMain(["--yes", ...own(mac), "default"], {
    ...host,
    realPath: (path) => path === file ? { ok: store } : host.realPath(path),
    lookAt: (path) => host.lookAt(real(path)),
    bytes: (path, most) => host.bytes(real(path), most),
  });
  assert.equal(status, 1);
  assert.match(out.stdout, /Nix made it \(hint: declare there/);
});

Deno.test("a job that somebody else is just booting out is waited for, and loaded again", async () => {
  const { mac, job } = await macWith("daemon");
  await using _ = mac;
  await mac.run(["--yes", "default"]);
  await new Deno.Command(`${mac.root}/bin/launchctl`, {
    args: ["bootout", `system/${DAEMON}`],
    env: { ...mac.env, STANDIN_ROOT: "1" },
  }).output();
  assert.match((await mac.run(["--check", "default"])).stdout, /the job is ending/);
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.ok(job()?.pid !== undefined && !job()!.dying);
});

// ── --check ──

const BROKEN: [what: string, spoil: (mac: FakeMac) => void, words: RegExp][] = [
  ["the guard is gone", (mac) => Deno.removeSync(mac.guard), /lima-guard is not there/],
  ["the guard does not answer", (mac) => Deno.writeTextFileSync(mac.guard, "#!/bin/sh\nexit 1\n"), /does not answer/],
  [
    "the exit timeout is too small",
    (mac) => mac.daemon("default", Deno.readTextFileSync(`${mac.daemons}/${DAEMON}.plist`).replace(">60<", ">20<")),
    /the plist grants 20 s/,
  ],
  ["the exit timeout in force is too small", (mac) => {
    const job = `${mac.state}/jobs/system,${DAEMON}`;
    Deno.writeTextFileSync(job, Deno.readTextFileSync(job).replace("timeout 60", "timeout 5"));
  }, /launchd has an exit timeout of 5 s in force/],
  ["the job is not loaded", (mac) => Deno.removeSync(`${mac.state}/jobs/system,${DAEMON}`), /not loaded/],
  ["the job is disabled", (mac) => Deno.writeTextFileSync(`${mac.state}/disabled/system,${DAEMON}`, ""), /disabled/],
  [
    "everybody can write the guard",
    (mac) => mac.settings.owners = [{ prefix: mac.guard, uid: 0, mode: 0o777 }],
    /can be written by everybody/,
  ],
];
for (const [what, spoil, words] of BROKEN) {
  Deno.test(`--check is 1 when ${what}`, async () => {
    const { mac } = await macWith("daemon");
    await using _ = mac;
    await mac.run(["--yes", "default"]);
    assert.equal((await mac.run(["--check", "default"])).status, 0);
    spoil(mac);
    const run = await mac.run(["--check", "default"]);
    assert.equal(run.status, 1, run.stdout);
    assert.match(run.stdout, words);
    assert.match(run.stdout, /hint: lima-guard --install default/);
  });
}

Deno.test("--check is 75 when launchctl does not answer, and changes nothing ever", async () => {
  const { mac } = await macWith("daemon");
  await using _ = mac;
  await mac.run(["--yes", "default"]);
  mac.forget();
  mac.fault("print:1 hang");
  assert.equal((await mac.run(["--check", "default"])).status, 75);
  assert.ok(mac.log().every((line) => /^(id|launchctl print|lima-guard --version)/.test(line)), mac.log().join("\n"));
});

// ── options ──

Deno.test("--all takes every Lima job, and reports each", async () => {
  const { mac, text } = await macWith("daemon");
  await using _ = mac;
  await mac.load("system", mac.daemon("k3s", text.replaceAll("default", "k3s")));
  mac.daemon("broken", text);
  mac.agent("login", fixture(mac, "lima-2.2-agent").replaceAll("default", "login"));
  Deno.writeTextFileSync(`${mac.daemons}/com.example.other.plist`, text);
  const run = await mac.run(["--yes", "--all", "--json"]);
  const { instances, role } = JSON.parse(run.stdout);
  assert.equal(role, "install");
  assert.deepEqual(instances.map((i: { name: string; state: string; status: number }) => [i.name, i.state, i.status]), [
    ["broken", "refused", 1],
    ["default", "guarded", 0],
    ["k3s", "guarded", 0],
    ["login", "refused", 77],
  ]);
  assert.equal(run.status, 1);
  assert.ok(mac.job("system", "io.lima-vm.daemon.k3s")!.args.includes("--run"));
});

Deno.test("--all without any job is nothing to do", async () => {
  await using mac = FakeMac.make();
  const run = await mac.run(["--yes", "--all"]);
  assert.deepEqual([run.status, run.stdout], [0, "no Lima job\n"]);
});

Deno.test("--json has stable fields, and the steps with what came of them", async () => {
  const { mac, file } = await macWith("daemon");
  await using _ = mac;
  const report = (await mac.run(["--yes", "--json", "default"])).json();
  assert.deepEqual(Object.keys(report).sort(), [
    "blockers",
    "changes",
    "name",
    "notes",
    "plist",
    "seconds",
    "stage",
    "state",
    "status",
    "steps",
  ]);
  assert.equal(report.plist, file);
  assert.deepEqual(report.changes.map((c: { key: string }) => c.key), ["ProgramArguments", "ExitTimeOut"]);
  for (const step of report.steps) assert.deepEqual(Object.keys(step), ["kind", "what", "because", "outcome"]);
});

Deno.test("--keep-alive and --exit-timeout do what they say, and leave a KeepAlive that is there", async () => {
  const { mac, file } = await macWith("daemon");
  await using _ = mac;
  await mac.run(["--yes", "--keep-alive", "--exit-timeout", "45", "default"]);
  const text = Deno.readTextFileSync(file);
  assert.match(text, /<key>KeepAlive<\/key>\s*<dict>\s*<key>SuccessfulExit<\/key>\s*<false\/>/);
  assert.match(text, /<integer>45<\/integer>/);
  assert.match((await mac.run(["--dry-run", "--keep-alive", "default"])).stdout, /KeepAlive is there already/);
});

Deno.test("--guard is used where it stands", async () => {
  const { mac, job } = await macWith("daemon");
  await using _ = mac;
  const guard = mac.putGuard(`${mac.root}/system/opt/guards/lima-guard-1`);
  assert.equal((await mac.run(["--yes", "--guard", guard, "default"])).status, 0);
  assert.deepEqual(job()!.args, guarded(mac, guard));
  assert.ok(!mac.exists(mac.guard));
});

const BAD_GUARDS: [what: string, make: (path: string) => void, words: RegExp][] = [
  ["is not there", () => {}, /no such file/],
  [
    "is a script of Deno's",
    (path) => (Deno.writeTextFileSync(path, "import {} from 'x';"), Deno.chmodSync(path, 0o755)),
    /no compiled program/,
  ],
  [
    "is not executable",
    (path) => (Deno.writeTextFileSync(path, "#!/usr/bin/perl"), Deno.chmodSync(path, 0o644)),
    /not executable/,
  ],
  ["is a folder", (path) => Deno.mkdirSync(path), /no such file/],
];
for (const [what, make, words] of BAD_GUARDS) {
  Deno.test(`--guard is refused when it ${what}`, async () => {
    const { mac, file, text } = await macWith("daemon");
    await using _ = mac;
    const path = `${mac.root}/system/lima-guard`;
    make(path);
    const run = await mac.run(["--yes", "--guard", path, "default"]);
    assert.equal(run.status, 1);
    assert.match(run.stdout, words);
    assert.equal(Deno.readTextFileSync(file), text);
  });
}

Deno.test("from source the guard comes from dist, else from where it is, else it is compiled, else it is said how", async () => {
  const { mac } = await macWith("daemon", { isBinary: false });
  await using _ = mac;
  const none = await mac.run(["--yes", "default"]);
  assert.equal(none.status, 1);
  assert.match(
    none.stdout,
    /Cannot compile the guard here: .*no network.*deno task compile.*lima-guard-aarch64-apple-darwin/,
  );
  mac.putGuard(`${mac.root}/src/dist/lima-guard-aarch64-apple-darwin`, "\n# dist\n");
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  assert.ok(Deno.readTextFileSync(mac.guard).endsWith("# dist\n"));
  Deno.removeSync(`${mac.root}/src/dist/lima-guard-aarch64-apple-darwin`);
  assert.match((await mac.run(["--yes", "default"])).stdout, /guarded already/);
});

Deno.test("an unsigned guard is signed ad hoc on Apple silicon only, a signed one never, --sign always", async () => {
  const rows = [
    { arch: "aarch64", more: "\n# unsigned\n", args: [], signs: ["-"] },
    { arch: "x86_64", more: "\n# unsigned\n", args: [], signs: [] },
    { arch: "aarch64", more: "", args: [], signs: [] },
    {
      arch: "aarch64",
      more: "",
      args: ["--sign", "Developer ID Application: Zoe"],
      signs: ["Developer ID Application: Zoe"],
    },
  ];
  for (const { arch, more, args, signs } of rows) {
    const { mac } = await macWith("daemon", { arch });
    await using _ = mac;
    mac.putGuard(`${mac.root}/src/lima-guard`, more);
    const run = await mac.run(["--yes", ...args, "default"]);
    assert.equal(run.status, 0, run.stdout);
    assert.deepEqual(mac.log().flatMap((l) => /^codesign --force --sign (.*) \//.exec(l)?.[1] ?? []), signs);
  }
});

Deno.test("a guard's bytes are written anew, never through a link that stands in its place", async () => {
  const { mac } = await macWith("daemon");
  await using _ = mac;
  Deno.mkdirSync(mac.guards, { recursive: true });
  const victim = `${mac.root}/system/victim`;
  Deno.writeTextFileSync(victim, "precious");
  Deno.symlinkSync(victim, mac.guard);
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 1);
  assert.match(run.stdout, /there is a link/);
  assert.equal(Deno.readTextFileSync(victim), "precious");
});

Deno.test("what lies in the way beside the plist is replaced, never followed", async () => {
  const { mac, file, text } = await macWith("agent");
  await using _ = mac;
  const victim = `${mac.home}/victim`;
  Deno.writeTextFileSync(victim, "precious");
  Deno.symlinkSync(victim, `${file}.new-by-lima-guard`);
  Deno.symlinkSync(victim, file + BACKUP_SUFFIX);
  const run = await mac.run(["--yes", ...own(mac), "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.equal(Deno.readTextFileSync(victim), "precious");
  assert.equal(Deno.readTextFileSync(file + BACKUP_SUFFIX), text);
});

Deno.test("another LIMA_HOME is written into the environment, and a different one is refused", async () => {
  const mac = FakeMac.make();
  await using _ = mac;
  Deno.mkdirSync(`${mac.home}/vms/default`, { recursive: true });
  const text = fixture(mac, "lima-2.2-daemon").replace("/.lima/default", "/vms/default");
  const file = mac.daemon("default", text);
  await mac.load("system", file);
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  assert.ok(Deno.readTextFileSync(file).includes(`<string>${mac.home}/vms</string>`));
  assert.ok(mac.log().some((line) => line.endsWith(`--stop default --lima-home ${mac.home}/vms`)));
  const other = await mac.run(["--yes", "--lima-home", "/elsewhere", "default"]);
  assert.equal(other.status, 1);
  assert.match(other.stdout, /EnvironmentVariables has LIMA_HOME/);
  await mac.run(["--uninstall", "--yes", "default"]);
  assert.equal(Deno.readTextFileSync(file), text);
});

Deno.test("an instance on another volume: nothing of the job lies there, and all of it comes back", async () => {
  const mac = FakeMac.make();
  await using _ = mac;
  const text = fixture(mac, "lima-2.2-daemon").replace(
    /<string>.*\/\.lima\/default<\/string>/,
    "<string>/Volumes/no-such-volume/lima/default</string>",
  );
  const file = mac.daemon("default", text);
  await mac.load("system", file);
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 0, run.stdout);
  const after = Deno.readTextFileSync(file);
  const logs = `${mac.root}/system/Library/Logs/lima-guard`;
  assert.match(after, /<key>WorkingDirectory<\/key>\s*<string>\/<\/string>/);
  assert.ok(
    after.includes(`<string>${logs}/default.stdout.log</string>`) &&
      after.includes(`<string>${logs}/default.stderr.log</string>`),
  );
  assert.ok(after.includes("<string>/Volumes/no-such-volume/lima</string>"));
  assert.deepEqual(listed(logs), ["default.stderr.log", "default.stdout.log"]);
  assert.ok(mac.log().includes(`sudo -n chown 501:20 ${logs}/default.stdout.log`));
  assert.match(run.stdout, /Full Disk Access: add/);
  assert.match(run.stdout, /AutomountDisksWithoutUserLogin/);
  assert.match((await mac.run(["--yes", "default"])).stdout, /guarded already/);
  assert.equal((await mac.run(["--check", "default"])).status, 0);
  await mac.run(["--uninstall", "--yes", "default"]);
  assert.equal(Deno.readTextFileSync(file), text);
});

Deno.test("Colima's job is wrapped with --plist, for the instance and LIMA_HOME of its profile", async () => {
  const mac = FakeMac.make();
  await using _ = mac;
  const file = `${mac.agents}/homebrew.mxcl.colima.plist`;
  const text = fixture(mac, "homebrew-colima");
  Deno.writeTextFileSync(file, text);
  await mac.load("gui/501", file);
  const run = await mac.run(["--yes", "--plist", file, ...own(mac), "colima"]);
  assert.equal(run.status, 0, run.stdout + run.stderr);
  assert.match(run.stdout, /brew services/);
  const args = mac.job("gui/501", "homebrew.mxcl.colima")!.args;
  assert.deepEqual(args.slice(1), ["--run", "colima", "--", "/opt/homebrew/opt/colima/bin/colima", "start", "-f"]);
  assert.ok(
    Deno.readTextFileSync(file).includes(`<key>LIMA_HOME</key>\n\t\t<string>${mac.home}/.colima/_lima</string>`),
  );
  assert.ok(mac.log().some((line) => line.endsWith(`--stop colima --lima-home ${mac.home}/.colima/_lima`)));
  assert.equal((await mac.run(["--check", "--plist", file, "colima"])).status, 0);
  await mac.run(["--uninstall", "--yes", "--plist", file, "colima"]);
  assert.equal(Deno.readTextFileSync(file), text);
});

Deno.test("a plist in a folder that launchd does not read is only changed with --no-reload", async () => {
  const mac = FakeMac.make();
  await using _ = mac;
  const file = `${mac.home}/x.plist`;
  Deno.writeTextFileSync(file, fixture(mac, "lima-2.2-agent"));
  const run = await mac.run(["--yes", "--plist", file, ...own(mac), "default"]);
  assert.equal(run.status, 1);
  assert.match(run.stdout, /--no-reload/);
  assert.equal((await mac.run(["--yes", "--no-reload", "--plist", file, ...own(mac), "default"])).status, 0);
});

Deno.test("off a Mac only a named file can be looked at or changed", async () => {
  const mac = FakeMac.make({ os: "linux" });
  await using _ = mac;
  const file = mac.agent("default", Deno.readTextFileSync(new URL("lima-2.2-agent.plist", folder)));
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 1);
  assert.match(run.stdout, /part of macOS/);
  assert.equal((await mac.run(["--yes", "--plist", file, "default"])).status, 1);
  assert.equal((await mac.run(["--check", "--plist", file, "default"])).status, 1);
  assert.equal((await mac.run(["--yes", "--no-reload", "--plist", file, "default"])).status, 0);
  assert.equal((await mac.run(["--check", "--plist", file, "default"])).status, 0);
  assert.ok(mac.log().every((line) => !/launchctl|plutil|codesign/.test(line)));
});

// ── uninstall ──

Deno.test("uninstall of what is not wrapped is nothing to do", async () => {
  const { mac, file, text, job } = await macWith("daemon");
  await using _ = mac;
  const before = job();
  const run = await mac.run(["--uninstall", "default"]);
  assert.equal(run.status, 0);
  assert.match(run.stdout, /not guarded: nothing to do/);
  assert.equal(Deno.readTextFileSync(file), text);
  assert.deepEqual(job(), before);
});

Deno.test("uninstall without the guard's file lets launchd stop the job, which has its 60 s", async () => {
  const { mac, file, text, job } = await macWith("daemon");
  await using _ = mac;
  await mac.run(["--yes", "default"]);
  Deno.removeSync(mac.guard);
  mac.forget();
  const run = await mac.run(["--uninstall", "--yes", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.ok(!mac.log().some((line) => line.includes("--stop")));
  assert.equal(Deno.readTextFileSync(file), text);
  assert.deepEqual(job()!.args, LIMACTL);
});

Deno.test("uninstall without a backup says what it could not give back", async () => {
  const { mac, file, job } = await macWith("daemon");
  await using _ = mac;
  await mac.run(["--yes", "default"]);
  Deno.removeSync(file + BACKUP_SUFFIX);
  const run = await mac.run(["--uninstall", "--yes", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.match(run.stdout, /there is no backup/);
  assert.deepEqual(job()!.args, LIMACTL);
  assert.ok(Deno.readTextFileSync(file).includes("<integer>60</integer>"));
});

Deno.test("a backup of something else, or one that is damaged, is not believed", async () => {
  for (const bad of ["rubbish", "other"]) {
    const { mac, file, text } = await macWith("daemon");
    await using _ = mac;
    await mac.run(["--yes", "default"]);
    Deno.writeTextFileSync(file + BACKUP_SUFFIX, bad === "other" ? text.replaceAll("default", "k3s") : bad);
    const run = await mac.run(["--uninstall", "--yes", "default"]);
    assert.equal(run.status, 0, run.stdout);
    assert.match(run.stdout, /there is no backup/);
  }
});

Deno.test("an uninstall that was cut off before the job was loaded is finished by the next one", async () => {
  const { mac, file, text, job } = await macWith("daemon");
  await using _ = mac;
  await mac.run(["--yes", "default"]);
  mac.daemon("default", text);
  Deno.removeSync(`${mac.state}/jobs/system,${DAEMON}`);
  const run = await mac.run(["--uninstall", "--yes", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.deepEqual(job()!.args, LIMACTL);
  assert.ok(!mac.exists(file + BACKUP_SUFFIX));
});
